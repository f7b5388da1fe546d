// Command rollout restarts three servers of mmserve in turn under load, and kills one, behind each balancer and with
// each client whose settings the repository documents. It fails unless every stream was answered once and whole; of a
// killed server only what was in its text may be lost.
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
	"strings"
	"syscall"
	"time"
)

// options are those of the command line.
type options struct {
	bin, root string
	port      int
	streams   int
	rate      float64
	tokens    int
}

func main() {
	var o options
	flag.StringVar(&o.bin, "mmserve", "bin/mmserve", "mmserve's binary")
	flag.StringVar(&o.root, "root", ".", "the repository")
	flag.IntVar(&o.port, "port", 20080, "the servers listen at 127.0.0.1 to 127.0.0.3, at this port and the next two")
	flag.IntVar(&o.streams, "streams", 450, "streams of a rolling restart; a kill has as many")
	flag.Float64Var(&o.rate, "rate", 15, "streams a second")
	flag.IntVar(&o.tokens, "tokens", 50, "tokens of an answer")
	which := flag.String("run", ".", "a regular expression of the runs' names, model/way/what")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, *which); err != nil {
		fmt.Fprintln(os.Stderr, "rollout:", err)
		os.Exit(1)
	}
}

// models are what the servers run: a decoder that only takes its time, and the embedded model.
var models = []struct {
	name string
	args []string
}{
	{"paced", []string{"--pace", "1ms,10ms", "--slots", "16"}},
	{"embedded", []string{"--slots", "8", "--threads", "1"}},
}

// what is done to the servers.
const (
	rolling = "rolling"
	killing = "kill"
)

func run(ctx context.Context, o options, which string) error {
	want, err := regexp.Compile(which)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	if o.root, err = filepath.Abs(o.root); err != nil {
		return err
	}
	failed, ran := 0, 0
	for _, m := range models {
		for _, w := range ways {
			for _, what := range []string{rolling, killing} {
				name := m.name + "/" + w.name + "/" + what
				if !want.MatchString(name) {
					continue
				}
				if why := w.missing(o); why != "" {
					fmt.Printf("skipped %-24s %s\n", name, why)
					continue
				}
				ran++
				v, err := one(ctx, o, m.args, w, what)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				if !tell(name, v, v.failures(o.streams, what == killing), what) {
					failed++
				}
			}
		}
	}
	switch {
	case failed > 0:
		return fmt.Errorf("%d of %d runs failed", failed, ran)
	case ran == 0:
		return errors.New("nothing was run")
	}
	return nil
}

// tell prints what became of a run, and says whether it went well.
func tell(name string, v verdict, failures []string, what string) bool {
	word := "ok     "
	if len(failures) > 0 {
		word = "FAILED "
	}
	fmt.Printf("%s %-24s %d of %d answered once and whole, %d lost (%d in their text), %d repeated, %d short", word, name,
		v.OK, v.Sent, v.Lost, v.Cut, v.Repeated, v.Short)
	if what == killing {
		fmt.Printf("; p99 %v before, %v from %v after the kill", v.P99Before, v.P99After, recovery)
	}
	fmt.Println()
	if len(failures) > 0 {
		fmt.Println("        " + strings.Join(failures, "; "))
		for _, p := range v.Problems {
			fmt.Println("        " + p)
		}
	}
	return len(failures) == 0
}

// one is one run: servers, a balancer, a sender, and what is done to the servers meanwhile.
func one(ctx context.Context, o options, args []string, w way, what string) (v verdict, err error) {
	dir, err := os.MkdirTemp("", "mmserve-rollout")
	if err != nil {
		return v, err
	}
	defer os.RemoveAll(dir)
	f, err := startFleet(ctx, o, dir, args)
	if err != nil {
		return v, err
	}
	defer f.end()
	target, stop, err := w.open(ctx, o, dir)
	if err != nil {
		return v, err
	}
	sent := make(chan sending, 1)
	go func() {
		list, err := w.send(ctx, o, target, what)
		sent <- sending{list, err}
	}()
	killed, err := f.trouble(ctx, what, time.Duration(float64(o.streams)/o.rate*float64(time.Second)))
	s := <-sent
	said := stop()
	if err := errors.Join(err, s.err, f.end()); err != nil {
		return v, fmt.Errorf("%w\n%s", err, said)
	}
	log, err := f.log()
	v = judge(s.outcomes, log, o.tokens, killed)
	for line := range strings.Lines(said) {
		if !strings.Contains(line, "Connection refused") { // as meant: of a server that is gone
			v.problem("%s", strings.TrimSpace(line))
		}
	}
	return v, err
}

type sending struct {
	outcomes []outcome
	err      error
}
