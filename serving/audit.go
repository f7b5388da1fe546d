package serving

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"maps"
	"math"
	"slices"
	"sync"

	"github.com/mmserve/mmserve/conversation"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/audit"
	"github.com/mmserve/mmserve/vision"
)

// Auditor keeps what happened, as audit.Log does. Its methods are called concurrently.
type Auditor interface {
	// Record keeps an event, which it may complete; with RecordSync it is on disk. Their error says that it is not kept.
	Record(e *audit.Event) error
	RecordSync(e *audit.Event) error
	// Keys sign receipts.
	Keys() *audit.Keys
	// EachOf gives the lines about a subject, as they stand in the log, until ctx ends or do fails.
	EachOf(ctx context.Context, subject string, do func(line []byte) error) error
	// Digest returns a keyed hash for the contents of the request id.
	Digest(id string) hash.Hash
}

// errAudit is the error of what may not happen without a line in the audit log.
func errAudit() error {
	return &Error{Kind: Unavailable, Message: "the audit log cannot be written, and this server answers nothing without it"}
}

// Decided adds what a content policy decided to the audit line of ctx's request. Any goroutine may call it until the
// request ends.
func Decided(ctx context.Context, d audit.Decision) {
	t, _ := ctx.Value(trailKey{}).(*trail)
	t.decided(d)
}

type trailKey struct{}

// trail is what the audit line of a request will say. A nil one does nothing: there is no audit log. One goroutine has
// it, but for decided.
type trail struct {
	to       Auditor
	required bool
	event    audit.Event
	texts    []answerHash // of each answer

	mu       sync.Mutex
	policies []audit.Decision
}

// maxPolicies bounds what content policies decide of one request, as its line is bounded.
const maxPolicies = 64

// newTrail begins the line of a request, nil without an audit log.
func (s *Service) newTrail(ctx context.Context, rec *record, in *Request) *trail {
	if s.options.Audit == nil {
		return nil
	}
	t := &trail{to: s.options.Audit, required: s.options.AuditRequired}
	t.event = s.auditEvent(ctx, rec.operation, rec.tenant)
	t.event.ID = rec.id
	if s.options.Conversations != nil && in.Subject != "" && validID(in.Subject) {
		t.event.Subject = s.options.Conversations.Pseudonym(conversation.Scope{Tenant: rec.tenant, Subject: in.Subject})
	}
	return t
}

// auditEvent is the event of a call's: who asks for what.
func (s *Service) auditEvent(ctx context.Context, action, tenant string) audit.Event {
	e := audit.Event{Kind: audit.KindRequest, Action: action, Tenant: tenant}
	if id := CallerOf(ctx).Identity; id != nil {
		e.Credential = id.ID
	}
	return e
}

// auditCall keeps the end of a call that has no record. Where the log is required its error is the call's.
func (s *Service) auditCall(e audit.Event, err error) error {
	if s.options.Audit == nil {
		return err
	}
	e.Decision = KindOf(err).label()
	if failed := s.options.Audit.Record(&e); failed != nil && s.options.AuditRequired && err == nil {
		return errAudit()
	}
	return err
}

// auditBegin keeps the beginning of a call that has no record, where the log is required.
func (s *Service) auditBegin(e audit.Event) error {
	if s.options.Audit == nil || !s.options.AuditRequired {
		return nil
	}
	e.Kind, e.Decision = audit.KindBegin, "allowed"
	if s.options.Audit.Record(&e) != nil {
		return errAudit()
	}
	return nil
}

// begin keeps a line before any work, where the log is required: nothing is answered of which there is none.
func (t *trail) begin() error {
	if t == nil || !t.required {
		return nil
	}
	e := t.event
	e.Kind, e.Decision = audit.KindBegin, "allowed"
	if t.to.Record(&e) != nil {
		return errAudit()
	}
	return nil
}

func (t *trail) decided(d audit.Decision) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.policies) < maxPolicies {
		t.policies = append(t.policies, d)
	}
}

// asked notes a request that was checked and whose images were decoded, before either is let go.
func (t *trail) asked(m *Model, req *checked, images []*vision.Image) {
	if t == nil {
		return
	}
	t.event.Generation = &audit.Generation{
		Model: m.Name, ModelDigest: m.Digest, Fingerprint: m.Fingerprint,
		Seed: req.sampling.Seed, Sampling: auditSampling(&req.sampling), Request: t.digestRequest(req, images),
	}
}

// given notes what the model is given.
func (t *trail) given(in fusion.Input, images []*vision.Image, maxTokens int) {
	if t == nil {
		return
	}
	h := newHasher(t.to.Digest(t.event.ID), "input")
	h.number(uint64(maxTokens))
	h.number(uint64(len(in.IDs)))
	for _, id := range in.IDs {
		h.number(uint64(id))
	}
	for _, img := range images {
		h.bytes(img.Digest[:])
		h.number(uint64(img.Width))
		h.number(uint64(img.Height))
	}
	g := t.event.Generation
	g.Input, g.PromptTokens, g.ImageTokens = h.sum(), len(in.IDs), in.ImageTokens()
}

// close writes the line. Where the log is required, its error is a request's that had none.
func (t *trail) close(r *record, kind Kind) error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	t.event.Policies = t.policies
	t.mu.Unlock()
	t.event.Decision = kind.label()
	if g := t.event.Generation; g != nil {
		for i, a := range r.answers {
			line := audit.Answer{Finish: a.finish.String(), Tokens: a.completion}
			if i < len(t.texts) {
				line.Digest = t.texts[i].whole
			}
			g.Answers = append(g.Answers, line)
		}
	}
	if t.to.Record(&t.event) != nil && t.required && kind == OK {
		return errAudit()
	}
	return nil
}

