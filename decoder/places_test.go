package decoder

import (
	"slices"
	"testing"

	"github.com/mmserve/mmserve/fusion"
)

// The rule of transformers' Qwen2VLModel.get_rope_index: text goes on at the largest place of an image plus one.
func TestPlaces(t *testing.T) {
	spans := []fusion.Span{{Start: 2, Len: 6, Rows: 2, Cols: 3}, {Start: 9, Len: 4, Rows: 4, Cols: 1}, {Start: 14, Len: 2}}
	want := [3][]int64{
		{0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 6, 6, 6, 10, 11, 12, 13},
		{0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13},
		{0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 6, 6, 6, 10, 11, 12, 13},
	}
	for past := range len(want[0]) {
		for n := 1; past+n <= len(want[0]); n++ {
			var got [3][]int64
			places(spans, past, n, func(i int, p [3]int64) {
				if i != len(got[0]) {
					t.Fatalf("position %d comes after %d", i, len(got[0]))
				}
				for a := range p {
					got[a] = append(got[a], p[a])
				}
			})
			for a := range want {
				if !slices.Equal(got[a], want[a][past:past+n]) {
					t.Errorf("positions from %d, axis %d: %v, want %v", past, a, got[a], want[a][past:past+n])
				}
			}
		}
	}
}
