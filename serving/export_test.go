package serving

// NewStopStage ends answers at stop strings.
func NewStopStage(stops ...string) Stage { return &stopStage{stops: stops} }

// NewTrimStage leaves out a space at the start.
func NewTrimStage() Stage { return &trimStage{} }

// let is a sink of text and log-probabilities.
type let struct {
	Sink
	text     string
	logprobs []int
}

func (l *let) Delta(d *Delta) error {
	l.text += d.Text
	l.add(d.Logprobs)
	return nil
}

func (l *let) add(list []Logprobs) {
	for _, p := range list {
		l.logprobs = append(l.logprobs, int(p.Token.ID))
	}
}

// Let is what an answer lets out of tokens' texts through stages: the text, and the tokens whose log-probabilities leave.
func Let(stages []Stage, tokens []string) (text string, logprobs []int, end *End) {
	got := &let{}
	a := &answer{to: got, rec: &record{answers: make([]answered, 1)}}
	a.stages = newChain(stages, a.leave)
	take := func(over *End) bool {
		_ = a.send()
		text, logprobs, end = got.text, got.logprobs, over
		return over != nil
	}
	for i, token := range tokens {
		begin := a.made
		a.made += len(token)
		a.logprobs = append(a.logprobs, logprob{begin: begin, end: a.made, out: Logprobs{Token: TokenLogprob{ID: int32(i)}}})
		if take(a.stages.push(token)) {
			return text, logprobs, end
		}
	}
	if !take(a.stages.flush(0)) {
		due, _ := a.due(a.made)
		got.add(due)
	}
	return text, got.logprobs, end
}

// Use is what one request uses of a quota.
type Use = usage

func (q *Quotas) Enter(tenant, peer string) (*Use, error) { return q.enter(tenant, peer) }
func (u *Use) Require(tokens, images int) error           { return u.require(tokens, images) }
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
