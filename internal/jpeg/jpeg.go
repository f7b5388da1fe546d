// Package jpeg decodes JPEG files to the samples that libjpeg-turbo gives, bit for bit, because vision models were
// trained on them; image/jpeg rounds otherwise. It reads images of 8 bits, Huffman and arithmetic coded, sequential and
// progressive, of one to four components. Damaged data are decoded as libjpeg-turbo does: codes that are none are
// zeros, decoding goes on at restart markers. What the samples become (upsampling, colour) is the caller's.
//
// Reference: ITU-T T.81; for what that leaves open, libjpeg-turbo.
package jpeg

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
)

// Model is what the components of an image mean.
type Model int

const (
	Gray Model = iota
	YCbCr
	RGB
	CMYK
	// YCCK is CMYK whose first three, as red, green and blue, were converted to YCbCr.
	YCCK
)

// Config is what the header says.
type Config struct {
	Width, Height int
	Components    int
	// Blocks of 8×8 samples are in all components together.
	Blocks int
	// DecodeBytes is the most memory that Decode holds at once, its result among it.
	DecodeBytes int64
}

// Image is a decoded image: a plane of samples for each component.
type Image struct {
	Config
	Model  Model
	Planes []Plane
}

// Plane holds the samples of one component, eight rows after eight rows. What lies beyond Width and Height is of no
// meaning.
type Plane struct {
	pix           []uint8
	stride, gap   int // of a row; after eight of them
	Width, Height int
	// StepX and StepY are the pixels for each sample, across and down.
	StepX, StepY int
}

// Row gives row y: at least Width samples.
func (p *Plane) Row(y int) []uint8 { return p.pix[y*p.stride+y/8*p.gap:][:p.stride] }

// planes holds *[]uint8 that were released, megabytes each.
var planes sync.Pool

// maxPlane is the largest plane that planes keeps, in bytes.
const maxPlane = 16 << 20

// newPix gives memory with anything in it.
func newPix(n int) []uint8 {
	if p, ok := planes.Get().(*[]uint8); ok && cap(*p) >= n {
		return (*p)[:n]
	}
	return make([]uint8, n)
}

// Release gives the planes back for other images. It is not needed; m must not be used after it.
func (m *Image) Release() {
	for i := range m.Planes {
		if cap(m.Planes[i].pix) <= maxPlane {
			planes.Put(&m.Planes[i].pix)
		}
	}
	m.Planes = nil
}

var errTruncated = errors.New("truncated")

// Markers. Those from markerRST0 to markerEOI, markerTEM and 0 stand alone; the others have a payload.
const (
	markerTEM   = 0x01
	markerSOF0  = 0xc0
	markerSOF1  = 0xc1
	markerSOF2  = 0xc2
	markerSOF9  = 0xc9
	markerSOF10 = 0xca
	markerDHT   = 0xc4
	markerSOF15 = 0xcf
	markerJPG   = 0xc8
	markerDAC   = 0xcc
	markerRST0  = 0xd0
	markerRST7  = 0xd7
	markerSOI   = 0xd8
	markerEOI   = 0xd9
	markerSOS   = 0xda
	markerDQT   = 0xdb
	markerDRI   = 0xdd
	markerAPP0  = 0xe0
	markerAPP14 = 0xee
)

// component is one of the frame's.
type component struct {
	id   uint8
	h, v int // sampling factors
	tq   uint8
	// columns and rows are the blocks that the image needs; stride and height those of whole MCUs.
	columns, rows  int
	stride, height int
	quant          *[64]int32 // in force when the first scan began, as libjpeg keeps it
	dc             int32      // prediction
	coefficients   []int16    // of a progressive image: 64 for each block, natural order
	pix            []uint8
	gap            int // bytes in pix after eight rows
}

type decoder struct {
	data         []byte
	at           int
	config       Config
	progressive  bool
	list         []component
	maxH, maxV   int
	mcusX, mcusY int
	quant        [4]*[64]int32
	huffman      [2][4]*table // DC and AC
	restart      int          // MCUs between markers, 0 for none
	jfif         bool
	adobe        int // transform of Adobe's marker, -1 without
	model        Model
	scans        int
	tables       int // seen
	bits         bits
	ctx          context.Context
	arithmetic   bool
	conditioning conditioning
	coder        *arithmetic
	// restartNumber is that of the restart marker to come; starved tells that data are missing up to it.
	restartNumber int
	starved       bool
	run           int // blocks still to pass over in a progressive scan of AC
}

func newDecoder(ctx context.Context, data []byte) *decoder {
	return &decoder{ctx: ctx, data: data, adobe: -1, huffman: defaultTables(), conditioning: defaultConditioning()}
}

