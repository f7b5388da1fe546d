// Package process runs `mmserve serve` for programs that try it from outside, and looks at what it holds and uses.
package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mmserve/mmserve/loadtest"
)

// Server is a running `mmserve serve`.
type Server struct {
	cmd  *exec.Cmd
	log  string // the path of its log
	done chan struct{}

	exit    error // valid once done is closed
	drained time.Duration

	mu    sync.Mutex
	usage Usages
}

// Usage is what a process holds at a time, and the processor time it has used since it started.
type Usage struct {
	RSS float64 // MB
	FDs int
	CPU time.Duration
}

// Usages are looks at one process, oldest first.
type Usages []Usage

// RSS and FDs pick a field of a Usage, for Median and Max.
func RSS(u Usage) float64 { return u.RSS }

// FDs picks the file descriptors of a Usage.
func FDs(u Usage) float64 { return float64(u.FDs) }

// Median is the median of what of picks; u has one element or more.
func (u Usages) Median(of func(Usage) float64) float64 {
	v := make([]float64, len(u))
	for i := range u {
		v[i] = of(u[i])
	}
	slices.Sort(v)
	return v[len(v)/2]
}

// Max is the largest of what of picks, 0 if u is empty.
func (u Usages) Max(of func(Usage) float64) (most float64) {
	for _, x := range u {
		most = max(most, of(x))
	}
	return most
}

// Start starts a server with the flags of `mmserve serve` in args and waits until it is ready. Its log goes to the file
// log.
func Start(ctx context.Context, bin, addr, log string, args ...string) (*Server, error) {
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := exec.Command(bin, append([]string{"--log-format", "json", "serve", "--listen", addr}, args...)...)
	cmd.Stdout, cmd.Stderr = f, f
	p := &Server{cmd: cmd, log: log, done: make(chan struct{})}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.done)
		p.exit = p.cmd.Wait()
	}()
	target, err := loadtest.DialGRPC(addr, false)
	if err != nil {
		return nil, errors.Join(err, p.Kill())
	}
	defer target.Close()
	ready, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := target.Ready(ready); err != nil {
		text, _ := os.ReadFile(log)
		return nil, errors.Join(fmt.Errorf("%w\n%s", err, text[max(0, len(text)-2000):]), p.Kill())
	}
	return p, nil
}

// Done is closed when the process has ended.
func (p *Server) Done() <-chan struct{} { return p.done }

// Exit is how the process ended; nil if it ended well. It may be asked once Done is closed.
func (p *Server) Exit() error { return p.exit }

// Drained is the time from SIGTERM to the end of the process that Terminate waited for.
func (p *Server) Drained() time.Duration { return p.drained }

// Watch looks at the process at every interval until ctx is done; Watched gives what it saw.
func (p *Server) Watch(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if u, err := p.Look(); err == nil {
				p.mu.Lock()
				p.usage = append(p.usage, u)
				p.mu.Unlock()
			}
		case <-ctx.Done():
			return
		}
	}
}

// Watched is what Watch saw up to now, and forgets it.
func (p *Server) Watched() Usages {
	p.mu.Lock()
	defer p.mu.Unlock()
	u := p.usage
	p.usage = nil
	return u
}

// ticksPerSecond is USER_HZ, which Linux reports processor times in on every architecture Go runs on.
const ticksPerSecond = 100

// Look reads what the process holds now, from Linux's /proc.
func (p *Server) Look() (u Usage, err error) {
	proc := fmt.Sprintf("/proc/%d", p.cmd.Process.Pid)
	list, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		return u, err
	}
	u.FDs = len(list)
	status, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		return u, err
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	if _, err := fmt.Sscanf(rest, "%f", &u.RSS); err != nil {
		return u, err
	}
	u.RSS /= 1000
	stat, err := os.ReadFile(filepath.Join(proc, "stat"))
	if err != nil {
		return u, err
	}
	// The fields after the command's name, which stands in parentheses, start with the third: utime is the 14th.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 13 {
		return u, fmt.Errorf("%s/stat has %d fields", proc, len(fields))
	}
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return u, err
		}
		u.CPU += time.Duration(n) * time.Second / ticksPerSecond
	}
	return u, nil
}

// Terminate sends SIGTERM and waits for the end.
func (p *Server) Terminate() {
	began := time.Now()
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it fails if the process has ended, which exit tells
	select {
	case <-p.done:
	case <-time.After(time.Minute):
		p.exit = errors.Join(errors.New("still running a minute after SIGTERM"), p.Kill())
	}
	p.drained = time.Since(began)
}

// Kill ends the process at once, by SIGKILL.
func (p *Server) Kill() error {
	err := p.cmd.Process.Kill()
	<-p.done
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Goroutines ends the process and counts the goroutines it had: SIGQUIT has the runtime print them all.
func (p *Server) Goroutines(ctx context.Context) (int, error) {
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
	if err == nil {
		p.exit = nil // SIGQUIT was meant
	}
	return n, err
}

// Requests are those in the log.
func (p *Server) Requests() ([]loadtest.Entry, error) {
	f, err := os.Open(p.log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return loadtest.ReadLog(f)
}
