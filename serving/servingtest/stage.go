// Package servingtest holds what every stage of outgoing text has to do.
package servingtest

import (
	"fmt"
	"testing"

	"github.com/mmserve/mmserve/serving"
)

// result is what a stage makes of a text.
type result struct {
	text    string // that leaves
	covered int    // bytes of the input that are accounted for
	end     string
}

// TestStage holds that a stage keeps the contract of serving.Stage on each of the texts, however a text is cut: at
// every byte, in two at every place, and in three at every pair of places. make gives a new stage.
func TestStage(t *testing.T, make func() serving.Stage, texts ...string) {
	t.Helper()
	for _, text := range texts {
		want := play(t, make(), []string{text})
		if want.end == "" && want.covered != len(text) {
			t.Errorf("%q: %d of %d bytes are accounted for at the end", text, want.covered, len(text))
		}
		for _, cut := range cuts(text) {
			if got := play(t, make(), cut); got != want {
				t.Errorf("%q cut as %q: %+v, want %+v as of the whole", text, cut, got, want)
			}
		}
	}
}

// cuts are the ways in which a text is given.
func cuts(text string) [][]string {
	bytes := make([]string, len(text))
	for i := range bytes {
		bytes[i] = text[i : i+1]
	}
	list := [][]string{bytes}
	for i := 1; i < len(text); i++ {
		list = append(list, []string{text[:i], text[i:]})
		for j := i + 1; j < len(text); j++ {
			list = append(list, []string{text[:i], text[i:j], text[j:]})
		}
	}
	return list
}

// play gives a stage pieces of text, and looks at each piece that it emits.
func play(t *testing.T, s serving.Stage, pieces []string) (r result) {
	t.Helper()
	given := ""
	emit := func(p serving.Piece) {
		r.text += p.Text
		from := r.covered
		r.covered += p.Covers
		switch {
		case p.Covers < 0 || r.covered > len(given):
			t.Fatalf("%q: %d bytes are accounted for, %d were given", given, r.covered, len(given))
		case !p.Hides && p.Text != "" && p.Text != given[from:r.covered]:
			t.Errorf("%q: %q stands for %q without hiding it", given, p.Text, given[from:r.covered])
		}
	}
	for _, piece := range pieces {
		if piece == "" {
			continue
		}
		given += piece
		if end := s.Push(piece, emit); end != nil {
			return ended(t, r, end)
		}
	}
	if end := s.Flush(emit); end != nil {
		return ended(t, r, end)
	}
	return r
}

func ended(t *testing.T, r result, end *serving.End) result {
	t.Helper()
	if end.Reason == serving.Unfinished {
		t.Error("a stage ended the answer without a reason")
	}
	r.end = end.Reason.String()
	if end.Stop != nil {
		r.end += fmt.Sprintf(" %q", *end.Stop)
	}
	return r
}
