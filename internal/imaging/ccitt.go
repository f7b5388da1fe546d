package imaging

import (
	"context"
	"io"
	"math/bits"
	"sync"
)

// The decoder is our own: x/image/ccitt reads neither rows without their ends (compression 2) nor two-dimensional Group
// 3, and gives up where libtiff reads on.
//
// Reference: ITU-T T.4 and T.6; for damaged data, libtiff.

// faxKind is how rows are coded.
type faxKind struct {
	// ends tells that each row begins with an end of line; modes, that a bit after it chooses one or two dimensions;
	// flat, that all have one.
	ends, modes, flat bool
	// align is to how many bits a row's end is rounded up; 0 for none.
	align int
}

// What a fax code means.
const (
	faxBad = iota
	faxEnd // zeros that only an end of line has
	faxTerm
	faxMakeUp
	faxPass
	faxHorizontal
	faxVertical // value is the distance to the right
	faxExtension
)

type faxCode struct {
	kind  uint8
	width uint8
	value int16
}

const (
	faxWhiteBits = 12
	faxBlackBits = 13
	faxModeBits  = 7
)

// faxTables are by the next bits of the data. Read once, not changed.
type faxTables struct {
	white [1 << faxWhiteBits]faxCode
	black [1 << faxBlackBits]faxCode
	mode  [1 << faxModeBits]faxCode
}

var faxCodes = sync.OnceValue(func() *faxTables {
	t := new(faxTables)
	put := func(table []faxCode, code string, kind uint8, value int) {
		free := bits.Len(uint(len(table)-1)) - len(code)
		at := 0
		for _, c := range code {
			at = 2*at + int(c-'0')
		}
		for i := range 1 << free {
			table[at<<free+i] = faxCode{kind, uint8(len(code)), int16(value)}
		}
	}
	for i, code := range whiteTerms {
		put(t.white[:], code, faxTerm, i)
	}
	for i, code := range blackTerms {
		put(t.black[:], code, faxTerm, i)
	}
	for i, code := range whiteMakeUps {
		put(t.white[:], code, faxMakeUp, 64*(i+1))
	}
	for i, code := range blackMakeUps {
		put(t.black[:], code, faxMakeUp, 64*(i+1))
	}
	for i, code := range commonMakeUps {
		put(t.white[:], code, faxMakeUp, 1792+64*i)
		put(t.black[:], code, faxMakeUp, 1792+64*i)
	}
	put(t.white[:], "00000000000", faxEnd, 0)
	put(t.black[:], "00000000000", faxEnd, 0)
	put(t.mode[:], "0001", faxPass, 0)
	put(t.mode[:], "001", faxHorizontal, 0)
	for value, code := range verticalCodes {
		put(t.mode[:], code, faxVertical, value)
	}
	put(t.mode[:], "0000001", faxExtension, 0)
	put(t.mode[:], "0000000", faxEnd, 0)
	return t
})

// faxReader gives rows of bits, black as 1.
type faxReader struct {
	ctx      context.Context
	codes    *faxTables
	kind     faxKind
	data     []byte
	size     int // of data at first
	reversed bool
	width    int

	acc         uint64 // the upper n bits are next
	n           int
	atEnd       bool // an end of line has been read up to its last bit
	runs, above []int32
	row         []byte
	out         []byte // what is left of row
	rows        int
	white       bool // Group 4 has ended: all rows are white
	err         error
}

// newFax reads rows of width pixels.
func newFax(ctx context.Context, data []byte, width int, reversed bool, kind faxKind) *faxReader {
	r := &faxReader{
		ctx: ctx, codes: faxCodes(), kind: kind, data: data, size: len(data), reversed: reversed, width: width,
		above: make([]int32, 0, 16), runs: make([]int32, 0, 16), row: make([]byte, (width+7)/8),
	}
	r.above = append(r.above, int32(width), 0)
	return r
}

