package imaging

import (
	"bytes"
	"compress/zlib"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// The decoder is our own: image/png refuses files that Pillow and browsers show, and cannot be told to stop.

const pngSignature = "\x89PNG\r\n\x1a\n"

// Budgets of a file's metadata. Chunks beside the pixels are walked over; only text that can hold an orientation is
// inflated.
const (
	maxPNGChunks   = 1 << 16 // beside those of pixels
	maxPNGInflates = 8
	maxInflated    = 1 << 20 // as in Pillow, which refuses more
)

// pngFile is what is known of a PNG before its pixels.
type pngFile struct {
	w, h       int
	depth      int
	channels   int
	colorType  byte
	interlaced bool
	palette    []byte
	meta       metadata
	raw        []byte // the hex text of an EXIF block
	inflates   int
	data       []byte // the chunks from the first of pixels on
	first      string // its type
	// x, y, bw and bh are where an animation's first frame lies, the whole image without one.
	x, y, bw, bh int
}

// pngChunk reads the chunk at the beginning of data and gives what follows it. A chunk that is cut off has ok false.
func pngChunk(data []byte) (id string, payload, rest []byte, ok bool) {
	if len(data) < 8 {
		return "", nil, nil, false
	}
	n := uint64(binary.BigEndian.Uint32(data))
	if n > uint64(len(data)-8) {
		return string(data[4:8]), data[8:], nil, false
	}
	rest = data[8+n:]
	return string(data[4:8]), data[8 : 8+n], rest[min(4, len(rest)):], true
}

// isChunkID holds a chunk's type to what Pillow takes for one.
func isChunkID(id string) bool {
	for i := range len(id) {
		c := id[i]
		if !(c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c == '_') {
			return false
		}
	}
	return len(id) == 4
}

func openPNG(ctx context.Context, data []byte) (*source, error) {
	f := &pngFile{}
	rest := data[len(pngSignature):]
	for n := 0; ; n++ {
		if n > maxPNGChunks {
			return nil, tooMany("chunks before the pixels", n, maxPNGChunks)
		}
		id, payload, after, ok := pngChunk(rest)
		if !isChunkID(id) {
			return nil, io.ErrUnexpectedEOF
		}
		if id == "IDAT" || id == "fdAT" {
			f.data, f.first = rest, id
			break
		}
		if !ok || len(after) == 0 && len(rest) < 12+len(payload) {
			return nil, io.ErrUnexpectedEOF
		}
		if id == "IEND" {
			return nil, errors.New("it has no pixels")
		}
		sum := crc32.ChecksumIEEE(rest[4 : 8+len(payload)])
		if sum != binary.BigEndian.Uint32(rest[8+len(payload):]) {
			return nil, errors.New("a chunk before the pixels has a bad checksum")
		}
		if err := f.chunk(id, payload); err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		rest = after
	}
	if f.channels == 0 {
		return nil, errors.New("no header of a known kind comes before the pixels")
	}
	// An orientation may come after the pixels.
	return f.source(ctx)
}

func (f *pngFile) source(ctx context.Context) (*source, error) {
	rest := f.data
	for n := 0; len(rest) > 0; {
		id, payload, after, ok := pngChunk(rest)
		if !isChunkID(id) || !ok && id != "eXIf" {
			break
		}
		if id == "IEND" || id == "fcTL" {
			break
		}
		if id != "IDAT" {
			if n++; n > maxPNGChunks {
				return nil, tooMany("chunks after the pixels", n, maxPNGChunks)
			}
			if ok && metadataChunk(id) {
				if err := f.chunk(id, payload); err != nil {
					return nil, err
				}
			}
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		rest = after
	}
	if f.bw == 0 && f.bh == 0 {
		f.bw, f.bh = f.w, f.h
	}
	if f.meta.exif == nil && f.raw != nil {
		f.meta.exif = unhexProfile(f.raw)
	}
	rowBytes := Bytes(2, f.channels, 2, f.w) // two rows of the file
	s := &source{
		w: f.w, h: f.h, orientation: f.meta.orientation(),
		bytes: Sum(Bytes(3, f.w, f.h), rowBytes, 256<<10), decode: f.decode,
	}
	if !f.interlaced && f.bw == f.w && f.bh == f.h {
		s.strips, s.stripped = f.strips, Sum(stripBytes, rowBytes, 256<<10)
	}
	return s, nil
}

func metadataChunk(id string) bool {
	return id == "eXIf" || id == "tEXt" || id == "zTXt" || id == "iTXt"
}

// chunk reads a chunk other than those of pixels.
func (f *pngFile) chunk(id string, b []byte) error {
	switch id {
	case "IHDR":
		return f.header(b)
	case "PLTE":
		if f.colorType == 3 {
			f.palette = b
		}
	case "fcTL":
		return f.frame(b)
	case "eXIf":
		f.meta.exif = b
	case "tEXt":
		if key, text, ok := bytes.Cut(b, []byte{0}); ok {
			f.text(string(key[:min(len(key), 64)]), text)
		}
	case "zTXt":
		if key, text, ok := bytes.Cut(b, []byte{0}); ok && len(text) > 0 && wantedText(key) {
			text, err := f.inflate(text[1:])
			if err != nil {
				return err
			}
			f.text(string(key), text)
		}
	case "iTXt":
		return f.internationalText(b)
	}
	return nil
}

// internationalText reads a keyword, two bytes of flags, a language, the keyword translated, and the text.
func (f *pngFile) internationalText(b []byte) error {
	key, b, ok := bytes.Cut(b, []byte{0})
	if !ok || len(b) < 2 || !wantedText(key) {
		return nil
	}
	compressed, method := b[0] != 0, b[1]
	parts := bytes.SplitN(b[2:], []byte{0}, 3)
	if len(parts) < 3 {
		return nil
	}
	text := parts[2]
	if compressed {
		if method != 0 {
			return nil
		}
		var err error
		if text, err = f.inflate(text); err != nil || text == nil {
			return err
		}
	}
	f.text(string(key), text)
	return nil
}

const (
	keyRawProfile = "Raw profile type exif"
	keyXMP        = "XML:com.adobe.xmp"
)

func wantedText(key []byte) bool { return string(key) == keyRawProfile || string(key) == keyXMP }

func (f *pngFile) text(key string, text []byte) {
	switch key {
	case keyRawProfile:
		f.raw = text
	case keyXMP:
		f.meta.xmp = text
	}
}

// inflate decompresses a text within the file's budget. Damage gives nothing.
func (f *pngFile) inflate(b []byte) ([]byte, error) {
	if f.inflates++; f.inflates > maxPNGInflates {
		return nil, tooMany("compressed texts that may hold an orientation", f.inflates, maxPNGInflates)
	}
	r, err := zlib.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, nil
	}
	out, err := io.ReadAll(io.LimitReader(r, maxInflated+1))
	if len(out) > maxInflated {
		return nil, fmt.Errorf("a compressed text is longer than %d bytes", maxInflated)
	}
	if err != nil {
		return nil, nil
	}
	return out, nil
}

// unhexProfile decodes "\nexif\n<length>\n<hex in lines>" as far as it is sound.
func unhexProfile(text []byte) []byte {
	lines := bytes.SplitN(text[:min(len(text), 3*maxMetadata)], []byte("\n"), 4)
	if len(lines) < 4 {
		return nil
	}
	digits := make([]byte, 0, min(len(lines[3]), 2*maxMetadata))
	for _, c := range lines[3] {
		if blank := c == ' ' || c >= '\t' && c <= '\r'; !blank && len(digits) < cap(digits) {
			digits = append(digits, c)
		}
	}
	n, _ := hex.Decode(digits, digits[:len(digits)&^1])
	return digits[:n]
}

// pngKinds are the depths that each colour type may have, and its channels.
var pngKinds = map[byte]struct {
	channels int
	depths   string
}{
	0: {1, "\x01\x02\x04\x08\x10"}, 2: {3, "\x08\x10"}, 3: {1, "\x01\x02\x04\x08"}, 4: {2, "\x08\x10"}, 6: {4, "\x08\x10"},
}

func (f *pngFile) header(b []byte) error {
	if len(b) < 13 {
		return io.ErrUnexpectedEOF
	}
	w, h := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	if w > 1<<31-1 || h > 1<<31-1 {
		return fmt.Errorf("%d×%d pixels are too many", w, h)
	}
	kind, ok := pngKinds[b[9]]
	if !ok || bytes.IndexByte([]byte(kind.depths), b[8]) < 0 {
		return fmt.Errorf("colour type %d of %d bits does not exist", b[9], b[8])
	}
	if b[11] != 0 {
		return fmt.Errorf("filter method %d does not exist", b[11])
	}
	f.w, f.h = int(w), int(h)
	f.depth, f.colorType, f.channels, f.interlaced = int(b[8]), b[9], kind.channels, b[12] != 0
	return nil
}

// frame reads where an animation's frame lies. The last before the pixels counts.
func (f *pngFile) frame(b []byte) error {
	if len(b) < 26 {
		return io.ErrUnexpectedEOF
	}
	at := func(i int) int64 { return int64(binary.BigEndian.Uint32(b[i:])) }
	w, h, x, y := at(4), at(8), at(12), at(16)
	if x+w > int64(f.w) || y+h > int64(f.h) || w == 0 || h == 0 {
		return fmt.Errorf("a frame of %d×%d at %d,%d in an image of %d×%d", w, h, x, y, f.w, f.h)
	}
	f.x, f.y, f.bw, f.bh = int(x), int(y), int(w), int(h)
	return nil
}

// pngPixels reads the payloads of chunks of pixels, one after the other.
type pngPixels struct {
	meter
	chunks []byte
	chunk  []byte // what is left of one
	window []byte // the part of it that the meter knows
}

func newPNGPixels(ctx context.Context, chunks []byte, rowBytes int) *pngPixels {
	return &pngPixels{meter: *newMeter(ctx, nil, rowBytes), chunks: chunks}
}

func (r *pngPixels) Read(b []byte) (int, error) {
	const often = 64 << 10
	for len(r.window) == 0 {
		n := min(len(r.chunk), often)
		if err := r.take(n); err != nil {
			return 0, err
		}
		if r.window, r.chunk = r.chunk[:n], r.chunk[n:]; n > 0 {
			break
		}
		id, payload, rest, ok := pngChunk(r.chunks)
		if id != "IDAT" && id != "fdAT" {
			return 0, io.ErrUnexpectedEOF
		}
		if id == "fdAT" {
			payload = payload[min(4, len(payload)):]
		}
		if r.chunk, r.chunks = payload, rest; !ok && len(payload) == 0 {
			return 0, io.ErrUnexpectedEOF
		}
	}
	n := copy(b, r.window)
	r.window = r.window[n:]
	return n, nil
}

// ReadByte makes r what compress/flate reads without a buffer of its own.
func (r *pngPixels) ReadByte() (byte, error) {
	if len(r.window) == 0 {
		var one [1]byte
		_, err := r.Read(one[:])
		return one[0], err
	}
	c := r.window[0]
	r.window = r.window[1:]
	return c, nil
}

// adam7 are the passes of an interlaced image: where each begins and its steps.
var adam7 = [7]struct{ x, y, dx, dy int }{
	{0, 0, 8, 8}, {4, 0, 8, 8}, {0, 4, 4, 8}, {2, 0, 4, 4}, {0, 2, 2, 4}, {1, 0, 2, 2}, {0, 1, 1, 2},
}

// decode reads the pixels. As in Pillow, data that end early leave the rest black where the stream says that it ends,
// and checksums of pixels are not looked at.
func (f *pngFile) decode(ctx context.Context) (*RGB, error) {
	data := newPNGPixels(ctx, f.data, f.rowBytes())
	z, err := zlib.NewReader(data)
	if err != nil {
		return nil, pngError(err)
	}
	defer z.Close()
	p := blackRGB(f.w, f.h)
	put := f.putter()
	rows := &pngRows{z: z, data: data, bpp: max(1, f.depth*f.channels/8)}
	passes := adam7[:]
	if !f.interlaced {
		passes = adam7[:1]
	}
	for i, pass := range passes {
		if !f.interlaced {
			pass.x, pass.y, pass.dx, pass.dy = 0, 0, 1, 1
		}
		n := (f.bw - pass.x + pass.dx - 1) / pass.dx
		if n <= 0 || pass.y >= f.bh {
			continue
		}
		rows.begin((n*f.depth*f.channels + 7) / 8)
		for y := pass.y; y < f.bh; y += pass.dy {
			row, err := rows.next()
			if errors.Is(err, io.EOF) && (i > 0 || y > pass.y || !f.interlaced) {
				return p, nil
			}
			if err != nil {
				return nil, pngError(err)
			}
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			put(p.Row(f.y + y)[3*(f.x+pass.x):], row, n, 3*pass.dx)
		}
	}
	return p, nil
}

// strips is decode of an image that is not interlaced and has no frame.
func (f *pngFile) strips(ctx context.Context, yield func(*RGB) error) error {
	data := newPNGPixels(ctx, f.data, f.rowBytes())
	z, err := zlib.NewReader(data)
	if err != nil {
		return pngError(err)
	}
	defer z.Close()
	put := f.putter()
	rows := &pngRows{z: z, data: data, bpp: max(1, f.depth*f.channels/8)}
	rows.begin(f.rowBytes())
	ended := false
	return eachStrip(f.w, f.h, func(_ int, strip *RGB) error {
		for y := range strip.H {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			var row []byte
			if !ended {
				row, err = rows.next()
				ended = errors.Is(err, io.EOF)
			}
			switch {
			case ended:
				clear(strip.Row(y))
			case err != nil:
				return pngError(err)
			default:
				put(strip.Row(y), row, f.w, 3)
			}
		}
		return yield(strip)
	})
}

// rowBytes are those of a whole row of pixels.
func (f *pngFile) rowBytes() int { return (f.w*f.depth*f.channels + 7) / 8 }

func pngError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return io.ErrUnexpectedEOF
	}
	if errors.Is(err, errNoPixels) {
		return err
	}
	return errors.New("the pixels are damaged")
}

