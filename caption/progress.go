package caption

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// Progress shows how a run goes until stop is called. mode is plain (a line every ten seconds), json (an object every
// second), bar (a line that is redrawn), or none. total gives the number of items, as far as known; else 0.
func Progress(w io.Writer, mode string, s *Stats, total func() int64) (stop func()) {
	switch mode {
	case "bar":
		return progressBar(w, s, total)
	case "plain":
		return every(10*time.Second, func() { fmt.Fprintln(w, "mmserve:", s.Snapshot().line(s.noun(), total())) })
	case "json":
		e := json.NewEncoder(w)
		show := func() { _ = e.Encode(s.Snapshot()) }
		end := every(time.Second, show)
		return func() { end(); show() }
	}
	return func() {}
}

// every calls f at intervals, on a goroutine that the returned function ends.
func every(d time.Duration, f func()) (stop func()) {
	end := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		t := time.NewTicker(d)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				f()
			case <-end:
				return
			}
		}
	})
	return func() { close(end); done.Wait() }
}

func (n Snapshot) done() int64 { return n.Written + n.Skipped }

// line is the state in one line.
func (n Snapshot) line(noun string, total int64) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d", n.done())
	if total > 0 {
		fmt.Fprintf(&b, " of %d", total)
	}
	fmt.Fprintf(&b, " done (%d new, %d copies, %d failed)", n.Written, n.Duplicates, n.Failed)
	fmt.Fprintf(&b, "; %s", n.rates(noun))
	if eta, ok := n.eta(total); ok {
		fmt.Fprintf(&b, ", %v left", eta)
	}
	fmt.Fprintf(&b, "; %s", n.stages())
	return b.String()
}

func (n Snapshot) rates(noun string) string {
	s := max(n.Elapsed.Seconds(), 1e-3)
	return fmt.Sprintf("%.1f %s/s, %.0f tokens/s", float64(n.Written)/s, noun, float64(n.Tokens)/s)
}

// eta is the time left at the rate so far.
func (n Snapshot) eta(total int64) (time.Duration, bool) {
	if n.Written == 0 || total <= n.done() {
		return 0, false
	}
	left := float64(total-n.done()) / float64(n.Written) * float64(n.Elapsed)
	return time.Duration(left).Round(time.Second), true
}

// stages tells where the work piles up.
func (n Snapshot) stages() string {
	state := fmt.Sprintf(
		"read queue %.0f %%, asking %d of %d, write queue %.0f %%",
		100*n.ReadFull,
		n.InFlight,
		n.Limit,
		100*n.WriteFull,
	)
	if n.Paused {
		state += ", paused"
	}
	return state
}

// progressBar draws a bar at the end of a terminal.
func progressBar(w io.Writer, s *Stats, total func() int64) (stop func()) {
	p := mpb.New(mpb.WithOutput(w), mpb.WithWidth(30), mpb.WithRefreshRate(250*time.Millisecond))
	show := func(f func(Snapshot) string) decor.Decorator {
		return decor.Any(func(decor.Statistics) string { return f(s.Snapshot()) })
	}
	bar := p.AddBar(
		0,
		mpb.PrependDecorators(
			show(func(n Snapshot) string { return fmt.Sprintf("%d/%d ", n.done(), max(total(), n.Listed)) }),
		),
		mpb.AppendDecorators(show(func(n Snapshot) string {
			text := " " + n.rates(s.noun())
			if eta, ok := n.eta(total()); ok {
				text += fmt.Sprintf(", %v left", eta)
			}
			return text
		})),
		mpb.BarExtender(mpb.BarFillerFunc(func(w io.Writer, _ decor.Statistics) error {
			n := s.Snapshot()
			_, err := fmt.Fprintf(w, "%s%s\n", n.stages(), errorCounts(s.Errors()))
			return err
		}), false),
	)
	end := every(250*time.Millisecond, func() {
		n := s.Snapshot()
		bar.SetTotal(max(total(), n.Listed, 1), false)
		bar.SetCurrent(n.done())
	})
	return func() {
		end()
		bar.Abort(true)
		p.Wait()
	}
}

func (s *Stats) noun() string { return cmp.Or(s.Noun, "images") }

func errorCounts(kinds []ErrorKind) string {
	var b strings.Builder
	for _, k := range kinds {
		fmt.Fprintf(&b, ", %d %s", k.Count, k.Code)
	}
	return b.String()
}

// WriteSummary tells what a run did: counts and rates, each kind of error with an example, and what took longest.
func (s *Stats) WriteSummary(w io.Writer) {
	n := s.Snapshot()
	fmt.Fprintf(
		w,
		"\n%d %s listed: %d rows written (%d copies, %d failed, %d cut by max_tokens), %d skipped (%d of them failed before)\n",
		n.Listed,
		s.noun(),
		n.Written,
		n.Duplicates,
		n.Failed,
		n.Cut,
		n.Skipped,
		n.FailedBefore,
	)
	if n.Written > 0 {
		fmt.Fprintf(
			w,
			"%.1f s, %s; %d prompt tokens (%d of images), %d tokens of answers; %d calls refused by full servers, %d tried again\n",
			n.Elapsed.Seconds(),
			n.rates(s.noun()),
			n.PromptTokens,
			n.ImageTokens,
			n.Tokens,
			n.Refused,
			n.Retried,
		)
	}
	for i, k := range s.Errors() {
		if i == 0 {
			fmt.Fprintln(w, "errors:")
		}
		fmt.Fprintf(w, "  %6d %s, such as %q: %q\n", k.Count, k.Code, k.ID, k.Example)
	}
	for i, r := range s.Slowest() {
		if i == 0 {
			fmt.Fprintln(w, "slowest:")
		}
		fmt.Fprintf(w, "  %8.3f s %5d tokens  %q\n", r.Seconds, r.Tokens, r.ID)
	}
}
