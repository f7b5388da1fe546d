package jpeg

import (
	"context"
	"errors"
	"fmt"
)

// scanComponent is a component with the tables that a scan gives it.
type scanComponent struct {
	*component
	dcTable, acTable   *table
	dcNumber, acNumber int
	// across and down are the blocks of it in an MCU: one where it is alone.
	across, down int
}

// band is the coefficients of some rows of MCUs in a sequential scan: for each component, 64 for each block.
type band struct {
	coefficients [4][]int16
}

// bandSize is about how many bytes of coefficients make a band: few enough to stay in a core's cache.
const bandSize = 512 << 10

// MaxScans bounds the scans of a file. Encoders write about ten; a hostile file of a few hundred bytes a scan could make
// the decoder pass over all its blocks thousands of times.
const MaxScans = 100

// maxScanBlocks bounds the blocks that all scans together pass over, beyond what fewScans of any image need.
const (
	maxScanBlocks = 24 << 20
	fewScans      = 16
)

// scan decodes the entropy-coded data after an SOS segment.
func (d *decoder) scan(b []byte) error {
	if d.list == nil {
		return errors.New("a scan before the frame")
	}
	if len(b) < 1 || b[0] < 1 || int(b[0]) > len(d.list) || len(b) != 4+2*int(b[0]) {
		return errors.New("bad SOS length")
	}
	n := int(b[0])
	first, last, high, low := int(b[1+2*n]), int(b[2+2*n]), b[3+2*n]>>4, b[3+2*n]&15
	if !d.progressive {
		first, last, high, low = 0, 63, 0, 0
	}
	if first > last || last > 63 || first == 0 && last > 0 && d.progressive || first > 0 && n > 1 || low > 13 || high != 0 && high != low+1 {
		return errors.New("bad spectral selection or approximation")
	}
	if d.scans == 0 {
		d.model = d.guessModel()
	}
	if d.scans++; d.scans > MaxScans || d.scans > fewScans && d.scans*d.config.Blocks > maxScanBlocks {
		return fmt.Errorf("%d scans over %d blocks", d.scans, d.config.Blocks)
	}
	var list []scanComponent
	blocks := 0
	for i := range n {
		id, dc, ac := b[1+2*i], b[2+2*i]>>4, b[2+2*i]&15
		c := d.component(id)
		if c == nil || dc > 3 || ac > 3 {
			return errors.New("a scan of what is not in the frame")
		}
		for _, other := range list {
			if other.component == c {
				return errors.New("a component twice in a scan")
			}
		}
		s := scanComponent{c, d.huffman[0][dc], d.huffman[1][ac], int(dc), int(ac), 1, 1}
		if !d.arithmetic && (first == 0 && high == 0 && s.dcTable == nil || last > 0 && s.acTable == nil) {
			return errors.New("no Huffman table")
		}
		if n > 1 {
			s.across, s.down = c.h, c.v
		}
		blocks += s.across * s.down
		if c.quant == nil {
			if c.quant = d.quant[c.tq]; c.quant == nil {
				return errors.New("no quantisation table")
			}
			// A block's first scan takes a bit at the least: a file of a few bytes gets no memory for a large image.
			// Arithmetic coding can do with less than that; 64 blocks a byte are beyond what encoders reach.
			least := 8
			if d.arithmetic {
				least = 64
			}
			if c.columns*c.rows > least*(len(d.data)-d.at)+64 {
				return errTruncated
			}
			if d.progressive {
				c.coefficients = make([]int16, 64*c.stride*c.height)
			} else {
				c.pix = newPix(64 * c.stride * c.height)
			}
		}
		list = append(list, s)
	}
	if blocks > 10 {
		return fmt.Errorf("%d blocks in an MCU, want at most 10", blocks)
	}
	d.bits = bits{data: d.data, at: d.at}
	d.restartNumber, d.starved = 0, false
	d.resetPredictions()
	var err error
	if d.arithmetic {
		d.coder = newArithmetic(&d.bits, &d.conditioning)
	}
	decode := d.block
	if d.arithmetic {
		decode = d.coder.block
	}
	if d.progressive {
		step := func(s *scanComponent, b *[64]int16) {
			switch {
			case first == 0 && high == 0:
				d.dcFirst(s, b, low)
			case first == 0:
				if d.bits.bit() {
					b[0] |= 1 << low
				}
			case high == 0:
				d.acFirst(s, b, first, last, low)
			default:
				d.acRefine(s, b, first, last, low)
			}
		}
		if d.arithmetic {
			step = d.coder.progressive(first, last, high, low)
		}
		err = d.eachBlock(list, 0, d.mcuRows(list), step, func(i int) ([]int16, int) { return list[i].coefficients, 0 })
	} else {
		err = d.sequential(list, decode)
	}
	d.at = d.bits.at
	return err
}

