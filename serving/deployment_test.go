package serving

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/decoder/decodertest"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/logtest"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/vision"
)

// lines is a log.
type lines struct{ logtest.Buffer }

// logged is the line of the log that has a message; empty if there is none.
func (l *lines) logged(message string) string {
	for line := range strings.Lines(l.String()) {
		if strings.Contains(line, message) {
			return line
		}
	}
	return ""
}

// opened opens a model, with its log, and closes it at the end.
func opened(t *testing.T, c Config) (*Deployment, *lines) {
	t.Helper()
	if err := StartRuntime(""); err != nil {
		t.Skip(err)
	}
	log := new(lines)
	c.Logger = slog.New(slog.NewTextHandler(log, nil))
	d, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if d.Err() != nil {
			t.Error(d.Err())
		}
		if err := d.Close(context.Background()); err != nil {
			t.Error(err)
		}
		<-d.Ended()
		if d.Err() != nil || d.Cutting().Err() == nil {
			t.Errorf("closed: %v, %v", d.Err(), d.Cutting().Err())
		}
	})
	return d, log
}

// The embedded model opens, passes its self-test, answers, and says what it is.
func TestOpen(t *testing.T) {
	steps := 0
	observe := func(model string) func(batching.Step) {
		if model != "mine" {
			t.Errorf("steps of %q are observed", model)
		}
		return func(batching.Step) { steps++ }
	}
	limits := vision.DefaultLimits()
	limits.MaxPixels = 1 << 20
	d, log := opened(t, Config{
		Name: "mine", Slots: 2, MaxLen: 400, EncoderCacheBytes: 1 << 20, Observe: observe, Threads: 1, Images: limits,
	})
	if line := log.logged("self-test passed"); !strings.Contains(line, "cases=4 computed=4 ") {
		t.Errorf("the log has no self-test: %q", log.String())
	}
	for _, want := range []string{
		"model=mine", "precision=fp32", "provider=cpu", "slots=2", "kv_tokens=800", "context=400",
	} {
		if line := log.logged("model ready"); !strings.Contains(line, want) {
			t.Errorf("%q has no %s", line, want)
		}
	}
	m := d.Model
	if m.Name != "mine" || len(m.Digest) != 64 || m.MaxLen != 400 || m.Vocab == 0 || m.Hidden == 0 || len(m.EOS) == 0 ||
		m.KVBytesPerToken == 0 || m.DeviceStats != nil || len(m.Sessions) < 2 || m.Prompter.Limits != limits {
		t.Errorf("%+v", m)
	}
	data, err := os.ReadFile(filepath.Join("..", "model", "tiny-vlm", "samples", "sample0.png"))
	if err != nil {
		t.Fatal(err)
	}
	s := NewService(Single(d), ServiceOptions{Logger: quietly()})
	for i := range 2 {
		in := shownImage("r", string(data))
		var c Collector
		if err := s.Generate(t.Context(), in, c.Sink()); err != nil || c.Choices[0].Text == "" || c.Usage.Completion != 4 {
			t.Errorf("%+v, %v", c, err)
		}
		if stats := m.EncoderStats(); stats.Hits != int64(i) || stats.Misses != 1 || stats.CacheEntries != 1 {
			t.Errorf("after %d answers: %+v", i+1, stats)
		}
	}
	if steps < 5 {
		t.Errorf("%d steps were observed", steps)
	}
	if d.Engine.Stats().KVBudget != 800 {
		t.Errorf("the engine has %d KV positions, the plan 800", d.Engine.Stats().KVBudget)
	}
	if c, err := m.Compiler(); c == nil || err != nil {
		t.Errorf("no constraints: %v", err)
	}
}

// Quantised weights are made once, and kept for the next start.
func TestOpenQuantised(t *testing.T) {
	c := Config{Precision: "int8", CacheDir: t.TempDir(), Slots: 1, NoSelfTest: true}
	_, log := opened(t, c)
	if line := log.logged("quantised weights"); !strings.Contains(line, "made_now=true") || log.logged("self-test") != "" {
		t.Errorf("the log is %q", log.String())
	}
	_, log = opened(t, c)
	if line := log.logged("quantised weights"); !strings.Contains(line, "made_now=false") {
		t.Errorf("the log of the second start has %q", line)
	}
}

