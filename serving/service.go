package serving

import (
	"cmp"
	"context"
	"log/slog"
	"runtime"
	"sync"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/conversation"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/auth"
	"github.com/mmserve/mmserve/internal/constrain"
	"github.com/mmserve/mmserve/internal/crew"
	"github.com/mmserve/mmserve/internal/media"
	"github.com/mmserve/mmserve/internal/socket"
	"github.com/mmserve/mmserve/safety"
	"github.com/mmserve/mmserve/vision"
)

// ServiceOptions bound what a request may ask for. A zero field takes its default.
type ServiceOptions struct {
	// MaxTextBytes is the most text in one request; the tokenizer's work grows with it. Default: 1 MiB.
	MaxTextBytes int
	// MaxImages is the most images in one request, MaxStop the most stop strings. Default: 16.
	MaxImages, MaxStop int
	// NoDrafts has tokens generated one by one for requests that do not say speculative.
	NoDrafts bool
	// SharePrefixes has images that one tenant sent count as cached for others.
	SharePrefixes bool
	// Quotas hold tenants to what they may use. Default: they may use all there is.
	Quotas *Quotas
	// Filters make the stages that every answer goes through after those of its request, in order. They see a model's
	// thoughts, too, with the marks around them.
	Filters []Filter
	// Policy is what requests and answers are held to; nil: to nothing.
	Policy *Policy
	// Logger gets one line per request, without content. Default: slog.Default.
	Logger *slog.Logger
	// CallersByConnection has each connection share the places of an engine as a caller of its own, where requests name no
	// tenant: behind a proxy. Default: each host does, and on this machine each connection.
	CallersByConnection bool
	// Telemetry gets traces and metrics; it is of one service. Default: nothing does.
	Telemetry *Telemetry
	// Traffic, unless nil, is what the edges count of their messages, for metrics.
	Traffic func() Traffic
	// ImageBudget bounds what the images of one request cost.
	ImageBudget ImageBudget
	// Media keeps the files that callers upload, and holds those that are fetched. nil: there are neither.
	Media *media.Store
	// Fetcher gets images that requests name by URL; it needs Media. nil: they are refused.
	Fetcher Fetcher
	// Audit gets an event for each request, without content. nil: nothing does. AuditRequired has requests fail where
	// their event is not kept.
	Audit         Auditor
	AuditRequired bool
	// Conversations keeps conversations between requests. nil: none are.
	Conversations conversation.Store
	// Shutdown ends the requests that are still open, which fail with ErrCut. nil: nothing does.
	Shutdown context.Context
}

func (o ServiceOptions) withDefaults() ServiceOptions {
	o.MaxTextBytes = cmp.Or(o.MaxTextBytes, 1<<20)
	o.MaxImages = cmp.Or(o.MaxImages, 16)
	o.MaxStop = cmp.Or(o.MaxStop, 16)
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Telemetry == nil {
		o.Telemetry = noTelemetry()
	}
	if o.Shutdown == nil {
		o.Shutdown = context.Background()
	}
	return o
}

// Service answers requests from the models of a registry. Its methods may be called concurrently.
type Service struct {
	models  *Registry
	options ServiceOptions
	images  images
	// counting has one place per core, for Count, which has none in an engine.
	counting chan struct{}
	// loading has places for images that are read from the store of conversations, before they count against the memory
	// of media.
	loading chan struct{}
	// exporting has places for archives on their way.
	exporting chan struct{}
}

// NewService returns a service of models. Its telemetry is read from them from now on.
func NewService(models *Registry, o ServiceOptions) *Service {
	s := &Service{models: models, options: o.withDefaults(), counting: make(chan struct{}, runtime.GOMAXPROCS(0))}
	s.loading, s.exporting = make(chan struct{}, maxLoading), make(chan struct{}, maxExporting)
	s.images.used = map[imageFile]*imageUse{}
	s.options.Telemetry.watch(s)
	s.watchAbuse()
	return s
}

// life is a request with the model that answers it. One goroutine has it.
type life struct {
	*Service
	deployment *Deployment
	model      *Model
	engine     *batching.Engine
	rec        *record
	used       *usage             // of its tenant's quotas
	identity   *auth.Identity     // its caller's; nil where callers need no credential
	ran        int                // tokens of the prompt that the tower or the engine was given
	scored     int                // tokens that were generated for scores of choices
	uses       []func()           // end what use began
	quarantine *safety.Quarantine // its caller's; nil for none
}

