package chat

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// The budgets of one render. Honest templates need a hundredth of each, however long the conversation.
const (
	baseBytes    = 24 << 20        // bytes of values made, and
	bytesPerByte = 24              // as many for each byte of the conversation, but
	mostBytes    = 128 << 20       // no more than these
	maxSteps     = 2_000_000       // expressions and statements evaluated, and items visited
	maxWall      = 5 * time.Second // of the clock, on a machine with other work: the steps take less than 2 of a core
	maxCalls     = 60              // calls of macros and recursive loops inside each other
	maxRepr      = 200             // lists inside lists that are printed or compared
	maxPrompt    = 64 << 20        // bytes of a prompt
)

// budget bounds what one render may do. Every operation charges what it makes before it makes it.
type budget struct {
	ctx      context.Context
	deadline time.Time
	bytes    int
	most     int
	steps    int
	next     int // the count of steps at which the clock is read
	calls    int
}

// exceeded is the error of a template that does more than it may. It ends the render: no template can catch it.
type exceeded string

func (e exceeded) Error() string { return string(e) }

func newBudget(ctx context.Context, input int) budget {
	most := baseBytes + min(input, mostBytes)*bytesPerByte
	return budget{ctx: ctx, deadline: time.Now().Add(maxWall), most: min(most, mostBytes)}
}

// charge takes n bytes, which the caller is about to make.
func (b *budget) charge(n int) error {
	if n < 0 || n > b.most-b.bytes {
		return exceeded(fmt.Sprintf("the budget of %d bytes made by the template for this conversation is exceeded", b.most))
	}
	b.bytes += n
	return b.work(n)
}

// times charges for n things of size bytes each.
func (b *budget) times(n, size int) error {
	if n > 0 && size > b.most/n {
		return b.charge(b.most + 1)
	}
	return b.charge(max(n, 0) * size)
}

// looked counts a look at n bytes. The next step sees whether it was one too many.
func (b *budget) looked(n int) { b.steps += n / 256 }

// work counts a look at n bytes.
func (b *budget) work(n int) error { return b.step(n / 256) }

// step counts n steps, and now and then looks at the clock and whether the caller still waits.
func (b *budget) step(n int) error {
	if b.steps += n; b.steps < b.next {
		return nil
	}
	b.next = b.steps + 1000
	if b.steps > maxSteps {
		return exceeded(fmt.Sprintf("the budget of %d steps is exceeded", maxSteps))
	}
	if err := b.ctx.Err(); err != nil {
		var beyond exceeded
		if errors.As(context.Cause(b.ctx), &beyond) {
			return beyond
		}
		return err
	}
	if time.Now().After(b.deadline) {
		return exceeded(fmt.Sprintf("the budget of %v is exceeded", maxWall))
	}
	return nil
}
