package imaging

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"strings"
)

// isICO also looks at the first entry: four bytes can begin anything.
func isICO(data []byte) bool {
	if len(data) < 22 || string(data[:4]) != "\x00\x00\x01\x00" {
		return false
	}
	entries, reserved := binary.LittleEndian.Uint16(data[4:]), data[9]
	return entries > 0 && reserved == 0
}

// openICO reads the largest image of an icon, of several that of fewest colours, as Pillow does. Its mask is dropped as
// alpha is.
func openICO(ctx context.Context, data []byte) (*source, error) {
	n := int(binary.LittleEndian.Uint16(data[4:]))
	if len(data) < 6+16*n {
		return nil, io.ErrUnexpectedEOF
	}
	best, area, depth := []byte(nil), 0, 0
	side := func(b byte) int { return int(b-1) + 1 } // 0 stands for 256
	for i := range n {
		e := data[6+16*i:][:16]
		a, d := side(e[0])*side(e[1]), int(binary.LittleEndian.Uint16(e[6:]))
		if d == 0 {
			if d = 256; e[2] != 0 {
				d = bits.Len8(e[2] - 1)
			}
			if d == 0 {
				d = 256
			}
		}
		if a > area || a == area && d < depth {
			best, area, depth = e, a, d
		}
	}
	at := int64(binary.LittleEndian.Uint32(best[12:]))
	if at+40 > int64(len(data)) {
		return nil, io.ErrUnexpectedEOF
	}
	if strings.HasPrefix(string(data[at:at+8]), pngSignature) {
		s, err := openPNG(ctx, data[at:])
		if err == nil {
			s.orientation = 0
		}
		return s, err
	}
	f, err := readDIB(data, int(at), 0)
	if err != nil {
		return nil, err
	}
	if f.h /= 2; f.h < 1 {
		return nil, fmt.Errorf("an image of %d×%d with its mask", f.w, f.h)
	}
	return f.source(), nil
}
