package batching

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/decoder/decodertest"
	"github.com/mmserve/mmserve/fusion"
)

var rewrite = flag.Bool("rewrite", false, "write testdata/*.txt anew from what the scheduler does")

var errStep = errors.New("the step failed")

// history drives a scheduler by hand, over a Runner that hashes what its KV slots hold. It checks after every verb
// that the invariants hold, that tokens are those the sequence would give alone, and that nothing ends twice.
type history struct {
	t      testing.TB
	sched  *scheduler
	runner *decodertest.Hash
	// stepper is the runner, with a draft model or without.
	stepper decoder.Stepper
	now     time.Time
	reqs    map[string]Request
	seqs    map[string]*sequence
	got     map[string][]decoder.Token
	ended   map[string]FinishReason
	order   []string            // of the requests' arrival
	gone    []*forgetting       // that are not done yet
	came    map[*forgetting]int // after how many requests
	token   time.Duration       // what a prompt token takes
	decode  time.Duration       // what a decode step takes
	stall   time.Duration       // what the next step takes besides
	ticks   int                 // of the clock that makes masks ready: two a step
}

func newHistory(t testing.TB, r *decodertest.Hash, o Options) *history {
	return newHistoryOver(t, r, r, o)
}

// newHistoryOver is a history over a stepper that has r run what it makes of a batch.
func newHistoryOver(t testing.TB, stepper decoder.Stepper, r *decodertest.Hash, o Options) *history {
	return &history{
		t: t, runner: r, stepper: stepper, sched: newScheduler(stepper.Capacity(), o),
		now:  time.Unix(0, 0),
		reqs: map[string]Request{}, seqs: map[string]*sequence{},
		got: map[string][]decoder.Token{}, ended: map[string]FinishReason{}, came: map[*forgetting]int{},
	}
}

