package jpeg

import (
	"context"
	"errors"
	"fmt"

	"github.com/mmserve/mmserve/internal/crew"
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

// MaxScans bounds the scans of a file. Encoders write about ten; a hostile file of a few hundred bytes a scan could
// make the decoder pass over all its blocks thousands of times.
const MaxScans = 100

// maxScanBlocks bounds the blocks that all scans together pass over, beyond what fewScans of any image need.
const (
	maxScanBlocks = 24 << 20
	fewScans      = 16
)

// spectrum is the part of a block's coefficients that a scan brings: the places first to last in zigzag order, and the
// bits from high to low.
type spectrum struct {
	first, last int
	high, low   byte
}

// blockReader reads what a scan brings of a block.
type blockReader func(s *scanComponent, b *[64]int16)

// blockPlace gives where the coefficients of the i-th component of a scan lie, and the row of blocks that they begin
// with.
type blockPlace func(i int) (coefficients []int16, begin int)

// scan decodes the entropy-coded data after an SOS segment.
func (d *decoder) scan(b []byte) error {
	sp, err := d.scanSpectrum(b)
	if err != nil {
		return err
	}
	if d.scans == 0 {
		d.model = d.guessModel()
	}
	if d.scans++; d.scans > MaxScans || d.scans > fewScans && d.scans*d.config.Blocks > maxScanBlocks {
		return fmt.Errorf("%d scans over %d blocks", d.scans, d.config.Blocks)
	}
	list, err := d.scanComponents(b, sp)
	if err != nil {
		return err
	}
	d.bits = bits{data: d.data, at: d.at}
	d.restartNumber, d.starved = 0, false
	d.resetPredictions()
	read := d.block
	if d.arithmetic {
		d.coder = newArithmetic(&d.bits, &d.conditioning)
		read = d.coder.block
	}
	if d.progressive {
		whole := func(i int) ([]int16, int) { return list[i].coefficients, 0 }
		err = d.eachBlock(list, 0, d.mcuRows(list), d.progressiveReader(sp), whole)
	} else {
		err = d.sequential(list, read)
	}
	d.at = d.bits.at
	return err
}

// scanSpectrum checks the length of an SOS segment, and reads what its scan brings.
func (d *decoder) scanSpectrum(b []byte) (spectrum, error) {
	if d.list == nil {
		return spectrum{}, errors.New("a scan before the frame")
	}
	if len(b) < 1 || b[0] < 1 || int(b[0]) > len(d.list) || len(b) != 4+2*int(b[0]) {
		return spectrum{}, errors.New("bad SOS length")
	}
	n := int(b[0])
	if !d.progressive {
		return spectrum{last: 63}, nil
	}
	end := b[1+2*n:]
	sp := spectrum{int(end[0]), int(end[1]), end[2] >> 4, end[2] & 15}
	outside := sp.first > sp.last || sp.last > 63
	mixed := sp.first == 0 && sp.last > 0 || sp.first > 0 && n > 1
	badBits := sp.low > 13 || sp.high != 0 && sp.high != sp.low+1
	if outside || mixed || badBits {
		return spectrum{}, errors.New("bad spectral selection or approximation")
	}
	return sp, nil
}

// scanComponents reads which components a scan has, and has each begun.
func (d *decoder) scanComponents(b []byte, sp spectrum) (list []scanComponent, err error) {
	n, blocks := int(b[0]), 0
	for i := range n {
		id, dc, ac := b[1+2*i], b[2+2*i]>>4, b[2+2*i]&15
		c := d.component(id)
		if c == nil || dc > 3 || ac > 3 {
			return nil, errors.New("a scan of what is not in the frame")
		}
		for _, other := range list {
			if other.component == c {
				return nil, errors.New("a component twice in a scan")
			}
		}
		s := scanComponent{c, d.huffman[0][dc], d.huffman[1][ac], int(dc), int(ac), 1, 1}
		if !d.arithmetic && (sp.first == 0 && sp.high == 0 && s.dcTable == nil || sp.last > 0 && s.acTable == nil) {
			return nil, errors.New("no Huffman table")
		}
		if n > 1 {
			s.across, s.down = c.h, c.v
		}
		blocks += s.across * s.down
		if err := d.begin(c); err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	if blocks > 10 {
		return nil, fmt.Errorf("%d blocks in an MCU, want at most 10", blocks)
	}
	return list, nil
}

// begin gives a component its quantisation table and its memory, before its first scan.
func (d *decoder) begin(c *component) error {
	if c.quant != nil {
		return nil
	}
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
	return nil
}

// progressiveReader reads blocks of a progressive scan.
func (d *decoder) progressiveReader(sp spectrum) blockReader {
	if d.arithmetic {
		return d.coder.progressive(sp.first, sp.last, sp.high, sp.low)
	}
	first, last, high, low := sp.first, sp.last, sp.high, sp.low
	return func(s *scanComponent, b *[64]int16) {
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

// eachBlock reads the blocks of some rows of MCUs in the order of the file.
func (d *decoder) eachBlock(list []scanComponent, from, to int, read blockReader, place blockPlace) error {
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
						read(s, (*[64]int16)(coefficients[i][at:]))
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
func (d *decoder) sequential(list []scanComponent, read blockReader) error {
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
	var parts crew.Group
	defer parts.Wait()
	for from := 0; from < rows; from += height {
		b, to := <-free, min(from+height, rows)
		place := func(i int) ([]int16, int) { return b.coefficients[i], from * list[i].down }
		if err := d.eachBlock(list, from, to, read, place); err != nil {
			return err
		}
		finish := func() error {
			defer func() { free <- b }()
			for i, s := range list {
				c := b.coefficients[i]
				s.transform(s.pix[64*s.stride*from*s.down:], c, (to-from)*s.down)
				clear(c)
			}
			return nil
		}
		if count == 1 {
			return finish()
		}
		parts.Go(finish)
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
