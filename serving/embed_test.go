package serving

import (
	"bytes"
	"context"
	"errors"
	"image"
	"image/png"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/internal/auth"
	"github.com/mmserve/mmserve/vision"
)

// embeds is bordered with a tower that gives each patch its number, two values wide.
func embeds(t *testing.T) (l *life, patches int) {
	t.Helper()
	l = bordered(t)
	l.model.Hidden, l.model.Digest, l.model.Fingerprint = 2, "sha256:d", "fp"
	l.model.Prompter.Preprocessor = slowly{l.model.Prompter.Preprocessor}
	patches = l.model.Prompter.Layout.PatchTokens
	l.model.Encode = func(context.Context, *vision.Image) ([]float32, bool, error) {
		out := make([]float32, 0, 2*patches)
		for i := range patches {
			out = append(out, float32(i), 1)
		}
		return out, true, nil
	}
	return l, patches
}

// square is a whole PNG file of 8×8 pixels.
func square(t *testing.T) *Image {
	t.Helper()
	var b bytes.Buffer
	if err := png.Encode(&b, image.NewGray(image.Rect(0, 0, 8, 8))); err != nil {
		t.Fatal(err)
	}
	return &Image{Data: b.Bytes()}
}

// An embedding has the tower's rows as they are, and their mean; the request's image is let go before the tower runs.
func TestEmbed(t *testing.T) {
	l, patches := embeds(t)
	in := &EmbedRequest{ID: "one", Image: square(t), Tenant: "acme"}
	prepared, encode := 0, l.model.Encode
	in.Prepared = func() { prepared++ }
	l.model.Encode = func(ctx context.Context, img *vision.Image) ([]float32, bool, error) {
		if prepared != 1 || in.Image != nil || img.Tenant != "acme" || l.engine.Stats().Accepted != 1 {
			t.Errorf("prepared %d times, image %v, of tenant %q, %d tickets", prepared, in.Image, img.Tenant,
				l.engine.Stats().Accepted)
		}
		return encode(ctx, img)
	}
	told := 0
	err := l.Embed(t.Context(), in, func(e *Embedding) error {
		told++
		mean := []float32{float32(patches-1) / 2, 1}
		if e.ID != "one" || e.Model != "tiny" || e.ModelDigest != "sha256:d" || e.Fingerprint != "fp" || !e.Cached ||
			e.Dimensions != 2 || e.Image.Tokens != patches || len(e.Patches) != 2*patches || !slices.Equal(e.Pooled, mean) {
			t.Errorf("%+v", e)
		}
		return nil
	})
	if err != nil || told != 1 {
		t.Errorf("%v, told %d times", err, told)
	}
	if n := l.engine.Stats().Accepted; n != 0 {
		t.Errorf("%d tickets are still out", n)
	}
}

