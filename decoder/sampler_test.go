package decoder

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

var (
	nan    = float32(math.NaN())
	inf    = float32(math.Inf(1))
	negInf = float32(math.Inf(-1))
)

func ln(p ...float64) []float32 {
	l := make([]float32, len(p))
	for i, v := range p {
		l[i] = float32(math.Log(v))
	}
	return l
}

// normal gives a vocabulary of logits like a model's: a wide bell with a few that stand out.
func normal(seed uint64, n int) []float32 {
	rng := rand.New(rand.NewPCG(seed, 1))
	l := make([]float32, n)
	for i := range l {
		l[i] = float32(2.5 * rng.NormFloat64())
	}
	for range min(20, n) {
		l[rng.IntN(n)] += float32(6 + 3*rng.Float64())
	}
	return l
}

func TestGreedy(t *testing.T) {
	for name, c := range map[string]struct {
		logits []float32
		id     int32
		prob   float64
	}{
		"one":                     {[]float32{3}, 0, 1},
		"last of five":            {ln(.1, .2, .1, .1, .5), 4, .5},
		"third of five":           {ln(.1, .1, .6, .1, .1), 2, .6},
		"tie across lanes":        {[]float32{0, 7, 7, 0, 7}, 1, 1 / (3 + 2*math.Exp(-7))},
		"tie of tail and lanes":   {[]float32{0, 0, 0, 7, 7}, 3, 1 / (2 + 3*math.Exp(-7))},
		"tie in one lane":         {[]float32{0, 0, 5, 0, 0, 0, 5, 0}, 2, 1 / (2 + 6*math.Exp(-5))},
		"tie, later lane earlier": {[]float32{0, 0, 0, 5, 5, 0, 0, 0}, 3, 1 / (2 + 6*math.Exp(-5))},
		"NaN is skipped":          {[]float32{nan, 1, nan, nan, nan, 1}, 1, .5},
		"-Inf has no share":       {[]float32{negInf, -1e30, negInf}, 1, 1},
		"all far below zero":      {[]float32{-1000, -1000, -1100}, 0, .5},
	} {
		for _, s := range []Sampling{{}, {Temperature: 1e-6}, {Temperature: -1}, {Temperature: nan, TopK: 5, TopP: .5}} {
			if got, err := NewSampler(s).Sample(c.logits); err != nil || got != (Token{ID: c.id}) {
				t.Errorf("%s: %+v %v, want id %d", name, got, err, c.id)
			}
			s.Logprobs = true
			got, err := NewSampler(s).Sample(c.logits)
			if err != nil || got.ID != c.id || math.Abs(math.Exp(float64(got.Logprobs.Picked))-c.prob) > 1e-6 {
				t.Errorf("%s: %+v %v, want id %d with probability %g", name, got, err, c.id, c.prob)
			}
		}
	}
}

func TestNothingToChoose(t *testing.T) {
	for _, logits := range [][]float32{nil, {nan, nan}, {negInf, negInf, negInf, negInf, negInf}, {nan, negInf},
		{0, inf, 0}} {
		for _, s := range []Sampling{{}, {Temperature: 1}, {Temperature: 1, TopK: 1}, {Temperature: 1, TopP: .9}} {
			if got, err := NewSampler(s).Sample(logits); err == nil {
				t.Errorf("%v with %+v gave %+v", logits, s, got)
			}
		}
	}
}

