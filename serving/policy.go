package serving

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/internal/audit"
	"github.com/mmserve/mmserve/internal/chat"
	"github.com/mmserve/mmserve/safety"
)

// Policy holds requests and answers to what an operator allows, by each tenant's rules.
type Policy struct {
	// Now gives the newest policy; it is called concurrently, once a request.
	Now func() *safety.Policy
	// Inspector looks at images; nil: nothing does.
	Inspector Inspector
	// Texts looks at texts with models; nil: nothing does.
	Texts TextInspector
	// Audit, unless nil, is told of what was found in each request that something was found in.
	Audit PolicyAudit
	// Watch counts signals of abuse and quarantines callers; nil: nothing does. It is of one service.
	Watch *safety.Watch

	prints *safety.Prints // of prompts, for Watch
}

// Inspector looks into image files. Its methods are called concurrently.
type Inspector interface {
	// Inspect says what a tenant's rules have to do with an image, and gives the file that is to be used in its place:
	// data itself unless something in it is covered. Errors are those of images that cannot be read, or of ctx.
	Inspect(ctx context.Context, rules *safety.Rules, data []byte) (findings []safety.Finding, out []byte, err error)
}

// TextInspector looks at texts. Its methods are called concurrently.
type TextInspector interface {
	// ReadsTexts says whether InspectText finds anything in a place that a tenant's rules act on, and whether some of it
	// has to be held back until it has been looked at.
	ReadsTexts(rules *safety.Rules, place safety.Place) (reads, holds bool)
	// InspectText says what a text is, as a whole. Errors wrap safety.ErrLongText, or are of the models or of ctx.
	InspectText(ctx context.Context, rules *safety.Rules, place safety.Place, text string) ([]safety.Finding, error)
}

// PolicyAudit takes notes of what a policy found. It is called concurrently, on the requests' goroutines.
type PolicyAudit interface {
	PolicyFindings(ctx context.Context, e PolicyEvent)
}

// PolicyEvent is what was found in a request or in its answers: counts, never content.
type PolicyEvent struct {
	RequestID, Tenant, Model string
	Counts                   []safety.Count
	// Refused says that the request was not answered.
	Refused bool
}

// ErrPolicy is the cause of the errors of requests that a policy refuses.
var ErrPolicy = errors.New("refused by the content policy")

// policed is what a policy makes of one request. It is nil where there is no policy.
type policed struct {
	ctx    context.Context // the request's
	texts  TextInspector   // nil where there is none
	rules  *safety.Rules
	tally  safety.Tally
	notice string
}

// police has the tenant's rules look at all text of a request, before anything is made of it: what is to be redacted is
// replaced in req. Its error names the category and the field, never the text.
func (l *life) police(ctx context.Context, req *checked) error {
	if l.options.Policy == nil {
		return nil
	}
	if err := l.watchPrompt(req); err != nil {
		return err
	}
	rules := l.options.Policy.Now().Of(req.tenant)
	req.policed = &policed{ctx: ctx, texts: l.options.Policy.Texts, rules: rules}
	for i := range req.prompt.Messages {
		m := &req.prompt.Messages[i]
		field := fmt.Sprintf("chat.messages[%d]", i)
		if err := req.policed.parts(m.Parts, field+".parts", m.Role != "system" && m.Role != assistant); err != nil {
			return l.refuseFor(ctx, req, err)
		}
		if err := req.policed.fixed(field+".tool_calls",
			string(m.ToolCalls)+"\n"+m.ToolName+"\n"+m.ToolCallID); err != nil {
			return l.refuseFor(ctx, req, err)
		}
	}
	return l.refuseFor(ctx, req, l.policeRest(ctx, req))
}

// policeRest looks at what is in no message.
func (l *life) policeRest(ctx context.Context, req *checked) error {
	p := req.policed
	if err := p.parts(req.prompt.Raw, "prompt.parts", true); err != nil {
		return err
	}
	for i, ids := range req.prompt.Tokens {
		if err := p.fixed(fmt.Sprintf("prompt.parts[%d].token_ids", i), l.textOf(ids)); err != nil {
			return err
		}
	}
	if err := p.fixed("chat.tools", string(req.prompt.Tools)); err != nil {
		return err
	}
	if c := req.constraint; c != nil {
		if err := p.fixed("constraint", c.Text+"\n"+strings.Join(c.Choices, "\n")); err != nil {
			return err
		}
	}
	if p.health() {
		p.notice = p.rules.Notice()
	}
	return ctx.Err()
}