// A dummy runs in the shape of a config.json.
func TestOpenDummy(t *testing.T) {
	d, _ := opened(t, Config{Dummy: true, Dir: filepath.Join("..", "model", "tiny-vlm"), Slots: 1, MaxLen: 64})
	if d.Model.Name != "tiny-vlm" || d.Dir == "" {
		t.Errorf("%q from %q", d.Model.Name, d.Dir)
	}
}

// tampered is a copy of the embedded model's folder, in which a text is another one.
func tampered(t *testing.T, file, old, fresh string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("..", "model", "tiny-vlm"))); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil || !bytes.Contains(data, []byte(old)) {
		t.Fatalf("%s has no %q: %v", file, old, err)
	}
	data = bytes.ReplaceAll(data, []byte(old), []byte(fresh))
	if err := os.WriteFile(filepath.Join(dir, file), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// What does not open says why, and leaves nothing behind: no memory counted, no temporary folder.
func TestOpenFails(t *testing.T) {
	if err := StartRuntime(""); err != nil {
		t.Skip(err)
	}
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	refuse := errors.New("no memory")
	wrong := tampered(t, "mmserve-gold.jsonl", `"generated_ids":[`, `"generated_ids":[9,`)
	broken := tampered(t, "mmserve-gold.jsonl", `"id"`, `id`)
	for _, c := range []struct {
		name     string
		ctx      context.Context
		config   Config
		says     string
		reserved bool // memory was counted, and has to be given back
	}{
		{"no folder", t.Context(), Config{Dir: "none"}, "none", false},
		{"no folder of a dummy", t.Context(), Config{Dir: "none", Dummy: true}, "none", false},
		{"graphs of a dummy", t.Context(), Config{Dummy: true, ONNXDType: "q4"}, "--onnx-dtype: --load-format dummy", false},
		{"graphs of the embedded model", t.Context(), Config{ONNXDType: "q4"}, "--onnx-dtype: the embedded model", false},
		{"graphs that are not there", t.Context(), Config{ONNXDType: "q4", Dir: wrong}, "onnx", false},
		{"no library", t.Context(), Config{Library: "none.so"}, "none.so", false},
		{"no such precision", t.Context(), Config{Precision: "fp7"}, "--precision", false},
		{"no such provider", t.Context(), Config{Provider: "abacus"}, "--provider", false},
		{"a long context", t.Context(), Config{MaxLen: 1 << 20}, "--max-len", false},
		{"no memory", t.Context(), Config{reserve: func(Memory) error { return refuse }}, "no memory", false},
		{"the caller has left", gone, Config{}, "context canceled", true},
		{"the self-test differs", t.Context(), Config{Dir: wrong, Name: "mine"}, "of mine's mmserve-gold.jsonl differ", true},
		{"the self-test's file is broken", t.Context(), Config{Dir: broken}, "self-test: ", true},
		{"no such pace", t.Context(), Config{Pace: "fast"}, "--pace", false},
		{"no folder at a pace", t.Context(), Config{Pace: "0s,0s", Dir: "none"}, "none", false},
		{"a long context at a pace", t.Context(), Config{Pace: "0s,0s", MaxLen: 1 << 20}, "--max-len", false},
	} {
		counted := Memory{}
		if c.config.reserve == nil {
			c.config.reserve = func(m Memory) error { counted = m; return nil }
		}
		given := Memory{}
		c.config.unreserve = func(m Memory) { given = m }
		c.config.Logger, c.config.Slots = quietly(), 1
		d, err := Open(c.ctx, c.config)
		if err == nil || d != nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
		}
		if counted != given || (counted != Memory{}) != c.reserved {
			t.Errorf("%s: counted %+v, gave %+v back", c.name, counted, given)
		}
	}
	left, err := fs.Glob(os.DirFS(tmp), "mmserve*")
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// The self-test counts the cases that differ, and names the first.
func TestSelfTestNames(t *testing.T) {
	if err := StartRuntime(""); err != nil {
		t.Skip(err)
	}
	dir := tampered(t, "mmserve-gold.jsonl", `"generated_ids":[`, `"generated_ids":[9,`)
	data, err := os.ReadFile(filepath.Join(dir, "mmserve-gold.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	whole := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	computed := slices.IndexFunc(whole, func(line []byte) bool { return bytes.Contains(line, []byte("generated_ids")) })
	_, err = Open(t.Context(), Config{Dir: dir, Slots: 1, Logger: quietly()})
	if err == nil || computed < 0 {
		t.Fatal(err)
	}
	id, _, _ := strings.Cut(strings.TrimPrefix(string(whole[computed]), `{"id":"`), `"`)
	wrong := bytes.Count(data, []byte("generated_ids"))
	if want := fmt.Sprintf("self-test: %d of %d cases of ", wrong, len(whole)); !strings.Contains(err.Error(), want) ||
		!strings.Contains(err.Error(), "the first: MISS  "+id+"  ") {
		t.Errorf("%v; want %q and the case %q", err, want, id)
	}
}

// Without a model: each prompt token and each step take their time, and answers are words.
func TestOpenPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Config{Pace: "1ms,20ms", Name: "mine", Slots: 1, MaxLen: 100, Logger: quietly()}
		c.Batching.Drafts = 4
		d, err := Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		s := NewService(Single(d), ServiceOptions{Logger: quietly()})
		began := time.Now()
		var got Collector
		in := said("r", "one two red", 5)
		in.IgnoreEOS = true
		if err := s.Generate(t.Context(), in, got.Sink()); err != nil {
			t.Fatal(err)
		}
		took, want := time.Since(began), time.Duration(got.Usage.Prompt)*time.Millisecond+4*20*time.Millisecond
		if took != want || got.Model != "mine" || d.Model.MaxLen != 100 ||
			strings.ContainsAny(got.Choices[0].Text, "<\uFFFD") {
			t.Errorf("%q of %q took %v, want %v", got.Choices[0].Text, got.Model, took, want)
		}
		if err := d.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// A deployment whose engine ends by itself is told of, unless it was taken out; only the first is.
func TestRegistryLost(t *testing.T) {
	fails := func(name string) *Deployment {
		d := Run(Model{Name: name}, batching.New(idle{}, batching.Options{}))
		d.ended, d.err = make(chan struct{}), errors.New(name+" is lost")
		return d
	}
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry(RegistryOptions{Config: Config{Logger: quietly()}})
		a, b, c := fails("a"), fails("b"), fails("c")
		for _, d := range []*Deployment{a, b, c} {
			if _, err := r.add(d); err != nil {
				t.Fatal(err)
			}
		}
		if a.Err() != nil {
			t.Error(a.Err())
		}
		if _, err := r.takeOut("a"); err != nil {
			t.Fatal(err)
		}
		close(a.ended)
		synctest.Wait()
		select {
		case err := <-r.Lost():
			t.Errorf("%v, but was taken out", err)
		default:
		}
		close(b.ended)
		synctest.Wait()
		close(c.ended)
		synctest.Wait()
		if err := <-r.Lost(); err == nil || err.Error() != "b is lost" || b.Err() == nil {
			t.Errorf("%v is told of", err)
		}
		select {
		case err := <-r.Lost():
			t.Errorf("%v is told of, too", err)
		default:
		}
	})
}

// idle is a runner that is never run.
type idle struct{}

func (idle) Capacity() decoder.Capacity { return decoder.Capacity{Slots: 1, MaxLen: 8} }

func (idle) Run(context.Context, *decoder.Batch) ([]decoder.Token, error) { return nil, nil }

// A registry that drains has all its engines refuse, and waits for what they have.
func TestRegistryDrain(t *testing.T) {
	r := pacedRegistry(t, RegistryOptions{}, "a", "b")
	if err := r.Drain(t.Context()); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"a", "b"} {
		d, found, release := r.Take(name)
		if _, err := d.Engine.Acquire(); !found || !errors.Is(err, batching.ErrDraining) {
			t.Errorf("%s: %v", name, err)
		}
		release()
	}
}