// DecodeConfig reads up to the header of the frame.
func DecodeConfig(data []byte) (Config, error) {
	d := newDecoder(context.Background(), data)
	err := d.segments(true)
	return d.config, err
}

// Decode decodes an image. It lends work to the other cores, and ends with the context's cause when that is done.
func Decode(ctx context.Context, data []byte) (*Image, error) {
	d := newDecoder(ctx, data)
	if err := d.segments(false); err != nil {
		return nil, err
	}
	m := &Image{Config: d.config, Model: d.model}
	if d.progressive {
		d.transformAll()
	}
	for i := range d.list {
		c := &d.list[i]
		if c.quant == nil { // no scan had it: libjpeg gives the middle
			c.pix = newPix(64 * c.stride * c.height)
			for j := range c.pix {
				c.pix[j] = 128
			}
		}
		stepX, stepY := d.maxH/c.h, d.maxV/c.v
		m.Planes = append(m.Planes, Plane{
			pix: c.pix, stride: 8 * c.stride, gap: c.gap,
			Width: ceil(d.config.Width, stepX), Height: ceil(d.config.Height, stepY), StepX: stepX, StepY: stepY,
		})
	}
	return m, context.Cause(ctx)
}

// readers is how many goroutines make samples of coefficients: what they hold must not grow with the machine.
func readers() int { return min(runtime.GOMAXPROCS(0), 16) }

func ceil(n, by int) int { return (n + by - 1) / by }

// segments reads the file to its end, or to the frame's header only.
func (d *decoder) segments(headerOnly bool) error {
	if len(d.data) < 2 || d.data[0] != 0xff || d.data[1] != markerSOI {
		return errors.New("no SOI marker")
	}
	d.at = 2
	for {
		if d.ctx.Err() != nil {
			return context.Cause(d.ctx)
		}
		marker, ok := d.marker()
		if !ok {
			// The end may be missing where nothing can be: a progressive image could have another scan.
			if d.config.Width > 0 && !headerOnly && !d.progressive && d.complete() {
				return nil
			}
			return errTruncated
		}
		switch {
		case marker == markerEOI:
			if d.scans == 0 {
				return errors.New("no scan")
			}
			return nil
		case marker == markerTEM, marker >= markerRST0 && marker <= markerSOI:
			continue
		}
		if len(d.data)-d.at < 2 {
			return errTruncated
		}
		n := int(binary.BigEndian.Uint16(d.data[d.at:]))
		if n < 2 {
			return errors.New("bad segment length")
		}
		if n > len(d.data)-d.at {
			return errTruncated
		}
		b := d.data[d.at+2 : d.at+n]
		d.at += n
		var err error
		switch {
		case marker == markerDHT:
			err = d.huffmanTables(b)
		case marker == markerDAC:
			err = d.conditioning.read(b)
		case marker >= markerSOF0 && marker <= markerSOF15 && marker != markerJPG:
			if err = d.frame(marker, b); err == nil && headerOnly {
				return nil
			}
		case marker == markerSOS:
			err = d.scan(b)
		case marker == markerDQT:
			err = d.quantTables(b)
		case marker == markerDRI:
			if len(b) != 2 {
				return errors.New("bad DRI length")
			}
			d.restart = int(binary.BigEndian.Uint16(b))
		case marker == markerAPP0:
			d.jfif = d.jfif || len(b) >= 5 && string(b[:5]) == "JFIF\x00"
		case marker == markerAPP14:
			if len(b) >= 12 && string(b[:5]) == "Adobe" {
				d.adobe = int(b[11])
			}
		}
		if err != nil {
			return err
		}
	}
}

// marker passes over what is none and reads the next.
func (d *decoder) marker() (byte, bool) {
	for ; d.at+1 < len(d.data); d.at++ {
		if m := d.data[d.at+1]; d.data[d.at] == 0xff && m != 0 && m != 0xff {
			d.at += 2
			return m, true
		}
	}
	return 0, false
}

// complete tells that every component had its scan.
func (d *decoder) complete() bool {
	for _, c := range d.list {
		if c.quant == nil {
			return false
		}
	}
	return true
}

