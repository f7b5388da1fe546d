package imaging

import (
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/adler32"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/image/tiff/lzw"

	"github.com/mmserve/mmserve/internal/racetest"
)

// idleDeflate is size bytes of a zlib stream whose blocks have Huffman tables and nothing else.
func idleDeflate(size int) []byte {
	var w bitWriter
	for range 64 {
		w.put(0, 1) // not the last
		w.put(2, 2) // dynamic
		w.put(0, 5) // 257 literals
		w.put(0, 5) // one distance
		w.put(14, 4)
		for _, n := range []int{0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2} { // 18: 0; 0: 10; 1: 11
			w.put(n, 3)
		}
		w.huffman("0")
		w.put(127, 7) // 138 zeros
		w.huffman("0")
		w.put(107, 7) // 118 zeros
		w.huffman("11")
		w.huffman("11")
		w.huffman("0") // the end of the block
	}
	out := append([]byte{0x78, 0x9c}, bytes.Repeat(w.bytes(), size/len(w.bytes()))...)
	return binary.BigEndian.AppendUint32(append(out, 1, 0, 0, 0xff, 0xff), adler32.Checksum(nil))
}

// bitWriter writes bits as deflate orders them.
type bitWriter struct {
	out []byte
	n   int
}

func (w *bitWriter) put(v, bits int) {
	for i := range bits {
		if w.n%8 == 0 {
			w.out = append(w.out, 0)
		}
		w.out[len(w.out)-1] |= byte(v>>i&1) << (w.n % 8)
		w.n++
	}
}

func (w *bitWriter) huffman(code string) {
	for _, c := range code {
		w.put(int(c-'0'), 1)
	}
}

func (w *bitWriter) bytes() []byte { return w.out }

// TestIdleDeflate holds that the blocks above are valid and empty.
func TestIdleDeflate(t *testing.T) {
	data := idleDeflate(10_000)
	var b bytes.Buffer
	if _, err := b.ReadFrom(flate.NewReader(bytes.NewReader(data[2 : len(data)-4]))); err != nil || b.Len() != 0 {
		t.Errorf("%d bytes, %v", b.Len(), err)
	}
}

// costly are files that cost more than their size tells, each for its own reason.
func costly(t *testing.T) map[string][]byte {
	rgb := []tiffTag{{tagBits, []uint32{8, 8, 8}}, {tagSamples, []uint32{3}}, {tagPhotometric, []uint32{photoRGB}}}
	const idle = 8 << 20
	photo := readFile(t, "decode/gojpeg/video-001.q50.420.progressive.jpeg")
	head := func(marker byte, payload []byte) []byte {
		return append(binary.BigEndian.AppendUint16([]byte{0xff, marker}, uint16(2+len(payload))), payload...)
	}
	sos := bytes.LastIndex(photo, []byte{0xff, markerSOS})
	scans := slices.Concat(photo[:sos], bytes.Repeat(photo[sos:len(photo)-2], 5000), photo[sos:])
	clears := append([]byte{255}, make([]byte, 255)...)
	gif := readFile(t, "decode/pillow/hopper.gif")
	return map[string][]byte{
		"png, empty deflate blocks": pngFileOf(t, 64, 64, idleDeflate(idle)),
		"tiff, empty deflate blocks": tiffWith(64, 64, idleDeflate(idle),
			append(slices.Clone(rgb), tiffTag{tagCompression, []uint32{tiffDeflate}})...),
		"tiff, windows of zstd":  manyStrips(t, tiffZstd, zstdStrip(t)),
		"tiff, strips of LZW":    manyStrips(t, tiffLZW, lzwStrip(t)),
		"tiff, dictionaries":     manyStrips(t, tiffLZMA, xzStrip(t)),
		"tiff, strips of zlib":   manyStrips(t, tiffDeflate, deflated(t, make([]byte, 3*16))),
		"jpeg, Huffman tables":   slices.Concat(photo[:2], bytes.Repeat(head(0xc4, make([]byte, 17)), 1<<20), photo[2:]),
		"jpeg, scans":            scans,
		"gif, clear codes":       slices.Concat(gif[:len(gif)-1], bytes.Repeat(clears, 1<<16)),
		"ico, directory":         icoDirectory(),
		"tiff, fax of many rows": tiffWith(1000, 64_000, bytes.Repeat([]byte{0xff}, 8000), compressed(tiffFax4)),
		"tiff, shared strips": tiffWith(65_535, 976, deflated(t, make([]byte, 3*65_535)), append(slices.Clone(rgb),
			tiffTag{tagStripOffsets, slices.Repeat([]uint32{8}, 976)}, tiffTag{tagStripBytes, slices.Repeat([]uint32{200}, 976)},
			tiffTag{tagRowsPerStrip, []uint32{1}}, tiffTag{tagCompression, []uint32{tiffDeflate}})...),
		"tiff, scans of a JPEG": tiffWith(150, 103, scans, append(slices.Clone(rgb[:2]),
			tiffTag{tagPhotometric, []uint32{photoYCbCr}}, compressed(tiffJPEG))...),
	}
}

