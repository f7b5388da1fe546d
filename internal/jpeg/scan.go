package jpeg

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
)

// scanComponent is a component with the tables that a scan gives it.
type scanComponent struct {
	*component
	dcTable, acTable *table
	// across and down are the blocks of it in an MCU: one where it is alone.
	across, down int
}

// band is the coefficients of some rows of MCUs in a sequential scan: for each component, 64 for each block.
type band struct {
	coefficients [4][]int16
}

// bandSize is about how many bytes of coefficients make a band: few enough to stay in a core's cache.
const bandSize = 512 << 10

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
	d.scans++
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
		s := scanComponent{c, d.huffman[0][dc], d.huffman[1][ac], 1, 1}
		if first == 0 && high == 0 && s.dcTable == nil || last > 0 && s.acTable == nil {
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
			// A block's first scan takes a bit at the least: a file of a few bytes gets no memory for a large picture.
			if c.columns*c.rows > 8*(len(d.data)-d.at) {
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
	d.resetPredictions()
	var err error
	if d.progressive {
		err = d.eachBlock(list, 0, d.mcuRows(list), func(s *scanComponent, b *[64]int16) error {
			switch {
			case first == 0 && high == 0:
				return d.dcFirst(s, b, low)
			case first == 0:
				if d.bits.bit() {
					b[0] |= 1 << low
				}
				return nil
			case high == 0:
				return d.acFirst(s, b, first, last, low)
			}
			return d.acRefine(s, b, first, last, low)
		}, func(i int) ([]int16, int) { return list[i].coefficients, 0 })
	} else {
		err = d.sequential(list)
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
func (d *decoder) eachBlock(list []scanComponent, from, to int, decode func(*scanComponent, *[64]int16) error, place func(i int) ([]int16, int)) error {
	columns := d.mcuColumns(list)
	var coefficients [4][]int16
	var begin [4]int
	for i := range list {
		coefficients[i], begin[i] = place(i)
	}
	for my := from; my < to; my++ {
		for mx := range columns {
			if at := my*columns + mx; d.restart > 0 && at > 0 && at%d.restart == 0 {
				if err := d.resync(at / d.restart); err != nil {
					return err
				}
			}
			for i := range list {
				s := &list[i]
				for y := range s.down {
					row := my*s.down + y - begin[i]
					for x := range s.across {
						at := 64 * (row*s.stride + mx*s.across + x)
						if err := decode(s, (*[64]int16)(coefficients[i][at:])); err != nil {
							return err
						}
					}
				}
			}
			if d.bits.overrun() {
				return errTruncated
			}
		}
	}
	return nil
}

// resync reads the n-th restart marker.
func (d *decoder) resync(n int) error {
	d.at = d.bits.at
	m, ok := d.marker()
	if !ok {
		return errTruncated
	}
	if m != markerRST0+byte((n-1)&7) {
		return errors.New("bad restart marker")
	}
	d.bits = bits{data: d.data, at: d.at}
	d.resetPredictions()
	return nil
}

// sequential decodes a scan band by band; other goroutines turn bands into samples while this one reads on.
func (d *decoder) sequential(list []scanComponent) error {
	rows, rowSize := d.mcuRows(list), 0
	for _, s := range list {
		rowSize += 128 * s.stride * s.down
	}
	height := min(max(bandSize/rowSize, 1), rows)
	// As many bands as may be under way: one is read, one for each core becomes samples.
	count := min(runtime.GOMAXPROCS(0)+1, (rows+height-1)/height)
	free := make(chan *band, count)
	for range count {
		b := new(band)
		for i, s := range list {
			b.coefficients[i] = make([]int16, 64*s.stride*s.down*height)
		}
		free <- b
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for from := 0; from < rows; from += height {
		b, to := <-free, min(from+height, rows)
		err := d.eachBlock(list, from, to, d.block, func(i int) ([]int16, int) { return b.coefficients[i], from * list[i].down })
		if err != nil {
			return err
		}
		finish := func() {
			for i, s := range list {
				c := b.coefficients[i]
				s.transform(c, from*s.down, to*s.down)
				clear(c)
			}
			free <- b
		}
		if count == 1 {
			finish()
			break
		}
		wg.Go(finish)
	}
	return nil
}

// block reads a block of a sequential scan.
func (d *decoder) block(s *scanComponent, b *[64]int16) error {
	bits := &d.bits
	n, ok := bits.symbol(s.dcTable)
	if !ok {
		return errCode
	}
	if n > 0 {
		s.dc += bits.extended(n)
	}
	b[0] = int16(s.dc)
	ac := s.acTable
	for k := 1; k < 64; k++ {
		rs, ok := bits.symbol(ac)
		if !ok {
			return errCode
		}
		run, n := int(rs>>4), rs&15
		if n == 0 {
			if run != 15 {
				return nil
			}
			k += 15
			continue
		}
		if k += run; k > 63 {
			return errCode
		}
		b[natural[k]] = int16(bits.extended(n))
	}
	return nil
}

func (d *decoder) dcFirst(s *scanComponent, b *[64]int16, low byte) error {
	n, ok := d.bits.symbol(s.dcTable)
	if !ok {
		return errCode
	}
	if n > 0 {
		s.dc += d.bits.extended(n)
	}
	b[0] = int16(s.dc << low)
	return nil
}

// endOfBand reads the number of blocks that a code says to pass over, this one among them.
func (d *decoder) endOfBand(n uint8) { d.run = 1<<n + int(d.bits.receive(n)) }

func (d *decoder) acFirst(s *scanComponent, b *[64]int16, first, last int, low byte) error {
	if d.run > 0 {
		d.run--
		return nil
	}
	for k := first; k <= last; k++ {
		rs, ok := d.bits.symbol(s.acTable)
		if !ok {
			return errCode
		}
		run, n := rs>>4, rs&15
		if n == 0 {
			if run != 15 {
				d.endOfBand(run)
				d.run--
				return nil
			}
			k += 15
			continue
		}
		if k += int(run); k > 63 {
			return errCode
		}
		b[natural[k]] = int16(d.bits.extended(n) << low)
	}
	return nil
}

func (d *decoder) acRefine(s *scanComponent, b *[64]int16, first, last int, low byte) error {
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
		rs, ok := d.bits.symbol(s.acTable)
		if !ok || rs&15 > 1 {
			return errCode
		}
		run, v := rs>>4, int16(0)
		switch {
		case rs&15 == 1:
			if v = -1 << low; d.bits.bit() {
				v = 1 << low
			}
		case run != 15:
			d.endOfBand(run)
			continue
		}
		pass(int(run))
		if v != 0 {
			if k > last {
				return errCode
			}
			b[natural[k]] = v
		}
		k++
	}
	if d.run > 0 {
		pass(64)
		d.run--
	}
	return nil
}