func (d *decoder) frame(marker byte, b []byte) error {
	switch {
	case d.list != nil:
		return errors.New("two frames")
	case marker > markerSOF2 && marker != markerSOF9 && marker != markerSOF10:
		return fmt.Errorf("frames of type %d are not supported, want 0, 1, 2, 9 or 10", marker-markerSOF0)
	case len(b) < 6:
		return errors.New("bad SOF length")
	case b[0] != 8:
		return fmt.Errorf("samples of %d bits are not supported, want 8", b[0])
	}
	d.progressive = marker == markerSOF2 || marker == markerSOF10
	d.arithmetic = marker >= markerSOF9
	c := Config{Components: int(b[5])}
	c.Height, c.Width = int(binary.BigEndian.Uint16(b[1:])), int(binary.BigEndian.Uint16(b[3:]))
	if c.Width == 0 || c.Height == 0 {
		return fmt.Errorf("%d×%d pixels, want at least 1×1", c.Width, c.Height)
	}
	if c.Components < 1 || c.Components > 4 {
		return fmt.Errorf("%d components are not supported, want 1 to 4", c.Components)
	}
	if len(b) != 6+3*c.Components {
		return errors.New("bad SOF length")
	}
	list := make([]component, c.Components)
	for i := range list {
		e := b[6+3*i:]
		list[i] = component{id: e[0], h: int(e[1] >> 4), v: int(e[1] & 15), tq: e[2]}
		for _, other := range list[:i] {
			if other.id == e[0] {
				return errors.New("two components with one name")
			}
		}
		if h, v := list[i].h, list[i].v; h < 1 || h > 4 || v < 1 || v > 4 || e[2] > 3 {
			return fmt.Errorf("component with sampling factors %d×%d and quantisation table %d, want 1 to 4 and 0 to 3", h, v, e[2])
		}
		d.maxH, d.maxV = max(d.maxH, list[i].h), max(d.maxV, list[i].v)
	}
	d.mcusX, d.mcusY = ceil(c.Width, 8*d.maxH), ceil(c.Height, 8*d.maxV)
	row := int64(0) // bytes of the coefficients of a row of MCUs
	for i := range list {
		p := &list[i]
		if d.maxH%p.h != 0 || d.maxV%p.v != 0 {
			return fmt.Errorf("sampling factors %d×%d beside %d×%d are not supported", p.h, p.v, d.maxH, d.maxV)
		}
		p.columns, p.rows = ceil(c.Width, 8*d.maxH/p.h), ceil(c.Height, 8*d.maxV/p.v)
		p.stride, p.height = d.mcusX*p.h, d.mcusY*p.v
		c.Blocks += p.stride * p.height
		row += 128 * int64(p.stride) * int64(p.v)
	}
	c.DecodeBytes = 64*int64(c.Blocks) + int64(readers()+1)*max(2*bandSize, row)
	if d.progressive {
		c.DecodeBytes = 128*int64(c.Blocks) + int64(readers())*row
	}
	d.config, d.list = c, list
	return nil
}

// maxTables bounds the tables of a file: encoders write eight with each scan at most.
const maxTables = 2000

// another counts a table.
func (d *decoder) another() error {
	if d.tables++; d.tables > maxTables {
		return fmt.Errorf("more than %d tables", maxTables)
	}
	return nil
}

func (d *decoder) quantTables(b []byte) error {
	for len(b) > 0 {
		wide, to := b[0]>>4, b[0]&15
		n := 64
		if wide == 1 {
			n = 128
		}
		if wide > 1 || to > 3 || len(b) < 1+n {
			return errors.New("bad quantisation table")
		}
		if err := d.another(); err != nil {
			return err
		}
		q := new([64]int32)
		for i := range q {
			if wide == 1 {
				q[natural[i]] = int32(binary.BigEndian.Uint16(b[1+2*i:]))
			} else {
				q[natural[i]] = int32(b[1+i])
			}
		}
		d.quant[to] = q
		b = b[1+n:]
	}
	return nil
}

// guessModel follows libjpeg: JFIF is YCbCr, then Adobe's marker counts, then the names of the components.
func (d *decoder) guessModel() Model {
	switch {
	case len(d.list) <= 2: // of two the second is nothing that is known
		return Gray
	case len(d.list) == 4 && d.adobe <= 0:
		return CMYK
	case len(d.list) == 4:
		return YCCK
	case d.jfif:
		return YCbCr
	case d.adobe == 0, d.adobe < 0 && d.list[0].id == 'R' && d.list[1].id == 'G' && d.list[2].id == 'B':
		return RGB
	}
	return YCbCr
}

// natural maps the order of the file, a zigzag, to rows of eight.
var natural = [64]uint8{
	0, 1, 8, 16, 9, 2, 3, 10,
	17, 24, 32, 25, 18, 11, 4, 5,
	12, 19, 26, 33, 40, 48, 41, 34,
	27, 20, 13, 6, 7, 14, 21, 28,
	35, 42, 49, 56, 57, 50, 43, 36,
	29, 22, 15, 23, 30, 37, 44, 51,
	58, 59, 52, 45, 38, 31, 39, 46,
	53, 60, 61, 54, 47, 55, 62, 63,
}