// begin gives a request its model, which stays open until release is called, and its record. Where the model it
// names is not served it gets the default, and validate refuses the name. It fails where there are no models:
// the server is stopping.
func (s *Service) begin(ctx context.Context, in *Request) (_ context.Context, l *life, release func(), err error) {
	operation := operationChat
	if in.Prompt != nil {
		operation = operationComplete
	}
	return s.beginAs(ctx, in, operation)
}

// beginAs is begin for what is recorded as another operation.
func (s *Service) beginAs(ctx context.Context, in *Request,
	operation string) (_ context.Context, l *life, release func(), err error) {
	identity := CallerOf(ctx).Identity
	d, release := s.models.takeOf(identity, in.Model)
	if d == nil {
		return ctx, nil, nil, Stopping()
	}
	own(ctx, in)
	l = &life{Service: s, deployment: d, model: &d.Model, engine: d.Engine, identity: identity}
	ctx, l.rec = s.newRecord(ctx, in, d.Model.Name, operation)
	l.watchRequest(ctx, in.Peer)
	return ctx, l, release, nil
}

// Refuse records a request that an edge refuses because of err: it ends with a line in the log as every other.
func (s *Service) Refuse(ctx context.Context, in *Request, err error) error {
	operation := operationChat
	if in.Prompt != nil {
		operation = operationComplete
	}
	return s.refuseAs(ctx, in, operation, err)
}

// RefuseCount is Refuse for a request to count tokens.
func (s *Service) RefuseCount(ctx context.Context, in *Request, err error) error {
	return s.refuseAs(ctx, in, operationCount, err)
}

func (s *Service) refuseAs(ctx context.Context, in *Request, operation string, err error) error {
	ctx, l, release, gone := s.beginAs(ctx, in, operation)
	if gone != nil {
		return gone
	}
	defer release()
	l.rec.refused = err
	return l.rec.close(ctx, nil, err)
}

// Generate answers a request and gives what comes of it to a sink. It takes the request over: the images in it are let
// go once they are decoded. Its error is an *Error.
func (s *Service) Generate(ctx context.Context, in *Request, to Sink) (err error) {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	ctx, l, release, err := s.begin(ctx, in)
	if err != nil {
		return err
	}
	defer release()
	defer l.unuseAll()
	defer context.AfterFunc(s.options.Shutdown, func() { end(ErrCut) })()
	defer context.AfterFunc(l.deployment.Cutting(), func() { end(errUnloaded) })()
	defer func() { err = l.rec.close(ctx, recover(), err) }()
	return l.generate(ctx, in, to)
}

// generate is the life of a request, in a straight line. A slot for each answer is taken before any work and given back
// whatever happens: by Release up to Submit, by the engine from there on, which drops the sequence when ctx ends.
func (l *life) generate(ctx context.Context, in *Request, to Sink) error {
	if err := l.enter(ctx, in.Peer); err != nil {
		return err
	}
	defer l.leave()
	turn, err := l.openTurn(ctx, in)
	if err != nil {
		return err
	}
	defer turn.close()
	req, err := l.validate(in)
	if err != nil {
		return err
	}
	l.rec.asked(req, in.Streams)
	if err := l.chargeEstimate(req); err != nil {
		return err
	}
	req.deadline, _ = ctx.Deadline()
	releaseFiles, err := l.files(ctx, req)
	if err != nil {
		return err
	}
	defer releaseFiles()
	if err := turn.prepare(ctx, req); err != nil {
		return err
	}
	tickets, err := l.engine.AcquireFor(claim(req))
	if err != nil {
		return l.rec.refuse(err)
	}
	for _, t := range tickets {
		defer t.Release()
	}

	if err := l.police(ctx, req); err != nil {
		return l.rec.refusedBy(err)
	}
	ctx = vision.WithPriority(ctx, int(req.priority))
	images, err := l.chargeAndPrepare(ctx, req)
	if err != nil {
		return err
	}
	if err := turn.holdSaid(req); err != nil {
		return err
	}
	releaseFiles()
	l.rec.trail.asked(l.model, req, images)
	turn.release()
	req.images, in.Chat, in.Prompt = nil, nil, nil
	if in.Prepared != nil {
		in.Prepared()
	}
	l.rec.lap(&l.rec.preprocess)
	input, grammar, err := l.lay(ctx, req, images, in.MaxAnswerBytes)
	if err != nil {
		return err
	}
	l.rec.trail.given(input, images, req.maxTokens)
	l.rec.lap(&l.rec.tokenize)
	if len(images) > 0 {
		for _, t := range tickets {
			t.WillSubmit()
		}
	}
	if l.rec.cached, err = l.encode(ctx, &input, images, req.tenant); err != nil {
		return err
	}
	l.rec.lap(&l.rec.encode)

	if l.rec.scores, err = l.score(ctx, req, input, grammar, tickets[req.n:]); err != nil {
		return err
	}
	err = l.answer(ctx, req, input, grammar, tickets[:req.n], turn.sink(ctx, to))
	l.notePolicy(ctx, req, l.rec.found(req), false)
	return err
}

