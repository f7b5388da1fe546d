package jpeg

import (
	"encoding/binary"
	"errors"
	"sync"
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

// defaultTables are those of T.81, annex K.3: files of single film frames leave them out. Read once, not changed.
var defaultTables = sync.OnceValue(func() [2][4]*table {
	var d decoder
	if err := d.huffmanTables([]byte(annexK3)); err != nil {
		panic(err) // the text below is wrong
	}
	return d.huffman
})

// annexK3 is a DHT segment.
const annexK3 = "\x00\x00\x01\x05\x01\x01\x01\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00" +
	"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b" +
	"\x01\x00\x03\x01\x01\x01\x01\x01\x01\x01\x01\x01\x00\x00\x00\x00\x00" +
	"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b" +
	"\x10" +
	"\x00\x02\x01\x03\x03\x02\x04\x03\x05\x05\x04\x04\x00\x00\x01\x7d\x01\x02\x03\x00\x04\x11\x05\x12" +
	"\x21\x31\x41\x06\x13\x51\x61\x07\x22\x71\x14\x32\x81\x91\xa1\x08\x23\x42\xb1\xc1\x15\x52\xd1\xf0" +
	"\x24\x33\x62\x72\x82\x09\x0a\x16\x17\x18\x19\x1a\x25\x26\x27\x28\x29\x2a\x34\x35\x36\x37\x38\x39" +
	"\x3a\x43\x44\x45\x46\x47\x48\x49\x4a\x53\x54\x55\x56\x57\x58\x59\x5a\x63\x64\x65\x66\x67\x68\x69" +
	"\x6a\x73\x74\x75\x76\x77\x78\x79\x7a\x83\x84\x85\x86\x87\x88\x89\x8a\x92\x93\x94\x95\x96\x97\x98" +
	"\x99\x9a\xa2\xa3\xa4\xa5\xa6\xa7\xa8\xa9\xaa\xb2\xb3\xb4\xb5\xb6\xb7\xb8\xb9\xba\xc2\xc3\xc4\xc5" +
	"\xc6\xc7\xc8\xc9\xca\xd2\xd3\xd4\xd5\xd6\xd7\xd8\xd9\xda\xe1\xe2\xe3\xe4\xe5\xe6\xe7\xe8\xe9\xea" +
	"\xf1\xf2\xf3\xf4\xf5\xf6\xf7\xf8\xf9\xfa" +
	"\x11" +
	"\x00\x02\x01\x02\x04\x04\x03\x04\x07\x05\x04\x04\x00\x01\x02\x77\x00\x01\x02\x03\x11\x04\x05\x21" +
	"\x31\x06\x12\x41\x51\x07\x61\x71\x13\x22\x32\x81\x08\x14\x42\x91\xa1\xb1\xc1\x09\x23\x33\x52\xf0" +
	"\x15\x62\x72\xd1\x0a\x16\x24\x34\xe1\x25\xf1\x17\x18\x19\x1a\x26\x27\x28\x29\x2a\x35\x36\x37\x38" +
	"\x39\x3a\x43\x44\x45\x46\x47\x48\x49\x4a\x53\x54\x55\x56\x57\x58\x59\x5a\x63\x64\x65\x66\x67\x68" +
	"\x69\x6a\x73\x74\x75\x76\x77\x78\x79\x7a\x82\x83\x84\x85\x86\x87\x88\x89\x8a\x92\x93\x94\x95\x96" +
	"\x97\x98\x99\x9a\xa2\xa3\xa4\xa5\xa6\xa7\xa8\xa9\xaa\xb2\xb3\xb4\xb5\xb6\xb7\xb8\xb9\xba\xc2\xc3" +
	"\xc4\xc5\xc6\xc7\xc8\xc9\xca\xd2\xd3\xd4\xd5\xd6\xd7\xd8\xd9\xda\xe2\xe3\xe4\xe5\xe6\xe7\xe8\xe9" +
	"\xea\xf2\xf3\xf4\xf5\xf6\xf7\xf8\xf9\xfa"

func (d *decoder) huffmanTables(b []byte) error {
	for len(b) > 0 {
		if len(b) < 17 {
			return errors.New("bad DHT length")
		}
		class, to := b[0]>>4, b[0]&15
		if class > 1 || to > 3 {
			return errors.New("bad Huffman table")
		}
		if err := d.another(); err != nil {
			return err
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
	// marked tells that the data ended at a marker, not with the file.
	marked bool
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
		if b.at >= len(b.data) {
			b.acc, b.n, b.padding = b.acc<<32, b.n+32, b.padding+32
			return
		}
		v := b.data[b.at]
		if v == 0xff && !b.stuffed() {
			b.acc, b.n, b.padding = b.acc<<32, b.n+32, b.padding+32
			return
		}
		b.acc, b.n, b.at = b.acc<<8|uint64(v), b.n+8, b.at+1
	}
}

// stuffed passes over the zero after 0xff, and over repetitions of 0xff before it. It is false at a marker.
func (b *bits) stuffed() bool {
	i := b.at + 1
	for i < len(b.data) && b.data[i] == 0xff {
		i++
	}
	if i < len(b.data) && b.data[i] == 0 {
		b.at = i // the caller passes over the zero
		return true
	}
	b.at, b.marked = i-1, i < len(b.data)
	return false
}

// overrun tells that more was read than there is.
func (b *bits) overrun() bool { return b.padding > b.n }

// symbol reads a code. At least 15 bits are left in acc after it. What is no code is a 0 of 17 bits, as in libjpeg.
func (b *bits) symbol(t *table) uint8 {
	if b.n < 32 {
		b.fill()
	}
	if e := t.look[b.acc>>(b.n-lookBits)&(1<<lookBits-1)]; e != 0 {
		b.n -= uint(e >> 8)
		return uint8(e)
	}
	return b.longSymbol(t)
}

func (b *bits) longSymbol(t *table) uint8 {
	code := int32(b.acc >> (b.n - 16) & 0xffff)
	for length := lookBits + 1; length <= 16; length++ {
		if code <= t.most[length] {
			b.n -= uint(length)
			return t.symbols[uint8(t.offset[length]+code>>(16-length))]
		}
	}
	b.n -= 17
	return 0
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
