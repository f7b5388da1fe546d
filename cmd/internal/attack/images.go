package attack

import (
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"hash/crc32"

	"github.com/mmserve/mmserve/client"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

func imageAttacks() []Attack {
	const large = 6000 // MiB that 6 MB unpack to
	return []Attack{
		{Name: "wide image", Once: image(func() []byte { return png(64_000_000, 1) })},
		{Name: "tall image", Once: image(func() []byte { return png(1, 64_000_000) })},
		{Name: "long image", Once: image(func() []byte { return png(30_000, 1) })},
		{Name: "large image", Once: image(func() []byte { return png(60_000, 60_000) })},
		{Name: "zTXt", Once: image(func() []byte {
			return png(16, 16,
				chunk("zTXt", append([]byte("k\x00\x00"), bomb(large)...)))
		})},
		{Name: "iTXt", Once: image(func() []byte {
			return png(16, 16, chunk("iTXt", append([]byte("k\x00\x01\x00\x00\x00"), bomb(large)...)))
		})},
		{Name: "iCCP", Once: image(func() []byte {
			return png(16, 16,
				chunk("iCCP", append([]byte("k\x00\x00"), bomb(large)...)))
		})},
		{Name: "eXIf", Once: image(func() []byte {
			return png(16, 16,
				chunk("eXIf", append([]byte("II*\x00"), make([]byte, 60<<20)...)))
		})},
		{Name: "a million chunks", Once: image(func() []byte {
			return png(16, 16,
				bytes.Repeat(chunk("tEXt", []byte("k\x00")), 1_000_000))
		})},
		{Name: "small pixels, endless data", Once: image(func() []byte { return pngOf(16, 16, bomb(large)) })},
	}
}

// image sends an image, which is made once.
func image(file func() []byte) func(ctx context.Context, addr string) string {
	return request(func(in *pb.GenerateRequest) {
		in.GetChat().Messages[0].Parts = append(in.GetChat().Messages[0].Parts, client.ImageBytes(file()))
	})
}

// png is a black, grey image of 8 bits; between are further chunks before its pixels.
func png(w, h int, between ...[]byte) []byte {
	return pngOf(w, h, zeros(h*(w+1)), between...) // a filter byte before each row
}

func pngOf(w, h int, data []byte, between ...[]byte) []byte {
	head := binary.BigEndian.AppendUint32(nil, uint32(w))
	head = binary.BigEndian.AppendUint32(head, uint32(h))
	out := append([]byte("\x89PNG\r\n\x1a\n"), chunk("IHDR", append(head, 8, 0, 0, 0, 0))...)
	for _, c := range between {
		out = append(out, c...)
	}
	out = append(out, chunk("IDAT", data)...)
	return append(out, chunk("IEND", nil)...)
}

func chunk(kind string, data []byte) []byte {
	out := binary.BigEndian.AppendUint32(nil, uint32(len(data)))
	out = append(append(out, kind...), data...)
	return binary.BigEndian.AppendUint32(out, crc32.ChecksumIEEE(out[4:]))
}

// bomb is the zlib stream of so many MiB of zeros, a thousandth of their size.
func bomb(mib int) []byte { return zeros(mib << 20) }

// zeros is the zlib stream of n zeros. Adler-32 of them is n mod 65521, then 1.
func zeros(n int) []byte {
	out := append([]byte{0x78, 0xda}, bytes.Repeat(block(1<<20), n>>20)...)
	out = append(out, block(n&(1<<20-1))...)
	out = append(out, 1, 0, 0, 0xff, 0xff) // a last, empty block
	return binary.BigEndian.AppendUint32(out, uint32(n%65521)<<16|1)
}

// block is n zeros as deflate blocks that are not the last and end on a byte, so that they can be repeated.
func block(n int) []byte {
	var out bytes.Buffer
	f, _ := flate.NewWriter(&out, flate.BestCompression) // the level is a valid one
	f.Write(make([]byte, n))
	f.Flush()
	return out.Bytes()
}
