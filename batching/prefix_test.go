package batching

import (
	"testing"

	"github.com/mmserve/mmserve/fusion"
)

// Positions follow the map of an image: the same ids over the same file, in a map of other shape, are another prompt
// from the image on.
func TestSharedMaps(t *testing.T) {
	ids := []int32{1, 2, 9, 9, 9, 9, 9, 9, 3, 4}
	seq := func(rows, cols int, digest byte) *sequence {
		return &sequence{ids: ids, spans: []fusion.Span{
			{Start: 2, Len: 6, Rows: rows, Cols: cols, Digest: [32]byte{digest}},
		}}
	}
	for _, c := range []struct {
		a, b *sequence
		want int
	}{
		{seq(2, 3, 7), seq(2, 3, 7), 10},
		{seq(2, 3, 7), seq(3, 2, 7), 2},
		{seq(2, 3, 7), seq(1, 6, 7), 2},
		{seq(2, 3, 7), seq(0, 0, 7), 2},
		{seq(2, 3, 7), seq(2, 3, 8), 2},
		{seq(2, 3, 7), &sequence{ids: ids}, 2},
	} {
		if got := shared(c.a, c.b, 10); got != c.want {
			t.Errorf("%+v and %+v share %d positions, want %d", c.a.spans, c.b.spans, got, c.want)
		}
	}
}