func (r *faxReader) Read(b []byte) (n int, err error) {
	for n < len(b) {
		if len(r.out) == 0 {
			if r.err == nil {
				r.err = r.next()
			}
			if r.err != nil {
				return n, r.err
			}
		}
		k := copy(b[n:], r.out)
		r.out, n = r.out[k:], n+k
	}
	return n, nil
}

// next decodes a row.
func (r *faxReader) next() error {
	if r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	clear(r.row)
	r.out = r.row
	if r.white {
		return nil
	}
	r.runs = r.runs[:0]
	flat := r.kind.flat
	if r.kind.ends && !r.sync() {
		return io.ErrUnexpectedEOF
	}
	if r.kind.modes {
		if !r.need(1) {
			return io.ErrUnexpectedEOF
		}
		flat = r.peek(1) == 1
		r.skip(1)
	}
	line := faxLine{faxReader: r}
	var ok bool
	if flat {
		ok = line.flat()
	} else {
		ok = line.relative()
	}
	switch group4 := !r.kind.flat && !r.kind.modes; {
	case group4 && r.rows > 0 && (!ok || r.atEnd): // libtiff leaves what is missing as it is
		line.finish()
		r.white = true
	case !ok || group4 && r.atEnd:
		return io.ErrUnexpectedEOF
	}
	r.rows++
	r.paint()
	r.above, r.runs = append(r.runs, 0, 0), r.above
	if r.kind.align > 0 { // acc was filled from whole bytes
		r.skip(r.n % r.kind.align)
		if r.kind.align == 16 && r.n == 0 && (r.size-len(r.data))%2 == 1 {
			r.data = r.data[min(1, len(r.data)):]
		}
	}
	return nil
}

// paint sets the black runs of the row.
func (r *faxReader) paint() {
	x := 0
	for i, run := range r.runs {
		end := min(x+int(run), r.width)
		if i%2 == 1 {
			fillBits(r.row, x, end)
		}
		x = max(x, end)
	}
}

// fillBits sets bits from to to, the first of a byte is its highest.
func fillBits(row []byte, from, to int) {
	for ; from < to && from%8 != 0; from++ {
		row[from/8] |= 0x80 >> (from % 8)
	}
	for ; from+8 <= to; from += 8 {
		row[from/8] = 0xff
	}
	for ; from < to; from++ {
		row[from/8] |= 0x80 >> (from % 8)
	}
}

// need makes n bits ready. Beyond the data are zeros, as long as a bit of them is left.
func (r *faxReader) need(n int) bool {
	for r.n < n {
		if len(r.data) == 0 {
			if r.n == 0 {
				return false
			}
			r.n = n
			return true
		}
		v := r.data[0]
		if r.reversed {
			v = bits.Reverse8(v)
		}
		r.acc |= uint64(v) << (56 - r.n)
		r.data, r.n = r.data[1:], r.n+8
	}
	return true
}

func (r *faxReader) peek(n int) int { return int(r.acc >> (64 - n)) }

func (r *faxReader) skip(n int) {
	n = min(n, r.n)
	r.acc, r.n = r.acc<<n, r.n-n
}

// sync passes over all up to the bit after an end of line.
func (r *faxReader) sync() bool {
	for !r.atEnd {
		if !r.need(11) {
			return false
		}
		if r.peek(11) == 0 {
			break
		}
		r.skip(1)
	}
	for {
		if !r.need(8) {
			return false
		}
		if r.peek(8) != 0 {
			break
		}
		r.skip(8)
	}
	r.skip(bits.LeadingZeros64(r.acc) + 1)
	r.atEnd = false
	return true
}

// faxLine is a row that is read: a0 and b1 are as T.4 names them.
type faxLine struct {
	*faxReader
	a0, run int
	b1, at  int // at is the place in above of the run after b1
}

// put ends a run with n further pixels. Rows have fewer runs than there is room for, unless they are hostile.
func (l *faxLine) put(n int) bool {
	if len(l.runs) >= 2*l.width+64 {
		return false
	}
	l.runs = append(l.runs, int32(l.run+n))
	l.a0, l.run = l.a0+n, 0
	return true
}

