package serving

import (
	"cmp"
	"context"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/internal/auth"
	"github.com/mmserve/mmserve/vision"
)

// Caller is who makes a call, as its edge knows before the message has come.
type Caller struct {
	// Identity is whom the credential stands for; nil where callers need none.
	Identity *auth.Identity
	// Tenant is the credential's; empty where callers name a tenant in their requests.
	Tenant string
	// Peer is the caller's address.
	Peer string
}

type (
	callerKey struct{}
	usageKey  struct{}
)

// WithCaller says who makes the call of ctx. A request that names another tenant is refused.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerOf is what WithCaller was given.
func CallerOf(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}

// Admit says whether a request of ctx's caller could be taken now, before its message is received: not if every
// model's places are taken, nor beyond the rate or the concurrency of a tenant that the caller's credential gives.
// Generate then does not count the request again. An edge calls release when the call is over, and gives the error to
// Refuse unless it receives the message all the same.
func (s *Service) Admit(ctx context.Context) (_ context.Context, release func(), err error) {
	if s.full() {
		return ctx, func() {}, busy()
	}
	return s.AdmitPlaceless(ctx)
}

// AdmitPlaceless is Admit for a request that takes no place in an engine: CountTokens, or an upload.
func (s *Service) AdmitPlaceless(ctx context.Context) (_ context.Context, release func(), err error) {
	none := func() {}
	c := CallerOf(ctx)
	if err := s.permitAny(c.Identity); err != nil {
		return ctx, none, err
	}
	if err := s.notQuarantined(ctx, c.Tenant, c.Peer); err != nil {
		return ctx, none, err
	}
	if c.Tenant == "" {
		return ctx, none, nil
	}
	u, err := s.options.Quotas.enter(c.Tenant, c.Peer)
	if err != nil {
		return ctx, none, err
	}
	return context.WithValue(ctx, usageKey{}, u), func() { u.end(0, true) }, nil
}

// permitAny says whether the caller may have any of the models work, as which one it wants is not known yet.
func (s *Service) permitAny(caller *auth.Identity) error {
	if caller == nil || caller.Models == nil {
		return nil
	}
	models, may := 0, false // of none it is not known what there will be
	s.models.Each(func(d *Deployment) {
		models++
		may = may || caller.MayUse(d.Model.Name)
	})
	if models == 0 || may {
		return nil
	}
	return notAllowed("model")
}

// full says whether no model has a place for any request.
func (s *Service) full() bool {
	models, full := 0, 0
	s.models.Each(func(d *Deployment) {
		models++
		if d.Engine.Full() {
			full++
		}
	})
	return full > 0 && full == models
}

// enter holds the caller to what its credential allows, and counts the request against its tenant's quotas, unless
// Admit has.
func (l *life) enter(ctx context.Context, peer string) error {
	if err := permit(ctx, l.model.Name); err != nil {
		return err
	}
	if err := quarantined(l.quarantine); err != nil {
		return l.rec.refusedBy(err)
	}
	u, _ := ctx.Value(usageKey{}).(*usage)
	if !u.adopt() {
		var err error
		if u, err = l.options.Quotas.enter(l.rec.tenant, peer); err != nil {
			return l.rec.refuse(err)
		}
	}
	if err := l.rec.trail.begin(); err != nil {
		u.end(0, false)
		return err
	}
	l.used = u
	return nil
}

// leave gives back what the request did not use of its tenant's quotas. One that found no room, there or in the engine,
// before any work counts for nothing.
func (l *life) leave() { l.used.end(l.ran+l.scored+l.rec.total().completion, l.rec.refused == nil) }

// bytesPerToken is how many bytes of text count as a token until the prompt is tokenized.
const bytesPerToken = 4

// chargeEstimate charges the request for what it may take, as far as that is known before any work.
func (l *life) chargeEstimate(req *checked) error {
	images := len(req.images)
	return l.charge(req, max(1, req.text/bytesPerToken)+images*l.model.Prompter.Layout.PatchTokens, images)
}

// chargeImages has images cost what their headers say instead, before they are decoded, which tells what is wrong with
// those that have none.
func (l *life) chargeImages(ctx context.Context, req *checked) error {
	if l.used == nil || len(req.images) == 0 {
		return nil
	}
	if err := l.withinBudget(ctx, req.images); err != nil {
		return err
	}
	layouts, _, err := l.measure(ctx, req.images)
	if err != nil {
		return nil
	}
	tokens := max(1, req.text/bytesPerToken)
	for _, at := range layouts {
		tokens += at.Tokens
	}
	return l.charge(req, tokens, len(layouts))
}

// chargeAndPrepare decodes the images, once they are charged for.
func (l *life) chargeAndPrepare(ctx context.Context, req *checked) ([]*vision.Image, error) {
	if err := l.chargeImages(ctx, req); err != nil {
		return nil, err
	}
	if err := l.policeImages(ctx, req); err != nil {
		return nil, l.rec.refusedBy(err)
	}
	return l.prepare(ctx, req.images)
}

// charge charges it for its prompt, for the scores of its choices and for the longest answers that there may be,
// instead of what it was charged before.
func (l *life) charge(req *checked, prompt, images int) error {
	answer := cmp.Or(req.maxTokens, defaultMaxTokens)
	if err := l.used.require(prompt+req.n*answer+req.scoreTokens, images); err != nil {
		return l.rec.refuse(err)
	}
	return nil
}

// busy is the error of a request that finds all places taken.
func busy() error { return refusal(batching.ErrBusy) }
