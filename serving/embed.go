package serving

import (
	"context"
	"fmt"
	"slices"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/vision"
)

// EmbedRequest asks for what the vision tower makes of an image. Its fields are those of a Request.
type EmbedRequest struct {
	ID, Model, Tenant, Peer string
	Priority                batching.Priority
	Image                   *Image
	Unread                  Violations
	// Prepared, unless nil, is called once the image is decoded: nothing large is left of the request then.
	Prepared func()
}

// Embedding is what the vision tower makes of an image.
type Embedding struct {
	ID, Model, ModelDigest, Fingerprint string
	Image                               ImageLayout
	// Dimensions is the number of values of an embedding.
	Dimensions int
	// Patches are the embeddings as they stand in a prompt, [Image.Tokens, Dimensions] row-major. They are shared and
	// must not be written. What a model adds in later layers (Model.Deepstack) is not among them.
	Patches []float32
	// Pooled is the mean of Patches, not normalized.
	Pooled []float32
	// Cached says that the image had been encoded before.
	Cached bool
}

// Embed encodes an image as Generate does, with its cache and its budgets, and gives it to deliver. The request holds
// a place among those that the engine accepts until deliver returns, so that no more embeddings than that are held.
// Its error is an *Error, or what deliver returns.
func (s *Service) Embed(ctx context.Context, in *EmbedRequest, deliver func(*Embedding) error) (err error) {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	caller := &Request{ID: in.ID, Model: in.Model, Tenant: in.Tenant, Unread: in.Unread}
	ctx, l, release, err := s.beginAs(ctx, caller, operationEmbed)
	if err != nil {
		return err
	}
	in.Tenant, in.Unread = caller.Tenant, caller.Unread // the credential's, where there is one
	defer release()
	defer l.unuseAll()
	defer context.AfterFunc(s.options.Shutdown, func() { end(ErrCut) })()
	defer context.AfterFunc(l.deployment.Cutting(), func() { end(errUnloaded) })()
	defer func() { err = l.rec.close(ctx, recover(), err) }()
	return l.embed(ctx, in, deliver)
}

func (l *life) embed(ctx context.Context, in *EmbedRequest, deliver func(*Embedding) error) error {
	if err := l.enter(ctx, in.Peer); err != nil {
		return err
	}
	defer l.leave()
	req, err := l.validateEmbed(in)
	if err != nil {
		return err
	}
	if err := l.used.require(l.model.Prompter.Layout.PatchTokens, 1); err != nil {
		return l.rec.refuse(err)
	}
	closeMedia, err := l.files(ctx, req)
	if err != nil {
		return err
	}
	defer closeMedia()
	tickets, err := l.engine.AcquireFor(batching.Claim{
		Priority: in.Priority, Tenant: in.Tenant, Caller: req.caller, Answers: 1, MaxTokens: 1,
	})
	if err != nil {
		return l.rec.refuse(err)
	}
	for _, t := range tickets {
		defer t.Release()
	}
	ctx = vision.WithPriority(ctx, int(in.Priority))
	layouts, err := l.chargeEmbedding(ctx, req)
	if err != nil {
		return err
	}
	if err := l.policeEmbedding(ctx, req); err != nil {
		return l.rec.refusedBy(err)
	}
	images, err := l.prepare(ctx, req.images)
	if err != nil {
		return err
	}
	closeMedia()
	req.images, in.Image = nil, nil
	if in.Prepared != nil {
		in.Prepared()
	}
	l.rec.lap(&l.rec.preprocess)
	e := &Embedding{
		ID: l.rec.id, Model: l.model.Name, ModelDigest: l.model.Digest, Fingerprint: l.model.Fingerprint,
		Image: layouts[0], Dimensions: l.model.Hidden,
	}
	l.ran = e.Image.Tokens
	l.keepFor(images[0], in.Tenant)
	l.use(images[0])
	if e.Patches, e.Cached, err = l.model.Encode(ctx, images[0]); err != nil {
		return err
	}
	images = nil
	if width := l.model.PatchWidth(); len(e.Patches) != e.Image.Tokens*width {
		return fmt.Errorf("the tower gave %d values for %d patches of %d", len(e.Patches), e.Image.Tokens, width)
	}
	e.Patches = firstValues(e.Patches, l.model.PatchWidth(), e.Dimensions)
	l.rec.tokens, l.rec.image = e.Image.Tokens, e.Image.Tokens
	if e.Cached {
		l.rec.cached = e.Image.Tokens
	}
	e.Pooled = mean(e.Patches, e.Dimensions)
	l.rec.lap(&l.rec.encode)
	return deliver(e)
}

// chargeEmbedding has the image cost what its header says.
func (l *life) chargeEmbedding(ctx context.Context, req *checked) ([]ImageLayout, error) {
	if err := l.withinBudget(ctx, req.images); err != nil {
		return nil, err
	}
	layouts, _, err := l.measure(ctx, req.images)
	if err != nil {
		return nil, err
	}
	if err := l.used.require(layouts[0].Tokens, 1); err != nil {
		return nil, l.rec.refuse(err)
	}
	return layouts, nil
}

// validateEmbed checks all that can be known without work.
func (l *life) validateEmbed(in *EmbedRequest) (*checked, error) {
	if in.Model != "" && in.Model != l.model.Name {
		return nil, NotServed("model", in.Model, l.models.namesOf(l.identity))
	}
	v := slices.Clip(in.Unread)
	validateName(&v, "request_id", in.ID)
	validateName(&v, "tenant", in.Tenant)
	r := &checked{tenant: in.Tenant, peer: in.Peer, caller: l.callerOf(in.Peer), priority: in.Priority}
	l.used.allows(&v, in.Priority)
	if in.Image == nil {
		v.Add("image", "none; want an image")
	} else {
		r.images = []imagePart{l.validateImage(&v, "image", in.Image)}
	}
	if err := v.Err(); err != nil {
		return nil, err
	}
	return r, l.able(r)
}

// firstValues are the first n of each row of width values: rows itself where these are all.
func firstValues(rows []float32, width, n int) []float32 {
	if width == n {
		return rows
	}
	out := make([]float32, 0, len(rows)/width*n)
	for ; len(rows) > 0; rows = rows[width:] {
		out = append(out, rows[:n]...)
	}
	return out
}

// mean is the mean of rows of n values, summed up in float64.
func mean(rows []float32, n int) []float32 {
	out, sums := make([]float32, n), make([]float64, n)
	for at := 0; at < len(rows); at += n {
		for i, v := range rows[at : at+n] {
			sums[i] += float64(v)
		}
	}
	for i, sum := range sums {
		out[i] = float32(sum / float64(max(1, len(rows)/n)))
	}
	return out
}
