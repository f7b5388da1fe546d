package imaging

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// Tags that are read.
const (
	tagWidth             = 256
	tagHeight            = 257
	tagBits              = 258
	tagCompression       = 259
	tagPhotometric       = 262
	tagFillOrder         = 266
	tagStripOffsets      = 273
	tagOrientation       = 274
	tagSamples           = 277
	tagRowsPerStrip      = 278
	tagStripBytes        = 279
	tagPlanarConfig      = 284
	tagT4Options         = 292
	tagPredictor         = 317
	tagColorMap          = 320
	tagTileWidth         = 322
	tagTileHeight        = 323
	tagTileOffsets       = 324
	tagTileBytes         = 325
	tagExtraSamples      = 338
	tagSampleFormat      = 339
	tagJPEGTables        = 347
	tagJPEGRestart       = 515
	tagJPEGQuant         = 519
	tagJPEGDC            = 520
	tagJPEGAC            = 521
	tagYCbCrCoefficients = 529
	tagYCbCrSub          = 530
	tagReferenceBW       = 532
	tagXMP               = 700
	tagJPEGInterchange   = 513
	tagJPEGLength        = 514
	tagWindowsMedia      = 0xbc01
)

// tiffField is what an entry of a directory holds: count values of a kind.
type tiffField struct {
	kind  uint16
	count uint64
	raw   []byte // the values, in the order of the file
}

// tiffDirectory is the first directory of a TIFF file or of an EXIF block, which is one.
type tiffDirectory struct {
	order  binary.ByteOrder
	mark   string // II or MM
	fields map[uint16]tiffField
}

// kindSizes are the bytes of a value by its kind, 0 for kinds that do not exist.
var kindSizes = [19]uint64{1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}

var (
	errNoTIFF    = errors.New("no TIFF header")
	errTruncated = errors.New("truncated")
)

func isTIFF(data []byte) bool {
	if len(data) < 8 {
		return false
	}
	switch string(data[:4]) {
	case "MM\x00*", "II*\x00", "MM*\x00", "II\x00*", "MM\x00+", "II+\x00":
		return true
	}
	return false
}

// wantedTags are those that are kept: a directory of millions of others takes no memory.
func wantedTag(tag uint16) bool {
	switch tag {
	case tagYCbCrCoefficients, tagYCbCrSub, tagReferenceBW, tagXMP, tagWindowsMedia,
		tagJPEGInterchange, tagJPEGLength, tagJPEGRestart, tagJPEGQuant, tagJPEGDC, tagJPEGAC:
		return true
	}
	return tag >= tagWidth && tag <= tagJPEGTables
}

// readTIFF reads the first directory up to its end or to damage. Of two entries with one tag the last counts.
func readTIFF(file []byte) (tiffDirectory, error) {
	d := tiffDirectory{order: binary.LittleEndian, mark: "II", fields: map[uint16]tiffField{}}
	if !isTIFF(file) {
		return d, errNoTIFF
	}
	if file[0] == 'M' {
		d.order, d.mark = binary.BigEndian, "MM"
	}
	big := bytes.IndexByte(file[2:4], '+') >= 0 && file[2] == '+' || file[3] == '+' && file[0] == 'M'
	entry, word := uint64(12), uint64(4)
	var at, n uint64
	if big {
		entry, word = 20, 8
		if len(file) < 16 {
			return d, errTruncated
		}
		at = d.order.Uint64(file[8:])
	} else {
		at = uint64(d.order.Uint32(file[4:]))
	}
	size := uint64(len(file))
	head := word / 4 * 2 // bytes of the count: 2, or 8
	if big {
		head = 8
	}
	if at > size || size-at < head {
		return d, errTruncated
	}
	if big {
		n = d.order.Uint64(file[at:])
	} else {
		n = uint64(d.order.Uint16(file[at:]))
	}
	at += head
	for ; n > 0 && size-at >= entry; n, at = n-1, at+entry {
		e := file[at : at+entry]
		f := tiffField{kind: d.order.Uint16(e[2:])}
		if f.kind >= uint16(len(kindSizes)) || kindSizes[f.kind] == 0 {
			continue
		}
		f.count = d.word(e[4:], word)
		if f.count > size {
			return d, nil // its values cannot be there, and what follows is not read as in Pillow
		}
		bytes := f.count * kindSizes[f.kind]
		f.raw = e[4+word:]
		if bytes > word {
			from := d.word(f.raw, word)
			if from > size || size-from < bytes {
				return d, nil
			}
			f.raw = file[from:]
		}
		f.raw = f.raw[:bytes]
		if tag := d.order.Uint16(e); bytes > 0 && wantedTag(tag) {
			d.fields[tag] = f
		}
	}
	return d, nil
}

