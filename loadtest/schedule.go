package loadtest

import (
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
)

// Arrival is a request's due time from the start of a run and the stage it belongs to. A trace also says how long its
// prompt and answer are, in tokens; 0 leaves that to the Mix.
type Arrival struct {
	At             time.Duration
	Stage          int
	Prompt, Output int
}

// Stage is a time with one rate of arrivals. The first is at its beginning, and it has Rate × Duration of them.
type Stage struct {
	Rate     float64 // requests/s
	Duration time.Duration
}

// Process says how the gaps between arrivals scatter around their mean.
type Process struct {
	name string
	gap  func(*rand.Rand) float64 // of mean 1
}

// ParseProcess reads poisson, constant, or gamma:SHAPE, whose gaps have a coefficient of variation of 1/√SHAPE: below 1
// they come in bursts, 1 is poisson.
func ParseProcess(s string) (Process, error) {
	name, param, _ := strings.Cut(s, ":")
	shape := 1.0
	switch {
	case s == "constant":
		return Process{s, func(*rand.Rand) float64 { return 1 }}, nil
	case s == "poisson":
		return Process{s, (*rand.Rand).ExpFloat64}, nil
	case name == "gamma":
		var err error
		if shape, err = strconv.ParseFloat(param, 64); err == nil && shape >= 0.01 && shape <= 1000 {
			return Process{s, func(r *rand.Rand) float64 { return gamma(r, shape) / shape }}, nil
		}
	}
	return Process{}, fmt.Errorf("arrivals %q: want poisson, constant or gamma:SHAPE with a shape from 0.01 to 1000", s)
}

// gamma draws from the gamma distribution of scale 1 (Marsaglia and Tsang, "A Simple Method for Generating Gamma
// Variables", 2000).
func gamma(r *rand.Rand, shape float64) float64 {
	if shape < 1 {
		return gamma(r, shape+1) * math.Pow(1-r.Float64(), 1/shape)
	}
	d := shape - 1.0/3
	c := 1 / math.Sqrt(9*d)
	for {
		x := r.NormFloat64()
		v := 1 + c*x
		if v <= 0 {
			continue
		}
		v = v * v * v
		if math.Log(1-r.Float64()) < x*x/2+d-d*v+d*math.Log(v) {
			return d * v
		}
	}
}

// Schedule says when requests are due: stages, one after the other, or a trace.
type Schedule struct {
	Stages  []Stage
	Process Process
	Trace   []Arrival // ascending; instead of stages
	Limit   int       // most requests; 0: no limit
}

// Ramp reads FROM:TO:STEP, requests/s, as stages that last d each.
func Ramp(s string, d time.Duration) ([]Stage, error) {
	var v [3]float64
	parts := strings.Split(s, ":")
	for i := range v {
		var err error
		if len(parts) != len(v) {
			err = strconv.ErrSyntax
		} else {
			v[i], err = strconv.ParseFloat(parts[i], 64)
		}
		if err != nil || !(v[i] > 0) || math.IsInf(v[i], 0) {
			return nil, fmt.Errorf("ramp %q: want FROM:TO:STEP, requests/s above 0, as 1:10:1", s)
		}
	}
	steps := math.Floor((v[1]-v[0])/v[2] + 1e-9)
	if steps < 0 || steps > 1000 {
		return nil, fmt.Errorf("ramp %q: %.0f stages; want 1 to 1001, FROM at most TO", s, steps+1)
	}
	list := make([]Stage, int(steps)+1)
	for i := range list {
		list[i] = Stage{v[0] + float64(i)*v[2], d}
	}
	return list, nil
}

// Duration is the time within which requests are due.
func (s Schedule) Duration() time.Duration {
	var d time.Duration
	for _, stage := range s.Stages {
		d += stage.Duration
	}
	if n := len(s.Trace); n > 0 {
		d = s.Trace[n-1].At
	}
	return d
}

// begin is when a stage begins.
func (s Schedule) begin(stage int) time.Duration {
	var d time.Duration
	for _, earlier := range s.Stages[:min(stage, len(s.Stages))] {
		d += earlier.Duration
	}
	return d
}

// windows are the measured parts of the stages, as far as the schedule got.
func (s Schedule) windows(warmUp, end time.Duration) []Window {
	var list []Window
	for i, stage := range s.Stages {
		w := Window{stage.Rate, s.begin(i) + warmUp, min(s.begin(i)+stage.Duration, end)}
		if w.From < w.To {
			list = append(list, w)
		}
	}
	if d := s.Duration(); len(s.Trace) > 0 {
		// Its last arrival belongs to it.
		list = []Window{{float64(len(s.Trace)) / max(d.Seconds(), 1e-3), min(warmUp, end), end + 1}}
	}
	return list
}

// Arrivals yields the due times in order. The same rng gives the same ones.
func (s Schedule) Arrivals(rng *rand.Rand) iter.Seq[Arrival] {
	return func(yield func(Arrival) bool) {
		n := 0
		next := func(a Arrival) bool {
			if s.Limit > 0 && n == s.Limit {
				return false
			}
			n++
			return yield(a)
		}
		if len(s.Trace) > 0 {
			for _, a := range s.Trace {
				if !next(a) {
					return
				}
			}
			return
		}
		for i, stage := range s.Stages {
			// The gaps are drawn twice: first for their sum. Without scaling them to it, the rate of a short stage would be
			// off by its own chance, and near saturation a few percent decide.
			n, begin, seed := int(math.Round(stage.Rate*stage.Duration.Seconds())), s.begin(i), rng.Uint64()
			sum, draw := 0.0, rand.New(rand.NewPCG(seed, 0))
			for range n {
				sum += s.Process.gap(draw)
			}
			at, draw := 0.0, rand.New(rand.NewPCG(seed, 0))
			for range n {
				if !next(Arrival{At: begin + time.Duration(math.Round(at/sum*float64(stage.Duration))), Stage: i}) {
					return
				}
				at += s.Process.gap(draw)
			}
		}
	}
}
