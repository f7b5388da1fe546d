package decoder

import (
	"slices"
	"testing"
)

// What a slot is to forget of short convolutions reads as zero, to the last value; what sequences go on from stays.
func TestConvRelease(t *testing.T) {
	const slots, hidden, maxLen = 3, 5, 256
	c := Config{Layers: 2, Hidden: hidden, ShortConv: &ShortConv{Taps: 4, Layers: []bool{true, false}}}
	v, err := newConvCache(c, slots, maxLen)
	if err != nil {
		t.Fatal(err)
	}
	defer v.close()
	mem := v.layers[0].Slice()
	for _, r := range []Release{
		{1, 0, 200}, {1, 0, 3}, {1, 1, 5}, {1, 61, 64}, {1, 63, 200}, {1, 64, 256}, {1, 130, 150}, {1, 100, 164},
		{1, 250, 256}, {1, 255, 256}, {1, 10, 256},
	} {
		for i := range mem {
			mem[i] = 1
		}
		if err := v.release(r); err != nil {
			t.Fatal(err)
		}
		row := func(p int) []float32 {
			at, _ := v.row(p)
			return mem[(r.Slot*v.rows+at)*hidden:][:hidden]
		}
		wiped := func(p int) bool { return !slices.ContainsFunc(row(p), func(x float32) bool { return x != 0 }) }
		needed := map[int]bool{}
		for p := range r.From {
			at, kept := v.row(p)
			if kept || p >= r.From-3 {
				needed[at] = true
			}
			if needed[at] && slices.Contains(row(p), 0) {
				t.Errorf("%+v: position %d is gone", r, p)
			}
		}
		for p := r.From; p < r.To; p++ {
			if at, _ := v.row(p); !needed[at] && !wiped(p) {
				t.Errorf("%+v: position %d is still there", r, p)
			}
		}
		others := slices.Concat(mem[:v.rows*hidden], mem[2*v.rows*hidden:])
		if slices.Contains(others, 0) {
			t.Errorf("%+v: another slot was wiped", r)
		}
	}
}
