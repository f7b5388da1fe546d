package jpeg

import (
	"encoding/binary"
	"errors"
)

// lookBits is the length of the codes that one look into a table resolves.
const lookBits = 9

// table is a Huffman table.
type table struct {
	// look has, by the next lookBits bits, length<<8 | symbol of the code that they begin with, 0 if it is longer.
	look [1 << lookBits]uint16
	// most has, by length, the largest code of it, left-aligned to 16 bits and with ones below; -1 for none.
	most [17]int32
	// offset + code is the place of a code's symbol.
	offset  [17]int32
	symbols [256]uint8
}

func (d *decoder) huffmanTables(b []byte) error {
	for len(b) > 0 {
		if len(b) < 17 {
			return errors.New("bad DHT length")
		}
		class, to := b[0]>>4, b[0]&15
		if class > 1 || to > 3 {
			return errors.New("bad Huffman table")
		}
		t, code, n := new(table), int32(0), int32(0)
		counts, symbols := b[1:17], b[17:]
		for length := 1; length <= 16; length++ {
			count := int32(counts[length-1])
			t.offset[length], t.most[length] = n-code, -1
			if n+count > 256 || int(n+count) > len(symbols) || code+count > 1<<length {
				return errors.New("bad Huffman table")
			}
			for range count {
				s := symbols[n]
				if class == 0 && s > 15 {
					return errors.New("bad Huffman table")
				}
				t.symbols[n] = s
				if free := lookBits - length; free >= 0 {
					for i := range 1 << free {
						t.look[int(code)<<free+i] = uint16(length)<<8 | uint16(s)
					}
				}
				code, n = code+1, n+1
			}
			if count > 0 {
				t.most[length] = code<<(16-length) - 1
			}
			code <<= 1
		}
		d.huffman[class][to] = t
		b = symbols[n:]
	}
	return nil
}

// bits reads the entropy-coded data of a scan: bytes up to a marker, where 0xff 0 stands for 0xff.
type bits struct {
	data []byte
	at   int
	acc  uint64 // the low n bits are still to be read
	n    uint
	// padding is how many of them, at the end, were made up after the data: to read one is an error, to look is none.
	padding uint
}

// fill makes n at least 32.
func (b *bits) fill() {
	for b.n < 32 {
		if b.at+4 <= len(b.data) {
			x := binary.BigEndian.Uint32(b.data[b.at:])
			if (^x-0x01010101)&x&0x80808080 == 0 { // no byte is 0xff
				b.acc, b.n, b.at = b.acc<<32|uint64(x), b.n+32, b.at+4
				return
			}
		}
		if b.at >= len(b.data) || b.data[b.at] == 0xff && (b.at+1 >= len(b.data) || b.data[b.at+1] != 0) {
			b.acc, b.n, b.padding = b.acc<<32, b.n+32, b.padding+32
			return
		}
		v := b.data[b.at]
		b.acc, b.n, b.at = b.acc<<8|uint64(v), b.n+8, b.at+1
		if v == 0xff {
			b.at++
		}
	}
}

// overrun tells that more was read than there is.
func (b *bits) overrun() bool { return b.padding > b.n }

// symbol reads a code. At least 16 bits are left in acc after it. ok is false when the bits are no code.
func (b *bits) symbol(t *table) (s uint8, ok bool) {
	if b.n < 32 {
		b.fill()
	}
	if e := t.look[b.acc>>(b.n-lookBits)&(1<<lookBits-1)]; e != 0 {
		b.n -= uint(e >> 8)
		return uint8(e), true
	}
	return b.longSymbol(t)
}

func (b *bits) longSymbol(t *table) (s uint8, ok bool) {
	code := int32(b.acc >> (b.n - 16) & 0xffff)
	for length := lookBits + 1; length <= 16; length++ {
		if code <= t.most[length] {
			b.n -= uint(length)
			return t.symbols[uint8(t.offset[length]+code>>(16-length))], true
		}
	}
	return 0, false
}

// receive reads up to 16 bits, which must be in acc.
func (b *bits) receive(n uint8) int32 {
	b.n -= uint(n)
	return int32(b.acc >> b.n & (1<<n - 1))
}

// extended reads a number of n bits, at least 1: those that begin with a 0 are negative.
func (b *bits) extended(n uint8) int32 {
	v := b.receive(n)
	if v < 1<<(n-1) {
		v += -1<<n + 1
	}
	return v
}

func (b *bits) bit() bool {
	if b.n == 0 {
		b.fill()
	}
	b.n--
	return b.acc>>b.n&1 != 0
}
