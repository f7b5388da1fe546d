package main

import (
	"context"
	"fmt"
	"os/exec"
	"sync"
	"time"
)

// job is one request: a text, with an image (JPEG) before it unless that is nil, and how many tokens to write.
type job struct {
	text   string
	image  []byte
	tokens int
	batch  bool // nobody waits for it
}

// answer is what one request measured.
type answer struct {
	ttft           time.Duration
	prompt, tokens int
}

// peer is a program under test.
type peer interface {
	name() string
	// family is what its quantisations have in common; mmserve is compared with the best of a family.
	family() string
	// missing says why the peer cannot run here, "" if it can.
	missing() string
	// command is the peer's process; it listens on addr once ready returns nil.
	command(addr string) *exec.Cmd
	ready(ctx context.Context, addr string) error
	// do does the jobs, at most limit at a time.
	do(ctx context.Context, jobs []job, limit int) ([]answer, error)
}

// each asks a server for the jobs one by one, limit at a time.
func each(ctx context.Context, jobs []job, limit int, ask func(context.Context, job) (answer, error)) ([]answer,
	error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	answers, places := make([]answer, len(jobs)), make(chan struct{}, limit)
	for i, j := range jobs {
		places <- struct{}{}
		group.Go(func() {
			defer func() { <-places }()
			var err error
			if answers[i], err = ask(ctx, j); err != nil {
				cancel(err)
			}
		})
	}
	group.Wait()
	return answers, context.Cause(ctx)
}

func poll(ctx context.Context, ok func() bool) error {
	for !ok() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("the server did not get ready: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}