func (d tiffDirectory) word(b []byte, size uint64) uint64 {
	if size == 8 {
		return d.order.Uint64(b)
	}
	return uint64(d.order.Uint32(b))
}

func (d tiffDirectory) has(tag uint16) bool { _, ok := d.fields[tag]; return ok }

// at gives value i of a field as a number. Bytes and texts are none.
func (d tiffDirectory) at(f tiffField, i uint64) (v float64, ok bool) {
	b := f.raw[i*kindSizes[f.kind]:]
	switch f.kind {
	case 3:
		return float64(d.order.Uint16(b)), true
	case 4, 13:
		return float64(d.order.Uint32(b)), true
	case 5:
		return float64(d.order.Uint32(b)) / float64(d.order.Uint32(b[4:])), true
	case 6:
		return float64(int8(b[0])), true
	case 8:
		return float64(int16(d.order.Uint16(b))), true
	case 9:
		return float64(int32(d.order.Uint32(b))), true
	case 10:
		return float64(int32(d.order.Uint32(b))) / float64(int32(d.order.Uint32(b[4:]))), true
	case 11:
		return float64(math.Float32frombits(d.order.Uint32(b))), true
	case 12:
		return math.Float64frombits(d.order.Uint64(b)), true
	case 16:
		return float64(d.order.Uint64(b)), true
	}
	return 0, false
}

// value gives the first value of a tag. A number that is no whole one, or far out of range, is -1.
func (d tiffDirectory) value(tag uint16) (v int64, ok bool) {
	f, ok := d.fields[tag]
	if !ok {
		return 0, false
	}
	x, ok := d.at(f, 0)
	if !ok {
		return 0, false
	}
	if x != math.Trunc(x) || math.Abs(x) > 1<<52 {
		return -1, true
	}
	return int64(x), true
}

// or gives the first value of a tag, or what stands for a missing one.
func (d tiffDirectory) or(tag uint16, missing int64) int64 {
	if v, ok := d.value(tag); ok {
		return v
	}
	return missing
}

// list gives the values of a tag, which are at most most.
func (d tiffDirectory) list(tag uint16, most int) ([]int64, error) {
	f, ok := d.fields[tag]
	if !ok {
		return nil, nil
	}
	if f.count > uint64(most) {
		return nil, fmt.Errorf("tag %d has %d values, at most %d are allowed", tag, f.count, most)
	}
	values := make([]int64, f.count)
	for i := range values {
		v, ok := d.at(f, uint64(i))
		if !ok && f.kind == 1 {
			v, ok = float64(f.raw[i]), true
		}
		if !ok || v < 0 || v != math.Trunc(v) || v > 1<<52 {
			return nil, fmt.Errorf("tag %d has values that are no counts", tag)
		}
		values[i] = int64(v)
	}
	return values, nil
}

// floats gives as many values of a tag as there are of what stands for a missing one.
func (d tiffDirectory) floats(tag uint16, missing []float32) []float32 {
	f, ok := d.fields[tag]
	if !ok || f.count < uint64(len(missing)) {
		return missing
	}
	values := make([]float32, len(missing))
	for i := range values {
		v, _ := d.at(f, uint64(i))
		values[i] = float32(v)
	}
	return values
}
