package loadtest_test

import (
	"bytes"
	"context"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/mmserve/mmserve/loadtest"
)

// TestProcesses holds the mean and the coefficient of variation of the gaps: 1/√shape.
func TestProcesses(t *testing.T) {
	for name, cv := range map[string]float64{"constant": 0, "poisson": 1, "gamma:1": 1, "gamma:0.25": 2, "gamma:4": 0.5} {
		s := loadtest.Schedule{Stages: []loadtest.Stage{{Rate: 50, Duration: 2000 * time.Second}}, Process: process(t, name)}
		var last time.Duration
		var n, sum, squares float64
		for a := range s.Arrivals(rand.New(rand.NewPCG(1, 1))) {
			gap := (a.At - last).Seconds() * 50
			last = a.At
			n, sum, squares = n+1, sum+gap, squares+gap*gap
		}
		mean := sum / n
		got := math.Sqrt(max(0, squares/n-mean*mean))
		if math.Abs(mean-1) > 0.02 || math.Abs(got-cv) > 0.02*(1+cv) {
			t.Errorf("%s: mean gap %.3f, variation %.3f; want 1 and %v", name, mean, got, cv)
		}
	}
}

func TestRamp(t *testing.T) {
	stages, err := loadtest.Ramp("1:4:1.5", 10*time.Second)
	if err != nil || len(stages) != 3 || stages[2].Rate != 4 {
		t.Fatalf("%v, %v", stages, err)
	}
	s := loadtest.Schedule{Stages: stages, Process: process(t, "constant")}
	counts := map[int]int{}
	for a := range s.Arrivals(rand.New(rand.NewPCG(1, 1))) {
		counts[a.Stage]++
	}
	if s.Duration() != 30*time.Second || counts[0] != 10 || counts[1] != 25 || counts[2] != 40 {
		t.Errorf("%v: %v", s.Duration(), counts)
	}
	for _, bad := range []string{"", "1:2", "0:2:1", "5:2:1", "1:2:x", "1:2:-1", "1:1e9:1", "NaN:2:1", "1:Inf:1"} {
		if _, err := loadtest.Ramp(bad, time.Second); err == nil {
			t.Errorf("%q is a ramp", bad)
		}
	}
}

