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
	for _, logits := range [][]float32{nil, {nan, nan}, {negInf, negInf, negInf, negInf, negInf}, {nan, negInf}, {0, inf, 0}} {
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
		"plain":                         {Sampling{Temperature: 1}, ln(.1, .2, .3, .4), []float64{.1, .2, .3, .4}},
		"temperature 0.5 squares":       {Sampling{Temperature: .5}, ln(.1, .2, .7), []float64{.01 / .54, .04 / .54, .49 / .54}},
		"temperature 2 takes roots":     {Sampling{Temperature: 2}, ln(.64, .36), []float64{.8 / 1.4, .6 / 1.4}},
		"top-k":                         {Sampling{Temperature: 1, TopK: 2}, ln(.1, .2, .3, .4), []float64{0, 0, 3. / 7, 4. / 7}},
		"top-k keeps its ties":          {Sampling{Temperature: 1, TopK: 2}, []float32{1, 2, 1, 0, 1}, []float64{1 / (3 + math.E), math.E / (3 + math.E), 1 / (3 + math.E), 0, 1 / (3 + math.E)}},
		"top-k past the vocabulary":     {Sampling{Temperature: 1, TopK: 9}, ln(.25, .75), []float64{.25, .75}},
		"top-k of mostly nothing":       {Sampling{Temperature: 1, TopK: 3}, []float32{negInf, 0, nan, 0, negInf}, []float64{0, .5, 0, .5, 0}},
		"top-p, the one that reaches p": {Sampling{Temperature: 1, TopP: .76}, ln(.125, .5, .25, .125), []float64{1. / 7, 4. / 7, 2. / 7, 0}},
		"top-p, reached before":         {Sampling{Temperature: 1, TopP: .74}, ln(.125, .5, .25, .125), []float64{0, 2. / 3, 1. / 3, 0}},
		"top-p keeps one":               {Sampling{Temperature: 1, TopP: 1e-9}, ln(.3, .4, .3), []float64{0, 1, 0}},
		"top-p 1 is off":                {Sampling{Temperature: 1, TopP: 1}, ln(.3, .4, .3), []float64{.3, .4, .3}},
		"top-p after the temperature":   {Sampling{Temperature: .5, TopP: .95}, ln(.1, .2, .7), []float64{0, .04 / .53, .49 / .53}},
		// The two kept by k hold 4/7 and 3/7 of what is left; 0.5 < 4/7 leaves one. Without k first it would be two.
		"top-p after top-k": {Sampling{Temperature: 1, TopK: 2, TopP: .5}, ln(.1, .2, .3, .4), []float64{0, 0, 0, 1}},
		"masked ids":        {Sampling{Temperature: 1}, []float32{0, negInf, nan, 0}, []float64{.5, 0, 0, .5}},
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

// The filters against the same filters with a full sort, over vocabularies of many blocks.
func TestFiltersAgainstFullSort(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	for i := range 60 {
		logits := normal(uint64(i), 1+rng.IntN(5000))
		if i%4 == 0 { // many ties, among them at the cuts
			for j := range logits {
				logits[j] = float32(math.Round(float64(logits[j])))
			}
		}
		c := Sampling{Temperature: .3 + 2*rng.Float32(), TopK: rng.IntN(200), TopP: rng.Float32(), Seed: uint64(i)}
		if i%3 == 0 {
			c.TopP = 0
		}
		want := sorted(logits, c)
		s := NewSampler(c)
		for range 200 {
			tok, err := s.Sample(logits)
			if err != nil {
				t.Fatal(err)
			}
			if c.TopK == 0 && c.TopP == 0 {
				continue
			}
			if !want[tok.ID] {
				t.Fatalf("%+v over %d logits drew %d, which is not among the %d kept", c, len(logits), tok.ID, len(want))
			}
		}
		if c.TopP > 0 || c.TopK > 0 && c.TopK < len(logits) {
			kept := s.kept
			if c.TopP > 0 {
				mass := 0.0
				for _, x := range kept {
					mass += x.weight
				}
				if c.TopK == 0 || c.TopK >= len(logits) {
					mass = sumExp(logits, logits[argmax(logits)], 1/c.Temperature)
				}
				kept = nucleus(kept, float64(c.TopP)*mass)
			}
			if len(kept) != len(want) {
				t.Errorf("%+v over %d logits kept %d, want %d", c, len(logits), len(kept), len(want))
			}
		}
	}
}

// sorted is the set that the filters keep, as transformers writes them: sort, cumulate, cut.
func sorted(logits []float32, s Sampling) map[int32]bool {
	ids := make([]int32, len(logits))
	for i := range ids {
		ids[i] = int32(i)
	}
	slices.SortFunc(ids, func(a, b int32) int {
		return cmp.Or(cmp.Compare(logits[b], logits[a]), cmp.Compare(a, b))
	})
	if s.TopK > 0 && s.TopK < len(ids) {
		n := s.TopK
		for n < len(ids) && logits[ids[n]] == logits[ids[n-1]] {
			n++
		}
		ids = ids[:n]
	}
	total := 0.0
	for _, id := range ids {
		total += math.Exp(float64(logits[id]-logits[ids[0]]) / float64(s.Temperature))
	}
	kept, cum := map[int32]bool{}, 0.0
	for _, id := range ids {
		if s.TopP > 0 && s.TopP < 1 && cum >= float64(s.TopP)*total {
			break
		}
		kept[id] = true
		cum += math.Exp(float64(logits[id]-logits[ids[0]]) / float64(s.Temperature))
	}
	return kept
}

// One draw a token, from the sequence's own generator: another sampler at work in between changes nothing.
func TestSeed(t *testing.T) {
	for _, c := range []Sampling{{Temperature: 1}, {Temperature: 1, TopK: 40}, {Temperature: 1, TopP: .9}, {Temperature: .7, TopK: 40, TopP: .9}} {
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
			y, _ := NewSampler(Sampling{Temperature: c.Temperature, TopK: c.TopK, TopP: c.TopP, Seed: 77}).Sample(normal(0, 3000))
			if y.ID == a[0] {
				t.Errorf("%+v: three seeds drew %d", c, x.ID)
			}
		}
	}
}

