package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"time"

	"github.com/mmserve/mmserve/cmd/internal/attack"
	"github.com/mmserve/mmserve/loadtest"
)

// honest are the others: a few requests a second, texts and small images, short answers.
type honest struct {
	target *loadtest.GRPC
	mix    *loadtest.Mix
	runs   uint64
}

// honestRate is their requests a second, well below what the embedded model carries.
const honestRate = 6

// honestSeed draws their arrivals and sizes.
const honestSeed = 1

func newHonest(addr string) (*honest, error) {
	m := &loadtest.Mix{IgnoreEOS: true, ImageShare: 0.3, Fresh: true}
	var err [5]error
	m.Prompt, err[0] = loadtest.ParseLengths("uniform:4,20")
	m.Output, err[1] = loadtest.ParseLengths("uniform:8,24")
	m.ImagesEach, err[2] = loadtest.ParseLengths("1")
	m.Images, err[3] = loadtest.DrawImages(16, "256x256,512x512", 0.2, 1)
	h := &honest{mix: m}
	h.target, err[4] = loadtest.DialGRPC(addr, false)
	return h, errors.Join(err[:]...)
}

func (h *honest) close() { _ = h.target.Close() }

// p99 loads the server for d and gives the 99th percentile of the whole answers' times. Arrivals and sizes are the same
// each time; texts and images are not. A request that fails is an error.
func (h *honest) p99(ctx context.Context, d time.Duration) (time.Duration, error) {
	arrivals, err := loadtest.ParseProcess("poisson")
	if err != nil {
		return 0, err
	}
	h.runs++
	m := *h.mix
	m.Name = fmt.Sprintf("honest%d", h.runs)
	r, err := loadtest.Run(ctx, loadtest.Config{
		Target: h.target, Mix: &m, Seed: honestSeed, Deadline: 30 * time.Second,
		Schedule: loadtest.Schedule{Stages: []loadtest.Stage{{Rate: honestRate, Duration: d}}, Process: arrivals},
	})
	if err != nil {
		return 0, err
	}
	sum := loadtest.Summarize(r.Samples, 0, d, loadtest.SLO{})
	if sum.OK != sum.Due || sum.Due == 0 {
		return 0, fmt.Errorf("%d of %d honest requests were answered: %v", sum.OK, sum.Due, sum.Errors)
	}
	return time.Duration(sum.E2E.P99 * float64(time.Millisecond)), ctx.Err()
}

// startAttackers has c.attackers attack from a process of their own until leave is called. They have the lowest
// priority on this machine: what they spend on attacking must not be what the others wait for.
func startAttackers(ctx context.Context, a attack.Attack, c config) (leave func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "nice", "-n", "19", self, "-attacker", a.Name, "-listen", c.addr, "-attackers",
		strconv.Itoa(c.attackers))
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() {
		_ = in.Close() // which ends it; how does not matter
		_ = cmd.Wait()
	}, nil
}

// attackAs attacks by the attack of that name until standard input ends.
func attackAs(ctx context.Context, name string, c config) {
	ctx, leave := context.WithCancel(ctx)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		leave()
	}()
	for _, a := range attack.List() {
		if a.Name == name {
			many(ctx, a, c)
		}
	}
}

// many has c.attackers attack again and again until ctx is done.
func many(ctx context.Context, a attack.Attack, c config) {
	var group sync.WaitGroup
	for range c.attackers {
		group.Go(func() {
			for ctx.Err() == nil {
				once, leave := context.WithTimeout(ctx, attackTime)
				_ = a.Once(once, c.addr)
				leave()
				select { // ten attackers that only wait for refusals would measure this program
				case <-time.After(100 * time.Millisecond):
				case <-ctx.Done():
				}
			}
		})
	}
	group.Wait()
}