// pngRows undoes the filters.
type pngRows struct {
	z              io.Reader
	data           *pngPixels
	bpp            int
	current, above []byte
}

// begin starts a pass of rows of n bytes.
func (r *pngRows) begin(n int) {
	if cap(r.current) < 1+n {
		r.current, r.above = make([]byte, 1+n), make([]byte, 1+n)
	}
	r.current, r.above = r.current[:1+n], r.above[:1+n]
	clear(r.above)
	clear(r.current)
}

// next gives a row until it is called again. io.EOF tells that the stream says it has ended.
func (r *pngRows) next() ([]byte, error) {
	n, err := io.ReadFull(r.z, r.current)
	if err != nil {
		if n > 0 && errors.Is(err, io.ErrUnexpectedEOF) && endedCleanly(r.z) {
			return nil, io.EOF
		}
		return nil, err
	}
	r.data.made += int64(n)
	row, above, bpp := r.current[1:], r.above[1:], r.bpp
	switch r.current[0] {
	case 0:
	case 1:
		for i := bpp; i < len(row); i++ {
			row[i] += row[i-bpp]
		}
	case 2:
		for i, v := range above[:len(row)] {
			row[i] += v
		}
	case 3:
		for i := range min(bpp, len(row)) {
			row[i] += above[i] / 2
		}
		for i := bpp; i < len(row); i++ {
			row[i] += uint8((int(row[i-bpp]) + int(above[i])) / 2)
		}
	case 4:
		paethRow(row, above, bpp)
	default:
		return nil, errors.New("an unknown filter")
	}
	r.current, r.above = r.above, r.current
	return row, nil
}