// textOf is the text of token ids.
func (l *life) textOf(ids []int32) string {
	text := l.model.Prompter.Tokenizer.NewStream(true)
	var b strings.Builder
	for _, id := range ids {
		b.WriteString(text.Push(id))
	}
	b.WriteString(text.Flush())
	return b.String()
}

// health says whether the request asks about health.
func (p *policed) health() bool {
	return slices.ContainsFunc(p.tally.Counts(), func(c safety.Count) bool {
		return c.Category == safety.Health && c.Place == safety.Input
	})
}

// parts looks at the texts between images, of several parts as of one: a text cut in two says the same. user says that
// they are not of those who gave the model its task.
func (p *policed) parts(parts []chat.Part, field string, user bool) error {
	for i := 0; i < len(parts); {
		n := i
		for n < len(parts) && !parts[n].Image {
			n++
		}
		if err := p.run(parts[i:n], fmt.Sprintf("%s[%d]", field, i), user); err != nil {
			return err
		}
		i = n + 1
	}
	return nil
}

// run looks at neighbouring parts of text.
func (p *policed) run(parts []chat.Part, field string, user bool) error {
	var text strings.Builder
	for _, part := range parts {
		text.WriteString(part.Text)
	}
	checked := p.look(text.String(), user)
	if checked.Blocked != nil {
		return blocked(field+".text", checked.Blocked)
	}
	switch worst, err := p.classify(field+".text", text.String(), user); {
	case err != nil:
		return err
	case worst != nil && worst.Action == safety.Block:
		return blocked(field+".text", worst)
	case worst != nil && worst.Action == safety.Redact: // a classifier speaks of the whole
		for i := range parts {
			parts[i].Text = ""
		}
		parts[0].Text = worst.Mark()
		return nil
	}
	if !slices.ContainsFunc(checked.Pieces, func(p safety.Piece) bool { return p.Hidden }) {
		return nil
	}
	at, left := 0, 0 // the part, and how many bytes of it are not accounted for
	if len(parts) > 0 {
		left = len(parts[0].Text)
	}
	out := make([]strings.Builder, len(parts))
	for _, piece := range checked.Pieces {
		if piece.Hidden {
			out[at].WriteString(piece.Text)
		}
		for n, done := piece.Covers, 0; n > done; {
			for left == 0 {
				at++
				left = len(parts[at].Text)
			}
			take := min(n-done, left)
			if !piece.Hidden {
				out[at].WriteString(piece.Text[done : done+take])
			}
			done, left = done+take, left-take
		}
	}
	for i := range parts {
		parts[i].Text = out[i].String()
	}
	return nil
}

// look counts what is found in a text.
func (p *policed) look(text string, user bool) *safety.Checked {
	rules := p.rules
	if !user {
		rules = rules.Trusting(safety.PromptInjection)
	}
	c := rules.Check(safety.Input, text)
	for _, f := range c.Findings {
		p.tally.Add(f.Category, safety.Input, f.Action)
	}
	return c
}

// classify has models look at a text, and counts what they find. It gives what has the sternest action;
// nil for nothing.
func (p *policed) classify(field, text string, user bool) (worst *safety.Finding, err error) {
	if p.texts == nil || text == "" {
		return nil, nil
	}
	rules := p.rules
	if !user {
		rules = rules.Trusting(safety.PromptInjection)
	}
	list, err := p.texts.InspectText(p.ctx, rules, safety.Input, text)
	if errors.Is(err, safety.ErrLongText) {
		return nil, invalidFor(ErrPolicy, field, "%v", err)
	}
	for i, f := range list {
		p.tally.Add(f.Category, safety.Input, f.Action)
		if worst == nil || f.Action > worst.Action {
			worst = &list[i]
		}
	}
	return worst, err
}

// fixed looks at a text in which nothing can be put in the place of anything, as it is code: what would be redacted is
// refused.
func (p *policed) fixed(field, text string) error {
	if strings.TrimSpace(text) == "" {
		return nil
	}
	c := p.look(text, true)
	stop := c.Blocked
	if i := slices.IndexFunc(c.Findings,
		func(f safety.Finding) bool { return f.Action >= safety.Redact }); stop == nil && i >= 0 {
		stop = &c.Findings[i]
	}
	if stop != nil {
		return blocked(field, stop)
	}
	worst, err := p.classify(field, text, true)
	if err == nil && worst != nil && worst.Action >= safety.Redact {
		err = blocked(field, worst)
	}
	return err
}

