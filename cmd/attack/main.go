// Command attack does to a running `mmserve serve` what attackers are known to do to servers of this kind: counts of
// four billion, messages that never end, images that unpack to gigabytes, grammars that explode. For each kind it says
// how one attacker was answered and what that took of the server's memory and processor, and how much longer others
// waited while ten attackers did the same. It fails where one of the bounds of docs/reliability.md is passed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"

	"github.com/mmserve/mmserve/cmd/internal/attack"
	"github.com/mmserve/mmserve/cmd/internal/process"
)

// Bounds of a single attack on an idle server; docs/reliability.md states them.
const (
	maxRSS   = 256.0           // MB above idle
	maxCPU   = 2 * time.Second // of the processor, until it is refused or the attacker leaves
	maxAfter = time.Second     // until the server is idle again once the attacker has left
	maxP99   = 2.0             // others' p99 while ten attack ÷ before
)

func main() {
	bin := flag.String("mmserve", "bin/mmserve", "mmserve's binary")
	addr := flag.String("listen", "127.0.0.1:18092", "where the server listens for gRPC; for HTTP it does at the next port")
	only := flag.String("run", ".", "attacks to run, a regular expression")
	attackers := flag.Int("attackers", 10, "how many attack at once while others' times are taken; 0: only one attacker is tried")
	window := flag.Duration("window", 6*time.Second, "how long others' times are taken at a time")
	rounds := flag.Int("rounds", 3, "how often they are taken, without attackers and beside them in turns; the medians count")
	child := flag.String("attacker", "", "attack -listen by this attack until standard input ends: for this program's own use")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c := config{*bin, *addr, *only, *attackers, *window, *rounds}
	if *child != "" {
		attackAs(ctx, *child, c)
		return
	}
	if err := run(ctx, c); err != nil {
		fmt.Fprintln(os.Stderr, "attack:", err)
		os.Exit(1)
	}
}

type config struct {
	bin, addr, only string
	attackers       int
	window          time.Duration
	rounds          int
}

// run starts one server for all attacks: what an earlier one leaves behind is a fault of the later one's numbers too.
func run(ctx context.Context, c config) error {
	only, err := regexp.Compile(c.only)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	dir, err := os.MkdirTemp("", "mmserve-attack")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s, err := process.Start(ctx, c.bin, c.addr, filepath.Join(dir, "log"), "--slots", "8", "--admin-address", "",
		"--http-listen", attack.HTTPAddr(c.addr))
	if err != nil {
		return err
	}
	defer func() { _ = s.Kill() }() // after Terminate it has ended already
	honest, err := newHonest(c.addr)
	if err != nil {
		return err
	}
	defer honest.close()
	if _, err := honest.p99(ctx, c.window/2); err != nil { // caches and heap as in a server at work
		return err
	}
	fmt.Printf("%-24s %-60s %8s %8s %8s %8s\n", "attack", "answer", "RSS MB", "CPU s", "idle s", "p99 ×")
	failed := 0
	for _, a := range attack.List() {
		if !only.MatchString(a.Name) {
			continue
		}
		r, err := try(ctx, s, honest, a, c)
		if err != nil {
			return fmt.Errorf("%s: %w", a.Name, err)
		}
		fmt.Println(r)
		if !r.ok() {
			failed++
		}
	}
	s.Terminate()
	if err := s.Exit(); err != nil {
		return fmt.Errorf("the server ended with: %w", err)
	}
	if failed > 0 {
		return fmt.Errorf("%d attacks passed a bound", failed)
	}
	return nil
}

// result is what an attack did.
type result struct {
	attack.Attack
	answer     string
	rss        float64 // MB above idle
	cpu, after time.Duration
	p99        float64 // ratio; 0 if it was not taken
}

func (r result) ok() bool {
	return r.rss <= maxRSS && (r.cpu <= maxCPU || r.Work) && r.after <= maxAfter && r.p99 <= maxP99
}

func (r result) String() string {
	word := ""
	if !r.ok() {
		word = "  FAILED"
	}
	return fmt.Sprintf("%-24s %-60.60s %8.0f %8.2f %8.2f %8.2f%s", r.Name, r.answer, r.rss, r.cpu.Seconds(),
		r.after.Seconds(), r.p99, word)
}

// attackTime is how long an attacker holds on before it leaves.
const attackTime = 10 * time.Second

// try has one attacker attack an idle server, then several one with honest load.
func try(ctx context.Context, s *process.Server, h *honest, a attack.Attack, c config) (result, error) {
	r := result{Attack: a}
	idle, err := s.Look()
	if err != nil {
		return r, err
	}
	watching, unwatch := context.WithCancel(ctx)
	defer unwatch()
	go s.Watch(watching, 10*time.Millisecond)
	attacking, leave := context.WithTimeout(ctx, attackTime)
	r.answer = a.Once(attacking, c.addr)
	left, err := s.Look()
	leave()
	if err != nil {
		return r, errors.Join(errors.New("the server died"), err)
	}
	r.cpu = left.CPU - idle.CPU
	if r.after, err = quiet(ctx, s); err != nil {
		return r, err
	}
	unwatch()
	r.rss = s.Watched().Max(process.RSS) - idle.RSS
	if c.attackers == 0 {
		return r, nil
	}
	if r.p99, err = slower(ctx, h, a, c); err != nil {
		return r, err
	}
	_, err = quiet(ctx, s)
	return r, err
}

// slower is how many times as long others wait while c.attackers attack: the medians of the rounds' 99th percentiles,
// as one window has too few answers for its own to tell.
func slower(ctx context.Context, h *honest, a attack.Attack, c config) (float64, error) {
	var before, during []time.Duration
	for range max(1, c.rounds) {
		alone, err := h.p99(ctx, c.window)
		if err != nil {
			return 0, err
		}
		leave, err := startAttackers(ctx, a, c)
		if err != nil {
			return 0, err
		}
		beside, err := h.p99(ctx, c.window)
		leave()
		if err != nil {
			return 0, fmt.Errorf("while %d attacked: %w", c.attackers, err)
		}
		before, during = append(before, alone), append(during, beside)
	}
	slices.Sort(before)
	slices.Sort(during)
	return during[len(during)/2].Seconds() / before[len(before)/2].Seconds(), nil
}

// quiet waits until the process uses less than a tenth of a processor, and says how long that took; 30 s at most.
func quiet(ctx context.Context, s *process.Server) (time.Duration, error) {
	const step = 200 * time.Millisecond
	began := time.Now()
	before, err := s.Look()
	for err == nil && time.Since(began) < 30*time.Second && ctx.Err() == nil {
		time.Sleep(step)
		var now process.Usage
		if now, err = s.Look(); now.CPU-before.CPU <= step/10 {
			return time.Since(began) - step, err
		}
		before = now
	}
	return time.Since(began), errors.Join(err, ctx.Err())
}