// endedCleanly tells that a reader has nothing more and says so.
func endedCleanly(z io.Reader) bool {
	var one [1]byte
	n, err := z.Read(one[:])
	return n == 0 && err == io.EOF
}

// paethRow undoes the fourth filter.
func paethRow(row, above []byte, bpp int) {
	above = above[:len(row)]
	for i := range min(bpp, len(row)) {
		row[i] += above[i]
	}
	for ch := range min(bpp, len(row)) {
		a, c := int32(row[ch]), int32(above[ch])
		for i := ch + bpp; i < len(row); i += bpp {
			b := int32(above[i])
			pa, pb := b-c, a-c
			pc := pa + pb
			if pa < 0 {
				pa = -pa
			}
			if pb < 0 {
				pb = -pb
			}
			if pc < 0 {
				pc = -pc
			}
			if pa <= pb && pa <= pc {
				// a stays
			} else if pb <= pc {
				a = b
			} else {
				a = c
			}
			a = int32(uint8(a) + row[i])
			row[i] = uint8(a)
			c = b
		}
	}
}

// putter gives what writes n pixels of a row, step bytes from one to the next.
func (f *pngFile) putter() func(out, row []byte, n, step int) {
	if f.channels == 1 && f.depth <= 8 {
		return f.putIndexed(f.table())
	}
	if f.channels == 1 {
		return func(out, row []byte, n, step int) { // grey of 16 bits: clipped at 255, as Pillow converts it
			for i, o := 0, 0; i < 2*n; i, o = i+2, o+step {
				v := row[i+1]
				if row[i] != 0 {
					v = 255
				}
				out[o], out[o+1], out[o+2] = v, v, v
			}
		}
	}
	width := f.depth / 8
	pixel, green, blue := width*f.channels, width, 2*width
	if f.channels == 2 {
		green, blue = 0, 0
	}
	return func(out, row []byte, n, step int) {
		if pixel == 3 && step == 3 {
			copy(out[:3*n], row[:3*n])
			return
		}
		for i, o := 0, 0; i < pixel*n; i, o = i+pixel, o+step {
			out[o], out[o+1], out[o+2] = row[i], row[i+green], row[i+blue]
		}
	}
}

// table gives the colours by sample. Those that the palette lacks are black.
func (f *pngFile) table() (t [256][3]uint8) {
	for i := range t {
		switch {
		case f.colorType == 0:
			v := uint8(i * 255 / (1<<f.depth - 1))
			t[i] = [3]uint8{v, v, v}
		case 3*i+2 < len(f.palette):
			t[i] = [3]uint8(f.palette[3*i:])
		}
	}
	return t
}

func (f *pngFile) putIndexed(t [256][3]uint8) func(out, row []byte, n, step int) {
	depth := f.depth
	if depth == 8 {
		return func(out, row []byte, n, step int) {
			for i, o := 0, 0; i < n; i, o = i+1, o+step {
				c := &t[row[i]]
				out[o], out[o+1], out[o+2] = c[0], c[1], c[2]
			}
		}
	}
	mask := byte(1<<depth - 1)
	return func(out, row []byte, n, step int) {
		for i, o := 0, 0; i < n; i, o = i+1, o+step {
			bit := i * depth
			c := &t[row[bit/8]>>(8-depth-bit%8)&mask]
			out[o], out[o+1], out[o+2] = c[0], c[1], c[2]
		}
	}
}
