package loadtest

import (
	"context"
	"fmt"
	"math"
)

// Search looks for the highest rate at which a server keeps its promise.
type Search struct {
	// From and To bound the rate, requests/s; Ratio lies between one step and the next.
	From, To, Ratio float64
	// Attain is the part of the requests that have to be good for a rate to be sustained.
	Attain float64
	// Tries is how often a rate is tried before it counts as not sustained, against noise that only ever makes things
	// worse; 1 if 0.
	Tries int
}

// Check says what is wrong with the search.
func (s Search) Check() error {
	if !(s.From > 0 && s.To >= s.From && s.To < 1e9 && s.Ratio >= 1.001 && s.Ratio <= 10 && s.Attain > 0 &&
		s.Attain <= 1) {
		return fmt.Errorf("search from %v to %v requests/s in steps of %v for an attainment of %v: want 0 < from ≤ to, steps of 1.001 to 10, attainment above 0, up to 1",
			s.From, s.To, s.Ratio, s.Attain)
	}
	return nil
}

// rate is that of a step; the steps are the same whatever order they are tried in.
func (s Search) rate(step int) float64 { return s.From * math.Pow(s.Ratio, float64(step)) }

// Knee is the highest rate that is sustained.
type Knee struct {
	Rate float64 `json:"rate"`
	// Above is the lowest rate known not to be sustained; 0 if the search ended below it.
	Above float64 `json:"above"`
}

// Find tries rates: first each twice as high as the one before, until one is not sustained, then in between. try gives
// the attainment at a rate. A knee with rate 0 says that not even the lowest is sustained.
func (s Search) Find(ctx context.Context, try func(ctx context.Context, rate float64) (attainment float64,
	err error)) (Knee, error) {
	if err := s.Check(); err != nil {
		return Knee{}, err
	}
	last := int(math.Floor(math.Log(s.To/s.From)/math.Log(s.Ratio) + 1e-9))
	stride := max(1, int(math.Round(math.Log(2)/math.Log(s.Ratio))))
	good, bad := -1, last+1 // steps
	for step := 0; bad-good > 1; {
		sustained := false
		for range max(1, s.Tries) {
			attained, err := try(ctx, s.rate(step))
			if err != nil {
				return Knee{}, err
			}
			if sustained = attained >= s.Attain; sustained {
				break
			}
		}
		if sustained {
			good = step
		} else {
			bad = step
		}
		if bad > last { // no bound from above yet
			step = min(good+stride, last)
			continue
		}
		step = (good + bad) / 2
	}
	var k Knee
	if good >= 0 {
		k.Rate = s.rate(good)
	}
	if bad <= last {
		k.Above = s.rate(bad)
	}
	return k, nil
}

// kneeOf is the last of stages of ascending rates before the first that is not sustained.
func kneeOf(stages []StageReport, attain float64) *Knee {
	var k Knee
	for _, s := range stages {
		if s.Attainment < attain {
			k.Above = s.Rate
			break
		}
		k.Rate = s.Rate
	}
	return &k
}
