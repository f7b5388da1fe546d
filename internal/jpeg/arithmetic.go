package jpeg

import "errors"

// Arithmetic coding is that of T.81, annexes D and F.1.4, F.2.4, G.1.3 and G.2.3; damage is passed over as
// libjpeg-turbo does.

// conditioning is what a DAC segment sets: bounds of DC differences, and where AC coefficients count as high.
type conditioning struct {
	low, high [16]uint8
	ac        [16]uint8
}

func defaultConditioning() (c conditioning) {
	for i := range c.ac {
		c.high[i], c.ac[i] = 1, 5
	}
	return c
}

func (c *conditioning) read(b []byte) error {
	for ; len(b) >= 2; b = b[2:] {
		to, v := b[0], b[1]
		switch {
		case to >= 32:
			return errors.New("bad DAC table")
		case to >= 16:
			c.ac[to-16] = v
		case v&15 > v>>4:
			return errors.New("bad DAC value")
		default:
			c.low[to], c.high[to] = v&15, v>>4
		}
	}
	if len(b) != 0 {
		return errors.New("bad DAC length")
	}
	return nil
}

// statistic is an adaptive estimate: the state's number, and in the highest bit the symbol that is more probable.
type statistic uint8

// arithmetic decodes the data of a scan.
type arithmetic struct {
	bits         *bits
	conditioning *conditioning
	c, a         int64 // base and size of the interval
	count        int   // bits of c still to be used; -16 before the first
	failed       bool  // up to the next restart blocks stay as they are
	dc           [16][64]statistic
	ac           [16][256]statistic
	fixed        statistic // an even chance that never adapts
	context      map[*component]int
}

func newArithmetic(b *bits, c *conditioning) *arithmetic {
	d := &arithmetic{bits: b, conditioning: c}
	d.reset()
	return d
}

func (d *arithmetic) reset() {
	*d = arithmetic{bits: d.bits, conditioning: d.conditioning, count: -16, fixed: 113, context: map[*component]int{}}
}

// next reads a byte, 0 from a marker on.
func (d *arithmetic) next() int64 {
	b := d.bits
	if b.marked {
		return 0
	}
	if b.at >= len(b.data) {
		b.padding, b.n = 1, 0 // the file has ended too early
		return 0
	}
	v := b.data[b.at]
	if v == 0xff && !b.stuffed() {
		if !b.marked {
			b.padding, b.n = 1, 0
		}
		return 0
	}
	b.at++
	return int64(v)
}

// bit decodes a decision and adapts its estimate.
func (d *arithmetic) bit(s *statistic) bool {
	for d.a < 0x8000 {
		if d.count--; d.count < 0 {
			d.c = d.c<<8 | d.next()
			if d.count += 8; d.count < 0 {
				if d.count++; d.count == 0 {
					d.a = 0x8000 // the loop doubles it
				}
			}
		}
		d.a <<= 1
	}
	e := &estimates[*s&0x7f]
	probable := *s & 0x80
	less := probable
	if e.swap {
		less ^= 0x80
	}
	d.a -= int64(e.size)
	symbol := probable
	switch at := d.a << d.count; {
	case d.c >= at:
		d.c -= at
		if d.a < int64(e.size) {
			*s = probable | statistic(e.more)
		} else {
			*s = less | statistic(e.less)
			symbol ^= 0x80
		}
		d.a = int64(e.size)
	case d.a < 0x8000:
		if d.a < int64(e.size) {
			*s = less | statistic(e.less)
			symbol ^= 0x80
		} else {
			*s = probable | statistic(e.more)
		}
	}
	return symbol != 0
}

// magnitude decodes the bits below the highest of a number, and adds one.
func (d *arithmetic) magnitude(s *statistic, highest int32) int32 {
	v := highest
	for m := highest >> 1; m > 0; m >>= 1 {
		if d.bit(s) {
			v |= m
		}
	}
	return v + 1
}

// category decodes the highest bit of a number from consecutive estimates, beginning with list[at], and the place of
// the last.
func (d *arithmetic) category(list []statistic, at int, m int32) (int32, int) {
	for d.bit(&list[at]) {
		if m <<= 1; m == 0x8000 {
			d.failed = true
			return m, at
		}
		at++
	}
	return m, at
}