func TestExp(t *testing.T) {
	if exp(0) != 1 || exp(-81) != 0 || exp(negInf) != 0 || exp(nan) != 0 {
		t.Errorf("exp(0) = %g, exp(-81) = %g, exp(-Inf) = %g, exp(NaN) = %g", exp(0), exp(-81), exp(negInf), exp(nan))
	}
	for x := float32(0); x > -80; x -= 0.00097 {
		want := math.Exp(float64(x))
		if got := float64(exp(x)); math.Abs(got-want) > 3e-7*want {
			t.Fatalf("exp(%g) = %g, want %g", x, got, want)
		}
	}
}

func TestSampleAllocatesNothing(t *testing.T) {
	logits := normal(1, 20000)
	for _, c := range []Sampling{{}, {Temperature: 1}, {Temperature: 1, TopK: 50}, {Temperature: 1, TopP: .9}, {Temperature: 1, TopK: 50, TopP: .9}} {
		s := NewSampler(c)
		if n := testing.AllocsPerRun(20, func() { s.Sample(logits) }); n != 0 {
			t.Errorf("%+v allocates %g times a token", c, n)
		}
	}
}

func BenchmarkSample(b *testing.B) {
	logits := normal(1, 49280)
	for _, c := range []struct {
		name string
		Sampling
	}{
		{"greedy", Sampling{}},
		{"temperature", Sampling{Temperature: 1}},
		{"top-k=50", Sampling{Temperature: 1, TopK: 50}},
		{"top-p=0.9", Sampling{Temperature: 1, TopP: .9}},
		{"top-k=50,top-p=0.9", Sampling{Temperature: 1, TopK: 50, TopP: .9}},
		{"hot,top-p=0.99", Sampling{Temperature: 2, TopP: .99}},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := NewSampler(c.Sampling)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Sample(logits); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
