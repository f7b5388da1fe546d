package serving_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/decoder/decodertest"
	"github.com/mmserve/mmserve/internal/constrain"
	"github.com/mmserve/mmserve/internal/imaging"
	"github.com/mmserve/mmserve/internal/media"
	"github.com/mmserve/mmserve/serving"
	"github.com/mmserve/mmserve/vision"
)

// fill takes every place that there is, until the returned function gives them back.
func fill(t *testing.T, e *batching.Engine) (free func()) {
	t.Helper()
	var held []*batching.Ticket
	for i := range e.Places() {
		tenant := fmt.Sprint("holder-", i%9)
		tickets, err := e.AcquireFor(batching.Claim{Priority: batching.PriorityInteractive, Tenant: tenant})
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, tickets...)
	}
	return func() {
		for _, ticket := range held {
			ticket.Release()
		}
	}
}

// A request pays for what its usage reports, whatever becomes of it; one that finds no room pays nothing.
func TestRequestsPayForTheirUsage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := quotas(t, "default: {requests_per_second: 0.001, burst: 6, tokens_per_minute: 600, images_per_minute: 3}")
		s, e := tinyWith(t, q)
		ask := func(sink serving.Sink, parts ...serving.Part) error {
			in := prompt(parts...)
			in.Tenant = "a"
			return s.Generate(t.Context(), in, sink)
		}
		text := serving.Part{Text: "a small"}
		var k kept
		if err := ask(&k, text, image("red")); err != nil {
			t.Fatal(err)
		}
		used := float64(k.finish.Usage.Prompt + k.finish.Usage.Completion)
		if left := q.TokensLeft("a"); left != 600-used || used < 20 {
			t.Errorf("%v tokens are left, used were %v", left, used)
		}
		// An image that is broken counts as an image, and as no token.
		if err := ask(&kept{}, image("broken")); serving.KindOf(err) != serving.Invalid {
			t.Fatal(err)
		}
		wait := refused(t, ask(&kept{}, image("red"), image("red")), "images_per_minute",
			"3 images a minute; this request has 2")
		if wait != 20*time.Second {
			t.Errorf("the next image after %v", wait)
		}
		// Of an answer that was cut the tokens count that were given.
		if err := ask(&kept{fail: "delta"}, text); !errors.Is(err, errSink) {
			t.Fatal(err)
		}
		if left := q.TokensLeft("a"); left >= 600-used || left < 600-used-20 {
			t.Errorf("%v tokens are left", left)
		}
		synctest.Wait() // what was cut has left the engine
		free := fill(t, e)
		left := q.TokensLeft("a")
		for range 10 {
			if err := ask(&kept{}, text); !errors.Is(err, batching.ErrBusy) {
				t.Fatalf("with no place left: %v", err)
			}
		}
		if now := q.TokensLeft("a"); now != left {
			t.Errorf("%v tokens are left after requests that were not taken, before %v", now, left)
		}
		free()
		for range 3 { // three of six were taken before
			if err := ask(&kept{}, text); err != nil {
				t.Fatal(err)
			}
		}
		refused(t, ask(&kept{}, text), "requests_per_second", "6 at once")
		if n := e.Stats().Accepted; n != 0 {
			t.Errorf("%d tickets are still out", n)
		}
	})
}

// The prompt as it is counts before its images are encoded, not the estimate that admitted it.
func TestPromptsAreChargedExactly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := quotas(t, "default: {tokens_per_minute: 60}")
		s, e := tinyWith(t, q)
		in := prompt(serving.Part{Text: "#$%&#$%&#$%&#$%&#$%&#$%&#$%&#$%&#$%&#$%&#$%&#$%&#$%&#$%&"}) // a token a byte
		if refused(t, s.Generate(t.Context(), in, &kept{}), "tokens_per_minute", "60 tokens a minute") != 0 {
			t.Error("it is told to try again with more tokens than a minute has")
		}
		if n := e.Stats().Accepted; n != 0 || e.Stats().Steps != 0 {
			t.Errorf("%d tickets are out, %d steps were run", n, e.Stats().Steps)
		}
		if left := q.TokensLeft(""); left != 60 {
			t.Errorf("%v tokens are left", left)
		}
	})
}

