package imaging

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"github.com/mmserve/mmserve/internal/jpeg"
)

// The decoder is our own: x/image/tiff reads a fraction of the kinds that Pillow reads, and some otherwise than
// libtiff.

// tiffFile is the first image of a TIFF file.
type tiffFile struct {
	dir         tiffDirectory
	data        []byte
	w, h        int
	compression int
	photometric int
	format      int // sample format: 1 unsigned, 2 signed, 3 float
	bits        int // of every sample
	samples     int
	extra       []int64
	planar      bool
	reversed    bool // bits of each byte
	predictor   int
	// cw and ch are the size of a strip or tile; across is how many lie side by side.
	cw, ch, across int
	offsets        []int64
	counts         []int64
	palette        [256][3]uint8
	inner          int64 // bytes that a strip or tile may take that is an image file of its own
}

// maxTIFFChunks bounds strips and tiles: those of 64 megapixels in tiles of 16×16, or of rows and six planes.
const maxTIFFChunks = 1 << 19

func openTIFF(ctx context.Context, data []byte) (*source, error) {
	dir, err := readTIFF(data)
	if err != nil {
		return nil, err
	}
	f := &tiffFile{dir: dir, data: data}
	w, okW := dir.value(tagWidth)
	h, okH := dir.value(tagHeight)
	switch {
	case dir.has(tagWindowsMedia):
		return nil, errors.New("it is a Windows Media Photo, which is not supported")
	case !okW || !okH:
		return nil, errors.New("its size is missing")
	case w < 1 || h < 1 || w > 1<<31 || h > 1<<31:
		return nil, fmt.Errorf("%d×%d pixels", w, h)
	}
	f.w, f.h = int(w), int(h)
	s := &source{w: f.w, h: f.h}
	meta := metadata{xmp: dir.fields[tagXMP].raw}
	if v, found := dir.orientation(); found {
		s.orientation = v
	} else {
		s.orientation = meta.orientation()
	}
	if err := f.readKind(); err != nil {
		return nil, err
	}
	if err := f.readLayout(); err != nil {
		return nil, err
	}
	f.weigh(s)
	return s, nil
}

// weigh counts the memory of decoding.
func (f *tiffFile) weigh(s *source) {
	const window = 16 << 20 // of a decompressor, for each plane that is open
	row := Bytes(2, f.cw, f.samples, max(1, (f.bits+7)/8))
	s.stripped = Sum(Bytes(3, f.w, f.bandHeight()), row, window)
	if f.planar {
		s.stripped = Sum(s.stripped, Bytes(window, f.samples))
	}
	switch f.compression {
	case tiffOldJPEG: // which is never progressive
		f.inner = innerBytes(3, f.w, f.h)
		s.stripped = Sum(s.stripped, f.inner, int64(len(f.data)))
	case tiffJPEG, tiffWebP:
		f.inner = f.innerMost()
		s.stripped = Sum(s.stripped, f.inner)
	}
	s.bytes = Sum(Bytes(3, f.w, f.h), s.stripped)
	s.decode, s.strips = s.gather, f.strips
}

// innerBytes is what decoding a JPEG of w×h may take: so many bytes a pixel, and what package jpeg holds for each core.
func innerBytes(each, w, h int) int64 {
	const block = 64
	bands, band := min(runtime.GOMAXPROCS(0), 16)+1, max(1<<20, 160*(w+block))
	return Sum(stripBytes, Bytes(each, w+block, h+block), Bytes(bands, band))
}

// innerMost is the most that a strip or tile takes that is an image file: of a few large ones their headers tell.
func (f *tiffFile) innerMost() int64 {
	const few, small = 64, 64 << 20
	most := innerBytes(13, min(f.cw, 1<<16), min(f.ch, 1<<16)) // four components of full size, with coefficients
	n := f.across * ((f.h + f.ch - 1) / f.ch)
	if most <= small || n > few {
		return most
	}
	largest := int64(0)
	for i := range n {
		if b, err := f.stored(i); err == nil {
			largest = max(largest, f.innerOf(b))
		}
	}
	return min(largest, most)
}

// innerOf is what decoding one strip or tile takes, 0 where its header is damaged.
func (f *tiffFile) innerOf(b []byte) int64 {
	if f.compression == tiffWebP {
		if !isWebP(b) {
			return 0
		}
		s, err := openWebP(context.Background(), b)
		if err != nil {
			return 0
		}
		return s.stripped
	}
	b, err := f.withTables(b)
	if err != nil {
		return 0
	}
	c, err := jpeg.DecodeConfig(b)
	if err != nil {
		return 0
	}
	return Sum(c.DecodeBytes, stripBytes)
}

