package decoder

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/mmserve/mmserve/internal/kernels"
)

// Sampling says how a sequence's tokens are picked. The zero value is greedy. Its fields act in the order in which
// they stand here. Up to the masks that is the order of vLLM's v1 Sampler (vllm/v1/sample/sampler.py; masks commute
// with what goes before them); temperature and filters follow in the order of transformers'
// GenerationMixin._get_logits_processor.
//
// Callers check the ranges where they can name the field to their client; to a Sampler a value outside is off, and ids
// outside the vocabulary have no effect. Slices, map and Constraint belong to the Sampler from NewSampler on.
type Sampling struct {
	// LogitBias is added to the logits of its ids, -100 to 100 by custom (OpenAI's logit_bias).
	LogitBias map[int32]float32
	// RepetitionPenalty divides the positive and multiplies the other logits of every id in the prompt or among the
	// tokens so far (transformers' RepetitionPenaltyLogitsProcessor; Keskar et al., 2019, arXiv:1909.05858). Above 0;
	// 0 and 1 are off. See Sampler.Prompt.
	RepetitionPenalty float32
	// FrequencyPenalty times the number of an id's occurrences among the tokens so far, without the prompt, is
	// subtracted from its logit; -2 to 2 by custom, 0 is off (OpenAI's frequency_penalty).
	FrequencyPenalty float32
	// PresencePenalty is subtracted once from the logit of each id among the tokens so far, without the prompt; -2 to 2
	// by custom, 0 is off (OpenAI's presence_penalty).
	PresencePenalty float32
	// Suppress are ids that are never picked (transformers' suppress_tokens).
	Suppress []int32
	// MinTokens is the number of tokens before which none of Stop is picked (vLLM's min_tokens, transformers'
	// min_new_tokens). It gives way where Constraint allows nothing but ids of Stop: such an output cannot go on.
	MinTokens int
	Stop      []int32
	// Constraint, if not nil, allows ids by what was picked before.
	Constraint Constraint

	// Temperature divides the logits, 0 to 2 by custom. 0, and anything below 1e-5, is greedy: the most likely
	// token, the lowest id among equals; the filters are then without effect.
	Temperature float32
	// TopK keeps the k most likely tokens and those equal to the last of them; at least 1, 0 is off.
	TopK int
	// TopP keeps the most likely tokens up to and including the one with which their probability reaches it;
	// above 0 and up to 1. 0 and 1 are off.
	TopP float32
	// MinP keeps the tokens that are at least MinP times as likely as the most likely one, above 0 and up to 1; 0 is off
	// (Nguyen et al., 2024, arXiv:2407.01082).
	MinP float32
	// TypicalP keeps the tokens whose information is nearest to the entropy of the distribution that the other filters
	// left, up to and including the one with which their probability reaches it, and those as near as that one;
	// above 0 and up to 1. 0 and 1 are off (Meister et al., 2022, arXiv:2202.00666).
	TypicalP float32

	// Seed starts the sequence's own random numbers: a sequence gives the same tokens whatever it is batched
	// with, and two with one seed draw alike.
	Seed uint64

	// Logprobs asks for Token.Logprobs, TopLogprobs for so many of the most likely tokens in it, 0 to 20 by custom
	// (OpenAI's logprobs and top_logprobs). They cost a pass over the vocabulary and change no token.
	Logprobs    bool
	TopLogprobs int
}

const (
	// minTemperature is vLLM's _SAMPLING_EPS: below it the scaled logits overflow and only the argmax is left.
	minTemperature = 1e-5
	// sumLen is the number of ids whose weights are kept as one sum.
	sumLen = 1024
)

// errLogits means that there is nothing to choose from: the model itself has overflowed, or whatever it gives a chance
// is suppressed or not allowed.
var errLogits = errors.New("decoder: the logits hold no finite maximum")

// Sampler picks the tokens of one sequence. One goroutine uses it at a time, once per token and in order: each
// token of a sampling sequence takes exactly one number from the generator.
//
// The filters are transformers' TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper and
// TypicalLogitsWarper with min_tokens_to_keep = 1, without their full sorts. Where top-p cuts between equal logits,
// transformers leaves the choice to torch.sort; here the lower id is kept.
type Sampler struct {
	sampling Sampling
	greedy   bool
	deferred Deferred // sampling.Constraint if it is one, else nil
	scorer   Scorer   // so is it
	rng      *rand.PCG
	bias     []idBias // LogitBias
	history  history
	picked   int // tokens so far
	slab     slab

	// Scratch, grown on first use.
	logits  []float32 // processed
	allowed []float32
	choice  peaked // what is picked from
	raw     peaked // the model's, for Logprobs
	sums    []float64
	top     []float32
	kept    []candidate
}