// dcValue decodes a block's first coefficient.
func (d *arithmetic) dcValue(s *scanComponent) {
	list := d.dc[s.dcNumber][:]
	at := d.context[s.component]
	if !d.bit(&list[at]) {
		d.context[s.component] = 0
		return
	}
	negative := d.bit(&list[at+1])
	at += 2
	sign := 0
	if negative {
		at, sign = at+1, 4
	}
	m := int32(0)
	if d.bit(&list[at]) {
		if m, at = d.category(list, 20, 1); d.failed {
			return
		}
	}
	low, high := int32(1)<<d.conditioning.low[s.dcNumber]>>1, int32(1)<<d.conditioning.high[s.dcNumber]>>1
	switch {
	case m < low:
		d.context[s.component] = 0
	case m > high:
		d.context[s.component] = 12 + sign
	default:
		d.context[s.component] = 4 + sign
	}
	v := d.magnitude(&list[at+14], m)
	if negative {
		v = -v
	}
	s.dc = (s.dc + v) & 0xffff
}

// acValues decodes the coefficients from first to last.
func (d *arithmetic) acValues(s *scanComponent, b *[64]int16, first, last int, low byte) {
	list := d.ac[s.acNumber][:]
	for k := first; k <= last; k++ {
		at := 3 * (k - 1)
		if d.bit(&list[at]) {
			return
		}
		for !d.bit(&list[at+1]) {
			at += 3
			if k++; k > last {
				d.failed = true
				return
			}
		}
		negative := d.bit(d.even())
		at += 2
		m := int32(0)
		if d.bit(&list[at]) {
			m = 1
			if d.bit(&list[at]) {
				from := 217
				if k <= int(d.conditioning.ac[s.acNumber]) {
					from = 189
				}
				if m, at = d.category(list, from, 2); d.failed {
					return
				}
			}
		}
		v := d.magnitude(&list[at+14], m)
		if negative {
			v = -v
		}
		b[natural[k]] = int16(uint32(v) << low)
	}
}

func (d *arithmetic) even() *statistic {
	d.fixed = 113
	return &d.fixed
}

// block decodes a block of a sequential scan.
func (d *arithmetic) block(s *scanComponent, b *[64]int16) {
	if d.failed {
		return
	}
	if d.dcValue(s); d.failed {
		return
	}
	b[0] = int16(s.dc)
	d.acValues(s, b, 1, 63, 0)
}

// progressive gives what decodes a block of a progressive scan.
func (d *arithmetic) progressive(first, last int, high, low byte) func(*scanComponent, *[64]int16) {
	switch {
	case first == 0 && high == 0:
		return func(s *scanComponent, b *[64]int16) {
			if d.failed {
				return
			}
			if d.dcValue(s); !d.failed {
				b[0] = int16(s.dc << low)
			}
		}
	case first == 0:
		return func(_ *scanComponent, b *[64]int16) {
			if d.bit(d.even()) {
				b[0] |= 1 << low
			}
		}
	case high == 0:
		return func(s *scanComponent, b *[64]int16) {
			if !d.failed {
				d.acValues(s, b, first, last, low)
			}
		}
	}
	return func(s *scanComponent, b *[64]int16) {
		if !d.failed {
			d.refine(s, b, first, last, low)
		}
	}
}

// refine decodes a further bit of the coefficients from first to last.
func (d *arithmetic) refine(s *scanComponent, b *[64]int16, first, last int, low byte) {
	list := d.ac[s.acNumber][:]
	end := last // of what was there before
	for end > 0 && b[natural[end]] == 0 {
		end--
	}
	one := int16(1) << low
	for k := first; k <= last; k++ {
		at := 3 * (k - 1)
		if k > end && d.bit(&list[at]) {
			return
		}
		for {
			c := &b[natural[k]]
			if *c != 0 {
				if d.bit(&list[at+2]) {
					if *c < 0 {
						*c -= one
					} else {
						*c += one
					}
				}
				break
			}
			if d.bit(&list[at+1]) {
				if *c = one; d.bit(d.even()) {
					*c = -one
				}
				break
			}
			at += 3
			if k++; k > last {
				d.failed = true
				return
			}
		}
	}
}

