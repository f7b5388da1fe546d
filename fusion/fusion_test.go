package fusion

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/vision"
)

const img = 9 // the image token's id

var layout = Layout{
	Placeholder: "<image>", ImageTokenID: img, PatchTokens: 2,
	Expand: func(g vision.Grid) string { return "[" + strings.Repeat("<image>", 2*g.Tiles()) + "]" },
}

func TestExpandPrompt(t *testing.T) {
	one, two := vision.Grid{}, vision.Grid{Rows: 1, Cols: 1}
	got, err := layout.ExpandPrompt("a<image>b<image>", []vision.Grid{one, two})
	if want := "a[<image><image>]b[<image><image><image><image>]"; err != nil || got != want {
		t.Errorf("got %q %v, want %q", got, err, want)
	}
	// A guard rune inside keeps a user's words from being a placeholder.
	if got, err := layout.ExpandPrompt("<\ufdd0image>", nil); err != nil || got != "<\ufdd0image>" {
		t.Errorf("guarded text: %q %v", got, err)
	}
	for _, text := range []string{"no place", "<image><image>"} {
		var count *ErrCount
		if _, err := layout.ExpandPrompt(text, []vision.Grid{one}); !errors.As(err, &count) || count.Want != 1 {
			t.Errorf("%q for one image: %v", text, err)
		}
	}
}

func TestExpandFramedPrompt(t *testing.T) {
	l := layout
	l.Frame = &Frame{Start: "<bos>", End: "\n"}
	l.Expand = func(vision.Grid) string { return "<image><image>" }
	for _, c := range []struct {
		text, want string
		images     int
	}{
		{"caption en", "<image><image><bos>caption en\n", 1},
		{"<image>caption en", "<image><image><bos>caption en\n", 1},
		{"<image><image> what?", "<image><image><image><image><bos> what?\n", 2},
		{"hello", "<bos>hello\n", 0},
	} {
		got, err := l.ExpandPrompt(c.text, make([]vision.Grid, c.images))
		if err != nil || got != c.want {
			t.Errorf("%q with %d images: %q %v, want %q", c.text, c.images, got, err, c.want)
		}
	}
}

func TestExpandOneImage(t *testing.T) {
	l := layout
	l.Frame = &Frame{Start: "<s>", OneImage: true}
	if got, err := l.ExpandPrompt("what is this?", make([]vision.Grid, 1)); err != nil || got != "[<image><image>]<s>" {
		t.Errorf("%q %v", got, err)
	}
	for _, n := range []int{0, 2} {
		var count *ErrCount
		if _, err := l.ExpandPrompt("", make([]vision.Grid, n)); !errors.As(err, &count) {
			t.Errorf("%d images: %v", n, err)
		}
	}
}

func TestLocate(t *testing.T) {
	a := &vision.Image{Digest: [32]byte{1}}                                      // 2 patches
	b := &vision.Image{Digest: [32]byte{2}, Grid: vision.Grid{Rows: 1, Cols: 1}} // 4 patches, in two runs
	ids := []int32{1, img, img, img, img, 5, img, img}
	in, err := layout.Locate(ids, []*vision.Image{a, b})
	if err != nil {
		t.Fatal(err)
	}
	want := []Span{
		{Start: 1, Len: 2, Image: 0, Offset: 0, Digest: a.Digest},
		{Start: 3, Len: 2, Image: 1, Offset: 0, Digest: b.Digest},
		{Start: 6, Len: 2, Image: 1, Offset: 2, Digest: b.Digest},
	}
	same := func(x, y Span) bool {
		return x.Start == y.Start && x.Len == y.Len && x.Image == y.Image && x.Offset == y.Offset && x.Digest == y.Digest
	}
	if !slices.EqualFunc(in.Spans, want, same) || in.ImageTokens() != 6 {
		t.Errorf("spans %+v, want %+v", in.Spans, want)
	}
	for _, bad := range [][]int32{{1}, {img, img, img}, append(ids, img)} {
		var count *ErrCount
		if _, err := layout.Locate(bad, []*vision.Image{a, b}); !errors.As(err, &count) {
			t.Errorf("%v: %v, want a refusal", bad, err)
		}
	}
	if _, err := layout.Locate([]int32{img}, nil); err == nil {
		t.Error("an image position without an image was accepted")
	}
}

// Two images that stand side by side share no position: each has as many as it has patches, in its own map.
func TestLocateMaps(t *testing.T) {
	l := Layout{
		ImageTokenID: img,
		ImageTokens:  func(g vision.Grid) int { return g.Width * g.Height },
		Map:          func(g vision.Grid) (rows, cols int) { return g.Height, g.Width },
	}
	a := &vision.Image{Digest: [32]byte{1}, Grid: vision.Grid{Width: 3, Height: 1}}
	b := &vision.Image{Digest: [32]byte{2}, Grid: vision.Grid{Width: 1, Height: 2}}
	in, err := l.Locate([]int32{5, img, img, img, img, img, 6}, []*vision.Image{a, b})
	want := []Span{
		{Start: 1, Len: 3, Rows: 1, Cols: 3, Digest: a.Digest},
		{Start: 4, Len: 2, Image: 1, Rows: 2, Cols: 1, Digest: b.Digest},
	}
	if err != nil || fmt.Sprint(in.Spans) != fmt.Sprint(want) {
		t.Errorf("spans %+v, %v, want %+v", in.Spans, err, want)
	}
	// A map that a token cuts would have places of its own on each side of it.
	var count *ErrCount
	if _, err := l.Locate([]int32{img, img, 5, img, img, img}, []*vision.Image{a, b}); !errors.As(err, &count) {
		t.Errorf("a map in two parts: %v", err)
	}
	l.Map = func(g vision.Grid) (rows, cols int) { return g.Height, g.Width + 1 }
	if _, err := l.Locate([]int32{img, img, img}, []*vision.Image{a}); !errors.As(err, &count) {
		t.Errorf("a map of more places than patches: %v", err)
	}
}