// finish makes the runs as long as a row, as libtiff does with those that are not.
func (l *faxLine) finish() bool {
	if l.run > 0 && !l.put(0) {
		return false
	}
	for l.a0 > l.width && len(l.runs) > 0 {
		l.a0 -= int(l.runs[len(l.runs)-1])
		l.runs = l.runs[:len(l.runs)-1]
	}
	if l.a0 >= l.width {
		return true
	}
	l.a0 = max(l.a0, 0)
	if len(l.runs)%2 == 1 && !l.put(0) {
		return false
	}
	return l.put(l.width - l.a0)
}

// What reading a run came to.
const (
	runRead  = iota
	runEnded // an end of line, or a code that is none: the row ends here
	runOver  // no data are left
)

// length reads a run's codes.
func (l *faxLine) length(black bool) int {
	table, width := l.codes.white[:], faxWhiteBits
	if black {
		table, width = l.codes.black[:], faxBlackBits
	}
	for {
		if !l.need(width) {
			return runOver
		}
		c := table[l.peek(width)]
		l.skip(int(c.width))
		switch c.kind {
		case faxTerm:
			if !l.put(int(c.value)) {
				return runOver
			}
			return runRead
		case faxMakeUp:
			if l.a0 > l.width {
				return runEnded
			}
			l.a0, l.run = l.a0+int(c.value), l.run+int(c.value)
		case faxEnd:
			l.atEnd = true
			return runEnded
		default:
			return runEnded
		}
	}
}

// flat reads a row of one dimension.
func (l *faxLine) flat() bool {
	for l.a0 < l.width {
		for _, black := range []bool{false, true} {
			switch l.length(black) {
			case runOver:
				return false
			case runEnded:
				return l.finish()
			}
			if l.a0 >= l.width {
				break
			}
		}
		if n := len(l.runs); n >= 2 && l.runs[n-1] == 0 && l.runs[n-2] == 0 {
			l.runs = l.runs[:n-2]
		}
	}
	return l.finish()
}

// advance moves b1 behind a0.
func (l *faxLine) advance() {
	for len(l.runs) > 0 && l.b1 <= l.a0 && l.b1 < l.width && l.at+1 < len(l.above) {
		l.b1 += int(l.above[l.at]) + int(l.above[l.at+1])
		l.at += 2
	}
}

func (l *faxLine) step() {
	if l.at < len(l.above) {
		l.b1 += int(l.above[l.at])
		l.at++
	}
}

// relative reads a row of two dimensions.
func (l *faxLine) relative() bool {
	l.b1, l.at = int(l.above[0]), 1
	for l.a0 < l.width {
		if !l.need(faxModeBits) {
			return false
		}
		c := l.codes.mode[l.peek(faxModeBits)]
		l.skip(int(c.width))
		switch c.kind {
		case faxPass:
			l.advance()
			l.step()
			l.run += l.b1 - l.a0
			l.a0 = l.b1
			l.step()
		case faxHorizontal:
			black := len(l.runs)%2 == 1
			for _, b := range []bool{black, !black} {
				switch l.length(b) {
				case runOver:
					return false
				case runEnded:
					return l.finish()
				}
			}
			l.advance()
		case faxVertical:
			l.advance()
			if l.b1+int(c.value) < l.a0 {
				return l.finish()
			}
			if !l.put(l.b1 + int(c.value) - l.a0) {
				return false
			}
			if c.value >= 0 {
				l.step()
			} else if l.at > 0 {
				l.at--
				l.b1 -= int(l.above[l.at])
			}
		case faxEnd:
			l.runs = append(l.runs, int32(l.width-l.a0))
			if !l.need(4) {
				return false
			}
			l.skip(4)
			l.atEnd = true
			return l.finish()
		case faxExtension:
			l.runs = append(l.runs, int32(l.width-l.a0))
			return l.finish()
		default:
			return l.finish()
		}
	}
	if l.run > 0 {
		if l.run+l.a0 < l.width {
			if !l.need(1) {
				return false
			}
			l.skip(1)
		}
		l.put(0)
	}
	return l.finish()
}
