package ngram

import (
	"slices"
	"strings"
	"testing"
)

var samples = []Sample{
	{"the red house", true, 1}, {"a red car", true, 1}, {"red flowers", true, 1}, {"the blue sea", false, 1},
	{"a blue bird", false, 1}, {"blue eyes", false, 1},
}

// A model tells what it was trained on, and words that it has not seen by their parts; written and read it is the same.
func TestModel(t *testing.T) {
	m := Train(samples, 1)
	raw, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse(raw)
	if err != nil || *again != *m {
		t.Fatalf("read again it is another, %v", err)
	}
	for text, want := range map[string]bool{
		"my RED shoes": true, "redder": true, "the bluest sky": false, "Blue, blue!": false,
	} {
		if got := again.Score(text); (got > 0.5) != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	if m.Score("") != 0 || m.Score(" .,!") != 0 {
		t.Error("a text without words is something")
	}
	if Train(samples, 1).Score("red") != m.Score("red") {
		t.Error("the same samples give another model")
	}
	for _, bad := range [][]byte{nil, raw[1:], append(slices.Clone(raw), 0), append([]byte("x"), raw[1:]...)} {
		if _, err := Parse(bad); err == nil {
			t.Errorf("%d bytes are a model", len(bad))
		}
	}
}

func FuzzFeatures(f *testing.F) {
	f.Add("Some words, 头痛 and \xff.")
	f.Fuzz(func(t *testing.T, text string) {
		list := Features(text)
		if len(list) > 12*maxText || !slices.IsSorted(list) || len(slices.Compact(slices.Clone(list))) != len(list) {
			t.Errorf("%d features", len(list))
		}
	})
}

func BenchmarkScore(b *testing.B) {
	m, text := Train(samples, 1), strings.Repeat("How long should I wait after that? ", 3)
	b.ReportAllocs()
	for b.Loop() {
		m.Score(text)
	}
}
