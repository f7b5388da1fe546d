// Command soak runs `mmserve serve` for a long time at 80 % of what it can carry, with everything going on that
// happens to servers: senders that give up, read slowly, send nonsense, are killed; SIGTERM under load and a restart; a
// full disk. It fails unless every request is accounted for, in the senders' books and the server's log, and memory,
// file descriptors and goroutines are at the end what they were at the beginning.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/mmserve/mmserve/cmd/internal/process"
	"github.com/mmserve/mmserve/loadtest"
)

func main() {
	if len(os.Args) == 4 && os.Args[1] == victimArg {
		victim(os.Args[2], os.Args[3])
		return
	}
	bin := flag.String("mmserve", "bin/mmserve", "mmserve's binary")
	duration := flag.Duration("duration", 10*time.Minute, "time under load")
	rate := flag.Float64("rate", 0, "requests/s (default: 80 % of what a search finds)")
	share := flag.Float64("share", 0.8, "part of the rate that a search finds")
	addr := flag.String("listen", "127.0.0.1:18091", "where the server listens")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *bin, *addr, *duration, *rate, *share); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

// serveArgs are the server's flags besides its address.
var serveArgs = []string{"--slots", "8", "--max-waiting", "32", "--grace", "30s", "--max-message-bytes", "8388608",
	"--encoder-cache-mib", "1"}

func run(ctx context.Context, bin, addr string, d time.Duration, rate, share float64) error {
	dir, err := os.MkdirTemp("", "mmserve-soak")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	mix, err := newMix()
	if err != nil {
		return err
	}
	s := &soak{bin: bin, addr: addr, dir: dir, mix: mix, rate: rate, codes: map[string]int{}}

	// How many goroutines does a server have that has answered and is idle again?
	first, err := process.Start(ctx, bin, addr, filepath.Join(dir, "log-0"), serveArgs...)
	if err != nil {
		return err
	}
	if rate == 0 {
		knee, err := findRate(ctx, addr, mix)
		if err != nil {
			return errors.Join(err, first.Kill())
		}
		s.rate = share * knee
		fmt.Printf("a search finds %.3g requests/s sustained; the load is %.3g\n", knee, s.rate)
	}
	if s.idle, err = first.Goroutines(ctx); err != nil {
		return err
	}

	// Three lives of the server, the first the longest: memory is judged in it.
	for life, part := range []float64{0.6, 0.2, 0.2} {
		if err := s.live(ctx, life, time.Duration(part*float64(d))); err != nil {
			return err
		}
	}
	s.checkBooks()
	text, status := fullDisk(ctx, bin, addr, dir)
	s.check("full disk", status == nil, "%s", text)
	if s.failed > 0 {
		return fmt.Errorf("%d checks failed", s.failed)
	}
	return nil
}

// soak is a run: what it is made of, and what came of it so far.
type soak struct {
	bin, addr, dir string
	mix            *loadtest.Mix
	rate           float64 // requests a second
	idle           int     // goroutines of an idle server that has answered

	failed int // checks
	total  loadtest.Account
	codes  map[string]int // how many requests ended with each
}

func (s *soak) check(what string, ok bool, format string, args ...any) {
	word := "ok    "
	if !ok {
		word = "FAILED"
		s.failed++
	}
	fmt.Printf("%s  %s: %s\n", word, what, fmt.Sprintf(format, args...))
}

// live is one life of the server under load, from its start to its end, with what is to be checked of it.
func (s *soak) live(ctx context.Context, life int, d time.Duration) error {
	p, err := process.Start(ctx, s.bin, s.addr, filepath.Join(s.dir, fmt.Sprintf("log-%d", life+1)), serveArgs...)
	if err != nil {
		return err
	}
	t := &trouble{addr: s.addr, mix: s.mix, rate: s.rate, life: life + 1}
	samples, err := t.live(ctx, p, d)
	if err != nil {
		return errors.Join(err, p.Kill())
	}
	if ctx.Err() != nil {
		return errors.Join(ctx.Err(), p.Kill())
	}
	log, err := p.Requests()
	if err != nil {
		return err
	}
	s.count(samples, loadtest.Reconcile(samples, log))
	if life > 0 {
		s.check(fmt.Sprintf("SIGTERM under load, %d", life), p.Exit() == nil, "exit %v after %v", exitCode(p.Exit()),
			p.Drained().Round(time.Millisecond))
		return nil
	}
	u := p.Watched()
	if len(u) >= 40 {
		var quarter [4]float64
		for i := range quarter {
			quarter[i] = u[i*len(u)/4 : (i+1)*len(u)/4].Median(process.RSS)
		}
		s.check("memory", quarter[3] <= quarter[1]*1.05+16, "%.0f MB, the medians of four quarters of the first life "+
			"(allowed from the second to the last: 5 %% and 16 MB)", quarter)
	}
	s.check("file descriptors", t.fdsAfter <= t.fdsBefore+2, "%d before the load, at most %.0f under it, %d after it",
		t.fdsBefore, u.Max(process.FDs), t.fdsAfter)
	s.check("goroutines", t.goroutines <= s.idle+4, "%d in an idle server that has answered, %d after the load",
		s.idle, t.goroutines)
	return nil
}

