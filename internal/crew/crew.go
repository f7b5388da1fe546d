// Package crew runs parts of one piece of work on goroutines of their own. A panic of a part is a panic of who waits
// for it, where it can be recovered: one request fails then, not the process.
package crew

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Group is an errgroup.Group whose Wait panics where a part did. The zero value is one without a context; its parts end
// by themselves.
type Group struct {
	parts    *errgroup.Group // nil until New or the first part
	mu       sync.Mutex
	panicked *Panic
}

// Panic is what a part panicked with, and where.
type Panic struct {
	Value any
	Stack []byte
}

// Error is the value and the stack: for logs, not for who asked.
func (p *Panic) Error() string { return fmt.Sprintf("%v\n%s", p.Value, p.Stack) }

// New gives a group, and a context that is done once a part fails or panics, or all have ended.
func New(ctx context.Context) (*Group, context.Context) {
	parts, ctx := errgroup.WithContext(ctx)
	return &Group{parts: parts}, ctx
}

// SetLimit bounds how many parts of a group of New run at once. Go waits for a place.
func (g *Group) SetLimit(n int) { g.parts.SetLimit(n) }

// Go runs a part.
func (g *Group) Go(part func() error) {
	if g.parts == nil {
		g.parts = new(errgroup.Group)
	}
	g.parts.Go(func() error {
		err := Try(part)
		if p, ok := err.(*Panic); ok {
			g.mu.Lock()
			g.panicked = p
			g.mu.Unlock()
		}
		return err
	})
}

// Wait waits for all parts and gives the first error. It panics with a *Panic where a part panicked.
func (g *Group) Wait() error {
	if g.parts == nil {
		return nil
	}
	err := g.parts.Wait()
	if g.panicked != nil {
		panic(g.panicked)
	}
	return err
}

// Try runs a function whose panic is its error, a *Panic.
func Try(f func() error) (err error) {
	defer func() {
		switch v := recover().(type) {
		case nil:
		case *Panic:
			err = v
		default:
			err = &Panic{Value: v, Stack: debug.Stack()}
		}
	}()
	return f()
}
