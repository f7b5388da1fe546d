package decoder

import "github.com/mmserve/mmserve/fusion"

// places gives the places in time, height and width of positions [past, past+n) of a sequence. Text counts on in all
// three. An image whose patches form a map stands still in time and counts its rows and columns from the place where it
// starts; what follows goes on after the largest of these. Other images are like text. A place is never greater than
// the number of its position.
// Reference: transformers Qwen2VLModel.get_rope_index.
func places(spans []fusion.Span, past, n int, put func(i int, p [3]int64)) {
	at, place := 0, int64(0) // position at has this place
	text := func(end int) {
		for i := max(at, past); i < min(end, past+n); i++ {
			p := place + int64(i-at)
			put(i-past, [3]int64{p, p, p})
		}
		place += int64(end - at)
		at = end
	}
	for _, s := range spans {
		if s.Cols == 0 {
			continue
		}
		text(s.Start)
		for i := max(s.Start, past); i < min(s.Start+s.Len, past+n); i++ {
			k := i - s.Start
			put(i-past, [3]int64{place, place + int64(k/s.Cols), place + int64(k%s.Cols)})
		}
		at, place = s.Start+s.Len, place+int64(max(s.Rows, s.Cols))
	}
	text(max(at, past+n))
}
