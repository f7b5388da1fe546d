package imaging

import (
	"encoding/binary"
	"errors"
	"io"

	"github.com/ulikunitz/xz/lzma"
)

var errXZ = errors.New("a damaged xz stream")

// openXZ reads the first block of an xz stream of LZMA2 and deltas before it, which libtiff writes and
// github.com/ulikunitz/xz does not read. What comes out has at most size bytes. Reference: The .xz File Format 1.2.1,
// sections 2 and 3.
func openXZ(b []byte, size int64) (io.Reader, error) {
	const stream, lzma2, delta = 12, 0x21, 0x03
	if len(b) < stream+8 || string(b[:6]) != "\xfd7zXZ\x00" {
		return nil, errXZ
	}
	b = b[stream:]
	header := 4 * (int(b[0]) + 1)
	if b[0] == 0 || len(b) < header {
		return nil, errXZ
	}
	h, data := b[2:header-4], b[header:]
	for _, mark := range []byte{0x40, 0x80} { // sizes that may be there
		if b[1]&mark != 0 {
			if _, n := binary.Uvarint(h); n <= 0 {
				return nil, errXZ
			} else {
				h = h[n:]
			}
		}
	}
	distance := 0
	for range int(b[1]&3) + 1 {
		if len(h) < 3 || h[1] != 1 {
			return nil, errXZ
		}
		id, property := h[0], int(h[2])
		h = h[3:]
		switch {
		case id == delta && distance == 0:
			distance = property + 1
		case id == lzma2 && property <= 40:
			dictionary := int64(2|property&1) << (property/2 + 11)
			if dictionary > maxWindow {
				return nil, errors.New("an xz stream with a large dictionary")
			}
			dictionary = min(dictionary, size) // nothing lies farther back
			r, err := lzma.Reader2Config{DictCap: int(max(dictionary, lzma.MinDictCap))}.NewReader2(&byteReader{b: data})
			if err != nil {
				return nil, errXZ
			}
			return &deltas{r: r, last: make([]byte, distance)}, nil
		default:
			return nil, errXZ
		}
	}
	return nil, errXZ
}

// byteReader reads bytes that are in memory.
type byteReader struct{ b []byte }

func (r *byteReader) Read(out []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(out, r.b)
	r.b = r.b[n:]
	return n, nil
}

// deltas adds to each byte the one some way before it; with no distance it changes nothing.
type deltas struct {
	r    io.Reader
	last []byte
	at   int
}

func (d *deltas) Read(out []byte) (int, error) {
	n, err := d.r.Read(out)
	for i := range out[:n] {
		if len(d.last) > 0 {
			out[i] += d.last[d.at]
			d.last[d.at] = out[i]
			d.at = (d.at + 1) % len(d.last)
		}
	}
	return n, err
}