// The distribution after the filters, by hand.
func TestDistribution(t *testing.T) {
	for name, c := range map[string]struct {
		sampling Sampling
		logits   []float32
		want     []float64
	}{
		"plain":                     {Sampling{Temperature: 1}, ln(.1, .2, .3, .4), []float64{.1, .2, .3, .4}},
		"temperature 0.5 squares":   {Sampling{Temperature: .5}, ln(.1, .2, .7), []float64{.01 / .54, .04 / .54, .49 / .54}},
		"temperature 2 takes roots": {Sampling{Temperature: 2}, ln(.64, .36), []float64{.8 / 1.4, .6 / 1.4}},
		"top-k": {Sampling{Temperature: 1, TopK: 2}, ln(.1, .2, .3, .4),
			[]float64{0, 0, 3. / 7, 4. / 7}},
		"top-k keeps its ties": {Sampling{Temperature: 1, TopK: 2}, []float32{1, 2, 1, 0, 1},
			[]float64{1 / (3 + math.E), math.E / (3 + math.E), 1 / (3 + math.E), 0, 1 / (3 + math.E)}},
		"top-k past the vocabulary": {Sampling{Temperature: 1, TopK: 9}, ln(.25, .75), []float64{.25, .75}},
		"top-k of mostly nothing": {Sampling{Temperature: 1, TopK: 3}, []float32{negInf, 0, nan, 0, negInf},
			[]float64{0, .5, 0, .5, 0}},
		"top-p, the one that reaches p": {Sampling{Temperature: 1, TopP: .76}, ln(.125, .5, .25, .125),
			[]float64{1. / 7, 4. / 7, 2. / 7, 0}},
		"top-p, reached before": {Sampling{Temperature: 1, TopP: .74}, ln(.125, .5, .25, .125),
			[]float64{0, 2. / 3, 1. / 3, 0}},
		"top-p keeps one":             {Sampling{Temperature: 1, TopP: 1e-9}, ln(.3, .4, .3), []float64{0, 1, 0}},
		"top-p 1 is off":              {Sampling{Temperature: 1, TopP: 1}, ln(.3, .4, .3), []float64{.3, .4, .3}},
		"top-p after the temperature": {Sampling{Temperature: .5, TopP: .95}, ln(.1, .2, .7), []float64{0, .04 / .53, .49 / .53}},
		// The two kept by k hold 4/7 and 3/7 of what is left; 0.5 < 4/7 leaves one. Without k first it would be two.
		"top-p after top-k": {Sampling{Temperature: 1, TopK: 2, TopP: .5}, ln(.1, .2, .3, .4),
			[]float64{0, 0, 0, 1}},
		"min-p": {Sampling{Temperature: 1, MinP: .6}, ln(.1, .2, .3, .4),
			[]float64{0, 0, 3. / 7, 4. / 7}},
		"min-p keeps what equals":     {Sampling{Temperature: 1, MinP: 1}, []float32{1, 3, 3, 2}, []float64{0, .5, .5, 0}},
		"min-p after the temperature": {Sampling{Temperature: 2, MinP: .5}, ln(.64, .16, .04, .16), []float64{.5, .25, 0, .25}},
		"min-p above 1 is off":        {Sampling{Temperature: 1, MinP: 1.5}, ln(.3, .4, .3), []float64{.3, .4, .3}},
		"min-p above 1 after top-k":   {Sampling{Temperature: 1, MinP: 1.5, TopK: 2}, ln(.3, .4, .3), []float64{.3, .4, .3}},
		// -log2 p is 1, 2, 3, 3 and the entropy 1.75 bits, so they rank 1/4, 1/8 and 1/8 together behind 1/2.
		"typical-p, the nearest": {Sampling{Temperature: 1, TypicalP: .2}, ln(.5, .25, .125, .125), []float64{0, 1, 0, 0}},
		"typical-p, the next": {Sampling{Temperature: 1, TypicalP: .7}, ln(.5, .25, .125, .125),
			[]float64{2. / 3, 1. / 3, 0, 0}},
		"typical-p keeps its ties": {Sampling{Temperature: 1, TypicalP: .8}, ln(.5, .25, .125, .125),
			[]float64{.5, .25, .125, .125}},
		"typical-p 1 is off": {Sampling{Temperature: 1, TypicalP: 1}, ln(.3, .4, .3), []float64{.3, .4, .3}},
		"typical-p without the best": {Sampling{Temperature: 1, TypicalP: .5}, ln(.28, .09, .09, .09, .09, .09, .09, .09, .09),
			[]float64{0, .125, .125, .125, .125, .125, .125, .125, .125}},
		// Top-k leaves 4/7 and 3/7, an entropy of .683 nats: .560 is .12 away and .847 is .16.
		"typical-p after top-k": {Sampling{Temperature: 1, TopK: 2, TypicalP: .1}, ln(.1, .2, .3, .4), []float64{0, 0, 0, 1}},
		"min-p after top-p": {Sampling{Temperature: 1, TopP: .99, MinP: .3}, ln(.1, .2, .3, .4),
			[]float64{0, .2 / .9, .3 / .9, .4 / .9}},
		// 4/10 of the whole takes two tokens; of the .74 that min-p leaves the first alone would have it.
		"top-p before min-p": {Sampling{Temperature: 1, TopP: .4, MinP: .9}, ln(.38, .36, .26),
			[]float64{.38 / .74, .36 / .74, 0}},
		"masked ids": {Sampling{Temperature: 1}, []float32{0, negInf, nan, 0}, []float64{.5, 0, 0, .5}},
	} {
		t.Run(name, func(t *testing.T) {
			c.sampling.Logprobs = true
			s, n := NewSampler(c.sampling), 20000
			seen := make([]int, len(c.logits))
			total := 0.0
			for _, l := range c.logits {
				if l == l {
					total += math.Exp(float64(l))
				}
			}
			for range n {
				tok, err := s.Sample(c.logits)
				if err != nil {
					t.Fatal(err)
				}
				seen[tok.ID]++
				// The log probability is the model's own, whatever the filters did.
				if want := float64(c.logits[tok.ID]) - math.Log(total); math.Abs(float64(tok.Logprobs.Picked)-want) > 1e-5 {
					t.Fatalf("log probability of %d is %g, want %g", tok.ID, tok.Logprobs.Picked, want)
				}
			}
			chi := 0.0
			for id, p := range c.want {
				if p == 0 {
					if seen[id] > 0 {
						t.Errorf("id %d was drawn %d times, it is filtered out", id, seen[id])
					}
					continue
				}
				d := float64(seen[id]) - p*float64(n)
				chi += d * d / (p * float64(n))
			}
			// 18.5 is the 99.9 % point for the 4 degrees of freedom that no case exceeds; the seed is fixed.
			if chi > 18.5 {
				t.Errorf("χ² is %.1f: drew %v, want %v of %d", chi, seen, c.want, n)
			}
		})
	}
}