// readKind reads what the samples are and refuses kinds that Pillow does not know.
func (f *tiffFile) readKind() error {
	d := f.dir
	f.compression, f.photometric = int(d.or(tagCompression, 1)), int(d.or(tagPhotometric, 0))
	if f.compression == tiffOldJPEG { // as in Pillow, whatever the file says
		f.photometric = photoYCbCr
	}
	if !tiffCompressions[f.compression] {
		return fmt.Errorf("compression %d is not supported", f.compression)
	}
	f.planar = d.or(tagPlanarConfig, 1) == 2
	f.reversed = d.or(tagFillOrder, 1) == 2
	f.predictor = int(d.or(tagPredictor, 1))
	samples, err := d.list(tagSamples, 1)
	if err != nil {
		return err
	}
	f.samples = 1
	if f.compression == tiffOldJPEG {
		f.samples = 3
	}
	if len(samples) == 1 {
		f.samples = int(min(samples[0], 1<<16))
	}
	if f.samples < 1 || f.samples > 6 {
		return fmt.Errorf("%d samples a pixel, want 1 to 6", f.samples)
	}
	if f.extra, err = d.list(tagExtraSamples, 64); err != nil {
		return err
	}
	bits, err := d.list(tagBits, 64)
	if err != nil {
		return err
	}
	if bits == nil {
		bits = []int64{1}
	}
	if f.planar && len(f.extra) > 0 && allZero(f.extra) { // unspecified planes at the end are not read
		if len(bits) > len(f.extra) {
			bits = bits[:len(bits)-len(f.extra)]
		}
		f.samples -= len(f.extra)
		f.extra = nil
	}
	if f.samples < 1 || len(bits) < f.samples && len(bits) != 1 {
		return fmt.Errorf("bits of %d samples for %d", len(bits), f.samples)
	}
	for _, n := range bits[:min(f.samples, len(bits))] {
		if n != bits[0] {
			return errors.New("samples of several sizes are not supported")
		}
	}
	f.bits, f.format = int(min(bits[0], 1<<10)), 1
	formats, err := d.list(tagSampleFormat, 64)
	if err != nil {
		return err
	}
	for _, n := range formats {
		if n != formats[0] {
			return errors.New("samples of several formats are not supported")
		}
		f.format = int(min(n, 1<<10))
	}
	return f.checkKind()
}

func allZero(list []int64) bool {
	for _, v := range list {
		if v != 0 {
			return false
		}
	}
	return true
}

// Photometric interpretations.
const (
	photoWhiteIsZero = 0
	photoBlackIsZero = 1
	photoRGB         = 2
	photoPalette     = 3
	photoCMYK        = 5
	photoYCbCr       = 6
	photoLAB         = 8
)

// checkKind is Pillow's table of the kinds that it opens.
func (f *tiffFile) checkKind() error {
	little := f.dir.mark == "II"
	unsupported := fmt.Errorf("photometric %d, %d samples of %d bits in format %d, %d extra samples, fill order reversed %v: not supported",
		f.photometric, f.samples, f.bits, f.format, len(f.extra), f.reversed)
	colors := map[int]int{
		photoWhiteIsZero: 1, photoBlackIsZero: 1, photoRGB: 3, photoPalette: 1, photoCMYK: 4, photoYCbCr: 3,
	}
	n, known := colors[f.photometric]
	ok := false
	switch {
	case f.photometric == photoLAB:
		return errors.New("CIE Lab is not supported")
	case !known:
	case f.photometric <= photoBlackIsZero && f.samples == 1 && len(f.extra) == 0:
		ok = f.grayKind(little)
	case f.photometric == photoBlackIsZero && f.samples == 2 && f.bits == 8:
		ok = !f.reversed && len(f.extra) == 1 && f.extra[0] == 2
	case f.photometric == photoPalette && f.samples == 2 && f.bits == 8:
		ok = !f.reversed && len(f.extra) == 1 && (f.extra[0] == 0 || f.extra[0] == 2)
	case f.photometric == photoPalette && f.samples == 1:
		ok = f.bits <= 8 && len(f.extra) == 0
	case f.photometric == photoYCbCr && f.samples == 1:
		ok = f.bits == 8 && !f.reversed
	case f.photometric == photoYCbCr:
		if f.compression == tiffNone { // Pillow takes it for RGB
			return errors.New("YCbCr that is not compressed is not supported")
		}
		ok = f.bits == 8 && f.samples == 3 && !f.reversed && len(f.extra) == 0
	case f.samples >= n && (f.bits == 8 || f.bits == 16 && f.samples <= 4):
		ok = f.colorKind(n)
	}
	power := f.bits == 1 || f.bits == 2 || f.bits == 4 || f.bits == 8 || f.bits == 12 || f.bits == 16 || f.bits == 32
	if !ok || !power || f.photometric >= photoRGB && f.format != 1 {
		return unsupported
	}
	return nil
}