// A call is counted once, before its message, for the tenant of its credential; a request that names another is
// refused.
func TestAdmit(t *testing.T) {
	q := quotas(t, "default: {requests_per_second: 0.001, burst: 2, concurrency: 1}")
	s, e := tinyWith(t, q)
	call := func(tenant string) context.Context {
		return serving.WithCaller(t.Context(), serving.Caller{Tenant: tenant, Peer: "10.0.0.1:1"})
	}
	named := func(tenant string) *serving.Request {
		in := prompt(serving.Part{Text: "a small"})
		in.Tenant = tenant
		return in
	}
	ctx, release, err := s.Admit(call("a"))
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = s.Admit(call("a"))
	refused(t, err, "concurrency", "1 requests at the same time")
	if err := s.Generate(ctx, named("a"), &kept{}); err != nil {
		t.Fatal(err)
	}
	release()
	release()
	if err := s.Generate(ctx, named("a"), &kept{}); err != nil { // another request of the call counts again
		t.Fatal(err)
	}
	_, _, err = s.Admit(call("a"))
	refused(t, err, "requests_per_second", "2 at once")
	if err := s.Generate(t.Context(), named("other"), &kept{}); err != nil {
		t.Errorf("another tenant has paid: %v", err)
	}
	err = s.Generate(call("b"), named("other"), &kept{})
	if e := (*serving.Error)(nil); !errors.As(err, &e) || len(e.Violations) != 1 || e.Violations[0].Field != "tenant" {
		t.Errorf("a request that names another tenant: %v, want a violation of tenant", err)
	}
	// Without a credential the tenant is not known yet, and the host has not used anything.
	for range 5 {
		_, release, err := s.Admit(call(""))
		if err != nil {
			t.Fatal(err)
		}
		release()
	}
	defer fill(t, e)()
	var full *serving.Error
	if _, _, err := s.Admit(call("")); !errors.As(err, &full) || full.Kind != serving.Exhausted || full.RetryAfter <= 0 {
		t.Errorf("with every place taken: %v", err)
	}
}

// A tenant's requests have no higher priority than its own.
func TestQuotaPriority(t *testing.T) {
	s, _ := tinyWith(t, quotas(t, "default: {priority: default}\n"+
		"tenants: {vip: {priority: interactive}, night: {priority: batch}}"))
	for tenant, most := range map[string]batching.Priority{
		"": batching.PriorityDefault, "vip": batching.PriorityInteractive, "night": batching.PriorityBatch,
	} {
		for p := batching.PriorityBatch; p <= batching.PriorityInteractive; p++ {
			in := prompt(serving.Part{Text: "a small"})
			in.Tenant, in.Priority = tenant, p
			err := s.Generate(t.Context(), in, &kept{})
			if p <= most && err != nil {
				t.Errorf("%q with priority %d: %v", tenant, p, err)
			}
			if p > most {
				wantError(t, tenant, err, serving.Invalid, "priority")
				if text := err.Error(); strings.Contains(text, "PRIORITY") || !strings.Contains(text, "this tenant's highest") {
					t.Errorf("%q with priority %d: %s", tenant, p, text)
				}
			}
		}
	}
}