func auditSampling(s *decoder.Sampling) audit.Sampling {
	return audit.Sampling{
		Temperature: s.Temperature, TopK: s.TopK, TopP: s.TopP, MinP: s.MinP, TypicalP: s.TypicalP,
		RepetitionPenalty: s.RepetitionPenalty, PresencePenalty: s.PresencePenalty, FrequencyPenalty: s.FrequencyPenalty,
		Biases: len(s.LogitBias),
	}
}

// hasher hashes values in their order, each with its length, so that no two lists of values have one digest.
type hasher struct{ hash.Hash }

func newHasher(h hash.Hash, purpose string) hasher {
	to := hasher{h}
	to.text(purpose)
	return to
}

func (h hasher) number(n uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], n)
	h.Write(b[:])
}

func (h hasher) bytes(b []byte) {
	h.number(uint64(len(b)))
	h.Write(b)
}

func (h hasher) text(s string) { h.bytes([]byte(s)) }

func (h hasher) real(f float32) { h.number(uint64(math.Float32bits(f))) }

func (h hasher) truth(b bool) {
	n := uint64(0)
	if b {
		n = 1
	}
	h.number(n)
}

func (h hasher) ids(list []int32) {
	h.number(uint64(len(list)))
	for _, id := range list {
		h.number(uint64(id))
	}
}

func (h hasher) sum() string { return hex.EncodeToString(h.Sum(nil)) }

// digestRequest is a keyed digest of what decides an answer: the prompt, the images' files, and how the answer is
// made. The seed has a field of its own; a request's name, tenant, priority and what is told of tokens change nothing.
func (t *trail) digestRequest(req *checked, images []*vision.Image) string {
	h := newHasher(t.to.Digest(t.event.ID), "request")
	p := &req.prompt
	h.number(uint64(len(p.Messages)))
	for _, m := range p.Messages {
		h.text(m.Role)
		h.bytes(m.ToolCalls)
		h.text(m.ToolCallID)
		h.text(m.ToolName)
		h.number(uint64(len(m.Parts)))
		for _, part := range m.Parts {
			h.truth(part.Image)
			h.text(part.Text)
		}
	}
	h.number(uint64(len(p.Raw)))
	for _, part := range p.Raw {
		h.truth(part.Image)
		h.text(part.Text)
	}
	for _, at := range slices.Sorted(maps.Keys(p.Tokens)) {
		h.number(uint64(at))
		h.ids(p.Tokens[at])
	}
	h.bytes(p.Tools)
	h.truth(p.Continue)
	h.number(uint64(len(images)))
	for i, img := range images {
		h.bytes(img.File[:])
		h.number(uint64(req.images[i].detail))
	}
	h.answer(req)
	return h.sum()
}

// answer hashes how an answer is made.
func (h hasher) answer(req *checked) {
	h.number(uint64(req.maxTokens))
	h.number(uint64(req.n))
	h.number(uint64(len(req.stop)))
	for _, stop := range req.stop {
		h.text(stop)
	}
	h.truth(req.includeStop)
	h.ids(req.eos)
	h.ids(req.ends)
	s := &req.sampling
	for _, f := range []float32{
		s.Temperature, s.TopP, s.MinP, s.TypicalP, s.RepetitionPenalty, s.PresencePenalty, s.FrequencyPenalty,
	} {
		h.real(f)
	}
	h.number(uint64(s.TopK))
	h.number(uint64(s.MinTokens))
	h.ids(s.Suppress)
	h.ids(s.Stop)
	h.number(uint64(len(s.LogitBias)))
	for _, id := range slices.Sorted(maps.Keys(s.LogitBias)) {
		h.number(uint64(id))
		h.real(s.LogitBias[id])
	}
	c := req.constraint
	if c == nil {
		return
	}
	h.number(uint64(c.Kind))
	h.text(c.Text)
	h.number(uint64(len(c.Choices)))
	for _, choice := range c.Choices {
		h.text(choice)
	}
}

// answerHash is of one answer on its way. whole is set once it is.
type answerHash struct {
	text, thought hash.Hash
	whole         string
}

// sink has answers hashed on their way to a sink.
func (t *trail) sink(to Sink, answers int) Sink {
	if t == nil {
		return to
	}
	t.texts = make([]answerHash, answers)
	for i := range t.texts {
		t.texts[i].text = newHasher(t.to.Digest(t.event.ID), "text")
		t.texts[i].thought = newHasher(t.to.Digest(t.event.ID), "thought")
	}
	return auditSink{t, to}
}

// auditSink hashes what passes.
type auditSink struct {
	*trail
	to Sink
}

func (s auditSink) Start(e *Start) error { return s.to.Start(e) }

func (s auditSink) Delta(e *Delta) error {
	a := &s.texts[e.Index]
	a.text.Write([]byte(e.Text))
	a.thought.Write([]byte(e.Reasoning))
	return s.to.Delta(e)
}

func (s auditSink) Finish(e *Finish) error {
	a := &s.texts[e.Index]
	h := newHasher(s.trail.to.Digest(s.event.ID), "answer")
	h.number(uint64(e.Index))
	h.bytes(a.text.Sum(nil))
	h.bytes(a.thought.Sum(nil))
	h.text(e.Reason.String())
	if e.Stop != nil {
		h.text(*e.Stop)
	}
	err := s.to.Finish(e)
	if err == nil {
		a.whole = h.sum()
	}
	return err
}