// compressed is a TIFF's entry that says how its strips are.
func compressed(how uint32) tiffTag { return tiffTag{tagCompression, []uint32{how}} }

// manyStrips is a TIFF of 16×65535 pixels with a strip for each row.
func manyStrips(t *testing.T, compression uint32, strip []byte) []byte {
	t.Helper()
	const rows = 65_535
	offsets, counts := make([]uint32, rows), make([]uint32, rows)
	for i := range rows {
		offsets[i], counts[i] = uint32(8+i*len(strip)), uint32(len(strip))
	}
	return tiffWith(16, rows, bytes.Repeat(strip, rows),
		tiffTag{tagBits, []uint32{8, 8, 8}}, tiffTag{tagSamples, []uint32{3}},
		tiffTag{tagPhotometric, []uint32{photoRGB}}, tiffTag{tagRowsPerStrip, []uint32{1}}, compressed(compression),
		tiffTag{tagStripOffsets, offsets}, tiffTag{tagStripBytes, counts})
}

func zstdStrip(t *testing.T) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, zstd.WithWindowSize(8<<20), zstd.WithSingleSegment(false))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 3*16)); err != nil {
		t.Fatal(err)
	}
	w.Flush() // so that the frame begins without its size, with its window
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func lzwStrip(t *testing.T) []byte {
	t.Helper()
	var out bytes.Buffer
	// Codes of 9 bits: clear, 48 zeros one by one, end.
	codes := append(append([]int{256}, make([]int, 48)...), 257)
	acc, n := 0, 0
	for _, c := range codes {
		acc, n = acc<<9|c, n+9
		for ; n >= 8; n -= 8 {
			out.WriteByte(byte(acc >> (n - 8)))
		}
	}
	out.WriteByte(byte(acc << (8 - n)))
	got := make([]byte, 48)
	if n, err := lzw.NewReader(bytes.NewReader(out.Bytes()), lzw.MSB, 8).Read(got); n != 48 {
		t.Fatal(n, err)
	}
	return out.Bytes()
}

// xzStrip is an xz stream of 48 zeros, stored, that claims a dictionary of 8 MiB.
func xzStrip(t *testing.T) []byte {
	t.Helper()
	b, err := hex.DecodeString("fd377a585a000001")
	if err != nil {
		t.Fatal(err)
	}
	b = append(b, 0, 0, 0, 0)                                       // checksums, which are not looked at
	b = append(b, 2, 0, 0x21, 1, 22, 0, 0, 0, 0, 0, 0, 0)           // LZMA2 with 2^(22/2+12) bytes
	b = append(append(b, 1, 0, 47), append(make([]byte, 48), 0)...) // a stored chunk, then the end
	return b
}

func icoDirectory() []byte {
	const n = 65_535
	data := binary.LittleEndian.AppendUint16([]byte{0, 0, 1, 0}, n)
	entry := make([]byte, 16)
	binary.LittleEndian.PutUint32(entry[12:], 6+16*n)
	return append(append(data, bytes.Repeat(entry, n)...), make([]byte, 64)...)
}

// pngFileOf is a grey PNG with these pixels.
func pngFileOf(t *testing.T, w, h int, pixels []byte) []byte {
	t.Helper()
	header := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, uint32(w)), uint32(h))
	header = append(header, 8, 0, 0, 0, 0)
	return slices.Concat([]byte(pngSignature), pngBytes("IHDR", header), pngBytes("IDAT", pixels), pngBytes("IEND", nil))
}

// TestCostlyFiles: whatever a file is made of, reading it takes 2 s of a processor and 256 MB at most.
func TestCostlyFiles(t *testing.T) {
	if racetest.Enabled {
		t.Skip("bounds of processor time are tested without the race detector")
	}
	for name, data := range costly(t) {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			began := cpuTime(t)
			h, err := ReadHeader(t.Context(), data, Limits{})
			if err == nil {
				err = h.Rows(t.Context(), func(*RGB) error { return nil })
			}
			took := cpuTime(t) - began
			runtime.ReadMemStats(&after)
			t.Logf("%d bytes: %v, %v of processor time, %d MB allocated", len(data), err, took, (after.TotalAlloc-before.TotalAlloc)>>20)
			if took > 2*time.Second {
				t.Errorf("%v of processor time", took)
			}
			if n := after.Sys - before.Sys; after.Sys > before.Sys && n > 256<<20 {
				t.Errorf("%d MB more of the system's memory", n>>20)
			}
		})
	}
}

// TestLeavingEndsCostlyWork: a decode that would go on ends soon after its caller has left.
func TestLeavingEndsCostlyWork(t *testing.T) {
	if racetest.Enabled {
		t.Skip("bounds of processor time are tested without the race detector")
	}
	gone := errors.New("gone")
	for name, data := range costly(t) {
		ctx, leave := context.WithCancelCause(t.Context())
		h, err := ReadHeader(ctx, data, Limits{})
		leave(gone)
		if err != nil {
			continue
		}
		began := time.Now()
		if err := h.Rows(ctx, func(*RGB) error { return nil }); !errors.Is(err, gone) {
			t.Errorf("%s: %v after %v", name, err, time.Since(began))
		}
	}
}