// count adds what became of a life's requests.
func (s *soak) count(samples []loadtest.Sample, a loadtest.Account) {
	for _, q := range samples {
		s.codes[q.Code]++
	}
	s.total.Sent += a.Sent
	s.total.Logged += a.Logged
	s.total.Matched += a.Matched
	s.total.Unheard += a.Unheard
	s.total.AnsweredTokens += a.AnsweredTokens
	s.total.LoggedTokens += a.LoggedTokens
	s.total.Problems = append(s.total.Problems, a.Problems...)
}

// checkBooks compares what was sent with what the server's log says.
func (s *soak) checkBooks() {
	t := s.total
	s.check("books", len(t.Problems) == 0 && t.Matched+t.Unheard == t.Sent, "%d requests sent, %d in the log; "+
		"%d ended alike in both, %d never came to the server; %d problems",
		t.Sent, t.Logged, t.Matched, t.Unheard, len(t.Problems))
	for _, p := range t.Problems[:min(len(t.Problems), 20)] {
		fmt.Println("        " + p)
	}
	s.check("tokens", t.AnsweredTokens == t.LoggedTokens && t.AnsweredTokens > 0,
		"%d in whole answers, %d in the log for them", t.AnsweredTokens, t.LoggedTokens)
	fmt.Println("        ends:", s.codes)
	s.check("no failure of the server's", s.codes["INTERNAL"] == 0 && s.codes["TRUNCATED"] == 0,
		"%d INTERNAL, %d broken streams", s.codes["INTERNAL"], s.codes["TRUNCATED"])
}

// findRate searches for the rate at which answers still come within two seconds.
func findRate(ctx context.Context, addr string, mix *loadtest.Mix) (float64, error) {
	target, err := loadtest.DialGRPC(addr, false)
	if err != nil {
		return 0, err
	}
	defer target.Close()
	arrivals, err := loadtest.ParseProcess("poisson")
	if err != nil {
		return 0, err
	}
	steps := 0
	k, err := loadtest.Search{From: 2, To: 200, Ratio: 1.25, Attain: 0.95}.Find(ctx,
		func(ctx context.Context, rate float64) (float64, error) {
			m := *mix
			m.Name, m.AbandonShare = fmt.Sprintf("search-%d", steps), 0
			steps++
			const warmUp, d = 2 * time.Second, 8 * time.Second
			r, err := loadtest.Run(ctx, loadtest.Config{Target: target, Mix: &m, Seed: uint64(steps), WarmUp: warmUp,
				Schedule: loadtest.Schedule{Stages: []loadtest.Stage{{Rate: rate, Duration: d}}, Process: arrivals}})
			if err != nil {
				return 0, err
			}
			return loadtest.Summarize(r.Samples, warmUp, d, loadtest.SLO{E2E: 2 * time.Second}).Attainment, ctx.Err()
		})
	if err == nil && k.Rate == 0 {
		err = errors.New("not even 2 requests/s are answered within two seconds")
	}
	return k.Rate, err
}

// newMix is what the steady load is made of: texts and images, short answers and long ones, some given up.
func newMix() (*loadtest.Mix, error) {
	m := &loadtest.Mix{IgnoreEOS: true, ImageShare: 0.3, Fresh: true, AbandonShare: 0.1,
		AbandonAfter: 200 * time.Millisecond, Tenants: []loadtest.Weighted{{Value: "a", Weight: 3}, {Value: "b", Weight: 1}}}
	var err [4]error
	m.Prompt, err[0] = loadtest.ParseLengths("lognormal:12,0.8")
	m.Output, err[1] = loadtest.ParseLengths("uniform:1,80")
	m.ImagesEach, err[2] = loadtest.ParseLengths("1")
	m.Images, err[3] = loadtest.DrawImages(16, "256x256:2,512x512:2,640x480", 0.2, 1)
	return m, errors.Join(err[:]...)
}