// candidate is a token that passed the filters so far. rank is its logit, or for typical-p minus its distance from the
// entropy; weight is its probability but for a common factor.
type candidate struct {
	id     int32
	rank   float32
	weight float64
}

// NewSampler returns the sampler of one sequence.
func NewSampler(s Sampling) *Sampler {
	deferred, _ := s.Constraint.(Deferred)
	scorer, _ := s.Constraint.(Scorer)
	return &Sampler{
		sampling: s,
		deferred: deferred,
		scorer:   scorer,
		greedy:   !(s.Temperature >= minTemperature), // so that NaN is greedy too
		rng:      rand.NewPCG(s.Seed, 0),
		bias:     biases(s.LogitBias),
	}
}

// Prompt takes note of the prompt's ids for RepetitionPenalty. It is called once, before the first Sample, and does not
// keep the slice.
func (s *Sampler) Prompt(ids []int32) {
	if s.sampling.repetition() {
		for _, id := range ids {
			s.history.at(id)
		}
	}
}

// Plain tells whether Sample does nothing but find the most likely token. A plain sampler has no state: Sample may be
// called for drafted tokens that are then thrown away.
func (s *Sampler) Plain() bool {
	return s.greedy && !s.processes() && s.sampling.MinTokens <= 0 && s.sampling.Constraint == nil && !s.sampling.Logprobs
}

// Fork returns a sampler for a second sequence that continues where this one stands, with random numbers of its own.
// A constraint follows one sequence, so the fork is given its own, in the same state as this one's; nil if it has none.
func (s *Sampler) Fork(seed uint64, c Constraint) *Sampler {
	sampling := s.sampling
	sampling.Seed, sampling.Constraint = seed, c
	deferred, _ := c.(Deferred)
	scorer, _ := c.(Scorer)
	return &Sampler{
		deferred: deferred,
		scorer:   scorer,
		sampling: sampling,
		greedy:   s.greedy,
		rng:      rand.NewPCG(seed, 0),
		bias:     s.bias,
		history:  s.history.clone(),
		picked:   s.picked,
	}
}

// shadow makes s pick as of would from here on, with the same random numbers, of which of uses none: what it picks is a
// guess. It has no constraint and tells no probabilities.
func (s *Sampler) shadow(of *Sampler) {
	s.sampling, s.greedy, s.bias, s.picked = of.sampling, of.greedy, of.bias, of.picked
	s.sampling.Constraint, s.sampling.Logprobs = nil, false
	rng := *of.rng
	s.rng, s.history = &rng, history{}
	if of.sampling.penalizes() {
		s.history = of.history.clone()
	}
}

// Sample picks a token from the logits of one position, [vocab], which it leaves as they are. NaN counts as -Inf. It is
// an error when nothing can be chosen: all logits that are allowed are NaN or -Inf, or one is +Inf; the sampler is then
// as before. Sample allocates nothing once its scratch has grown, but for what Logprobs hands out and a penalty's
// history. Where the constraint has no mask yet the token is NotReady, and the sampler as before.
func (s *Sampler) Sample(logits []float32) (Token, error) {
	if !s.Ready() {
		return Token{ID: NotReady}, nil
	}
	var dist logSoftmax
	if s.sampling.Logprobs || s.scorer != nil {
		var err error
		s.raw.reset(logits)
		if dist, err = newLogSoftmax(&s.raw); err != nil {
			return Token{}, err
		}
	}
	if s.scorer != nil {
		s.scorer.Score(dist.at)
	}
	early := s.picked < s.sampling.MinTokens
	x := s.process(logits, early)
	var mask []uint64
	if s.sampling.Constraint != nil {
		mask = s.sampling.Constraint.Mask()
		x = s.gather(x, mask)
	}
	s.choice.reset(x)
	at, err := s.choice.argmax()
	if err != nil && early && s.sampling.Constraint != nil {
		s.choice.reset(s.gather(s.process(logits, false), mask))
		at, err = s.choice.argmax()
	}
	if err != nil {
		return Token{}, err
	}
	if !s.greedy {
		at = s.draw(s.choice.logits[at])
	}
	if s.sampling.Constraint != nil {
		at = nthSet(mask, at)
	}
	token := Token{ID: int32(at)}
	if s.sampling.Logprobs {
		token.Logprobs = s.slab.logprobs(dist, token.ID, s.sampling.TopLogprobs)
	}
	s.accept(token.ID)
	return token, nil
}

// gather returns the elements of x that mask allows, in their order.
func (s *Sampler) gather(x []float32, mask []uint64) []float32 {
	s.allowed = gather(s.allowed[:0], x, mask)
	return s.allowed
}

// accept takes note of a token that was picked.
func (s *Sampler) accept(id int32) {
	s.picked++
	if s.sampling.penalizes() {
		s.history.at(id).picked++
	}
	if s.sampling.Constraint != nil {
		s.sampling.Constraint.Accept(id)
	}
}