// An upload counts against the rate of its tenant, before its bytes come.
func TestUploadsCountAgainstTheRate(t *testing.T) {
	store := media.New(media.Options{Bytes: 1 << 20, TTL: time.Hour})
	defer store.Close()
	s, _ := tinyOptions(t, serving.ServiceOptions{
		Media: store, Quotas: quotas(t, "default: {requests_per_second: 0.001, burst: 2}"),
	})
	for range 2 {
		if _, err := upload(s, serving.UploadHeader{Tenant: "a"}, pngFile(t, 8)); err != nil {
			t.Fatal(err)
		}
	}
	_, err := upload(s, serving.UploadHeader{Tenant: "a"}, pngFile(t, 8))
	refused(t, err, "requests_per_second", "2 at once")
	if _, err := upload(s, serving.UploadHeader{Tenant: "b"}, pngFile(t, 8)); err != nil {
		t.Error(err)
	}
	// One that its edge has counted already is not counted again.
	ctx, release, err := s.AdmitPlaceless(serving.WithCaller(t.Context(), serving.Caller{Tenant: "c"}))
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	for i := range 3 {
		u, err := s.UploadMedia(ctx, serving.UploadHeader{})
		if i == 2 {
			refused(t, err, "requests_per_second", "2 at once")
		} else if err != nil {
			t.Fatal(err)
		} else {
			u.Abort()
		}
	}
}

// Work that was done before a quota refuses is paid for: the request and its images count, and no more of it is done.
func TestRefusedAfterWorkIsPaidFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := quotas(t, "default: {requests_per_second: 0.001, burst: 2, tokens_per_minute: 60, images_per_minute: 2}")
		m, decoded := tinyModel(t), 0
		prepare := m.Prompter.Preprocessor
		m.Prompter.Preprocessor = prepares{prepare: func(data []byte) (*vision.Image, error) {
			decoded++
			return prepare.(prepares).prepare(data)
		}}
		s, _ := run(t, m, decodertest.NewHash(1, contextLen, vocab), serving.ServiceOptions{Quotas: q})
		one, by := uint32(1), map[string]int{}
		for range 50 {
			in := prompt(image("red"), serving.Part{Text: strings.Repeat("#$%&", 11)}) // a token a byte
			in.MaxTokens = &one
			var why *serving.QuotaError
			if err := s.Generate(t.Context(), in, &kept{}); !errors.As(err, &why) {
				t.Fatalf("%v, want a quota's refusal", err)
			}
			by[why.Quota]++
		}
		if decoded > 2 || by["requests_per_second"] != 48 {
			t.Errorf("%d images were decoded, refused by %v", decoded, by)
		}
		if left := q.TokensLeft(""); left != 60 {
			t.Errorf("%v tokens are left, though none was run", left)
		}
	})
}

// What is refused after work is told to come back when it can pay for all of it again.
func TestRefusedAfterWorkWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := quotas(t, "default: {requests_per_second: 0.1, burst: 1, tokens_per_minute: 600, images_per_minute: 2}")
		u := enter(t, q, "a", "")
		if err := u.Require(10, 2); err != nil {
			t.Fatal(err)
		}
		u.Work()
		if wait := refused(t, u.Require(601, 2), "tokens_per_minute", ""); wait != 0 {
			t.Errorf("try again in %v", wait)
		}
		u.End(3, false)
		if left := q.TokensLeft("a"); left != 597 {
			t.Errorf("%v tokens are left, want all but the 3 that were run", left)
		}
		time.Sleep(10 * time.Second)
		u = enter(t, q, "a", "")
		if wait := refused(t, u.Require(1, 2), "images_per_minute", ""); wait != 50*time.Second {
			t.Errorf("try again in %v, want in 50s: nothing was done", wait)
		}
		u.Work()
		if wait := refused(t, u.Require(1, 1), "images_per_minute", "").Round(time.Second); wait != 20*time.Second {
			t.Errorf("try again in %v, want in 20s", wait)
		}
		u.End(0, false)
	})
}

