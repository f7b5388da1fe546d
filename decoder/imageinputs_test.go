package decoder

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/fusion"
)

// Rows of other lengths, over images and after them, with room behind the shorter ones: each position turns by its own
// place, whatever else is in the step.
func TestTurnRows(t *testing.T) {
	c := Config{HeadDim: 16, Rope: Rope{Theta: 50}, MRope: &MRope{Sections: [3]int{2, 3, 3}}}
	m := newImageInputs(c)
	defer m.free()
	spans := []fusion.Span{{Start: 2, Len: 6, Rows: 2, Cols: 3}, {Start: 8, Len: 4, Rows: 4, Cols: 1}}
	rows := []Row{{Past: 12, IDs: []int32{1}, Spans: spans}, {Past: 3, IDs: []int32{1, 2, 3}},
		{Past: 1, IDs: []int32{1, 2}, Spans: spans}}
	const width, pairs = 3, 8
	if err := m.reserve(len(rows) * width); err != nil {
		t.Fatal(err)
	}
	var l layout
	l.arrange(rows, false)
	m.turn(&l)
	want := [][width][3]int64{{{9, 9, 9}, {10, 10, 10}, {11, 11, 11}}, {{3, 3, 3}, {4, 4, 4}, {5, 5, 5}},
		{{1, 1, 1}, {2, 2, 2}, {2, 2, 3}}}
	axes := []int{0, 0, 1, 1, 1, 2, 2, 2}
	for i, row := range want {
		for j, place := range row {
			for k, axis := range axes {
				angle := float64(place[axis]) * math.Pow(50, -float64(k)/pairs)
				at := (i*width+j)*pairs + k
				if math.Abs(float64(m.cos.Slice()[at])-math.Cos(angle)) > 1e-6 ||
					math.Abs(float64(m.sin.Slice()[at])-math.Sin(angle)) > 1e-6 {
					t.Errorf("row %d, position %d, pair %d does not turn by %v", i, j, k, place)
				}
			}
		}
	}
	apart := slices.Clone(m.cos.Slice())
	l.arrange(rows, true)
	m.turn(&l)
	for i, row := range rows {
		got, want := m.cos.Slice()[l.first[i]*pairs:], apart[i*width*pairs:]
		if n := len(row.IDs) * pairs; !slices.Equal(got[:n], want[:n]) {
			t.Errorf("one behind the other, row %d turns otherwise", i)
		}
	}
}

func TestBlockRows(t *testing.T) {
	m := newImageInputs(Config{ImageBlocks: true})
	defer m.free()
	spans := []fusion.Span{{Start: 2, Len: 3}, {Start: 5, Len: 2}}
	rows := []Row{{Past: 1, IDs: make([]int32, 7), Spans: spans}, {Past: 7, IDs: make([]int32, 1), Spans: spans}}
	if err := m.reserve(14); err != nil {
		t.Fatal(err)
	}
	var l layout
	l.arrange(rows, false)
	m.blocks(&l)
	if want := []int32{1, 4, 4, 4, 6, 6, 7, 7, 8, 9, 10, 11, 12, 13}; !slices.Equal(m.ends.Slice(), want) {
		t.Errorf("%v, want %v", m.ends.Slice(), want)
	}
	l.arrange(rows, true)
	m.blocks(&l)
	if want := []int32{1, 4, 4, 4, 6, 6, 7, 7}; !slices.Equal(m.ends.Slice()[:l.count], want) {
		t.Errorf("one behind the other: %v, want %v", m.ends.Slice()[:l.count], want)
	}
}

// Features of images are wiped with what else a runner keeps of them.
func TestWipeFeatures(t *testing.T) {
	m := newImageInputs(Config{Hidden: 4, Deepstack: 2})
	defer m.free()
	if err := m.wipe(); err != nil {
		t.Fatal(err)
	}
	if err := m.reserve(1); err != nil {
		t.Fatal(err)
	}
	for i := range m.deep.Slice() {
		m.deep.Slice()[i] = 7
	}
	if err := m.wipe(); err != nil || slices.Max(m.deep.Slice()) != 0 {
		t.Errorf("%v is left, %v", m.deep.Slice(), err)
	}
}

// What would have positions of an image not see the rest of it is refused.
func TestCutImagesAreRefused(t *testing.T) {
	c := Capacity{Slots: 2, MaxLen: 32, Exact: true}
	spans := []fusion.Span{{Start: 2, Len: 3}, {Start: 5, Len: 2}}
	for past := range 8 {
		for end := past + 1; end <= 9; end++ {
			border := func(n int) bool { return n <= 2 || n == 5 || n >= 7 }
			rows := []Row{{Past: past, IDs: make([]int32, end-past), Spans: spans}}
			c.WholeImages = false
			if err := checkRows(rows, c, 1); err != nil {
				t.Fatal(err)
			}
			c.WholeImages = true
			err := checkRows(rows, c, 1)
			if good := border(past) && border(end); good != (err == nil) {
				t.Errorf("positions [%d,%d): %v", past, end, err)
			} else if err != nil && !strings.Contains(err.Error(), "cut the image at [") {
				t.Error(err)
			}
		}
	}
}
