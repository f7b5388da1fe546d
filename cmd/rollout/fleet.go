package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/mmserve/mmserve/cmd/internal/process"
	"github.com/mmserve/mmserve/loadtest"
)

// replicas is how many servers there are.
const replicas = 3

// host is where replica i listens. Linux has all of 127.0.0.0/8, so that every replica has the same ports, as in a
// cluster.
func host(i int) string { return fmt.Sprintf("127.0.0.%d", i+1) }

// Ports beside that of the servers.
func (o options) admin() int    { return o.port + 1 }
func (o options) balancer() int { return o.port + 2 }

func (o options) address(i int) string { return fmt.Sprintf("%s:%d", host(i), o.port) }

// fleet is the servers of a run. One goroutine has it.
type fleet struct {
	options
	dir  string
	args []string
	now  [replicas]*process.Server
	all  []*process.Server // every life, for its log
}

func startFleet(ctx context.Context, o options, dir string, args []string) (*fleet, error) {
	f := &fleet{options: o, dir: dir, args: args}
	for i := range replicas {
		if err := f.start(ctx, i); err != nil {
			return nil, errors.Join(err, f.end())
		}
	}
	return f, nil
}

// start gives replica i another life.
func (f *fleet) start(ctx context.Context, i int) error {
	log := filepath.Join(f.dir, fmt.Sprintf("log-%d", len(f.all)))
	p, err := process.Start(ctx, f.bin, f.address(i), log, append([]string{"--drain-delay", "1s", "--grace", "20s",
		"--admin-address", fmt.Sprintf("%s:%d", host(i), f.admin())}, f.args...)...)
	if err != nil {
		return fmt.Errorf("replica %d: %w", i, err)
	}
	f.now[i] = p
	f.all = append(f.all, p)
	return nil
}

// trouble does what a run is about while streams are sent for so long. It gives the time at which a server was killed.
func (f *fleet) trouble(ctx context.Context, what string, length time.Duration) (killed float64, err error) {
	if what == killing {
		if err := wait(ctx, length/4); err != nil {
			return 0, err
		}
		killed = now()
		if err := f.now[1].Kill(); err != nil {
			return killed, err
		}
		// A cluster starts it again after a moment.
		return killed, errors.Join(wait(ctx, 2*time.Second), f.start(ctx, 1))
	}
	for i := range replicas {
		if err := wait(ctx, length/(replicas+1)/2); err != nil {
			return 0, err
		}
		f.now[i].Terminate()
		if err := f.now[i].Exit(); err != nil {
			return 0, fmt.Errorf("replica %d ended with: %w", i, err)
		}
		if err := f.start(ctx, i); err != nil {
			return 0, err
		}
		if err := wait(ctx, length/(replicas+1)/2); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// end stops what runs.
func (f *fleet) end() (err error) {
	for i, p := range f.now {
		if p != nil {
			p.Terminate()
			err = errors.Join(err, p.Exit())
			f.now[i] = nil
		}
	}
	return err
}

// log is what all lives wrote of their requests.
func (f *fleet) log() (list []loadtest.Entry, err error) {
	for _, p := range f.all {
		l, err := p.Requests()
		if err != nil {
			return nil, err
		}
		list = append(list, l...)
	}
	return list, nil
}

// now is the wall clock in milliseconds, which senders in other processes have too.
func now() float64 { return float64(time.Now().UnixMicro()) / 1000 }

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