// A fetch is work: who is refused for lack of room after it has used a request and an image.
func TestFetchesArePaidFor(t *testing.T) {
	store := media.New(media.Options{Bytes: 1 << 20, TTL: time.Hour})
	defer store.Close()
	s, e := tinyOptions(t, serving.ServiceOptions{
		Media: store, Fetcher: &hosts{files: map[string]string{"red": "red file"}},
		Quotas: quotas(t, "default: {requests_per_second: 0.001, burst: 2}"),
	})
	defer fill(t, e)()
	for range 2 {
		if err := s.Generate(t.Context(), prompt(byURL("red")), &kept{}); !errors.Is(err, batching.ErrBusy) {
			t.Fatal(err)
		}
	}
	refused(t, s.Generate(t.Context(), prompt(byURL("red")), &kept{}), "requests_per_second", "2 at once")
}

// Images that the tower was given are paid for, whatever becomes of the request; with them is charged what their
// headers say, before they are decoded.
func TestImagesOfTheTowerArePaidFor(t *testing.T) {
	q := quotas(t, "default: {requests_per_second: 0.001, burst: 2, tokens_per_minute: 600}\n"+
		"tenants: {small: {tokens_per_minute: 40}}")
	m, decoded := tinyModel(t), 0
	m.Prompter.Preprocessor = prepares{prepare: func([]byte) (*vision.Image, error) {
		decoded++
		return &vision.Image{}, nil
	}}
	m.Encode = func(context.Context, *vision.Image) ([]float32, bool, error) { return nil, false, errSink }
	s, _ := run(t, m, decodertest.NewHash(1, contextLen, vocab), serving.ServiceOptions{Quotas: q})
	one := uint32(1)
	in := prompt(image(string(pngFile(t, 8))))
	in.MaxTokens = &one
	in.Tenant = "a"
	if err := s.Generate(t.Context(), in, &kept{}); !errors.Is(err, errSink) {
		t.Fatal(err)
	}
	if used := 600 - q.TokensLeft("a"); used < imageTokens-1 || used > imageTokens {
		t.Errorf("%v tokens were used, want the %d of the image", used, imageTokens)
	}
	m.Prompter.Layout.ImageTokens = func(vision.Grid) int { return 50 }
	decoded = 0
	for range 5 { // more than a burst: a refusal by the headers counts for nothing
		in := prompt(image(string(pngFile(t, 8))))
		in.MaxTokens, in.Tenant = &one, "small"
		refused(t, s.Generate(t.Context(), in, &kept{}), "tokens_per_minute", "may take 52")
	}
	in = prompt(image(string(pngFile(t, 8))), serving.Part{Text: strings.Repeat("x", 47)})
	in.MaxTokens, in.Tenant = &one, "small" // a token for each four bytes of text, as long as it is not tokenized
	refused(t, s.Generate(t.Context(), in, &kept{}), "tokens_per_minute", "may take 62")
	if decoded != 0 {
		t.Errorf("%d images were decoded", decoded)
	}
}

// Work for a request is as urgent as the request.
func TestPriorityOfWork(t *testing.T) {
	m := tinyModel(t)
	var seen []int
	encode := m.Encode
	m.Encode = func(ctx context.Context, img *vision.Image) ([]float32, bool, error) {
		seen = append(seen, imaging.Priority(ctx))
		return encode(ctx, img)
	}
	s, _ := run(t, m, decodertest.NewHash(1, contextLen, vocab), serving.ServiceOptions{})
	for _, p := range []batching.Priority{batching.PriorityBatch, batching.PriorityInteractive} {
		in := prompt(image(string(pngFile(t, 8))))
		in.Priority = p
		if err := s.Generate(t.Context(), in, &kept{}); err != nil {
			t.Error(err)
		}
		e := &serving.EmbedRequest{Priority: p, Image: &serving.Image{Data: pngFile(t, 8)}}
		if err := s.Embed(t.Context(), e, func(*serving.Embedding) error { return nil }); err != nil {
			t.Error(err)
		}
	}
	low, high := int(batching.PriorityBatch), int(batching.PriorityInteractive)
	if !slices.Equal(seen, []int{low, low, high, high}) {
		t.Errorf("the priorities are %v", seen)
	}
}