// The filters against transformers' definitions with full sorts, over vocabularies of many blocks.
func TestFiltersAgainstFullSort(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	for i := range 400 {
		logits := normal(uint64(i), 1+rng.IntN(5000))
		if i%4 == 0 { // many ties, among them at the cuts
			for j := range logits {
				logits[j] = float32(math.Round(float64(logits[j])))
			}
		}
		c := Sampling{Temperature: .3 + 2*rng.Float32()}
		if i&1 != 0 {
			c.TopK = rng.IntN(200)
		}
		if i&2 != 0 {
			c.TopP = rng.Float32()
		}
		if i&4 != 0 {
			c.MinP = rng.Float32() / 5
		}
		if i&8 != 0 {
			c.TypicalP = rng.Float32()
		}
		s := NewSampler(c)
		s.choice.reset(logits)
		got := s.filter(slices.Max(logits), 1/c.Temperature)
		if got == nil {
			if c.TopP > 0 || c.MinP > 0 || c.TypicalP > 0 || c.TopK > 0 && c.TopK < len(logits) {
				t.Errorf("%+v over %d logits does not filter", c, len(logits))
			}
			continue
		}
		want := transformers(logits, c)
		ids := map[int]bool{}
		for _, x := range got {
			ids[int(x.id)] = true
			if !want[int(x.id)] {
				t.Errorf("%+v over %d logits kept %d", c, len(logits), x.id)
			}
		}
		if len(ids) != len(got) || len(ids) != len(want) {
			t.Errorf("%+v over %d logits kept %d of %d different ids, want %d", c, len(logits), len(got), len(ids), len(want))
		}
	}
}

