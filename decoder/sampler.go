package decoder

import (
	"errors"
	"math"
	"math/rand/v2"
)

// Sampling says how a sequence's tokens are picked. Its fields act in this order: temperature, top-k, top-p.
// Callers check the ranges where they can name the field to their client; to a Sampler a value outside is off.
type Sampling struct {
	// Temperature divides the logits, 0 to 2 by custom. 0, and anything below 1e-5, is greedy: the most likely
	// token, the lowest id among equals; the other fields are then without effect.
	Temperature float32
	// TopK keeps the k most likely tokens and those equal to the last of them; at least 1, 0 is off.
	TopK int
	// TopP keeps the most likely tokens up to and including the one with which their probability reaches it;
	// above 0 and up to 1. 0 and 1 are off.
	TopP float32
	// Seed starts the sequence's own random numbers: a sequence gives the same tokens whatever it is batched
	// with, and two with one seed draw alike.
	Seed uint64
}

const (
	// minTemperature is vLLM's _SAMPLING_EPS: below it the scaled logits overflow and only the argmax is left.
	minTemperature = 1e-5
	// blockLen is the number of ids whose weights are kept as one sum.
	blockLen = 1024
)

// errLogits means that the model itself has overflowed: there is nothing to choose from.
var errLogits = errors.New("decoder: the logits hold no finite maximum")

// Sampler picks the tokens of one sequence. One goroutine uses it at a time, once per token and in order: each
// token of a sampling sequence takes exactly one number from the generator.
//
// The filters are those of transformers (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper with
// min_tokens_to_keep = 1, in the order of GenerationMixin._get_logits_processor), without its full sort. Where
// top-p cuts between equal logits, transformers leaves the choice to torch.sort; here the lower id is kept.
type Sampler struct {
	sampling Sampling
	greedy   bool
	rng      *rand.PCG

	// Scratch, grown on first use.
	blocks []float64
	top    []float32
	kept   []candidate
}

// candidate is a token that passed the filters so far. weight is its probability but for a common factor.
type candidate struct {
	id     int32
	logit  float32
	weight float64
}

// NewSampler returns the sampler of one sequence.
func NewSampler(s Sampling) *Sampler {
	return &Sampler{
		sampling: s,
		greedy:   !(s.Temperature >= minTemperature), // so that NaN is greedy too
		rng:      rand.NewPCG(s.Seed, 0),
	}
}

// Sample picks a token from the logits of one position, [vocab]. NaN counts as -Inf. It is an error when nothing
// can be chosen: all logits are NaN or -Inf, or one is +Inf. Sample allocates nothing once its scratch has grown.
func (s *Sampler) Sample(logits []float32) (Token, error) {
	id := argmax(logits)
	if id < 0 || math.IsInf(float64(logits[id]), 1) {
		return Token{}, errLogits
	}
	best := logits[id]
	// log softmax of the raw logits: logit - best - log Σ exp(logit - best).
	norm := math.Log(sumExp(logits, best, 1))
	if !s.greedy {
		id = s.draw(logits, best)
	}
	return Token{ID: int32(id), Logprob: float32(float64(logits[id]) - float64(best) - norm)}, nil
}

// draw filters and picks an id; best is the largest logit.
func (s *Sampler) draw(logits []float32, best float32) int {
	u := float64(s.rng.Uint64()>>11) / (1 << 53) // [0, 1)
	scale := 1 / s.sampling.Temperature
	topK := s.sampling.TopK > 0 && s.sampling.TopK < len(logits)
	topP := s.sampling.TopP > 0 && s.sampling.TopP < 1
	switch {
	case topK:
		mass := s.keep(logits, best, scale, s.kthLargest(logits))
		if topP {
			return pick(nucleus(s.kept, float64(s.sampling.TopP)*mass), u)
		}
		return pick(s.kept, u)
	case topP:
		p := float64(s.sampling.TopP)
		mass := sumExp(logits, best, scale)
		// No token whose probability is below (1-p)/vocab is kept: all such together would not hold the 1-p that is
		// cut away (the observation is that of llama2.c's sample_topp). The margin is for rounding.
		cut := float64(best) + math.Log(0.999*mass*(1-p)/float64(len(logits)))/float64(scale)
		s.keep(logits, best, scale, float32(cut))
		return pick(nucleus(s.kept, p*mass), u)
	default:
		return s.drawAll(logits, best, scale, u)
	}
}

