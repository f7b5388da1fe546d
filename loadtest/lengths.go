package loadtest

import (
	"bufio"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
)

// Lengths is a distribution of whole numbers.
type Lengths struct {
	name string
	draw func(*rand.Rand) float64
}

// ParseLengths reads N, uniform:FROM,TO, normal:MEAN,DEVIATION, lognormal:MEDIAN,SIGMA (of the logarithm), or
// file:PATH, a file with a number a line from which each draw takes one at random.
func ParseLengths(s string) (Lengths, error) {
	kind, params, found := strings.Cut(s, ":")
	if !found {
		kind, params = "fixed", s
	}
	if kind == "file" {
		return readLengths(params)
	}
	var v []float64
	for p := range strings.SplitSeq(params, ",") {
		x, err := strconv.ParseFloat(strings.TrimSpace(p), 64)
		if err != nil || !(x >= 0) || x > 1e7 {
			v = nil
			break
		}
		v = append(v, x)
	}
	l := Lengths{name: s}
	switch {
	case kind == "fixed" && len(v) == 1:
		l.draw = func(*rand.Rand) float64 { return v[0] }
	case kind == "uniform" && len(v) == 2 && v[0] <= v[1]:
		l.draw = func(r *rand.Rand) float64 { return math.Floor(v[0] + r.Float64()*(v[1]-v[0]+1)) }
	case kind == "normal" && len(v) == 2:
		l.draw = func(r *rand.Rand) float64 { return v[0] + r.NormFloat64()*v[1] }
	case kind == "lognormal" && len(v) == 2 && v[0] > 0 && v[1] <= 10:
		l.draw = func(r *rand.Rand) float64 { return v[0] * math.Exp(r.NormFloat64()*v[1]) }
	default:
		return Lengths{}, fmt.Errorf("lengths %q: want N, uniform:FROM,TO, normal:MEAN,DEVIATION, lognormal:MEDIAN,SIGMA or file:PATH, numbers from 0 to 1e7", s)
	}
	return l, nil
}

func readLengths(path string) (Lengths, error) {
	f, err := os.Open(path)
	if err != nil {
		return Lengths{}, err
	}
	defer f.Close()
	var list []float64
	scan := bufio.NewScanner(f)
	for n := 1; scan.Scan(); n++ {
		text := strings.TrimSpace(scan.Text())
		if text == "" {
			continue
		}
		x, err := strconv.ParseUint(text, 10, 24)
		if err != nil {
			return Lengths{}, fmt.Errorf("%s, line %d: want a whole number below 2^24", path, n)
		}
		list = append(list, float64(x))
	}
	if err := scan.Err(); err != nil {
		return Lengths{}, fmt.Errorf("%s: %w", path, err)
	}
	if len(list) == 0 {
		return Lengths{}, fmt.Errorf("%s: no numbers", path)
	}
	return Lengths{"file:" + path, func(r *rand.Rand) float64 { return list[r.IntN(len(list))] }}, nil
}

// Draw gives a number, rounded, at least least.
func (l Lengths) Draw(r *rand.Rand, least int) int {
	return max(least, int(math.Round(min(l.draw(r), 1e7))))
}

// String is what ParseLengths was given.
func (l Lengths) String() string { return l.name }

// Weighted is one of several values and how often it is drawn, against the others.
type Weighted struct {
	Value  string
	Weight float64
}

// ParseWeighted reads VALUE[:WEIGHT],…; a weight that is missing is 1.
func ParseWeighted(s string) ([]Weighted, error) {
	var list []Weighted
	for part := range strings.SplitSeq(s, ",") {
		value, weight, found := strings.Cut(strings.TrimSpace(part), ":")
		w := Weighted{value, 1}
		if found {
			var err error
			if w.Weight, err = strconv.ParseFloat(weight, 64); err != nil || !(w.Weight > 0) || w.Weight > 1e9 {
				return nil, fmt.Errorf("%q: want VALUE:WEIGHT,… with weights above 0", s)
			}
		}
		if w.Value == "" {
			return nil, fmt.Errorf("%q: a value is empty; want VALUE:WEIGHT,…", s)
		}
		list = append(list, w)
	}
	return list, nil
}

// pick draws one of list, "" of none.
func pick(r *rand.Rand, list []Weighted) string {
	var sum float64
	for _, w := range list {
		sum += w.Weight
	}
	x := r.Float64() * sum
	for _, w := range list {
		if x -= w.Weight; x < 0 {
			return w.Value
		}
	}
	if len(list) > 0 {
		return list[len(list)-1].Value
	}
	return ""
}
