package serving_test

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder/decodertest"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/tokenizer"
	"github.com/mmserve/mmserve/serving"
	"github.com/mmserve/mmserve/vision"
)

const contextLen, vocab, hidden, imageTokens = 128, 600, 4, 16

// prepares is a preprocessor of which only Prepare is called.
type prepares struct {
	vision.Preprocessor
	prepare func(data []byte) (*vision.Image, error)
}

func (p prepares) Prepare(_ context.Context, data []byte, _ vision.Limits, _ bool) (*vision.Image, error) {
	return p.prepare(data)
}

func (p prepares) Measure(int, int, bool) (vision.Measured, error) {
	return vision.Measured{ScaledWidth: 64, ScaledHeight: 64}, nil
}

// tiny is a service of a model that completes raw prompts, over an engine with one slot.
func tiny(t *testing.T) (*serving.Service, *batching.Engine) {
	t.Helper()
	return tinyOptions(t, serving.ServiceOptions{})
}

// tinyWith is tiny with quotas.
func tinyWith(t *testing.T, q *serving.Quotas) (*serving.Service, *batching.Engine) {
	t.Helper()
	return tinyOptions(t, serving.ServiceOptions{Quotas: q})
}

// tinyOptions is tiny with options.
func tinyOptions(t *testing.T, o serving.ServiceOptions) (*serving.Service, *batching.Engine) {
	t.Helper()
	return run(t, tinyModel(t), decodertest.NewHash(1, contextLen, vocab), o)
}

// tinyModel completes raw prompts.
func tinyModel(t *testing.T) serving.Model {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "model", "tiny-vlm", "tokenizer.json"))
	if err != nil {
		t.Fatal(err)
	}
	tok, err := tokenizer.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return serving.Model{
		Name: "tiny", Digest: "sha256:test", MaxLen: contextLen, Vocab: vocab, EOS: []int32{4, 0}, Hidden: hidden,
		Prompter: &fusion.Prompter{
			Tokenizer: tok, Guarded: []string{"<image>"},
			Layout: fusion.Layout{
				Placeholder: "<image>", ImageTokenID: 7, PatchTokens: imageTokens,
				Expand: func(vision.Grid) string { return strings.Repeat("<image>", imageTokens) },
			},
			Preprocessor: prepares{prepare: func(data []byte) (*vision.Image, error) {
				if string(data) == "broken" {
					return nil, vision.ErrImage
				}
				return &vision.Image{Digest: sha256.Sum256(data), Width: 64, Height: 64, Size: 64}, nil
			}},
		},
		Encode: func(context.Context, *vision.Image) ([]float32, bool, error) {
			return make([]float32, imageTokens*hidden), false, nil
		},
	}
}

// run serves a model over an engine of a runner's until the test ends.
func run(t *testing.T, m serving.Model, r batching.Runner,
	o serving.ServiceOptions) (*serving.Service, *batching.Engine) {
	t.Helper()
	e := batching.New(r, batching.Options{MaxWaiting: 32})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	return serving.NewService(serving.Single(serving.Run(m, e)), o), e
}