// estimates is table D.3 of T.81, and after it a state of even chances.
var estimates = [...]struct {
	size       uint16
	less, more uint8 // the next state after the less and the more probable symbol
	swap       bool
}{
	{0x5a1d, 1, 1, true}, {0x2586, 14, 2, false}, {0x1114, 16, 3, false}, {0x080b, 18, 4, false},
	{0x03d8, 20, 5, false}, {0x01da, 23, 6, false}, {0x00e5, 25, 7, false}, {0x006f, 28, 8, false},
	{0x0036, 30, 9, false}, {0x001a, 33, 10, false}, {0x000d, 35, 11, false}, {0x0006, 9, 12, false},
	{0x0003, 10, 13, false}, {0x0001, 12, 13, false}, {0x5a7f, 15, 15, true}, {0x3f25, 36, 16, false},
	{0x2cf2, 38, 17, false}, {0x207c, 39, 18, false}, {0x17b9, 40, 19, false}, {0x1182, 42, 20, false},
	{0x0cef, 43, 21, false}, {0x09a1, 45, 22, false}, {0x072f, 46, 23, false}, {0x055c, 48, 24, false},
	{0x0406, 49, 25, false}, {0x0303, 51, 26, false}, {0x0240, 52, 27, false}, {0x01b1, 54, 28, false},
	{0x0144, 56, 29, false}, {0x00f5, 57, 30, false}, {0x00b7, 59, 31, false}, {0x008a, 60, 32, false},
	{0x0068, 62, 33, false}, {0x004e, 63, 34, false}, {0x003b, 32, 35, false}, {0x002c, 33, 9, false},
	{0x5ae1, 37, 37, true}, {0x484c, 64, 38, false}, {0x3a0d, 65, 39, false}, {0x2ef1, 67, 40, false},
	{0x261f, 68, 41, false}, {0x1f33, 69, 42, false}, {0x19a8, 70, 43, false}, {0x1518, 72, 44, false},
	{0x1177, 73, 45, false}, {0x0e74, 74, 46, false}, {0x0bfb, 75, 47, false}, {0x09f8, 77, 48, false},
	{0x0861, 78, 49, false}, {0x0706, 79, 50, false}, {0x05cd, 48, 51, false}, {0x04de, 50, 52, false},
	{0x040f, 50, 53, false}, {0x0363, 51, 54, false}, {0x02d4, 52, 55, false}, {0x025c, 53, 56, false},
	{0x01f8, 54, 57, false}, {0x01a4, 55, 58, false}, {0x0160, 56, 59, false}, {0x0125, 57, 60, false},
	{0x00f6, 58, 61, false}, {0x00cb, 59, 62, false}, {0x00ab, 61, 63, false}, {0x008f, 61, 32, false},
	{0x5b12, 65, 65, true}, {0x4d04, 80, 66, false}, {0x412c, 81, 67, false}, {0x37d8, 82, 68, false},
	{0x2fe8, 83, 69, false}, {0x293c, 84, 70, false}, {0x2379, 86, 71, false}, {0x1edf, 87, 72, false},
	{0x1aa9, 87, 73, false}, {0x174e, 72, 74, false}, {0x1424, 72, 75, false}, {0x119c, 74, 76, false},
	{0x0f6b, 74, 77, false}, {0x0d51, 75, 78, false}, {0x0bb6, 77, 79, false}, {0x0a40, 77, 48, false},
	{0x5832, 80, 81, true}, {0x4d1c, 88, 82, false}, {0x438e, 89, 83, false}, {0x3bdd, 90, 84, false},
	{0x34ee, 91, 85, false}, {0x2eae, 92, 86, false}, {0x299a, 93, 87, false}, {0x2516, 86, 71, false},
	{0x5570, 88, 89, true}, {0x4ca9, 95, 90, false}, {0x44d9, 96, 91, false}, {0x3e22, 97, 92, false},
	{0x3824, 99, 93, false}, {0x32b4, 99, 94, false}, {0x2e17, 93, 86, false}, {0x56a8, 95, 96, true},
	{0x4f46, 101, 97, false}, {0x47e5, 102, 98, false}, {0x41cf, 103, 99, false}, {0x3c3d, 104, 100, false},
	{0x375e, 99, 93, false}, {0x5231, 105, 102, false}, {0x4c0f, 106, 103, false}, {0x4639, 107, 104, false},
	{0x415e, 103, 99, false}, {0x5627, 105, 106, true}, {0x50e7, 108, 107, false}, {0x4b85, 109, 103, false},
	{0x5597, 110, 109, false}, {0x504f, 111, 107, false}, {0x5a10, 110, 111, true}, {0x5522, 112, 109, false},
	{0x59eb, 112, 111, true}, {0x5a1d, 113, 113, false},
}
