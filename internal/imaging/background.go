package imaging

import (
	"context"
	"io"
	"sync"
)

// background is the work of decoders that cannot be interrupted. It goes on when its caller leaves, holding what it
// holds.
type background struct {
	mu      sync.Mutex
	running int
	over    []func() // to be called when nothing runs
}

type backgroundKey struct{}

// with has run find b in a context.
func (b *background) with(ctx context.Context) context.Context {
	return context.WithValue(ctx, backgroundKey{}, b)
}

// whenOver calls f when nothing runs: at once, as a rule.
func (b *background) whenOver(f func()) {
	b.mu.Lock()
	if b.running > 0 {
		b.over = append(b.over, f)
		f = func() {}
	}
	b.mu.Unlock()
	f()
}

func (b *background) end() {
	b.mu.Lock()
	var over []func()
	if b.running--; b.running == 0 {
		over, b.over = b.over, nil
	}
	b.mu.Unlock()
	for _, f := range over {
		f()
	}
}

// uninterrupted runs a decoder that looks at no context, over data that it reads from a reader, and waits for it no
// longer than ctx allows. Once it has returned, data is not read any more. A panic of the decoder is an error.
func uninterrupted[T any](ctx context.Context, data io.Reader, decode func(io.Reader) (T, error)) (T, error) {
	b, ok := ctx.Value(backgroundKey{}).(*background)
	if !ok {
		return decode(data) // a test's, of a format alone
	}
	type result struct {
		decoded T
		err     error
	}
	from := &gate{r: data}
	done := make(chan result, 1)
	b.mu.Lock()
	b.running++
	b.mu.Unlock()
	go func() {
		defer b.end()
		r := result{err: errPanic}
		defer func() {
			_ = recover()
			done <- r
		}()
		decoded, err := decode(from)
		r = result{decoded, err}
	}()
	select {
	case r := <-done:
		return r.decoded, r.err
	case <-ctx.Done():
		from.close()
		var none T
		return none, context.Cause(ctx)
	}
}

// gate is a reader that ends when it is closed.
type gate struct {
	mu     sync.Mutex
	r      io.Reader
	closed bool
}

func (g *gate) Read(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return 0, io.ErrUnexpectedEOF
	}
	return g.r.Read(p)
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}
