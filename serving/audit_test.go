package serving_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder/decodertest"
	"github.com/mmserve/mmserve/internal/audit"
	"github.com/mmserve/mmserve/internal/auth"
	"github.com/mmserve/mmserve/internal/media"
	"github.com/mmserve/mmserve/serving"
	"github.com/mmserve/mmserve/vision"
)

// heard is an auditor that keeps events in memory, as long as it is not full.
type heard struct {
	keys *audit.Keys

	mu     sync.Mutex
	events []audit.Event
	full   bool
}

func newHeard(t *testing.T) *heard {
	t.Helper()
	keys, err := audit.OpenKeys(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	return &heard{keys: keys}
}

func (h *heard) Record(e *audit.Event) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.full {
		return audit.ErrNotWritten
	}
	h.events = append(h.events, *e)
	return nil
}

// setFull says whether lines are not taken from now on.
func (h *heard) setFull(full bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.full = full
}

func (h *heard) RecordSync(e *audit.Event) error { return h.Record(e) }

func (h *heard) Keys() *audit.Keys { return h.keys }

// EachOf gives events as a log would give lines.
func (h *heard) EachOf(_ context.Context, subject string, do func([]byte) error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.events {
		if e.Subject != subject {
			continue
		}
		line, err := json.Marshal(e)
		if err == nil {
			err = do(line)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (h *heard) Digest(id string) hash.Hash { return h.keys.Digest(id) }

// last is the newest event.
func (h *heard) last(t *testing.T) audit.Event {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.events) == 0 {
		t.Fatal("no events")
	}
	return h.events[len(h.events)-1]
}

// audited is a service of a model that takes images, with an auditor.
func audited(t *testing.T, o serving.ServiceOptions) (*serving.Service, *heard) {
	t.Helper()
	h := newHeard(t)
	o.Audit = h
	m := tinyModel(t)
	m.Fingerprint = "fp_test"
	m.Prompter.Preprocessor = prepares{prepare: func(data []byte) (*vision.Image, error) {
		if string(data) == "broken" {
			return nil, vision.ErrImage
		}
		sum := sha256.Sum256(data)
		return &vision.Image{File: sum, Digest: sum, Width: 64, Height: 64, Size: 64}, nil
	}}
	s, _ := run(t, m, decodertest.NewHash(4, contextLen, vocab), o)
	return s, h
}

const secret = "Xq7canary"

// Every request has one event, whatever its end, and none has content.
func TestAuditEvents(t *testing.T) {
	store := media.New(media.Options{Bytes: 1 << 20, TTL: time.Hour})
	defer store.Close()
	s, h := audited(t, serving.ServiceOptions{Media: store})
	ctx := serving.WithCaller(t.Context(), serving.Caller{
		Identity: &auth.Identity{ID: "web-1", Tenant: "acme", Role: auth.User}, Tenant: "acme", Peer: "192.0.2.1:99",
	})
	gone, leave := context.WithCancel(ctx)
	leave()
	text := serving.Part{Text: secret + " a small"}
	with := func(change func(*serving.Request)) *serving.Request {
		in := prompt(text, image(secret))
		in.Stop = []string{secret}
		change(in)
		return in
	}
	generate := func(ctx context.Context, in *serving.Request) func() error {
		return func() error { return s.Generate(ctx, in, &kept{}) }
	}
	png := pngFile(t, 8)
	for _, c := range []struct {
		name, action, decision string
		do                     func() error
	}{
		{"an answer", "text_completion", "OK", generate(ctx, with(func(*serving.Request) {}))},
		{"a wrong field", "text_completion", "INVALID_ARGUMENT", generate(ctx, with(func(r *serving.Request) { r.N = 99 }))},
		{"another model", "text_completion", "NOT_FOUND", generate(ctx, with(func(r *serving.Request) { r.Model = secret }))},
		{"a broken image", "text_completion", "INVALID_ARGUMENT", generate(ctx, prompt(text, image("broken")))},
		{"a caller who left", "text_completion", "CANCELLED", generate(gone, with(func(*serving.Request) {}))},
		{"a sink that fails", "text_completion", "UNAVAILABLE", func() error {
			return s.Generate(ctx, with(func(*serving.Request) {}), &kept{fail: "delta"})
		}},
		{"an edge's refusal", "chat", "RESOURCE_EXHAUSTED", func() error {
			return s.Refuse(ctx, &serving.Request{}, serving.Overloaded("busy"))
		}},
		{"a count", "count_tokens", "OK", func() error {
			_, err := s.Count(ctx, prompt(text))
			return err
		}},
		{"an embedding", "embeddings", "OK", func() error {
			return s.Embed(ctx, &serving.EmbedRequest{Image: &serving.Image{Data: png}},
				func(*serving.Embedding) error { return nil })
		}},
		{"an upload", "upload_media", "OK", func() error {
			u, err := s.UploadMedia(ctx, serving.UploadHeader{})
			if err != nil {
				return err
			}
			_, err = u.Finish(ctx, u.Write(png))
			return err
		}},
		{"an upload of a text", "upload_media", "INVALID_ARGUMENT", func() error {
			u, err := s.UploadMedia(ctx, serving.UploadHeader{})
			if err != nil {
				return err
			}
			_, err = u.Finish(ctx, u.Write([]byte(secret)))
			return err
		}},
		{"a deletion", "delete_media", "OK", func() error {
			_, err := s.DeleteMedia(ctx, "", digestOf(png))
			return err
		}},
		{"a deletion of nothing", "delete_media", "INVALID_ARGUMENT", func() error {
			_, err := s.DeleteMedia(ctx, "", secret)
			return err
		}},
	} {
		before := len(h.events)
		err := c.do()
		if len(h.events) != before+1 {
			t.Errorf("%s: %d events, want one (%v)", c.name, len(h.events)-before, err)
			continue
		}
		e := h.last(t)
		if e.Kind != audit.KindRequest || e.Action != c.action || e.Decision != c.decision || e.Tenant != "acme" ||
			e.Credential != "web-1" || e.Peer != "" {
			t.Errorf("%s: %+v (%v)", c.name, e, err)
		}
		if line, err := json.Marshal(e); err != nil || strings.Contains(string(line), secret) {
			t.Errorf("%s: %s (%v) has content", c.name, line, err)
		}
		complete := e.Generation != nil && len(e.Generation.Answers) == 1 && e.Generation.Answers[0].Digest != ""
		if complete != (c.name == "an answer") {
			t.Errorf("%s: an answer's digest: %v", c.name, complete)
		}
	}
	if e := h.events[0]; e.Generation.Fingerprint != "fp_test" || e.Generation.PromptTokens <= imageTokens ||
		e.Generation.ImageTokens != imageTokens || e.Generation.Answers[0].Tokens != 6 ||
		e.Generation.Answers[0].Finish != "length" {
		t.Errorf("generation %+v", e.Generation)
	}
	if d := h.events[len(h.events)-2]; d.Object != digestOf(png) {
		t.Errorf("deleted %q", d.Object)
	}
}

// What decides an answer is in the request's digest, and nothing else is. The same request has the same digests of
// request, input and answer; another id has others.
func TestAuditDigests(t *testing.T) {
	s, h := audited(t, serving.ServiceOptions{})
	seed, half := uint64(3), float32(0.5)
	base := func() *serving.Request {
		in := prompt(image("red"), serving.Part{Text: "a small"})
		in.ID, in.Sampling.Seed, in.Stop = "one", &seed, []string{"zz"}
		return in
	}
	ask := func(change func(*serving.Request)) *audit.Generation {
		t.Helper()
		in := base()
		change(in)
		if err := s.Generate(t.Context(), in, &kept{}); err != nil {
			t.Fatal(err)
		}
		return h.last(t).Generation
	}
	want := ask(func(*serving.Request) {})
	if want.Request == "" || want.Input == "" || want.Answers[0].Digest == "" || want.Seed != seed {
		t.Fatalf("generation %+v", want)
	}
	yes := true
	for name, change := range map[string]func(*serving.Request){
		"nothing":     func(*serving.Request) {},
		"streaming":   func(r *serving.Request) { r.Streams = true },
		"a tenant":    func(r *serving.Request) { r.Tenant = "acme" },
		"a priority":  func(r *serving.Request) { r.Priority = batching.PriorityBatch },
		"speculation": func(r *serving.Request) { r.Speculative = &yes },
		"logprobs":    func(r *serving.Request) { r.Logprobs, r.TopLogprobs, r.TokenIDs = true, 2, true },
	} {
		g := ask(change)
		if g.Request != want.Request || g.Input != want.Input || g.Answers[0] != want.Answers[0] {
			t.Errorf("%s changes a digest: %+v", name, g)
		}
	}
	other, bias, one := uint64(4), map[uint32]float32{9: 1}, uint32(5)
	k := uint32(3)
	for name, change := range map[string]func(*serving.Request){
		"the text":        func(r *serving.Request) { r.Prompt.Parts[1].Text = "a smalL" },
		"the image":       func(r *serving.Request) { r.Prompt.Parts[0].Image.Data = []byte("rec") },
		"its detail":      func(r *serving.Request) { r.Prompt.Parts[0].Image.Detail = vision.DetailLow },
		"the order":       func(r *serving.Request) { slices.Reverse(r.Prompt.Parts) },
		"tokens":          func(r *serving.Request) { r.Prompt.Parts[1] = serving.Part{IDs: []uint32{9}} },
		"max_tokens":      func(r *serving.Request) { r.MaxTokens = &one },
		"n":               func(r *serving.Request) { r.N = 2 },
		"stop":            func(r *serving.Request) { r.Stop = []string{"zy"} },
		"include_stop":    func(r *serving.Request) { r.IncludeStop = true },
		"ignore_eos":      func(r *serving.Request) { r.IgnoreEOS = false },
		"stop_token_ids":  func(r *serving.Request) { r.StopTokenIDs = []uint32{9} },
		"min_tokens":      func(r *serving.Request) { r.MinTokens = 2 },
		"temperature":     func(r *serving.Request) { r.Sampling.Temperature = &half },
		"top_p":           func(r *serving.Request) { r.Sampling.TopP = &half },
		"top_k":           func(r *serving.Request) { r.Sampling.TopK = &k },
		"min_p":           func(r *serving.Request) { r.Sampling.MinP = &half },
		"typical_p":       func(r *serving.Request) { r.Sampling.TypicalP = &half },
		"repetition":      func(r *serving.Request) { r.Sampling.RepetitionPenalty = &half },
		"presence":        func(r *serving.Request) { r.Sampling.PresencePenalty = &half },
		"frequency":       func(r *serving.Request) { r.Sampling.FrequencyPenalty = &half },
		"bias":            func(r *serving.Request) { r.Sampling.LogitBias = bias },
		"the name":        func(r *serving.Request) { r.ID = "two" },
		"the seed (only)": func(r *serving.Request) { r.Sampling.Seed = &other },
	} {
		g := ask(change)
		if name == "the seed (only)" {
			if g.Request != want.Request || g.Seed != other {
				t.Errorf("%s: %+v", name, g)
			}
			continue
		}
		if g.Request == want.Request {
			t.Errorf("%s does not change the digest", name)
		}
	}
}

// Where the log is required nothing is answered without it, and a line says so before any work. Elsewhere requests go
// on.
func TestAuditRequired(t *testing.T) {
	for _, required := range []bool{false, true} {
		s, h := audited(t, serving.ServiceOptions{AuditRequired: required})
		h.setFull(true)
		var k kept
		err := s.Generate(t.Context(), prompt(serving.Part{Text: "a small"}), &k)
		if !required {
			if err != nil || k.text == "" {
				t.Errorf("not required: %v", err)
			}
			continue
		}
		wantError(t, "required", err, serving.Unavailable, "")
		if k.text != "" || len(k.events) > 0 {
			t.Errorf("required: events %v", k.events)
		}
		err = s.Embed(t.Context(), &serving.EmbedRequest{Image: &serving.Image{Data: []byte("red")}},
			func(*serving.Embedding) error { return errors.New("an embedding was given") })
		wantError(t, "an embedding", err, serving.Unavailable, "")
		h.setFull(false)
		if err := s.Generate(t.Context(), prompt(serving.Part{Text: "a small"}), &k); err != nil {
			t.Fatal(err)
		}
		var kinds []string
		for _, e := range h.events {
			kinds = append(kinds, e.Kind+" "+e.Decision)
		}
		if !slices.Equal(kinds, []string{"begin allowed", "request OK"}) {
			t.Errorf("events %v", kinds)
		}
	}
}

// What a policy decides is in the request's event, up to a bound.
func TestAuditPolicies(t *testing.T) {
	h, m := newHeard(t), tinyModel(t)
	encode := m.Encode
	m.Encode = func(ctx context.Context, img *vision.Image) ([]float32, bool, error) {
		for i := range 200 {
			serving.Decided(ctx, audit.Decision{Stage: fmt.Sprint("stage-", i), Category: "spam", Action: "flag"})
		}
		return encode(ctx, img)
	}
	s, _ := run(t, m, decodertest.NewHash(1, contextLen, vocab), serving.ServiceOptions{Audit: h})
	if err := s.Generate(t.Context(), prompt(image("red"), serving.Part{Text: "a small"}), &kept{}); err != nil {
		t.Fatal(err)
	}
	want := audit.Decision{Stage: "stage-1", Category: "spam", Action: "flag"}
	if p := h.last(t).Policies; len(p) != 64 || p[1] != want {
		t.Errorf("%d policies, the second is %+v", len(p), p[1])
	}
	serving.Decided(t.Context(), audit.Decision{}) // of no request: nothing
}