// idle waits until what was cut has left the engine.
func idle(t *testing.T, e *batching.Engine) {
	t.Helper()
	for range 1000 {
		if e.Stats().Accepted == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("requests stay in the engine")
}

// kept is a sink that notes what comes, and fails at the event fail.
type kept struct {
	events []string
	text   string
	finish serving.Finish
	fail   string
}

var errSink = &serving.Error{Kind: serving.Unavailable, Message: "the client is gone"}

func (k *kept) note(event string) error {
	if len(k.events) == 0 || k.events[len(k.events)-1] != event {
		k.events = append(k.events, event)
	}
	if event == k.fail {
		return errSink
	}
	return nil
}

func (k *kept) Start(*serving.Start) error { return k.note("start") }

func (k *kept) Delta(d *serving.Delta) error {
	k.text += d.Text
	return k.note("delta")
}

func (k *kept) Finish(f *serving.Finish) error {
	k.finish = *f
	return k.note("finish")
}

func prompt(parts ...serving.Part) *serving.Request {
	n, greedy := uint32(6), float32(0)
	return &serving.Request{
		Prompt: &serving.Prompt{Parts: parts}, MaxTokens: &n, IgnoreEOS: true,
		Sampling: serving.Sampling{Temperature: &greedy},
	}
}

func image(data string) serving.Part { return serving.Part{Image: &serving.Image{Data: []byte(data)}} }

func TestService(t *testing.T) {
	s, e := tiny(t)
	prepared := 0
	in := prompt(image("red"), serving.Part{Text: "a small"})
	in.Prepared = func() {
		prepared++
		if in.Prompt != nil {
			t.Error("the request still holds its images")
		}
	}
	var k kept
	if err := s.Generate(t.Context(), in, &k); err != nil {
		t.Fatal(err)
	}
	u := k.finish.Usage
	if !slices.Equal(k.events, []string{"start", "delta", "finish"}) || prepared != 1 || k.text == "" ||
		u.Image != imageTokens || u.Prompt != u.Text+u.Image || u.Completion != 6 ||
		k.finish.Reason != serving.FinishLength || k.finish.Timings.Total <= 0 {
		t.Errorf("events %v, %q, %+v, prepared %d times", k.events, k.text, k.finish, prepared)
	}
	var c serving.Collector
	if err := s.Generate(t.Context(), prompt(image("red"), serving.Part{Text: "a small"}), c.Sink()); err != nil {
		t.Fatal(err)
	}
	if len(c.Choices) != 1 || c.Choices[0].Text != k.text || c.Usage.Completion != 6 || c.Model != "tiny" || c.ID == "" {
		t.Errorf("collected %+v, want %q", c, k.text)
	}
	if n := e.Stats().Accepted; n != 0 {
		t.Errorf("%d tickets are still out", n)
	}
}

// Each failure has its kind, words that name what to change.
func TestServiceErrors(t *testing.T) {
	s, e := tiny(t)
	gone, leave := context.WithCancel(t.Context())
	leave()
	text := serving.Part{Text: "a small"}
	named := prompt(text)
	named.Model = "other"
	unread := prompt(text)
	unread.Unread.Add("priority", "7; want less")
	chat := &serving.Request{Chat: &serving.Chat{Messages: []serving.Message{{Role: "user", Parts: []serving.Part{text}}}}}
	many := prompt(text)
	many.N = 17
	for name, c := range map[string]struct {
		ctx   context.Context
		in    *serving.Request
		sink  kept
		kind  serving.Kind
		field string
	}{
		"another model":         {t.Context(), named, kept{}, serving.NotFound, ""},
		"nothing to answer":     {t.Context(), &serving.Request{}, kept{}, serving.Invalid, "input"},
		"what the edge found":   {t.Context(), unread, kept{}, serving.Invalid, "priority"},
		"a broken image":        {t.Context(), prompt(image("broken")), kept{}, serving.Invalid, "prompt.parts[0].image.data"},
		"no template":           {t.Context(), chat, kept{}, serving.FailedPrecondition, ""},
		"too many answers":      {t.Context(), many, kept{}, serving.Invalid, "n"},
		"the caller has left":   {gone, prompt(text), kept{}, serving.Canceled, ""},
		"the sink fails at all": {t.Context(), prompt(text), kept{fail: "start"}, serving.Unavailable, ""},
		"the sink fails later":  {t.Context(), prompt(text), kept{fail: "delta"}, serving.Unavailable, ""},
	} {
		err := s.Generate(c.ctx, c.in, &c.sink)
		var told *serving.Error
		if !errors.As(err, &told) || told.Kind != c.kind {
			t.Errorf("%s: %v, want %v", name, err, c.kind)
			continue
		}
		if (c.field != "") != (len(told.Violations) == 1) || c.field != "" && told.Violations[0].Field != c.field {
			t.Errorf("%s: violations %v, want one of %q", name, told.Violations, c.field)
		}
	}
	var full *serving.Error
	idle(t, e)
	for {
		ticket, err := e.Acquire()
		if err != nil {
			break
		}
		defer ticket.Release()
	}
	if err := s.Generate(t.Context(), prompt(text), &kept{}); !errors.As(err, &full) ||
		full.Kind != serving.Exhausted || full.RetryAfter <= 0 {
		t.Errorf("with every slot taken: %v", err)
	}
}