// A host that opens many connections shares the places of one caller, and leaves some to others. On this machine, and
// where the operator says so, each connection is a caller.
func TestPlacesOfHost(t *testing.T) {
	for name, c := range map[string]struct {
		peer    string // with a port of its own each
		options serving.ServiceOptions
		most    int // requests that are taken
	}{
		"a host":        {"192.0.2.7:%d", serving.ServiceOptions{}, 25},
		"a site":        {"[2001:db8::%d]:1", serving.ServiceOptions{}, 25},
		"this machine":  {"127.0.0.1:%d", serving.ServiceOptions{}, 29},
		"by connection": {"192.0.2.7:%d", serving.ServiceOptions{CallersByConnection: true}, 29},
	} {
		t.Run(name, func(t *testing.T) {
			gate, ended := make(chan struct{}), make(chan error)
			r := decodertest.NewHash(1, contextLen, vocab)
			r.Fail = func(*decoder.Batch) error { <-gate; return nil }
			s, e := run(t, tinyModel(t), r, c.options)
			ask := func(peer string) error {
				in := prompt(serving.Part{Text: "a"})
				in.Peer = peer
				return s.Generate(t.Context(), in, &kept{})
			}
			const asked = 40
			taken := 0
			for i := range asked {
				go func() { ended <- ask(fmt.Sprintf(c.peer, i+1)) }()
				for before := taken; taken == before; taken = e.Stats().Accepted {
					select {
					case err := <-ended:
						wantError(t, "beyond the places", err, serving.Exhausted, "")
						before = -1
					default:
						runtime.Gosched()
					}
				}
			}
			if taken != c.most {
				t.Errorf("%d requests were taken, want %d", taken, c.most)
			}
			if _, err := e.AcquireFor(batching.Claim{Caller: "198.51.100.1"}); (err == nil) != (c.most == 25) {
				t.Errorf("another caller: %v", err)
			}
			close(gate)
			for range taken {
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// Tokens that are generated to score choices are charged: before work as the most that they may be, and in the end as
// many as there were.
func TestScoresArePaidFor(t *testing.T) {
	m := tinyModel(t)
	m.Compiler = func() (*constrain.Compiler, error) { return constrain.NewCompiler(m.Prompter.Tokenizer, m.EOS) }
	synctest.Test(t, func(t *testing.T) {
		q := quotas(t, "default: {tokens_per_minute: 300}")
		s, _ := run(t, m, decodertest.NewHash(2, contextLen, vocab), serving.ServiceOptions{Quotas: q})
		ask := func(tenant string, scores bool, texts ...string) (serving.Usage, error) {
			in, k := prompt(serving.Part{Text: "a small"}), kept{}
			in.IgnoreEOS, in.Tenant = false, tenant
			in.Constraint = &serving.Constraint{Kind: serving.Choices, Choices: texts, Scores: scores}
			err := s.Generate(t.Context(), in, &k)
			return k.finish.Usage, err
		}
		texts := []string{"red", "ready", "reason", "blue", "a"}
		for tenant, scores := range map[string]bool{"plain": false, "scored": true} {
			u, err := ask(tenant, scores, texts...)
			if err != nil {
				t.Fatal(err)
			}
			extra := 300 - q.TokensLeft(tenant) - float64(u.Prompt+u.Completion)
			if scores != (extra >= 3) || extra < 0 || extra > 30 {
				t.Errorf("%s: %v tokens were charged beyond %+v", tenant, extra, u)
			}
		}
		var many []string
		for i := range 64 {
			many = append(many, strings.Repeat("x", 20+i))
		}
		if _, err := ask("many", false, many...); err != nil {
			t.Error(err)
		}
		_, err := ask("more", true, many...)
		wantError(t, "more than there are in a minute", err, serving.Exhausted, "")
		if left := q.TokensLeft("more"); left != 300 {
			t.Errorf("%v tokens are left to who was refused before work", left)
		}
	})
}