// What stands for a patch may be more than its embedding: parts are found in any cut, and none is made up.
func TestPlaceParts(t *testing.T) {
	spans := []Span{{Start: 1, Len: 2, Patches: []float32{1, 2, 11, 12, 21, 22, 3, 4, 13, 14, 23, 24}}}
	for part := range 3 {
		base := float32(10 * part)
		for past := range 4 {
			dst := []float32{-1, -1, -1, -1}
			if err := PlacePart(dst, 2, part, past, spans); err != nil {
				t.Fatal(err)
			}
			all := []float32{-1, -1, base + 1, base + 2, base + 3, base + 4, -1, -1, -1, -1}
			if want := all[2*past:][:4]; !slices.Equal(dst, want) {
				t.Errorf("part %d at %d: %v, want %v", part, past, dst, want)
			}
		}
	}
	dst := make([]float32, 6)
	if err := PlacePart(dst, 2, 3, 0, spans); err == nil {
		t.Error("a part that is not there was placed")
	}
	for _, n := range []int{1, 3, 6, 11} {
		if err := Place(dst, 2, 0, []Span{{Start: 1, Len: 2, Patches: make([]float32, n)}}); err == nil {
			t.Errorf("%d values were placed for 2 patches of a multiple of 2", n)
		}
	}
}

func table(rows, hidden int) safetensors.Tensor {
	var data []byte
	for i := range rows * hidden {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(float32(i)))
	}
	return safetensors.Tensor{Name: "embed", DType: safetensors.F32, Shape: []int{rows, hidden}, Data: data}
}

// A chunk that ends where an image begins, or begins where it ends, needs none of its patches.
func TestEmbedBesideAnImage(t *testing.T) {
	e, err := NewEmbedder(table(10, 1), 2)
	if err != nil {
		t.Fatal(err)
	}
	without := []Span{{Start: 2, Len: 3}}
	for _, past := range []int{0, 5} {
		dst := make([]float32, 2)
		if err := e.Embed(dst, []int32{4, 9}, past, without); err != nil || !slices.Equal(dst, []float32{8, 18}) {
			t.Errorf("positions %d and %d: %v %v, want twice 4 and 9", past, past+1, dst, err)
		}
		if err := e.Embed(make([]float32, 3), []int32{4, 9, 9}, past-past/5, without); err == nil {
			t.Errorf("position %d of the image was embedded without its patches", past-past/5)
		}
	}
}

// An id under an image needs no row of the table, as it is not read: image tokens may lie past it. All others do.
func TestEmbedRows(t *testing.T) {
	e, err := NewEmbedder(table(3, 1), 0)
	if err != nil {
		t.Fatal(err)
	}
	spans := []Span{{Start: 1, Len: 2, Patches: []float32{-1, -2}}}
	dst := make([]float32, 4)
	if err := e.Embed(dst, []int32{0, img, img, 2}, 0, spans); err != nil || !slices.Equal(dst, []float32{0, -1, -2, 2}) {
		t.Errorf("%v, %v", dst, err)
	}
	for _, id := range []int32{-1, 3, img} {
		if err := e.Embed(dst, []int32{id}, 0, spans); err == nil {
			t.Errorf("id %d of 3 rows was embedded", id)
		}
	}
}

// Any cut of a sequence into chunks must give the same embeddings as the whole.
func TestEmbedInChunks(t *testing.T) {
	e, err := NewEmbedder(table(10, 2), 0)
	if err != nil {
		t.Fatal(err)
	}
	ids := []int32{1, img, img, 3, img, img}
	in, err := layout.Locate(ids, []*vision.Image{{Grid: vision.Grid{Rows: 1, Cols: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Embed(make([]float32, 12), ids, 0, in.Spans); err == nil {
		t.Error("embedded without patches")
	}
	if err := in.Attach(0, make([]float32, 6), 2); err == nil {
		t.Error("attached too few patches")
	}
	if err := in.Attach(0, []float32{-1, -2, -3, -4, -5, -6, -7, -8}, 2); err != nil {
		t.Fatal(err)
	}
	want := []float32{2, 3, -1, -2, -3, -4, 6, 7, -5, -6, -7, -8}
	for size := 1; size <= len(ids); size++ {
		var got []float32
		for past := 0; past < len(ids); past += size {
			chunk := ids[past:min(past+size, len(ids))]
			dst := make([]float32, 2*len(chunk))
			if err := e.Embed(dst, chunk, past, in.Spans); err != nil {
				t.Fatal(err)
			}
			got = append(got, dst...)
		}
		if !slices.Equal(got, want) {
			t.Errorf("chunks of %d: %v, want %v", size, got, want)
		}
	}
	// A scale is for tokens, not for patches.
	if e, err = NewEmbedder(table(10, 2), 3); err != nil {
		t.Fatal(err)
	}
	dst := make([]float32, 4)
	if err := e.Embed(dst, ids[:2], 0, in.Spans); err != nil || !slices.Equal(dst, []float32{6, 9, -1, -2}) {
		t.Errorf("scaled by 3: %v %v", dst, err)
	}
	for _, id := range []int32{-1, 10} {
		err := e.Embed(make([]float32, 2), []int32{id}, 0, nil)
		if want := fmt.Sprintf("token id %d has no embedding: the table has 10 rows", id); err == nil || err.Error() != want {
			t.Errorf("id %d: %v, want %s", id, err, want)
		}
	}
}