// drawAll picks among all logits: it finds the block that u falls into, then the id within.
func (s *Sampler) drawAll(logits []float32, best, scale float32, u float64) int {
	s.blocks = s.blocks[:0]
	mass := 0.0
	for lo := 0; lo < len(logits); lo += blockLen {
		b := sumExp(logits[lo:min(lo+blockLen, len(logits))], best, scale)
		s.blocks = append(s.blocks, b)
		mass += b
	}
	// cum runs through the very additions that gave mass, so it passes u·mass < mass in some block.
	target, cum, block := u*mass, 0.0, 0
	for cum+s.blocks[block] <= target {
		cum += s.blocks[block]
		block++
	}
	lo, id := block*blockLen, -1
	for i, l := range logits[lo:min(lo+blockLen, len(logits))] {
		w := float64(exp((l - best) * scale))
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

// kthLargest returns the TopK-th largest logit, through a min-heap of the TopK largest met so far.
func (s *Sampler) kthLargest(logits []float32) float32 {
	heap := s.top[:0]
	negInf := float32(math.Inf(-1))
	for range s.sampling.TopK {
		heap = append(heap, negInf)
	}
	for _, l := range logits {
		if !(l > heap[0]) {
			continue
		}
		at := 0
		for {
			child := 2*at + 1
			if child >= len(heap) {
				break
			}
			if child+1 < len(heap) && heap[child+1] < heap[child] {
				child++
			}
			if heap[child] >= l {
				break
			}
			heap[at] = heap[child]
			at = child
		}
		heap[at] = l
	}
	s.top = heap
	return heap[0]
}

// keep makes kept of the logits that are at least cut, in the order of their ids, and returns the sum of their weights.
func (s *Sampler) keep(logits []float32, best, scale, cut float32) (mass float64) {
	s.kept = s.kept[:0]
	for id, l := range logits {
		if !(l >= cut) {
			continue
		}
		if w := float64(exp((l - best) * scale)); w > 0 {
			s.kept = append(s.kept, candidate{int32(id), l, w})
			mass += w
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

// ahead is the order of likelihood; it knows no equals.
func (c candidate) ahead(d candidate) bool {
	return c.logit > d.logit || c.logit == d.logit && c.id < d.id
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

// argmax returns the lowest index of the largest value that is above -Inf, -1 if there is none. Four lanes each
// keep their own first maximum, so that one comparison need not wait for the last.
func argmax(x []float32) int {
	negInf := float32(math.Inf(-1))
	best := [4]float32{negInf, negInf, negInf, negInf}
	at := [4]int{-1, -1, -1, -1}
	i := 0
	for ; i+4 <= len(x); i += 4 {
		v := x[i : i+4 : i+4]
		if v[0] > best[0] {
			best[0], at[0] = v[0], i
		}
		if v[1] > best[1] {
			best[1], at[1] = v[1], i+1
		}
		if v[2] > best[2] {
			best[2], at[2] = v[2], i+2
		}
		if v[3] > best[3] {
			best[3], at[3] = v[3], i+3
		}
	}
	for ; i < len(x); i++ {
		if x[i] > best[0] {
			best[0], at[0] = x[i], i
		}
	}
	value, id := best[0], at[0]
	for lane := 1; lane < 4; lane++ {
		if best[lane] > value || best[lane] == value && at[lane] >= 0 && at[lane] < id {
			value, id = best[lane], at[lane]
		}
	}
	return id
}

// sumExp is Σ exp((x - best) · scale), in double precision.
func sumExp(x []float32, best, scale float32) float64 {
	var sum float64
	for _, v := range x {
		if d := (v - best) * scale; d > minExp {
			sum += float64(expNear(d))
		}
	}
	return sum
}

// minExp is where an exponential counts as nothing: it stands for a probability under 1e-34.
const minExp = -80

// exp is e^x for x ≤ 0; 0 below minExp and for NaN.
func exp(x float32) float32 {
	if x > minExp {
		return expNear(x)
	}
	return 0
}

// expNear is e^x for minExp < x ≤ 0, to 3e-7 of its value. A whole vocabulary goes through it for each token: it is
// small enough for the compiler to inline, and math.Exp takes several times as long.
// Cody and Waite's reduction x = n·ln 2 + r, |r| ≤ ln 2 / 2, with ln 2 in two parts; Taylor's polynomial for e^r up to
// r⁶; n added to the exponent bits.
func expNear(x float32) float32 {
	const round = 3 << 22 // a float32 this large has no fraction bits: adding it rounds to the nearest integer
	t := x*math.Log2E + round
	r := x - (t-round)*0.693359375 + (t-round)*2.12194440e-4
	p := 1 + r*(1+r*(1./2+r*(1./6+r*(1./24+r*(1./120+r*(1./720))))))
	return math.Float32frombits(math.Float32bits(p) + math.Float32bits(t)<<23)
}