// policeImages has the tenant's rules look at the images of a request, whose files are there.
func (l *life) policeImages(ctx context.Context, req *checked) error {
	p := req.policed
	if p == nil || l.options.Policy.Inspector == nil {
		return nil
	}
	for i := range req.images {
		part := &req.images[i]
		findings, data, err := l.options.Policy.Inspector.Inspect(ctx, p.rules, part.data)
		if err != nil {
			return imageError(ctx, part.field, err)
		}
		for _, f := range findings {
			p.tally.Add(f.Category, safety.Images, f.Action)
			if f.Action == safety.Block {
				return l.refuseFor(ctx, req, blocked(part.field, &f))
			}
		}
		part.data = data
	}
	return nil
}

// policeEmbedding holds the image of a request for embeddings to the tenant's rules.
func (l *life) policeEmbedding(ctx context.Context, req *checked) error {
	if l.options.Policy == nil {
		return nil
	}
	req.policed = &policed{ctx: ctx, rules: l.options.Policy.Now().Of(req.tenant)}
	if err := l.policeImages(ctx, req); err != nil {
		return err
	}
	l.notePolicy(ctx, req, req.policed.tally.Counts(), false)
	return nil
}

// blocked is the error of a field in which a policy allows something not.
func blocked(field string, f *safety.Finding) error {
	what := f.Category.String()
	if f.Kind != "" {
		what += " (" + f.Kind + ")"
	}
	return invalidFor(ErrPolicy, field, "the content policy refuses this: %s", what)
}

// refuseFor has err counted and noted, if there is any.
func (l *life) refuseFor(ctx context.Context, req *checked, err error) error {
	if err != nil {
		l.notePolicy(ctx, req, req.policed.tally.Counts(), true)
	}
	return err
}

// notePolicy counts what was found, and has the audit note it.
func (l *life) notePolicy(ctx context.Context, req *checked, counts []safety.Count, refused bool) {
	if len(counts) == 0 {
		return
	}
	l.options.Telemetry.countPolicy(ctx, counts)
	for _, c := range counts {
		Decided(ctx, audit.Decision{
			Stage: "policy/" + c.Place.String(), Category: c.Category.String(), Action: c.Action.String(), Count: c.N,
		})
	}
	if audit := l.options.Policy.Audit; audit != nil {
		audit.PolicyFindings(ctx, PolicyEvent{
			RequestID: l.rec.id, Tenant: req.tenant, Model: l.model.Name, Counts: counts, Refused: refused,
		})
	}
}

// policyStage holds an answer to a policy.
type policyStage struct{ stream *safety.Stream }

// Push implements Stage.
func (s *policyStage) Push(text string, emit func(Piece)) *End {
	return filtered(s.stream.Push(text, func(p safety.Piece) {
		emit(Piece{Text: p.Text, Covers: p.Covers,
			Hides: p.Hidden})
	}))
}

// Flush implements Stage.
func (s *policyStage) Flush(emit func(Piece)) *End {
	return filtered(s.stream.Flush(func(p safety.Piece) {
		emit(Piece{Text: p.Text, Covers: p.Covers,
			Hides: p.Hidden})
	}))
}

func filtered(f *safety.Finding) *End {
	if f == nil {
		return nil
	}
	return &End{Reason: FinishContentFilter}
}

// noticeStage has a text follow an answer.
type noticeStage struct{ notice string }

// Push implements Stage.
func (s *noticeStage) Push(text string, emit func(Piece)) *End {
	emit(Piece{Text: text, Covers: len(text)})
	return nil
}

// Flush implements Stage.
func (s *noticeStage) Flush(emit func(Piece)) *End {
	emit(Piece{Text: "\n\n" + s.notice, Hides: true})
	return nil
}

// policyStages are those of an answer. One that is held to a constraint gets no notice: it would break its form.
func (a *answer) policyStages(req *checked) (list []Stage) {
	p := req.policed
	if p == nil {
		return nil
	}
	a.policed = p
	if p.texts != nil {
		if reads, holds := p.texts.ReadsTexts(p.rules, safety.Output); reads {
			a.classified = &classifierStage{policed: p, holds: holds}
			list = append(list, a.classified)
		}
	}
	if a.filter = p.rules.NewStream(safety.Output); a.filter != nil {
		list = append(list, &policyStage{a.filter})
	}
	if p.notice != "" && req.constraint == nil {
		list = append(list, &noticeStage{p.notice})
	}
	return list
}

// findings are those in the request and in this answer.
func (a *answer) findings() []safety.Count {
	if a.policed == nil {
		return nil
	}
	counts := a.policed.tally.Counts()
	if a.filter != nil {
		counts = append(counts, a.filter.Counts()...)
	}
	if a.classified != nil {
		counts = append(counts, a.classified.tally.Counts()...)
	}
	return counts
}

var (
	_ Stage = (*policyStage)(nil)
	_ Stage = (*noticeStage)(nil)
)
