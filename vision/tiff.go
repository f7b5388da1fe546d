package vision

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"image"
	"image/color"
	"slices"

	"golang.org/x/image/tiff"
)

// Tags of TIFF that x/image/tiff passes over, or that bound what it will do.
const (
	tagCompression  = 259
	tagPhotometric  = 262
	tagFillOrder    = 266
	tagOrientation  = 274
	tagStripBytes   = 279
	tagPlanarConfig = 284
	tagT4Options    = 292
	tagPredictor    = 317
	tagTileWidth    = 322
	tagTileHeight   = 323
	tagTileBytes    = 325
)

// tiffDirectory is the first directory of a TIFF file or of an EXIF block, which is one.
type tiffDirectory struct {
	file    []byte
	order   binary.ByteOrder
	entries []byte // 12 bytes each: tag, kind, count, and the values or where they are
}

// readTIFF gives a directory without entries where the file is damaged.
func readTIFF(file []byte) tiffDirectory {
	d := tiffDirectory{file: file, order: binary.LittleEndian}
	if len(file) < 8 || !isTIFF(file) {
		return d
	}
	if file[0] == 'M' {
		d.order = binary.BigEndian
	}
	at := uint64(d.order.Uint32(file[4:]))
	if at+2 > uint64(len(file)) {
		return d
	}
	d.entries = file[at+2:]
	n := min(12*int(d.order.Uint16(file[at:])), len(d.entries))
	d.entries = d.entries[:n-n%12]
	return d
}

func isTIFF(data []byte) bool {
	return bytes.HasPrefix(data, []byte("II*\x00")) || bytes.HasPrefix(data, []byte("MM\x00*"))
}

// values gives those of a tag, as far as they are in the file: bytes, shorts or longs, nothing of other kinds.
func (d tiffDirectory) values(tag uint16) []uint32 {
	for e := range slices.Chunk(d.entries, 12) {
		if d.order.Uint16(e) != tag {
			continue
		}
		size := map[uint16]uint64{1: 1, 3: 2, 4: 4}[d.order.Uint16(e[2:])]
		if size == 0 {
			return nil
		}
		raw, n := e[8:], uint64(d.order.Uint32(e[4:]))
		if n*size > 4 {
			raw = d.file[min(uint64(d.order.Uint32(e[8:])), uint64(len(d.file))):]
		}
		raw = raw[:min(n*size, uint64(len(raw))/size*size)]
		var list []uint32
		for v := range slices.Chunk(raw, int(size)) {
			switch size {
			case 1:
				list = append(list, uint32(v[0]))
			case 2:
				list = append(list, uint32(d.order.Uint16(v)))
			case 4:
				list = append(list, d.order.Uint32(v))
			}
		}
		return list
	}
	return nil
}

// value gives the first value of a tag.
func (d tiffDirectory) value(tag uint16, missing uint32) uint32 {
	if v := d.values(tag); len(v) > 0 {
		return v[0]
	}
	return missing
}

// fax tells that the picture is compressed as Group 3 or Group 4.
func (d tiffDirectory) fax() bool {
	c := d.value(tagCompression, 1)
	return c == 3 || c == 4
}

// tiffConfig refuses what x/image/tiff would read as something else, and files that cost more than their size says:
// strips and tiles that share their bytes, each decompressed again, and tiles larger than the picture.
func tiffConfig(data []byte) (image.Config, error) {
	c, err := tiff.DecodeConfig(bytes.NewReader(data))
	if err != nil {
		return c, err
	}
	const twoDimensional = 1
	d := readTIFF(data)
	for _, s := range []struct {
		name      string
		tag       uint16
		supported bool
	}{
		{"planar configuration", tagPlanarConfig, d.value(tagPlanarConfig, 1) == 1},
		{"predictor", tagPredictor, d.value(tagPredictor, 1) <= 2},
		{"fill order", tagFillOrder, d.fax() || d.value(tagFillOrder, 1) == 1},
		{"T4 options", tagT4Options, d.value(tagT4Options, 0)&twoDimensional == 0},
	} {
		if !s.supported {
			return c, fmt.Errorf("%s %d is not supported", s.name, d.value(s.tag, 0))
		}
	}
	w, h := uint64(d.value(tagTileWidth, 0)), uint64(d.value(tagTileHeight, 0))
	const padded = 1 << 20 // the largest tile that x/image/tiff lets reach far over a small picture
	if w > 0 && (h > 1<<32/w || w*h > max(padded, 2*uint64(c.Width)*uint64(c.Height))) {
		return c, fmt.Errorf("tiles of %d×%d for a picture of %d×%d", w, h, c.Width, c.Height)
	}
	stored := uint64(0)
	for _, tag := range []uint16{tagStripBytes, tagTileBytes} {
		for _, n := range d.values(tag) {
			stored += uint64(n)
		}
	}
	if stored > uint64(len(data)) {
		return c, fmt.Errorf("strips or tiles of %d bytes in all", stored)
	}
	return c, nil
}

func decodeTIFF(data []byte) (*RGB, error) {
	m, err := tiff.Decode(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	// Colours that have been multiplied by alpha are divided again, from their high bytes as in Pillow.
	divide := func(pix []uint8, bytes int) {
		for i := 0; i+4*bytes <= len(pix); i += 4 * bytes {
			if a := int(pix[i+3*bytes]); a != 255 && a != 0 {
				for c := range 3 {
					v := &pix[i+c*bytes]
					*v = uint8(min(int(*v)*255/a, 255))
				}
			}
		}
	}
	switch m := m.(type) {
	case *image.Gray:
		// x/image/tiff reads the white of a fax as 1 where 1 is white, libtiff always as 0.
		if d := readTIFF(data); d.fax() && d.value(tagPhotometric, 0) == 1 {
			for i := range m.Pix {
				m.Pix[i] = 255 - m.Pix[i]
			}
		}
	case *image.RGBA:
		divide(m.Pix, 1)
	case *image.RGBA64:
		divide(m.Pix, 2)
	case *image.Paletted:
		for i, c := range m.Palette {
			c := c.(color.RGBA64)
			m.Palette[i] = color.RGBA{uint8(c.R >> 8), uint8(c.G >> 8), uint8(c.B >> 8), 255}
		}
	}
	return fromImage(m)
}