func (f *tiffFile) grayKind(little bool) bool {
	black := f.photometric == photoBlackIsZero
	switch f.bits {
	case 1, 2, 4, 8:
		return f.format == 1 || f.format == 2 && f.bits == 8 && black && !f.reversed
	case 12:
		return f.format == 1 && black && little && !f.reversed
	case 16:
		switch {
		case f.format == 2:
			return black && !f.reversed
		case f.format == 1 && f.reversed:
			return black && little
		}
		return f.format == 1 && (black || little)
	case 32:
		return !f.reversed && (f.format == 3 || black && (f.format == 2 || f.format == 1 && little))
	}
	return false
}

// colorKind holds the extra samples of n colours to Pillow's table.
func (f *tiffFile) colorKind(n int) bool {
	if f.reversed {
		return f.samples == 3 && f.bits == 8 && n == 3 && len(f.extra) == 0
	}
	if len(f.extra) == 0 {
		return f.samples == n || n == 3 && f.samples == 4
	}
	if len(f.extra) != f.samples-n || !allZero(f.extra[1:]) {
		return false
	}
	if n == 4 {
		return f.extra[0] == 0 && f.bits == 8
	}
	return f.extra[0] <= 2 || f.extra[0] == 999 && f.samples == 4 && f.bits == 8
}

// readLayout finds strips or tiles and the palette.
func (f *tiffFile) readLayout() error {
	d := f.dir
	var err error
	offsets, counts := uint16(tagStripOffsets), uint16(tagStripBytes)
	f.cw, f.ch, f.across = f.w, int(min(d.or(tagRowsPerStrip, int64(f.h)), int64(f.h))), 1
	if !d.has(tagStripOffsets) || d.has(tagTileOffsets) && f.compression != 1 {
		if d.has(tagTileOffsets) {
			offsets, counts = tagTileOffsets, tagTileBytes
			f.cw, f.ch = int(min(max(d.or(tagTileWidth, 0), 0), 1<<31)), int(min(max(d.or(tagTileHeight, 0), 0), 1<<31))
			const padded = 1 << 20 // the largest tile that may reach far over a small image
			if n := Bytes(f.cw, f.ch); n > max(padded, 2*Bytes(f.w, f.h)) {
				return fmt.Errorf("tiles of %d×%d for an image of %d×%d", f.cw, f.ch, f.w, f.h)
			}
		}
	}
	if f.cw < 1 || f.ch < 1 {
		return fmt.Errorf("strips or tiles of %d×%d", f.cw, f.ch)
	}
	f.across = (f.w + f.cw - 1) / f.cw
	if f.offsets, err = d.list(offsets, maxTIFFChunks); err != nil {
		return err
	}
	if f.counts, err = d.list(counts, maxTIFFChunks); err != nil {
		return err
	}
	need := Bytes(f.across, (f.h+f.ch-1)/f.ch)
	if f.planar && f.compression != 1 { // where nothing is compressed Pillow leaves planes that lack black
		need = Bytes(int(need), f.samples)
	}
	if int64(len(f.offsets)) < need {
		return fmt.Errorf("%d strips or tiles, want %d", len(f.offsets), need)
	}
	if f.compression != 1 {
		stored := int64(0)
		for _, n := range f.counts {
			stored = Sum(stored, n)
		}
		// Strips that share their bytes would have each decompressed again.
		if stored > int64(len(f.data)) {
			return fmt.Errorf("strips or tiles of %d bytes in all", stored)
		}
		if int64(len(f.counts)) < need {
			return fmt.Errorf("sizes of %d strips or tiles, want %d", len(f.counts), need)
		}
	}
	if f.photometric == photoPalette {
		return f.readPalette()
	}
	return nil
}

func (f *tiffFile) readPalette() error {
	list, err := f.dir.list(tagColorMap, 3<<16)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return errors.New("its palette is missing")
	}
	n := len(list) / 3
	for i := range min(n, 256) {
		f.palette[i] = [3]uint8{uint8(list[i] >> 8), uint8(list[n+i] >> 8), uint8(list[2*n+i] >> 8)}
	}
	return nil
}