func TestReadTrace(t *testing.T) {
	for name, text := range map[string]string{
		"seconds": "12.5,100,20\n10,7\n11\n",
		"heading": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:12.5,100,20\n2023-11-16 18:17:10.0,7,0\n2023-11-16 18:17:11\n",
		"json": `{"timestamp": 12500, "input_length": 100, "output_length": 20, "hash_ids": [1]}` + "\n" +
			`{"timestamp": 10000, "input_length": 7}` + "\n" + `{"timestamp": 11000}`,
		"crlf":     "10,7\r\n\r\n11\r\n12.5,100,20",
		"blanks":   " 10 , 7 \n 11\n12.5, 100 , 20 ",
		"unsorted": "11\n12.5,100,20\n10,7",
	} {
		got, err := loadtest.ReadTrace(strings.NewReader(text), 2)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := []loadtest.Arrival{{At: 0, Prompt: 7}, {At: 500 * time.Millisecond},
			{At: 1250 * time.Millisecond, Prompt: 100, Output: 20}}
		for i := range want {
			if len(got) != len(want) || got[i] != want[i] {
				t.Errorf("%s: %v, want %v", name, got, want)
				break
			}
		}
	}
	for text, want := range map[string]string{
		"":                      "no arrivals",
		"time\n":                "no arrivals",
		"1\nx":                  "line 2: the time",
		"1\n2,x":                "line 2: the prompt tokens",
		"1\n2,3,4,5":            "4 fields",
		"1\n2,-3":               "want 0 to",
		`{"timestamp":"x"}`:     "line 1",
		`{"input_length": 7}`:   "timestamp",
		"0\n1e300":              "1000 hours",
		"0\nNaN":                "not a number",
		"0\n" + "1,99999999999": "want 0 to",
	} {
		if _, err := loadtest.ReadTrace(strings.NewReader(text), 1); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func FuzzReadTrace(f *testing.F) {
	f.Add([]byte("TIMESTAMP,a,b\n2023-11-16 18:17:12.5,100,20\n"))
	f.Add([]byte("1,2,3\n4\n"))
	f.Add([]byte(`{"timestamp": 12500, "input_length": 100}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := loadtest.ReadTrace(bytes.NewReader(text), 1)
		if err == nil && (len(list) == 0 || list[0].At != 0) {
			t.Errorf("%v", list)
		}
		for i := range list {
			if a := list[i]; a.Prompt < 0 || a.Output < 0 || i > 0 && a.At < list[i-1].At {
				t.Errorf("%v after %v", a, list[i-1])
			}
		}
	})
}

func TestLengths(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for s, want := range map[string][2]float64{ // mean, deviation
		"64": {64, 0}, "fixed:3": {3, 0}, "uniform:10,20": {15, 3.162}, "normal:100,10": {100, 10},
		"lognormal:100,0.5": {113.3, 60.4}, "file:testdata/lengths.txt": {20, 8.165},
	} {
		l := lengths(t, s)
		const n = 200_000
		var sum, squares float64
		for range n {
			x := float64(l.Draw(rng, 1))
			sum, squares = sum+x, squares+x*x
		}
		mean := sum / n
		deviation := math.Sqrt(squares/n - mean*mean)
		if math.Abs(mean-want[0]) > 0.01*want[0] || math.Abs(deviation-want[1]) > 0.02*want[1]+1e-6 {
			t.Errorf("%s: mean %.2f, deviation %.2f; want %v", s, mean, deviation, want)
		}
	}
	if got := lengths(t, "normal:0,5").Draw(rng, 1); got < 1 {
		t.Errorf("drew %d, want at least 1", got)
	}
	for _, bad := range []string{"", "x", "-1", "uniform:5", "uniform:5,1", "normal:1,2,3", "lognormal:0,1", "zipf:1,2",
		"file:none", "1e99", "NaN"} {
		if _, err := loadtest.ParseLengths(bad); err == nil {
			t.Errorf("%q are lengths", bad)
		}
	}
}

// TestSearch has the search find each possible knee, whatever it is, and try few rates.
func TestSearch(t *testing.T) {
	s := loadtest.Search{From: 1, To: 100, Ratio: 1.1, Attain: 0.95}
	for capacity := 0.5; capacity < 130; capacity *= 1.07 {
		tries := 0
		k, err := s.Find(t.Context(), func(_ context.Context, rate float64) (float64, error) {
			tries++
			if rate <= capacity {
				return 1, nil
			}
			return capacity / rate / 1.06, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if tries > 14 {
			t.Errorf("capacity %.2f: %d tries", capacity, tries)
		}
		if k.Rate > capacity || k.Above != 0 && k.Above <= capacity ||
			k.Above != 0 && k.Rate != 0 && k.Above > k.Rate*1.1001 {
			t.Errorf("capacity %.2f: knee %+v", capacity, k)
		}
		if k.Above == 0 && capacity < 90 || k.Rate == 0 && capacity >= 1 {
			t.Errorf("capacity %.2f: no bound: %+v", capacity, k)
		}
	}
	// A try that noise spoils does not count, if there is another.
	s.Tries, s.From = 2, 10
	n := 0
	k, err := s.Find(t.Context(), func(_ context.Context, rate float64) (float64, error) {
		if n++; n%2 == 1 || rate > 30 {
			return 0, nil
		}
		return 1, nil
	})
	if err != nil || k.Rate > 30 || k.Above < 30 {
		t.Errorf("with every other try spoilt: %+v, %v", k, err)
	}
	for _, bad := range []loadtest.Search{{}, {From: 2, To: 1, Ratio: 1.1, Attain: 1},
		{From: 1, To: 2, Ratio: 1, Attain: 1}, {From: 1, To: 2, Ratio: 2, Attain: 1.5}} {
		if bad.Check() == nil {
			t.Errorf("%+v is a search", bad)
		}
	}
}