func (d *decoder) component(id uint8) *component {
	for i := range d.list {
		if d.list[i].id == id {
			return &d.list[i]
		}
	}
	return nil
}

// mcuRows is the number of rows of MCUs in a scan.
func (d *decoder) mcuRows(list []scanComponent) int {
	if len(list) == 1 {
		return list[0].rows
	}
	return d.mcusY
}

func (d *decoder) mcuColumns(list []scanComponent) int {
	if len(list) == 1 {
		return list[0].columns
	}
	return d.mcusX
}

func (d *decoder) resetPredictions() {
	for i := range d.list {
		d.list[i].dc = 0
	}
	d.run = 0
}

// eachBlock calls decode for the blocks of some rows of MCUs in the order of the file. place gives where the coefficients
// of a component lie, and the row of blocks that they begin with.
func (d *decoder) eachBlock(list []scanComponent, from, to int, decode func(*scanComponent, *[64]int16), place func(i int) ([]int16, int)) error {
	columns := d.mcuColumns(list)
	var coefficients [4][]int16
	var begin [4]int
	for i := range list {
		coefficients[i], begin[i] = place(i)
	}
	for my := from; my < to; my++ {
		if d.ctx.Err() != nil {
			return context.Cause(d.ctx)
		}
		for mx := range columns {
			if at := my*columns + mx; d.restart > 0 && at > 0 && at%d.restart == 0 {
				if err := d.resync(); err != nil {
					return err
				}
			}
			if d.starved {
				continue // the blocks stay as they are
			}
			for i := range list {
				s := &list[i]
				for y := range s.down {
					row := my*s.down + y - begin[i]
					for x := range s.across {
						at := 64 * (row*s.stride + mx*s.across + x)
						decode(s, (*[64]int16)(coefficients[i][at:]))
					}
				}
			}
			if d.bits.overrun() {
				if !d.bits.marked {
					return errTruncated
				}
				d.starved = true
			}
		}
	}
	return nil
}

// resync looks for the next restart marker. Where another is found it follows libjpeg: markers that were due before are
// passed over, those due soon and others than restarts leave this segment empty.
func (d *decoder) resync() error {
	wanted := d.restartNumber
	d.restartNumber = (wanted + 1) & 7
	d.at = d.bits.at
	for {
		m, ok := d.marker()
		if !ok {
			return errTruncated
		}
		behind := int(m-markerRST0) - wanted
		switch {
		case m < markerSOF0, m >= markerRST0 && m <= markerRST7 && (behind&7 == 7 || behind&7 == 6):
			continue
		case m < markerRST0, m > markerRST7, behind&7 == 1, behind&7 == 2:
			d.at -= 2 // to the marker again
		default:
			d.starved = false
		}
		break
	}
	d.bits = bits{data: d.data, at: d.at}
	d.resetPredictions()
	if d.arithmetic {
		d.coder.reset()
	}
	return nil
}