// claim is what the engine's admission needs to know of a request. Without a tenant it counts for its peer.
func claim(req *checked) batching.Claim {
	c := batching.Claim{
		Priority: req.priority, Tenant: req.tenant, Caller: req.caller, Answers: req.n, Deadline: req.deadline,
		MaxTokens: cmp.Or(req.maxTokens, defaultMaxTokens), Endless: len(req.eos) == 0,
	}
	if req.scored != nil {
		c.Answers++
	}
	return c
}

// callerOf is who a peer's requests count as without a tenant.
func (s *Service) callerOf(peer string) string {
	if s.options.CallersByConnection {
		return peer
	}
	return socket.Caller(peer)
}

// answer has all answers of a request generated and delivers each as it comes. If one fails all end.
func (l *life) answer(ctx context.Context, req *checked, input fusion.Input, grammar *constrain.Grammar,
	tickets []*batching.Ticket, to Sink) error {
	to = l.rec.trail.sink(to, req.n)
	var group *batching.Group
	to = &heldStart{to: to}
	if req.n > 1 {
		to, group = &oneByOne{to: to}, new(batching.Group)
	}
	g, ctx := crew.New(ctx)
	var states []*constrain.State
	if grammar != nil {
		states = grammar.Starts(ctx, req.n)
	}
	answers := make([]*answer, req.n)
	l.rec.answers = make([]answered, req.n)
	for i, ticket := range tickets {
		r := l.sequence(req, input, i)
		r.Group = group
		if grammar != nil {
			r.Sampling.Constraint = states[i]
		}
		stream, err := l.engine.Submit(ctx, ticket, r)
		if err != nil {
			return l.rec.refuse(err)
		}
		l.ran = l.rec.tokens
		defer func() { l.rec.answers[i].timing = stream.Timing() }()
		answers[i] = l.newAnswer(req, i, stream, to, l.trims(req, input, grammar))
	}
	start := Start{
		ID: l.rec.id, Model: l.model.Name, ModelDigest: l.model.Digest, Fingerprint: l.model.Fingerprint,
		Seed: req.sampling.Seed, Answers: req.n,
		Usage: l.rec.usage(answered{}),
	}
	if req.tokenIDs {
		start.PromptIDs = input.IDs
	}
	if err := to.Start(&start); err != nil {
		return err
	}
	if req.n == 1 {
		return answers[0].deliver(ctx)
	}
	for _, a := range answers {
		g.Go(func() error { return a.deliver(ctx) })
	}
	return g.Wait()
}

// sequence is the answer i as the engine is asked for it.
func (l *life) sequence(req *checked, input fusion.Input, i int) batching.Request {
	r := batching.Request{
		ID: l.rec.id, Input: input, MaxTokens: req.maxTokens, Stop: req.eos, Sampling: req.sampling,
		Priority: req.priority, Tenant: req.tenant, Weight: l.used.weight(), Deadline: req.deadline, NoDrafts: req.noDrafts,
		Further: i > 0, Tag: l.rec.tag(),
	}
	r.Sampling.Seed += uint64(i)
	if req.promptLogprobs && i == 0 {
		r.PromptLogprobs = &req.sampling.TopLogprobs
	}
	return r
}

// oneByOne is a sink of several goroutines.
type oneByOne struct {
	mu sync.Mutex
	to Sink
}

func (o *oneByOne) Start(s *Start) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.to.Start(s)
}

func (o *oneByOne) Delta(d *Delta) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.to.Delta(d)
}

func (o *oneByOne) Finish(f *Finish) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.to.Finish(f)
}
