package imaging

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/racetest"
)

// tiffTag is an entry of a directory: one value of 32 bits, or several of 16.
type tiffTag struct {
	tag    uint16
	values []uint32
}

// tiffWith is a TIFF of w×h pixels whose data are in one strip.
func tiffWith(w, h int, data []byte, tags ...tiffTag) []byte {
	all := append(slices.Clone(tags), tiffTag{tagWidth, []uint32{uint32(w)}}, tiffTag{tagHeight, []uint32{uint32(h)}})
	if !slices.ContainsFunc(tags, func(t tiffTag) bool { return t.tag == tagStripOffsets }) {
		all = append(all, tiffTag{tagStripOffsets, []uint32{8}}, tiffTag{tagStripBytes, []uint32{uint32(len(data))}})
	}
	slices.SortFunc(all, func(a, b tiffTag) int { return int(a.tag) - int(b.tag) })
	le := binary.LittleEndian
	out := append(le.AppendUint32([]byte("II*\x00"), uint32(8+len(data))), data...)
	out = le.AppendUint16(out, uint16(len(all)))
	end := len(out) + 12*len(all) + 4
	var values []byte
	for _, t := range all {
		out = le.AppendUint16(out, t.tag)
		if len(t.values) == 1 {
			out = le.AppendUint32(le.AppendUint32(le.AppendUint16(out, 4), 1), t.values[0])
			continue
		}
		out = le.AppendUint32(le.AppendUint16(out, 4), uint32(len(t.values)))
		out = le.AppendUint32(out, uint32(end+len(values)))
		for _, v := range t.values {
			values = le.AppendUint32(values, v)
		}
	}
	return append(append(out, 0, 0, 0, 0), values...)
}

// sized gives a file another size in its header, 8000×8000 pixels.
func sized(t *testing.T, name, before string, at int, order binary.ByteOrder) []byte {
	t.Helper()
	data := bytes.Clone(readFile(t, name))
	from := bytes.Index(data, []byte(before))
	if from < 0 {
		t.Fatal(name)
	}
	order.PutUint16(data[from+at:], 8000)
	order.PutUint16(data[from+at+2:], 8000)
	return data
}

// TestLargestImages: what decoding 64 megapixels holds is at most 256 MB, or the header is refused.
func TestLargestImages(t *testing.T) {
	jpegOf := func(name, marker string) []byte { return sized(t, "decode/gojpeg/"+name, marker, 5, binary.BigEndian) }
	for name, c := range map[string]struct {
		data    []byte
		refused bool
	}{
		"jpeg, 4:2:0":              {data: jpegOf("video-001.q50.420.jpeg", "\xff\xc0")},
		"jpeg, 4:4:4":              {data: jpegOf("video-001.q50.444.jpeg", "\xff\xc0")},
		"jpeg, progressive":        {data: jpegOf("video-001.q50.420.progressive.jpeg", "\xff\xc2")},
		"jpeg, progressive, 4:4:4": {data: jpegOf("video-001.q50.444.progressive.jpeg", "\xff\xc2"), refused: true},
		"webp":                     {data: sized(t, "decode/blue-purple-pink.lossy.webp", "\x9d\x01\x2a", 3, binary.LittleEndian)},
		"gif":                      {data: sized(t, "decode/pillow/hopper.gif", "GIF8", 6, binary.LittleEndian)},
		"tiff": {data: tiffWith(8000, 8000, nil, tiffTag{tagBits, []uint32{8, 8, 8}}, tiffTag{tagSamples, []uint32{3}},
			tiffTag{tagPhotometric, []uint32{photoRGB}}, tiffTag{tagCompression, []uint32{tiffLZW}})},
		"tiff, one JPEG": {data: tiffWith(8000, 8000, jpegOf("video-001.q50.420.jpeg", "\xff\xc0"),
			tiffTag{tagBits, []uint32{8, 8, 8}}, tiffTag{tagSamples, []uint32{3}},
			tiffTag{tagPhotometric, []uint32{photoYCbCr}}, compressed(tiffJPEG))},
		"tiff, one WebP": {data: tiffWith(8000, 8000, sized(t, "decode/blue-purple-pink.lossy.webp", "\x9d\x01\x2a", 3, binary.LittleEndian),
			tiffTag{tagBits, []uint32{8, 8, 8}}, tiffTag{tagSamples, []uint32{3}}, tiffTag{tagPhotometric, []uint32{photoRGB}},
			tiffTag{tagCompression, []uint32{tiffWebP}})},
		"tiff, old JPEG": {data: tiffWith(8000, 8000, jpegOf("video-001.q50.420.jpeg", "\xff\xc0"),
			tiffTag{tagBits, []uint32{8, 8, 8}}, tiffTag{tagSamples, []uint32{3}},
			tiffTag{tagPhotometric, []uint32{photoYCbCr}}, compressed(tiffOldJPEG))},
		"tiff, planes": {data: tiffWith(8000, 8000, nil,
			tiffTag{tagBits, []uint32{8, 8, 8, 8}}, tiffTag{tagSamples, []uint32{4}},
			tiffTag{tagPhotometric, []uint32{photoCMYK}}, tiffTag{tagPlanarConfig, []uint32{2}})},
	} {
		h, err := ReadHeader(t.Context(), c.data, Limits{})
		switch {
		case c.refused && (!errors.Is(err, ErrImage) || !strings.Contains(err.Error(), "at most 256000000 are allowed")):
			t.Errorf("%s: %v", name, err)
		case !c.refused && err != nil:
			t.Errorf("%s: %v", name, err)
		case !c.refused && h.ScaleBytes > 256_000_000:
			t.Errorf("%s: %d bytes", name, h.ScaleBytes)
		}
	}
}

// TestStripsAreCheap: the whole of an image that comes in strips is never there.
func TestStripsAreCheap(t *testing.T) {
	if racetest.Enabled {
		t.Skip("memory is measured without the race detector")
	}
	const side = 2400
	plain := deflated(t, make([]byte, 3*side*side))
	data := tiffWith(side, side, plain, tiffTag{tagBits, []uint32{8, 8, 8}}, tiffTag{tagSamples, []uint32{3}},
		tiffTag{tagPhotometric, []uint32{photoRGB}}, tiffTag{tagCompression, []uint32{tiffDeflate}})
	h, err := ReadHeader(t.Context(), data, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := h.Scale(context.Background(), Filters[3].To(side, side, 64, 64)); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 3*side*side {
		t.Errorf("%d bytes were allocated", n)
	}
}