// draw picks an index of choice, whose largest logit is best.
func (s *Sampler) draw(best float32) int {
	u := float64(s.rng.Uint64()>>11) / (1 << 53) // [0, 1)
	scale := 1 / s.sampling.Temperature
	if kept := s.filter(best, scale); kept != nil {
		return pick(kept, u)
	}
	return s.drawAll(best, scale, u)
}

// filter returns the candidates that pass top-k, top-p, min-p and typical-p; nil if none of them is on.
func (s *Sampler) filter(best, scale float32) []candidate {
	logits := s.choice.logits
	topK := s.sampling.TopK > 0 && s.sampling.TopK < len(logits)
	topP := s.sampling.TopP > 0 && s.sampling.TopP < 1
	minP := s.sampling.MinP > 0 && s.sampling.MinP <= 1
	typical := s.sampling.TypicalP > 0 && s.sampling.TypicalP < 1

	// Each case keeps all that its filter keeps, with few more; those that follow look at these only.
	var mass, mean float64
	switch {
	case topK:
		s.top = slices.Grow(s.top[:0], s.sampling.TopK)[:s.sampling.TopK]
		mass = s.keep(best, scale, s.choice.kthLargest(s.top))
	case topP:
		mass, _ = kernels.ExpSums(logits, best, scale, kernels.MinExp)
		cut := s.tighten(best, scale, tail(mass, s.sampling.TopP, len(logits)), float64(s.sampling.TopP)*mass)
		s.keep(best, scale, best+cut/scale)
	case minP:
		s.keep(best, scale, s.floor(best, scale))
	case typical:
		// Kept are the tokens whose d = (logit - best)·scale is within some distance r of its mean. If r is less than
		// -mean, that ends at 2·mean; else the most likely token is within, and all that are cut away are less likely
		// than the last kept: then it is as with top-p.
		mass, mean = kernels.ExpSums(logits, best, scale, kernels.MinExp)
		mean /= mass
		cut := min(float32(2.001*mean), tail(mass, s.sampling.TypicalP, len(logits)))
		s.keep(best, scale, best+cut/scale)
	default:
		return nil
	}
	return s.narrow(best, scale, topK, mass, mean)
}

// narrow returns those of kept, whose weights sum up to mass, that pass the filters after the first that was on. topK
// tells that this was top-k; mean is that of the distribution if it was typical-p.
func (s *Sampler) narrow(best, scale float32, topK bool, mass, mean float64) []candidate {
	topP := s.sampling.TopP > 0 && s.sampling.TopP < 1
	minP := s.sampling.MinP > 0 && s.sampling.MinP <= 1
	typical := s.sampling.TypicalP > 0 && s.sampling.TypicalP < 1
	kept := s.kept
	if topP {
		kept = nucleus(kept, float64(s.sampling.TopP)*mass)
	}
	if minP && (topK || topP) {
		kept = atLeast(kept, s.floor(best, scale))
	}
	if typical {
		if topK || topP || minP {
			mass, mean = moments(kept, best, scale)
		}
		kept = nearest(kept, best, scale, mean, float64(s.sampling.TypicalP)*mass)
	}
	return kept
}

// floor is the least logit that min-p keeps.
func (s *Sampler) floor(best, scale float32) float32 {
	return best + float32(math.Log(float64(s.sampling.MinP))/float64(scale))
}

// tail returns a bound below which (logit - best)·scale is in no nucleus of probability p: no token whose probability
// is below (1-p)/vocab is kept, as all such together would not hold the 1-p that is cut away (the observation is that
// of llama2.c's sample_topp). mass is Σ exp((logit - best)·scale). The margin is for rounding.
func tail(mass float64, p float32, vocab int) float32 {
	return float32(math.Log(0.999 * mass * (1 - float64(p)) / float64(vocab)))
}

// tighten raises a bound of (logit - best)·scale below which is none of the nucleus of that mass, if thousands of
// logits are above it: a few sums cost less than looking at each of them.
func (s *Sampler) tighten(best, scale, bound float32, mass float64) float32 {
	crowd := 0
	for _, peak := range s.choice.peaks {
		if (peak-best)*scale >= bound {
			crowd++
		}
	}
	if crowd < len(s.choice.peaks)*15/16 {
		return bound
	}
	above := float32(0)
	for range 4 {
		mid := (bound + above) / 2
		if sum, _ := kernels.ExpSums(s.choice.logits, best, scale, max(mid, kernels.MinExp)); sum > 1.00001*mass {
			bound = mid
		} else {
			above = mid
		}
	}
	return bound
}

