package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mmserve/mmserve/loadtest"
)

// process is a running `mmserve serve`.
type process struct {
	cmd  *exec.Cmd
	log  string // the path of its log
	done chan struct{}

	exit    error // valid once done is closed
	drained time.Duration

	mu    sync.Mutex
	usage usages
}

// usage is what a process holds at a time.
type usage struct {
	rss float64 // MB
	fds int
}

type usages []usage

func rss(u usage) float64 { return u.rss }
func fds(u usage) float64 { return float64(u.fds) }

func (u usages) median(of func(usage) float64) float64 {
	v := make([]float64, len(u))
	for i := range u {
		v[i] = of(u[i])
	}
	slices.Sort(v)
	return v[len(v)/2]
}

func (u usages) most(of func(usage) float64) (most float64) {
	for _, x := range u {
		most = max(most, of(x))
	}
	return most
}

// startServer starts a server and waits until it is ready and has answered.
func startServer(ctx context.Context, bin, addr, log string) (*process, error) {
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := &process{cmd: exec.Command(bin, append([]string{"--log-format", "json", "serve", "--listen", addr}, serveArgs...)...), log: log, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = f, f
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.done)
		p.exit = p.cmd.Wait()
	}()
	target, err := loadtest.DialGRPC(addr, false)
	if err != nil {
		return nil, errors.Join(err, p.kill())
	}
	defer target.Close()
	ready, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := target.Ready(ready); err != nil {
		text, _ := os.ReadFile(log)
		return nil, errors.Join(fmt.Errorf("%w\n%s", err, text[max(0, len(text)-2000):]), p.kill())
	}
	return p, nil
}

// watch looks at the process every half second until ctx is done.
func (p *process) watch(ctx context.Context) {
	ticker := time.NewTicker(500 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if u, err := p.look(); err == nil {
				p.mu.Lock()
				p.usage = append(p.usage, u)
				p.mu.Unlock()
			}
		case <-ctx.Done():
			return
		}
	}
}

func (p *process) look() (u usage, err error) {
	proc := fmt.Sprintf("/proc/%d", p.cmd.Process.Pid)
	list, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		return u, err
	}
	status, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		return u, err
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	if _, err := fmt.Sscanf(rest, "%f", &u.rss); err != nil {
		return u, err
	}
	u.rss /= 1000
	u.fds = len(list)
	return u, nil
}

// terminate sends SIGTERM and waits for the end.
func (p *process) terminate() {
	began := time.Now()
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it fails if the process has ended, which exit tells
	select {
	case <-p.done:
	case <-time.After(time.Minute):
		p.exit = errors.Join(errors.New("still running a minute after SIGTERM"), p.kill())
	}
	p.drained = time.Since(began)
}

func (p *process) kill() error {
	err := p.cmd.Process.Kill()
	<-p.done
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// goroutines ends the process and counts the goroutines it had: SIGQUIT has the runtime print them all.
func (p *process) goroutines(ctx context.Context) (int, error) {
	// Connections that were closed a moment ago have goroutines that end now.
	select {
	case <-time.After(3 * time.Second):
	case <-ctx.Done():
	}
	if err := p.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		return 0, err
	}
	<-p.done
	text, err := os.ReadFile(p.log)
	n := bytes.Count(text, []byte("\ngoroutine "))
	if err == nil && n < 2 {
		err = errors.New("SIGQUIT gave no list of goroutines")
	}
	return n, err
}

// requests are those in the log.
func (p *process) requests() ([]loadtest.Entry, error) {
	f, err := os.Open(p.log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return loadtest.ReadLog(f)
}
