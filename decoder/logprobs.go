package decoder

import (
	"math"

	"github.com/mmserve/mmserve/internal/kernels"
)

// Logprobs are natural logs of probabilities that the model gave, before bias, penalties, masks, temperature and
// filters.
type Logprobs struct {
	// Picked is that of the token that was picked.
	Picked float32
	// Top are the Sampling.TopLogprobs most likely tokens, those first; the lower id first among equals. Those of no
	// probability are left out. The token that was picked need not be among them.
	Top []TokenLogprob
}

// TokenLogprob is a token and the log of its probability.
type TokenLogprob struct {
	ID      int32
	Logprob float32
}

// logSoftmax is the model's distribution: log p = logit - best - log Σ exp(logit - best).
type logSoftmax struct {
	*peaked
	shift float64 // best + log Σ exp(logit - best)
}

func newLogSoftmax(p *peaked) (logSoftmax, error) {
	at, err := p.argmax()
	if err != nil {
		return logSoftmax{}, err
	}
	best := p.logits[at]
	sum, _ := kernels.ExpSums(p.logits, best, 1, kernels.MinExp)
	return logSoftmax{p, float64(best) + math.Log(sum)}, nil
}

func (l logSoftmax) at(id int32) float32 { return float32(float64(l.logits[id]) - l.shift) }

// top fills dst with the most likely tokens and returns those that there are: an insertion sort of those met so far.
func (l logSoftmax) top(dst []TokenLogprob) []TokenLogprob {
	if len(dst) == 0 {
		return nil
	}
	n := 0
	least := float32(math.Inf(-1)) // what a logit has to be above to come in
	for i, peak := range l.peaks {
		if !(peak > least) {
			continue
		}
		first, block := l.block(i)
		for j, logit := range block {
			if !(logit > least) {
				continue
			}
			n = min(n+1, len(dst))
			at := n - 1
			for ; at > 0 && dst[at-1].Logprob < logit; at-- {
				dst[at] = dst[at-1]
			}
			dst[at] = TokenLogprob{int32(first + j), logit}
			if n == len(dst) {
				least = dst[n-1].Logprob
			}
		}
	}
	for i := range dst[:n] {
		dst[i].Logprob = l.at(dst[i].ID)
	}
	return dst[:n:n]
}

// PromptLogprobs collects what the model gave to the tokens of a prompt, chunk by chunk.
type PromptLogprobs struct {
	// IDs is the prompt; Top is as Sampling.TopLogprobs.
	IDs []int32
	Top int
	// List[i] is that of IDs[i+1], given all before it: the first token has none.
	List []Logprobs

	raw peaked
}

// Complete tells that List has all the prompt's.
func (p *PromptLogprobs) Complete() bool { return len(p.List) >= len(p.IDs)-1 }

// Add takes the logits of the prompt's position at, [vocab]. Positions come in order; those that came before, as when a
// prompt is run again, and those after the prompt are passed over.
func (p *PromptLogprobs) Add(at int, logits []float32) error {
	if at != len(p.List) || p.Complete() {
		return nil
	}
	p.raw.reset(logits)
	dist, err := newLogSoftmax(&p.raw)
	if err != nil {
		return err
	}
	top := make([]TokenLogprob, min(max(p.Top, 0), len(logits)))
	p.List = append(p.List, Logprobs{dist.at(p.IDs[at+1]), dist.top(top)})
	return nil
}

// slab is where Logprobs come from: tokens keep theirs as long as their reader likes, so they cannot be reused, but are
// made slabLen at a time.
type slab struct {
	tokens []Logprobs
	top    []TokenLogprob
}

const slabLen = 32

// logprobs returns those of a token that was picked, with those of the k most likely ones.
func (s *slab) logprobs(l logSoftmax, id int32, k int) *Logprobs {
	k = min(max(k, 0), len(l.logits))
	if len(s.tokens) == 0 {
		s.tokens = make([]Logprobs, slabLen)
		s.top = make([]TokenLogprob, slabLen*k)
	}
	p := &s.tokens[0]
	*p = Logprobs{l.at(id), l.top(s.top[:k:k])}
	s.tokens, s.top = s.tokens[1:], s.top[k:]
	return p
}