// What is swapped, closed or fails to close is in the log.
func TestRegistryLogs(t *testing.T) {
	log := new(lines)
	c := Config{Pace: "0s,0s", Logger: slog.New(slog.NewTextHandler(log, nil))}
	r := NewRegistry(RegistryOptions{Config: c})
	for range 2 {
		if _, err := r.Load(t.Context(), "a", ""); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Load(t.Context(), "b c", ""); !errors.Is(err, ErrName) {
		t.Error(err)
	}
	if err := r.Close(t.Context()); err != nil {
		t.Error(err)
	}
	for _, want := range []string{`msg="model swapped" model=a digest=`, `msg="model closed" model=a digest=`, "drawn by lot"} {
		if log.logged(want) == "" {
			t.Errorf("the log has no %s", want)
		}
	}
	if n := strings.Count(log.String(), "model swapped"); n != 1 {
		t.Errorf("one of two models was swapped, the log has %d", n)
	}
	o := NewRegistry(RegistryOptions{Config: Config{DeviceMemory: 7}, Memory: Memory{Host: 5}, DrainTime: time.Second})
	if o.drainTime != time.Second || o.budget.Host != 5 || o.budget.Device != 7 {
		t.Errorf("%+v", o)
	}
	o = NewRegistry(RegistryOptions{Memory: Memory{Device: 6}})
	if o.drainTime != DefaultDrainTime || o.budget.Host <= 0 || o.budget.Device != 6 {
		t.Errorf("%+v", o)
	}
}

// stubborn is a runner whose steps take a second, whoever leaves.
type stubborn struct{ *decodertest.Hash }

func (s stubborn) Run(_ context.Context, b *decoder.Batch) ([]decoder.Token, error) {
	if len(b.Rows) > 0 {
		pass(time.Second)
	}
	return s.Hash.Run(context.Background(), b)
}

// Nothing is freed below a step that still runs.
func TestFreeWaitsForTheEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := Run(Model{Name: "a"}, batching.New(stubborn{decodertest.NewHash(1, 8, 40)}, batching.Options{}))
		ctx, cancel := context.WithCancel(t.Context())
		d.stop, d.ended = cancel, make(chan struct{})
		go func() {
			defer close(d.ended)
			d.err = d.Engine.Run(ctx)
		}()
		ticket, err := d.Engine.Acquire()
		if err != nil {
			t.Fatal(err)
		}
		r := batching.Request{ID: "r", MaxTokens: 4, Input: fusion.Input{IDs: []int32{1}}}
		if _, err := d.Engine.Submit(t.Context(), ticket, r); err != nil {
			t.Fatal(err)
		}
		pass(time.Millisecond)
		gone, leave := context.WithCancel(t.Context())
		leave()
		if err := d.Close(gone); err != nil {
			t.Error(err)
		}
		select {
		case <-d.Ended():
		default:
			t.Error("closed while a step runs")
		}
	})
}

// On a device positions take what their precision does, and what it holds is counted.
func TestModelOnDevice(t *testing.T) {
	cpu, _ := opened(t, Config{Slots: 1, NoSelfTest: true})
	d := newDeployment()
	d.config, d.model, d.text, d.tower, d.runner, d.plan = cpu.config, cpu.model, cpu.text, cpu.tower, cpu.runner, cpu.plan
	d.sessions = []ort.Placement{{Graph: "decoder", Provider: "webgpu", Nodes: map[string]int{"webgpu": 3}}}
	d.plan.OnDevice, d.plan.ProviderReason, d.plan.Decoder.Precision = true, "why", graph.FP16
	if err := d.startEncoder(); err != nil {
		t.Fatal(err)
	}
	m := d.Model
	if m.KVBytesPerToken != cpu.Model.KVBytesPerToken/2 || m.DeviceStats == nil || m.DeviceStats() != (DeviceStats{}) ||
		m.ProviderReason != "why" || len(m.Sessions) != 1 || m.Sessions[0].Nodes["webgpu"] != 3 {
		t.Errorf("%+v, on the processor a position takes %d bytes", m, cpu.Model.KVBytesPerToken)
	}
	d.stop()
	<-d.ended
	d.encoder.Close()
}