// sequential decodes a scan band by band; other goroutines turn bands into samples while this one reads on.
func (d *decoder) sequential(list []scanComponent, decode func(*scanComponent, *[64]int16)) error {
	rows, rowSize := d.mcuRows(list), 0
	for _, s := range list {
		rowSize += 128 * s.stride * s.down
	}
	height := min(max(bandSize/rowSize, 1), rows)
	// As many bands as may be under way: one is read, one for each core becomes samples.
	count := min(readers()+1, (rows+height-1)/height)
	free := make(chan *band, count)
	for range count {
		b := new(band)
		for i, s := range list {
			b.coefficients[i] = make([]int16, 64*s.stride*s.down*height)
		}
		free <- b
	}
	var parts crew
	defer parts.join()
	for from := 0; from < rows; from += height {
		b, to := <-free, min(from+height, rows)
		err := d.eachBlock(list, from, to, decode, func(i int) ([]int16, int) { return b.coefficients[i], from * list[i].down })
		if err != nil {
			return err
		}
		finish := func() {
			defer func() { free <- b }()
			for i, s := range list {
				c := b.coefficients[i]
				s.transform(s.pix[64*s.stride*from*s.down:], c, (to-from)*s.down)
				clear(c)
			}
		}
		if count == 1 {
			finish()
			break
		}
		parts.run(finish)
	}
	return nil
}

// block reads a block of a sequential scan. A place beyond the last is the last, as in libjpeg.
func (d *decoder) block(s *scanComponent, b *[64]int16) {
	bits := &d.bits
	if n := bits.symbol(s.dcTable); n > 0 {
		s.dc += bits.extended(n)
	}
	b[0] = int16(s.dc)
	ac := s.acTable
	for k := 1; k < 64; k++ {
		rs := bits.symbol(ac)
		run, n := int(rs>>4), rs&15
		if n == 0 {
			if run != 15 {
				return
			}
			k += 15
			continue
		}
		k += run
		b[natural[min(k, 63)]] = int16(bits.extended(n))
	}
}

func (d *decoder) dcFirst(s *scanComponent, b *[64]int16, low byte) {
	if n := d.bits.symbol(s.dcTable); n > 0 {
		s.dc += d.bits.extended(n)
	}
	b[0] = int16(s.dc << low)
}

// endOfBand reads the number of blocks that a code says to pass over, this one among them.
func (d *decoder) endOfBand(n uint8) { d.run = 1<<n + int(d.bits.receive(n)) }

func (d *decoder) acFirst(s *scanComponent, b *[64]int16, first, last int, low byte) {
	if d.run > 0 {
		d.run--
		return
	}
	for k := first; k <= last; k++ {
		rs := d.bits.symbol(s.acTable)
		run, n := rs>>4, rs&15
		if n == 0 {
			if run != 15 {
				d.endOfBand(run)
				d.run--
				return
			}
			k += 15
			continue
		}
		k += int(run)
		b[natural[min(k, 63)]] = int16(d.bits.extended(n) << low)
	}
}

func (d *decoder) acRefine(s *scanComponent, b *[64]int16, first, last int, low byte) {
	k := first
	// pass refines what is not zero, up to the zero after skip others, or to the end.
	pass := func(skip int) {
		for ; k <= last; k++ {
			c := &b[natural[k]]
			switch {
			case *c == 0:
				if skip == 0 {
					return
				}
				skip--
			case d.bits.bit() && *c&(1<<low) == 0:
				if *c > 0 {
					*c += 1 << low
				} else {
					*c -= 1 << low
				}
			}
		}
	}
	for d.run == 0 && k <= last {
		rs := d.bits.symbol(s.acTable)
		run, v := rs>>4, int16(0)
		switch {
		case rs&15 != 0: // 1 where nothing is damaged
			if v = -1 << low; d.bits.bit() {
				v = 1 << low
			}
		case run != 15:
			d.endOfBand(run)
			continue
		}
		pass(int(run))
		if v != 0 {
			b[natural[min(k, 63)]] = v
		}
		k++
	}
	if d.run > 0 {
		pass(64)
		d.run--
	}
}