// Where the tokens nearest to the entropy are all unlikely: 420 that hold 51 % are at 2.94 nats from it, the best is at
// 3.06.
func TestTypicalBulk(t *testing.T) {
	logits := make([]float32, 421)
	for i := range 420 {
		logits[i] = -6
	}
	for p, want := range map[float32]int{.1: 420, .5: 420, .6: 421} {
		s := NewSampler(Sampling{Temperature: 1, TypicalP: p})
		s.choice.reset(logits)
		if got := len(s.filter(0, 1)); got != want {
			t.Errorf("typical-p %g keeps %d, want %d", p, got, want)
		}
	}
}

// transformers is the set that its warpers keep: each sorts, cumulates and cuts what the one before has left.
func transformers(logits []float32, s Sampling) map[int]bool {
	scores := make([]float64, len(logits))
	for i, l := range logits {
		scores[i] = float64(l) / float64(s.Temperature)
	}
	softmax := func() []float64 {
		p, sum, best := make([]float64, len(scores)), 0.0, slices.Max(scores)
		for i, x := range scores {
			p[i] = math.Exp(x - best)
			sum += p[i]
		}
		for i := range p {
			p[i] /= sum
		}
		return p
	}
	order := func(less func(a, b int) int) []int {
		ids := make([]int, len(scores))
		for i := range ids {
			ids[i] = i
		}
		slices.SortStableFunc(ids, less)
		return ids
	}
	if s.TopK > 0 && s.TopK < len(scores) {
		ids := order(func(a, b int) int { return cmp.Compare(scores[b], scores[a]) })
		kth := scores[ids[s.TopK-1]]
		for i, x := range scores {
			if x < kth {
				scores[i] = math.Inf(-1)
			}
		}
	}
	if s.TopP > 0 && s.TopP < 1 {
		p, cum := softmax(), 0.0
		for _, id := range order(func(a, b int) int { return cmp.Compare(p[b], p[a]) }) {
			if cum >= float64(s.TopP) {
				scores[id] = math.Inf(-1)
			}
			cum += p[id]
		}
	}
	if s.MinP > 0 {
		p := softmax()
		best := slices.Max(p)
		for id := range p {
			if p[id] < float64(s.MinP)*best {
				scores[id] = math.Inf(-1)
			}
		}
	}
	if s.TypicalP > 0 && s.TypicalP < 1 {
		p, entropy := softmax(), 0.0
		for _, x := range p {
			if x > 0 {
				entropy -= x * math.Log(x)
			}
		}
		shifted := make([]float64, len(p))
		for id, x := range p {
			shifted[id] = math.Abs(-math.Log(x) - entropy)
		}
		ids := order(func(a, b int) int { return cmp.Compare(shifted[a], shifted[b]) })
		last, cum := 0, 0.0
		for _, id := range ids {
			if cum += p[id]; cum < float64(s.TypicalP) {
				last++
			}
		}
		cut := shifted[ids[min(last, len(ids)-1)]]
		for id := range scores {
			if shifted[id] > cut*(1+1e-12) { // equal logits give equal shifts but for the last bits
				scores[id] = math.Inf(-1)
			}
		}
	}
	kept := map[int]bool{}
	for id, x := range scores {
		if !math.IsInf(x, -1) {
			kept[id] = true
		}
	}
	return kept
}