// What is wrong with a request to embed is told as of any request, by its fields, before any work.
func TestEmbedRefused(t *testing.T) {
	l, patches := embeds(t)
	encode := l.model.Encode
	embed := func(ctx context.Context, edit func(in *EmbedRequest)) error {
		in := &EmbedRequest{Image: square(t)}
		edit(in)
		return l.Embed(ctx, in, func(*Embedding) error { return nil })
	}
	unread := Violations{{"priority", "7; want less"}}
	other := WithCaller(t.Context(), Caller{Tenant: "a", Identity: &auth.Identity{ID: "k", Tenant: "a", Role: auth.User}})
	broken := func(in *EmbedRequest) { in.Image.Data = []byte("broken") }
	for _, c := range []struct {
		name  string
		ctx   context.Context
		edit  func(in *EmbedRequest)
		kind  Kind
		field string
	}{
		{"all is well", t.Context(), func(in *EmbedRequest) { in.Model = "tiny" }, OK, ""},
		{"another model", t.Context(), func(in *EmbedRequest) { in.Model = "other" }, NotFound, ""},
		{"no image", t.Context(), func(in *EmbedRequest) { in.Image = nil }, Invalid, "image"},
		{"an empty image", t.Context(), func(in *EmbedRequest) { in.Image.Data = nil }, Invalid, "image.data"},
		{"a broken image", t.Context(), broken, Invalid, "image.data"},
		{"no id", t.Context(), func(in *EmbedRequest) { in.ID = "a b" }, Invalid, "request_id"},
		{"no tenant", t.Context(), func(in *EmbedRequest) { in.Tenant = "a b" }, Invalid, "tenant"},
		{"another's tenant", other, func(in *EmbedRequest) { in.Tenant = "b" }, Invalid, "tenant"},
		{"what the edge found", t.Context(), func(in *EmbedRequest) { in.Unread = unread }, Invalid, "priority"},
	} {
		err := embed(c.ctx, c.edit)
		var told *Error
		if errors.As(err, &told); KindOf(err) != c.kind ||
			c.field != "" && (len(told.Violations) != 1 || told.Violations[0].Field != c.field) {
			t.Errorf("%s: %v, want %v of %q", c.name, err, c.kind, c.field)
		}
	}
	for name, c := range map[string]struct {
		values int
		err    error
		kind   Kind
	}{
		"a value less": {2*patches - 1, nil, Internal}, "a fault": {2 * patches, errors.New("x"), Internal},
		"gone": {0, errGone, Unavailable}, "all": {2 * patches, nil, OK},
	} {
		l.model.Encode = func(context.Context, *vision.Image) ([]float32, bool, error) {
			return make([]float32, c.values), false, c.err
		}
		if err := embed(t.Context(), func(*EmbedRequest) {}); KindOf(err) != c.kind {
			t.Errorf("a tower that gives %s: %v, want %v", name, err, c.kind)
		}
	}
	l.model.Encode = encode
	all := func(priority batching.Priority) []*batching.Ticket {
		list, err := l.engine.AcquireFor(batching.Claim{Priority: priority, Answers: l.engine.Places()})
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	for _, ticket := range all(batching.PriorityInteractive) {
		defer ticket.Release()
	}
	if err := embed(t.Context(), func(*EmbedRequest) {}); !errors.Is(err, batching.ErrBusy) {
		t.Errorf("with every place taken: %v", err)
	}
	l.model.Prompter.Preprocessor = nil
	if err := embed(t.Context(), func(*EmbedRequest) {}); KindOf(err) != FailedPrecondition ||
		!strings.HasPrefix(err.Error(), "image.data: ") {
		t.Errorf("of a model that takes no images: %v", err)
	}
}

// A request to embed, and one to count, ends when the server or its model does.
func TestEmbedAndCountAreCut(t *testing.T) {
	shutdown, stop := context.WithCancel(t.Context())
	l, _ := embeds(t)
	l.options.Shutdown = shutdown
	cut := stop
	l.model.Encode = func(ctx context.Context, _ *vision.Image) ([]float32, bool, error) {
		cut()
		<-ctx.Done()
		return nil, false, context.Cause(ctx)
	}
	deliver := func(*Embedding) error { return nil }
	for range cap(l.counting) {
		l.counting <- struct{}{}
	}
	err := l.Embed(t.Context(), &EmbedRequest{Image: square(t)}, deliver)
	if KindOf(err) != Unavailable || !errors.Is(err, ErrCut) {
		t.Errorf("at a shutdown: %v", err)
	}
	if _, err := l.Count(t.Context(), asks(func(*Request) {})); KindOf(err) != Unavailable || !errors.Is(err, ErrCut) {
		t.Errorf("a count at a shutdown: %v", err)
	}
	l.options.Shutdown = t.Context()
	left, leave := context.WithCancel(t.Context())
	leave()
	if _, err := l.Count(left, asks(func(*Request) {})); KindOf(err) != Canceled {
		t.Errorf("a count whose caller has left: %v", err)
	}
	cut = l.deployment.cut
	if err := l.Embed(t.Context(), &EmbedRequest{Image: square(t)}, deliver); !errors.Is(err, errUnloaded) {
		t.Errorf("of a model that is taken out: %v", err)
	}
	l.model.Encode = func(context.Context, *vision.Image) ([]float32, bool, error) { panic("at the tower") }
	l.deployment.cutting = t.Context()
	if err := l.Embed(t.Context(), &EmbedRequest{Image: square(t)}, deliver); KindOf(err) != Internal {
		t.Errorf("a panic: %v", err)
	}
	if n := l.engine.Stats().Accepted; n != 0 {
		t.Errorf("%d tickets are still out", n)
	}
}

// The mean of no rows is 0, and that of one the row.
func TestMean(t *testing.T) {
	for _, c := range []struct{ rows, want []float32 }{
		{nil, []float32{0, 0}}, {[]float32{1, 2}, []float32{1, 2}}, {[]float32{1, 2, 5, 4}, []float32{3, 3}},
		{[]float32{1, 0, 2, 0, 6, 3}, []float32{3, 1}},
	} {
		if got := mean(c.rows, 2); !slices.Equal(got, c.want) {
			t.Errorf("the mean of %v is %v, want %v", c.rows, got, c.want)
		}
	}
}
