package serving

import (
	"context"

	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/safety"
)

// NewStopStage ends answers at stop strings.
func NewStopStage(stops ...string) Stage { return &stopStage{stops: stops} }

// NewIncludingStopStage leaves the stop string in.
func NewIncludingStopStage(stops ...string) Stage { return &stopStage{stops: stops, include: true} }

// NewTrimStage leaves out a space at the start.
func NewTrimStage() Stage { return &trimStage{} }

// NewPolicyStage holds answers to rules.
func NewPolicyStage(r *safety.Rules) Stage { return &policyStage{r.NewStream(safety.Output)} }

// NewClassifierStage has models look at answers.
func NewClassifierStage(ctx context.Context, r *safety.Rules, texts TextInspector) Stage {
	_, holds := texts.ReadsTexts(r, safety.Output)
	return &classifierStage{policed: &policed{ctx: ctx, texts: texts, rules: r}, holds: holds}
}

// NewNoticeStage has a notice follow answers.
func NewNoticeStage(notice string) Stage { return &noticeStage{notice} }

// NewThinkingStage tells thoughts from the answer; inside has them begin at once.
func NewThinkingStage(inside bool) Stage {
	return &thinkingStage{marks: fusion.Thinking{Open: "<think>", Close: "</think>"}, inside: inside}
}

// let is a sink of text and log-probabilities.
type let struct {
	Sink
	text     string
	thoughts string
	logprobs []int
}

func (l *let) Delta(d *Delta) error {
	l.text += d.Text
	l.thoughts += d.Reasoning
	l.add(d.Logprobs, d.TokenIDs)
	return nil
}

// add holds that ids and log-probabilities are of the same tokens.
func (l *let) add(list []Logprobs, ids []int32) {
	for i, p := range list {
		if len(ids) != len(list) || ids[i] != p.Token.ID {
			panic("token ids and log-probabilities are of other tokens")
		}
		l.logprobs = append(l.logprobs, int(p.Token.ID))
	}
}

// Let is what an answer lets out of tokens' texts through stages: the text, and the tokens
// whose log-probabilities leave.
func Let(stages []Stage, tokens []string) (text string, logprobs []int, end *End) {
	_, text, logprobs, end = LetThink(stages, tokens)
	return text, logprobs, end
}

// LetThink is Let with the thoughts.
func LetThink(stages []Stage, tokens []string) (thoughts, text string, logprobs []int, end *End) {
	got := &let{}
	a := &answer{to: got, tokenIDs: true, rec: &record{answers: make([]answered, 1)}}
	a.stages = newChain(stages, a.leave)
	take := func(over *End) bool {
		_ = a.send()
		thoughts, text, logprobs, end = got.thoughts, got.text, got.logprobs, over
		return over != nil
	}
	for i, piece := range tokens {
		begin := a.made
		a.made += len(piece)
		id := int32(i)
		a.tokens = append(a.tokens, token{
			begin: begin, end: a.made, id: id, logprobs: &Logprobs{Token: TokenLogprob{ID: id}},
		})
		if take(a.stages.push(piece)) {
			return thoughts, text, logprobs, end
		}
	}
	if !take(a.stages.flush(0)) {
		due, ids, _ := a.due(a.made)
		got.add(due, ids)
	}
	return thoughts, text, got.logprobs, end
}

// Use is what one request uses of a quota.
type Use = usage

func (q *Quotas) Enter(tenant, peer string) (*Use, error) { return q.enter(tenant, peer) }
func (u *Use) Require(tokens, images int) error           { return u.require(tokens, images) }
func (u *Use) Work()                                      { u.work() }
func (u *Use) End(tokens int, taken bool)                 { u.end(tokens, taken) }

// ParseQuotas is what a file of quotas says.
var ParseQuotas = parseQuotas

// IdleTenants is the most tenants without an open request that are remembered.
const IdleTenants = idleTenants

// TokensLeft is what is left of the tenant's tokens.
func (q *Quotas) TokensLeft(tenant string) float64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.accounts[holder{tenant: tenant}].tokens.Tokens()
}

// Overwritten waits until what was deleted, and is in no request's use, has been overwritten.
func (s *Service) Overwritten() { s.images.dropping.Wait() }