// drawAll picks among all logits: it finds the block that u falls into, then the index within.
func (s *Sampler) drawAll(best, scale float32, u float64) int {
	logits := s.choice.logits
	s.sums = s.sums[:0]
	mass := 0.0
	for lo := 0; lo < len(logits); lo += sumLen {
		sum, _ := kernels.ExpSums(logits[lo:min(lo+sumLen, len(logits))], best, scale, kernels.MinExp)
		s.sums = append(s.sums, sum)
		mass += sum
	}
	// cum runs through the very additions that gave mass, so it passes u·mass < mass in some block.
	target, cum, block := u*mass, 0.0, 0
	for cum+s.sums[block] <= target {
		cum += s.sums[block]
		block++
	}
	lo, id := block*sumLen, -1
	for i, l := range logits[lo:min(lo+sumLen, len(logits))] {
		w := float64(kernels.Exp((l - best) * scale))
		if w == 0 {
			continue
		}
		id = lo + i // should rounding let target lie past the block's end, its last id that has any weight
		if cum += w; cum > target {
			break
		}
	}
	return id
}

// keep makes kept of the logits that are at least cut, in the order of their ids, and returns the sum of their weights.
func (s *Sampler) keep(best, scale, cut float32) (mass float64) {
	s.kept = s.kept[:0]
	for i, peak := range s.choice.peaks {
		if !(peak >= cut) {
			continue
		}
		first, block := s.choice.block(i)
		for j, l := range block {
			if !(l >= cut) {
				continue
			}
			if w := float64(kernels.Exp((l - best) * scale)); w > 0 {
				s.kept = append(s.kept, candidate{int32(first + j), l, w})
				mass += w
			}
		}
	}
	return mass
}

// nucleus returns the candidates that are kept when those ranked ahead of them weigh less than mass, in no
// particular but a fixed order. It reorders c: quickselect by weight, linear in len(c) on average.
func nucleus(c []candidate, mass float64) []candidate {
	lo, hi := 0, len(c) // c[:lo] is kept, c[hi:] is not, mass is what c[:lo] leaves open
	for lo < hi && mass > 0 {
		at := lo + partition(c[lo:hi])
		ahead := 0.0
		for _, x := range c[lo:at] {
			ahead += x.weight
		}
		if ahead >= mass {
			hi = at
		} else {
			mass -= ahead + c[at].weight
			lo = at + 1
		}
	}
	return c[:lo]
}

// atLeast returns the candidates whose logit is at least floor.
func atLeast(c []candidate, floor float32) []candidate {
	n := 0
	for _, x := range c {
		if x.rank >= floor {
			c[n] = x
			n++
		}
	}
	return c[:n]
}

// moments returns the sum of the weights and the mean of d = (rank - best)·scale under them.
func moments(c []candidate, best, scale float32) (mass, mean float64) {
	for _, x := range c {
		mass += x.weight
		mean += x.weight * float64((x.rank-best)*scale)
	}
	return mass, mean / mass
}

// nearest is typical-p. With p(x) = exp(d(x)) / mass, a token's information -log p less the entropy, which is the mean
// of -log p, is the mean of d less d.
func nearest(c []candidate, best, scale float32, mean, mass float64) []candidate {
	for i, x := range c {
		c[i].rank = -float32(math.Abs(float64((x.rank-best)*scale) - mean))
	}
	kept := nucleus(c, mass)
	last := kept[0].rank
	for _, x := range kept {
		last = min(last, x.rank)
	}
	n := len(kept)
	for i := n; i < len(c); i++ {
		if c[i].rank == last {
			c[i], c[n] = c[n], c[i]
			n++
		}
	}
	return c[:n]
}

// partition puts the candidates that rank ahead of a pivot before it and returns the pivot's index.
func partition(c []candidate) int {
	last := len(c) - 1
	mid := last / 2
	// The median of three, in the last place: ids in order of likelihood would otherwise cost n².
	if c[mid].ahead(c[0]) {
		c[mid], c[0] = c[0], c[mid]
	}
	if c[last].ahead(c[0]) {
		c[last], c[0] = c[0], c[last]
	}
	if c[mid].ahead(c[last]) {
		c[mid], c[last] = c[last], c[mid]
	}
	pivot, at := c[last], 0
	for i := range last {
		if c[i].ahead(pivot) {
			c[i], c[at] = c[at], c[i]
			at++
		}
	}
	c[at], c[last] = c[last], c[at]
	return at
}

// ahead is the order of rank; it knows no equals.
func (c candidate) ahead(d candidate) bool {
	return c.rank > d.rank || c.rank == d.rank && c.id < d.id
}

// pick inverts the cumulative distribution of c's weights at u. c is not empty: the most likely token always passes.
func pick(c []candidate, u float64) int {
	mass := 0.0
	for _, x := range c {
		mass += x.weight
	}
	cum := 0.0
	for _, x := range c {
		if cum += x.weight; cum > u*mass {
			return int(x.id)
		}
	}
	return int(c[len(c)-1].id)
}