// withDraft is r with a draft model unless that is nil, which sees images only with patches.
func withDraft(t testing.TB, r, draft *decodertest.Hash, patches bool) decoder.Stepper {
	if draft == nil {
		return r
	}
	s, err := decoder.NewSpeculator(r, draft, 40, patches)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (h *history) check(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *history) submit(r Request) {
	h.t.Helper()
	h.check(r.check(h.sched.maxLen))
	q := newSequence(r, h.now)
	h.reqs[r.ID], h.seqs[r.ID], h.order = r, q, append(h.order, r.ID)
	h.sched.add(q, h.now)
	h.check(h.sched.invariants())
}

// forget has the image file of that digest go.
func (h *history) forget(tenant string, file [32]byte) {
	h.t.Helper()
	f := &forgetting{tenant: tenant, file: file, done: make(chan struct{})}
	h.sched.forget(f)
	h.gone, h.came[f] = append(h.gone, f), len(h.order)
	h.check(h.sched.invariants())
}

// vanished says which forgotten images are gone now, and holds that nothing of them is left in the runner's memory
// where nobody else has sent them.
func (h *history) vanished() string {
	h.t.Helper()
	var b strings.Builder
	h.gone = slices.DeleteFunc(h.gone, func(f *forgetting) bool {
		select {
		case <-f.done:
		default:
			return false
		}
		fmt.Fprintf(&b, "nothing is left of %s of tenant %q\n", bytes.TrimRight(f.file[:], "\x00"), f.tenant)
		input, others := fusion.Input{}, false
		for id, r := range h.reqs {
			for _, p := range r.Input.Spans {
				if p.File == f.file {
					input = fusion.Input{IDs: r.Input.IDs, Spans: []fusion.Span{p}}
					others = others || r.Tenant != f.tenant || slices.Index(h.order, id) >= h.came[f]
				}
			}
		}
		if !others && h.sched.exact && h.runner.Holds(input) {
			h.t.Fatalf("image %x is forgotten, and still in memory", f.file[:1])
		}
		return true
	})
	return b.String()
}

func (h *history) cancel(id string) string {
	h.t.Helper()
	return h.take(h.sched.cancel(h.seqs[id], true, h.now))
}

// step runs one step, whose Run fails with err unless nil, and says in words what it did.
func (h *history) step(err error) string {
	h.t.Helper()
	h.now = h.now.Add(time.Millisecond)
	h.ticks++
	expired := h.take(h.sched.expire(h.now))
	if !h.sched.busy() {
		return expired + "idle\n"
	}
	p := h.sched.schedule(h.now)
	h.check(p.invariants(h.sched))
	h.runner.Fail = func(*decoder.Batch) error {
		h.ticks++ // a mask may come between the plan and its run
		return err
	}
	tokens, failed := h.stepper.Run(context.Background(), p.batch)
	said := expired + p.String()
	h.check(p.drafts(h.sched))
	if p.decodes > 0 {
		h.now = h.now.Add(h.decode)
	}
	h.now = h.now.Add(time.Duration(p.chunk()) * h.token)
	h.now, h.stall = h.now.Add(h.stall), 0
	switch {
	case failed == nil && p.takes(tokens) != len(tokens):
		h.t.Fatalf("the runner gave %d tokens where the plan takes %d", len(tokens), p.takes(tokens))
	case failed == nil:
		return said + h.take(h.sched.commit(p, tokens, h.now)) + h.vanished()
	case failed == err:
		return said + h.take(h.sched.fail(p, err, h.now))
	}
	h.t.Fatalf("the runner refused a plan: %v\n%s", failed, said)
	return ""
}

// take receives events as the streams would.
func (h *history) take(list []delivery) string {
	h.t.Helper()
	h.check(h.sched.invariants())
	var b strings.Builder
	for _, d := range list {
		id := d.seq.id
		if _, twice := h.ended[id]; twice {
			h.t.Fatalf("%s got %+v after its end", id, d.event)
		}
		fmt.Fprintf(&b, "  %s:", id)
		if r := h.reqs[id]; d.event.HasToken && r.PromptLogprobs != nil &&
			(len(h.got[id]) == 0) != (len(d.event.Prompt) == len(r.Input.IDs)-1 && d.event.Prompt != nil) &&
			len(r.Input.IDs) > 1 {
			h.t.Fatalf("%s got %d prompt log-probabilities with token %d", id, len(d.event.Prompt), len(h.got[id])+1)
		}
		if d.event.HasToken {
			h.got[id] = append(h.got[id], d.event.Token)
			fmt.Fprintf(&b, " token %d", len(h.got[id]))
		}
		if f := d.event.Finish; f != Running {
			h.ended[id] = f
			fmt.Fprintf(&b, " %v", f)
			h.verify(id)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// verify compares an ended sequence with what it would have been alone.
func (h *history) verify(id string) {
	h.t.Helper()
	r, got := h.reqs[id], h.got[id]
	if c, ok := r.Sampling.Constraint.(*slowMasks); ok {
		r.Sampling.Constraint = c.again(0)
	}
	want, err := h.runner.Alone(r.Input, r.Sampling, r.MaxTokens, r.Stop...)
	h.check(err)
	switch h.ended[id] {
	case Stop, Length:
		reason := Length
		if slices.Contains(r.Stop, want[len(want)-1].ID) {
			reason = Stop
		}
		if !slices.Equal(got, want) || reason != h.ended[id] {
			h.t.Fatalf("%s gave %v (%v), alone it gives %v (%v)", id, got, h.ended[id], want, reason)
		}
	default:
		if len(got) > len(want) || !slices.Equal(got, want[:len(got)]) {
			h.t.Fatalf("%s gave %v before it was removed, alone it gives %v", id, got, want)
		}
	}
	t := h.seqs[id].timing
	if t.Finished != h.now || t.FirstScheduled.Before(t.Submitted) && !t.FirstScheduled.IsZero() ||
		(len(got) > 0) == t.FirstToken.IsZero() {
		h.t.Fatalf("%s after %d tokens has times %+v", id, len(got), t)
	}
}

func (p plan) String() string {
	var b strings.Builder
	for _, m := range p.batch.Moves {
		if m.Back > 0 {
			fmt.Fprintf(&b, "exchange %d positions of slot %d with %d of %d\n", m.Len, m.From, m.Back, m.To)
		} else {
			fmt.Fprintf(&b, "move %d positions from slot %d to %d\n", m.Len, m.From, m.To)
		}
	}
	for _, r := range p.batch.Releases {
		fmt.Fprintf(&b, "release [%d,%d) of slot %d\n", r.From, r.To, r.Slot)
	}
	if p.batch.Wipe {
		b.WriteString("wipe\n")
	}
	if len(p.batch.Rows) == 0 {
		b.WriteString("nothing to run\n")
	}
	for i, r := range p.batch.Rows {
		verb := "decode"
		if p.seqs[i].phase == prefilling {
			verb = "prefill"
		}
		fmt.Fprintf(&b, "%s %s in slot %d [%d,%d)", verb, p.seqs[i].id, r.Slot, r.Past, r.Past+len(r.IDs))
		if r.Drafts > 0 {
			fmt.Fprintf(&b, ", %d of them drafts", r.Drafts)
		}
		if r.Sampler != nil {
			b.WriteString(" and sample")
		}
		b.WriteString("\n")
	}
	return b.String()
}

func (h *history) state() string {
	s := h.sched
	var b strings.Builder
	b.WriteString("= ")
	for _, q := range s.slots.decoding {
		fmt.Fprintf(&b, "%s decodes at %d, ", q.id, q.past)
	}
	for _, q := range s.slots.prefilling {
		fmt.Fprintf(&b, "%s prefills %d/%d, ", q.id, q.past, q.target)
	}
	for q := range s.queue.all() {
		fmt.Fprintf(&b, "%s waits, ", q.id)
	}
	for _, q := range s.slots.cached {
		fmt.Fprintf(&b, "%s cached in slot %d [0,%d), ", q.id, q.slot, q.past)
	}
	if b.Len() == 2 {
		b.WriteString("nothing, ")
	}
	fmt.Fprintf(&b, "%d KV tokens\n", s.stats().KVTokens)
	return b.String()
}

var priorities = map[string]Priority{"batch": PriorityBatch, "interactive": PriorityInteractive}

// command runs one line of a testdata file. Prompts differ by the id's letters, unless like= names another sequence:
// then they begin with its ids, cut at from=, and if answered with those that it gave.
func (h *history) command(line string) string {
	h.t.Helper()
	words := strings.Fields(line)
	arg := ""
	if len(words) > 1 {
		arg = words[1]
	}
	text := func(key string) string {
		for _, w := range words {
			if v, ok := strings.CutPrefix(w, key+"="); ok {
				return v
			}
		}
		return ""
	}
	num := func(key string) int {
		n, err := strconv.Atoi(cmp.Or(text(key), "0"))
		h.check(err)
		return n
	}
	span := func(key string) time.Duration {
		d, err := time.ParseDuration(cmp.Or(text(key), "0s"))
		h.check(err)
		return d
	}
	flag := func(key string) bool { return slices.Contains(words, key) }
	switch words[0] {
	case "engine":
		r := decodertest.NewHash(num("slots"), num("maxlen"), 40)
		if flag("inexact") {
			r.Chunk = num("chunk")
		}
		r.Loop, r.WholeImages = num("loop"), flag("whole-images")
		r.Mixed = flag("mixed")
		var draft *decodertest.Hash
		if n := num("draft"); n > 0 {
			draft = decodertest.NewHash(num("slots"), num("maxlen"), 40)
			draft.Mixed, draft.Loop, draft.Differs = true, num("loop"), n
		}
		*h = *newHistoryOver(h.t, withDraft(h.t, r, draft, flag("patches")), r, Options{
			PrefillChunk: num("chunk"), NoPrefixCache: !flag("cache"), SharePrefixes: flag("share"), AgeAfter: time.Second,
			KVTokens: num("kv"), Drafts: num("drafts"),
			TenantWeights: map[string]float64{"double": 2, "triple": 3},
		})
		h.token, h.decode = span("token"), span("step")
		return ""
	case "submit":
		r := Request{ID: arg, MaxTokens: num("max"), Tenant: text("tenant"), Priority: priorities[text("priority")]}
		r.Weight = float64(num("weight"))
		if d := span("deadline"); d > 0 {
			r.Deadline = h.now.Add(d)
		}
		if like := text("like"); like != "" {
			r.Input.IDs = slices.Clone(h.reqs[like].Input.IDs)
			if n := num("from"); n > 0 {
				r.Input.IDs = r.Input.IDs[:n]
			}
			for _, t := range h.got[like] {
				if flag("answered") {
					r.Input.IDs = append(r.Input.IDs, t.ID)
				}
			}
		}
		if twin := text("twin"); twin != "" { // another answer to the very prompt
			r.Input, r.Group = h.reqs[twin].Input, h.reqs[twin].Group
		} else if flag("group") {
			r.Group = new(Group)
		}
		r.Further = flag("further")
		for i := range num("prompt") {
			r.Input.IDs = append(r.Input.IDs, int32(int(arg[0])+i)%40)
		}
		if n := num("image"); n > 0 { // an image over positions [1,n) or from at= on, the digest its name's letter
			at, err := strconv.Atoi(cmp.Or(text("at"), "1"))
			h.check(err)
			span := fusion.Span{Start: at, Len: n - at, Rows: num("rows")}
			if span.Rows > 0 {
				span.Cols = span.Len / span.Rows
			}
			copy(span.Digest[:], text("digest"))
			span.File = span.Digest
			r.Input.Spans = append(r.Input.Spans, span)
			if n = num("second"); n > 0 { // and another right behind it
				next := fusion.Span{Start: span.Start + span.Len, File: [32]byte{2}, Digest: [32]byte{2}}
				next.Len = n - next.Start
				r.Input.Spans = append(r.Input.Spans, next)
			}
		}
		if n := num("stop-after"); n > 0 { // the id that it will give as its n-th token
			want, err := h.runner.Alone(r.Input, r.Sampling, n)
			h.check(err)
			r.Stop = []int32{want[n-1].ID}
		}
		h.submit(r)
	case "forget":
		var file [32]byte
		copy(file[:], arg)
		h.forget(text("tenant"), file)
	case "sleep":
		d, err := time.ParseDuration(arg)
		h.check(err)
		h.now = h.now.Add(d)
	case "stall":
		d, err := time.ParseDuration(arg)
		h.check(err)
		h.stall = d
	case "estimate":
		l := h.sched.load()
		return fmt.Sprintln(l.latency.faded(l.estimate(priorities[text("priority")].class(), num("prompt"), num("unseen")),
			h.now))
	case "hold":
		pending, err := strconv.Atoi(arg)
		h.check(err)
		return fmt.Sprintln(h.sched.hold(pending, h.now))
	case "cancel":
		return h.cancel(arg) + h.state()
	case "step":
		return h.step(nil) + h.state()
	case "fail":
		return h.step(errStep) + h.state()
	case "run":
		var b strings.Builder
		for h.sched.busy() {
			b.WriteString(h.step(nil))
		}
		return b.String() + h.state()
	case "end":
		return h.take(h.sched.end(nil, h.now)) + h.state()
	case "device-lost":
		return h.take(h.sched.end(decoder.ErrDevice, h.now)) + h.state()
	case "totals":
		s, gaveWay := h.sched.stats(), ""
		if s.GaveWay != [classes]int64{} {
			gaveWay = fmt.Sprintf(", %v gave way", s.GaveWay)
		}
		drafts := fmt.Sprintf("%d of %d drafts", s.RightDrafts, s.DraftedTokens)
		if s.ModelDrafts > 0 {
			drafts += fmt.Sprintf(", %d of %d the draft model's", s.RightModelDrafts, s.ModelDrafts)
		}
		return fmt.Sprintf("%d steps (%d prefill, %d failed), %d decode rows, %d prompt tokens, %d generated (%s), %d moved, %d cached, %d evictions, %d preemptions%s, %d wasted\n",
			s.Steps, s.PrefillSteps, s.FailedSteps, s.DecodeRows, s.PromptTokens, s.GeneratedTokens, drafts,
			s.MovedTokens, s.CachedTokens, s.Evictions, s.Preemptions, gaveWay, s.WastedTokens)
	default:
		h.t.Fatalf("no command %q", line)
	}
	return h.state()
}

// Each file in testdata is a history: commands up to a line "----", what they did up to an empty line. With -rewrite
// the answers are written anew; read the diff.
func TestHistories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no histories: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			h := &history{t: t}
			var b bytes.Buffer
			for block := range strings.SplitSeq(strings.TrimSpace(string(data)), "\n\n") {
				commands, want, answers := strings.Cut(block, "\n----")
				if b.Len() > 0 {
					b.WriteString("\n")
				}
				b.WriteString(commands + "\n")
				var got strings.Builder
				for line := range strings.SplitSeq(commands, "\n") {
					if !strings.HasPrefix(line, "#") {
						got.Reset() // of several commands only the last one's answer is shown
						got.WriteString(h.command(line))
					}
				}
				if got.Len() == 0 {
					continue
				}
				b.WriteString("----\n" + got.String())
				if !*rewrite && (!answers || strings.TrimSpace(want) != strings.TrimSpace(got.String())) {
					t.Errorf("%s\n---- got\n%s---- want%s", commands, got.String(), want)
				}
			}
			if *rewrite {
				if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// random plays a history whose every choice is a byte of data, and then runs until nothing is open.
func random(t testing.TB, data []byte) {
	next := func(n int) int {
		if len(data) == 0 {
			return 0
		}
		v := int(data[0]) % n
		data = data[1:]
		return v
	}
	r, chunk := decodertest.NewHash(1+next(5), 6+next(30), 40), 1+next(9)
	if next(2) == 0 {
		r.Chunk = chunk
	}
	r.Loop, r.WholeImages = next(3), next(3) == 0
	c := r.Capacity()
	r.Mixed = !r.WholeImages && next(2) == 0
	var draft *decodertest.Hash
	if next(2) == 0 && r.Chunk == 0 {
		draft = decodertest.NewHash(c.Slots, max(2, c.MaxLen-next(8)), 40)
		draft.Mixed, draft.Loop, draft.Differs = true, r.Loop, next(4)
		if next(8) == 0 {
			draft.Fail = func(b *decoder.Batch) error { // now and then it cannot
				if len(b.Rows) > 0 && len(b.Rows[0].IDs) == 1 && b.Rows[0].IDs[0]%5 == 0 {
					return errStep
				}
				return nil
			}
		}
	}
	h := newHistoryOver(t, withDraft(t, r, draft, next(2) == 0), r, Options{
		PrefillChunk: chunk, KVTokens: next(2) * (c.MaxLen + next(c.MaxLen)),
		Drafts: next(2) * next(8), NoPrefixCache: next(4) == 0, SharePrefixes: next(4) == 0, AgeAfter: 3 * time.Second,
	})
	h.token, h.decode = time.Duration(next(3))*time.Millisecond, time.Duration(next(60))*time.Millisecond
	var ids []string
	tenants := []string{"", "a", "b"}
	for len(data) > 0 {
		switch op := next(16); {
		case op < 5 && len(ids) < 200:
			r := Request{ID: "s" + strconv.Itoa(len(ids)), MaxTokens: 1 + next(12), Tenant: tenants[next(3)],
				Priority: Priority(next(3) - 1)}
			if next(4) == 0 {
				r.Deadline = h.now.Add(time.Duration(next(256)) * 10 * time.Millisecond)
			}
			if len(ids) > 0 && next(3) > 0 { // begins as another does, answer and all
				id := ids[next(len(ids))]
				r.Input.Spans = h.reqs[id].Input.Spans
				r.Input.IDs = slices.Clone(h.reqs[id].Input.IDs)
				for _, t := range h.got[id] {
					r.Input.IDs = append(r.Input.IDs, t.ID)
				}
				r.Input.IDs = r.Input.IDs[:min(len(r.Input.IDs), 1+next(h.sched.maxLen))]
			}
			for range next(max(1, h.sched.maxLen-len(r.Input.IDs))) {
				r.Input.IDs = append(r.Input.IDs, int32(next(40)))
			}
			if len(r.Input.IDs) == 0 {
				r.Input.IDs = []int32{7}
			}
			r.Input.Spans = slices.DeleteFunc(slices.Clone(r.Input.Spans),
				func(p fusion.Span) bool { return p.Start+p.Len > len(r.Input.IDs) })
			if n := len(r.Input.Spans); n > 0 && next(3) == 0 { // the same image, with fewer patches
				r.Input.Spans[n-1].Len = 1 + next(r.Input.Spans[n-1].Len)
			}
			if next(3) == 0 {
				n := 1 + next(len(r.Input.IDs))
				image := [32]byte{7: byte(next(4))} // like no id; 0: without a digest
				s := fusion.Span{Start: next(len(r.Input.IDs) - n + 1), Len: n, File: image, Digest: image,
					Rows: next(3), Cols: next(3)}
				r.Input.Spans = []fusion.Span{s}
				if left := len(r.Input.IDs) - s.Start - n; left > 1 && next(2) == 0 { // another, beside it or not
					gap := next(left)
					other := [32]byte{7: 9}
					r.Input.Spans = append(r.Input.Spans,
						fusion.Span{Start: s.Start + n + gap, Len: 1 + next(left-gap), File: other, Digest: other})
				}
			}
			if next(2) == 0 {
				r.Sampling = decoder.Sampling{Temperature: 1, TopK: next(20), TopP: float32(next(10)) / 10, Seed: uint64(next(3))}
			}
			if delay := next(8); delay < 5 { // ready at once to more than two steps late
				r.Sampling.Constraint = &slowMasks{start: uint64(next(256)), delay: delay, fails: next(4) / 3 * next(8),
					ticks: &h.ticks}
			}
			if next(2) == 0 {
				r.Stop = []int32{int32(next(40)), int32(next(40)), int32(next(40))}
			}
			ids = append(ids, r.ID)
			if next(3) == 0 {
				r.Group = new(Group)
			}
			if next(8) == 0 {
				r.PromptLogprobs = new(int)
			}
			h.submit(r)
			for twins := next(3); r.Group != nil && twins > 0; twins-- {
				r.ID, r.PromptLogprobs, r.Further = "s"+strconv.Itoa(len(ids)), nil, true
				r.Sampling.Seed++
				if c, ok := r.Sampling.Constraint.(*slowMasks); ok {
					r.Sampling.Constraint = c.again(c.delay)
				}
				ids = append(ids, r.ID)
				h.submit(r)
			}
		case op < 8 && len(ids) > 0:
			h.cancel(ids[next(len(ids))])
		case op == 8:
			h.step(errStep)
		case op == 9 && next(2) == 0:
			h.now = h.now.Add(time.Second)
		case op == 9:
			h.forget(tenants[next(3)], [32]byte{7: byte(1 + next(3))})
		default:
			h.step(nil)
		}
	}
	if len(ids)%7 == 6 {
		h.take(h.sched.end(nil, h.now))
	}
	open := func() bool { return h.sched.busy() || h.sched.stats().Running > 0 } // all may wait for their masks
	for steps := 0; open(); steps++ {
		h.step(nil)
		if steps > 200*60 {
			t.Fatal("it never ends")
		}
	}
	for _, id := range ids {
		if _, ok := h.ended[id]; !ok {
			t.Fatalf("%s was accepted and never ended", id)
		}
	}
	if s := h.sched.stats(); s.KVTokens != 0 || s.Running != 0 {
		t.Fatalf("nothing is open, yet %+v", s)
	}
}

func TestRandomHistories(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 150 {
		data := make([]byte, rng.IntN(2000))
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		random(t, data)
	}
}

func FuzzHistory(f *testing.F) {
	f.Add([]byte("a few sequences come and go while a longer prompt is being read in"))
	f.Add(bytes.Repeat([]byte{4, 20, 3, 1, 9, 9, 9, 6, 0, 9}, 30))
	f.Fuzz(func(t *testing.T, data []byte) { random(t, data[:min(len(data), 4000)]) })
}