// One draw a token, from the sequence's own generator: another sampler at work in between changes nothing.
func TestSeed(t *testing.T) {
	for _, c := range []Sampling{{Temperature: 1}, {Temperature: 1, TopK: 40}, {Temperature: 1, TopP: .9},
		{Temperature: .7, TopK: 40, TopP: .9}} {
		c.Seed = 42
		alone, mixed, again := NewSampler(c), NewSampler(c), NewSampler(c)
		other := NewSampler(Sampling{Temperature: 1, Seed: 43})
		var a, b, d []int32
		for i := range 50 {
			logits := normal(uint64(i), 3000)
			x, _ := alone.Sample(logits)
			other.Sample(logits)
			y, _ := mixed.Sample(logits)
			a, b = append(a, x.ID), append(b, y.ID)
		}
		for i := range 50 {
			z, _ := again.Sample(normal(uint64(i), 3000))
			d = append(d, z.ID)
		}
		if !slices.Equal(a, b) || !slices.Equal(a, d) {
			t.Errorf("%+v: one seed drew %v, %v and %v", c, a, b, d)
		}
		c.Seed++
		if x, _ := NewSampler(c).Sample(normal(0, 3000)); x.ID == a[0] {
			y, _ := NewSampler(Sampling{Temperature: c.Temperature, TopK: c.TopK, TopP: c.TopP, Seed: 77}).Sample(normal(0,
				3000))
			if y.ID == a[0] {
				t.Errorf("%+v: three seeds drew %d", c, x.ID)
			}
		}
	}
}

// everything is a sampling with each of its fields on, for a vocabulary of a few thousand at least.
func everything() Sampling {
	return Sampling{
		LogitBias: map[int32]float32{3: 5, 1999: -100}, Suppress: []int32{7, 8}, MinTokens: 1000, Stop: []int32{2, 1},
		RepetitionPenalty: 1.2, FrequencyPenalty: .1, PresencePenalty: .2, Constraint: &set{mask: every(1<<14, 1)},
		Temperature: 1.1, TopK: 50, TopP: .9, MinP: .01, TypicalP: .9, Logprobs: true, TopLogprobs: 5,
	}
}

func TestSampleAllocatesNothing(t *testing.T) {
	logits := normal(1, 20000)
	for _, c := range []Sampling{{}, {Temperature: 1}, {Temperature: 1, TopK: 50}, {Temperature: 1, TopP: .9},
		{Temperature: 1, MinP: .1}, {Temperature: 1, TypicalP: .9}, {Logprobs: true, TopLogprobs: 20}, everything()} {
		s := NewSampler(c)
		for range 100 {
			s.Sample(logits)
		}
		if n := testing.AllocsPerRun(100, func() { s.Sample(logits) }); n != 0 {
			t.Errorf("%+v allocates %g times a token", c, n)
		}
	}
}

func BenchmarkSample(b *testing.B) {
	const vocab = 49152
	logits := normal(1, vocab)
	prompt := make([]int32, 1000)
	for i := range prompt {
		prompt[i] = int32(i * 49)
	}
	for _, c := range []struct {
		name string
		Sampling
	}{
		{"greedy", Sampling{}},
		{"temperature", Sampling{Temperature: 1}},
		{"top-k=50", Sampling{Temperature: 1, TopK: 50}},
		{"top-p=0.95", Sampling{Temperature: 1, TopP: .95}},
		{"top-k=50,top-p=0.9", Sampling{Temperature: 1, TopK: 50, TopP: .9}},
		{"hot,top-p=0.99", Sampling{Temperature: 2, TopP: .99}},
		{"min-p=0.05", Sampling{Temperature: 1, MinP: .05}},
		{"typical-p=0.95", Sampling{Temperature: 1, TypicalP: .95}},
		{"greedy,penalties", Sampling{RepetitionPenalty: 1.1, FrequencyPenalty: .1, PresencePenalty: .1}},
		{"greedy,mask=16", Sampling{Constraint: &set{mask: every(vocab, vocab/16)}}},
		{"greedy,mask=half", Sampling{Constraint: &set{mask: every(vocab, 2)}}},
		{"greedy,mask=all", Sampling{Constraint: &set{mask: every(vocab, 1)}}},
		{"greedy,logprobs", Sampling{Logprobs: true}},
		{"greedy,logprobs=5", Sampling{Logprobs: true, TopLogprobs: 5}},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := NewSampler(c.Sampling)
			s.Prompt(prompt)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Sample(logits); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
