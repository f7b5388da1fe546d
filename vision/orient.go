package vision

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"encoding/hex"
	"image"
	"io"
	"iter"
	"regexp"

	"github.com/disintegration/imaging"
)

// turn undoes an orientation of 2 to 8.
var turn = [9]func(image.Image) *image.NRGBA{
	2: imaging.FlipH, 3: imaging.Rotate180, 4: imaging.FlipV,
	5: imaging.Transpose, 6: imaging.Rotate270, 7: imaging.Transverse, 8: imaging.Rotate90,
}

// orient turns a picture upright. The result may be p itself.
func orient(p *RGB, exif int) *RGB {
	if exif < 2 {
		return p
	}
	m := image.NewNRGBA(image.Rect(0, 0, p.W, p.H))
	for i, o := 0, 0; i < len(p.Pix); i, o = i+3, o+4 {
		m.Pix[o], m.Pix[o+1], m.Pix[o+2], m.Pix[o+3] = p.Pix[i], p.Pix[i+1], p.Pix[i+2], 255
	}
	m = turn[exif](m)
	p.W, p.H = m.Rect.Dx(), m.Rect.Dy()
	for i, o := 0, 0; i < len(p.Pix); i, o = i+3, o+4 {
		p.Pix[i], p.Pix[i+1], p.Pix[i+2] = m.Pix[o], m.Pix[o+1], m.Pix[o+2]
	}
	return p
}

var exifMark = []byte("Exif\x00\x00")

// exifOrientation reads tag 0x112 of the first directory of an EXIF block, which is a small TIFF file. It gives 1 to
// 8, or 0 when the tag is missing or damaged.
func exifOrientation(b []byte) int {
	b = bytes.TrimPrefix(b, exifMark)
	if v := readTIFF(b).value(tagOrientation, 0); v <= 8 {
		return int(v)
	}
	return 0
}

var xmpTag = regexp.MustCompile(`tiff:Orientation(?:="|>)([1-8])`)

// xmpOrientation looks for the tag as Pillow does, without parsing the XML.
func xmpOrientation(b []byte) int {
	if m := xmpTag.FindSubmatch(b); m != nil {
		return int(m[1][0] - '0')
	}
	return 0
}

// orientations keeps the first word of each kind; EXIF counts before XMP.
type orientations struct{ exif, xmp int }

func (o *orientations) addEXIF(b []byte) {
	if o.exif == 0 {
		o.exif = exifOrientation(b)
	}
}

func (o *orientations) addXMP(b []byte) {
	if o.xmp == 0 {
		o.xmp = xmpOrientation(b)
	}
}

func (o *orientations) value() int {
	if o.exif != 0 {
		return o.exif
	}
	return o.xmp
}

func jpegOrientation(data []byte) int {
	var o orientations
	for marker, b := range jpegSegments(data) {
		switch {
		case marker == markerSOS:
			return o.value()
		case marker == markerAPP1 && bytes.HasPrefix(b, exifMark):
			o.addEXIF(b)
		case marker == markerAPP1:
			if b, ok := bytes.CutPrefix(b, []byte("http://ns.adobe.com/xap/1.0/\x00")); ok {
				o.addXMP(b)
			}
		}
	}
	return o.value()
}

func webpOrientation(data []byte) int {
	var o orientations
	for c := range webpChunks(data) {
		switch c.id {
		case "EXIF":
			o.addEXIF(c.payload)
		case "XMP ":
			o.addXMP(c.payload)
		}
	}
	return o.value()
}

// pngChunks gives the whole chunks of a PNG by type.
func pngChunks(data []byte) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		for data = data[8:]; len(data) >= 12; {
			n := uint64(binary.BigEndian.Uint32(data))
			if n > uint64(len(data)-12) || !yield(string(data[4:8]), data[8:8+n]) {
				return
			}
			data = data[12+n:]
		}
	}
}

// pngOrientation reads the eXIf chunk of the standard, the text chunk that ImageMagick writes instead, and XMP.
func pngOrientation(data []byte) int {
	var o orientations
	for id, b := range pngChunks(data) {
		switch id {
		case "eXIf":
			o.addEXIF(b)
		case "tEXt":
			if text, ok := bytes.CutPrefix(b, rawProfile); ok {
				o.addEXIF(unhexProfile(text))
			}
		case "zTXt":
			if b, ok := bytes.CutPrefix(b, rawProfile); ok && len(b) > 0 {
				o.addEXIF(unhexProfile(inflate(b[1:])))
			}
		case "iTXt":
			if b, ok := bytes.CutPrefix(b, []byte("XML:com.adobe.xmp\x00")); ok {
				o.addXMP(internationalText(b))
			}
		}
	}
	return o.value()
}

var rawProfile = []byte("Raw profile type exif\x00")

// unhexProfile decodes "\nexif\n<length>\n<hex in lines>" as far as it is sound.
func unhexProfile(text []byte) []byte {
	fields := bytes.Fields(text)
	if len(fields) < 3 {
		return nil
	}
	digits := bytes.Join(fields[2:], nil)
	b := make([]byte, len(digits)/2)
	n, _ := hex.Decode(b, digits[:len(digits)&^1])
	return b[:n]
}

// internationalText gives the text of an iTXt chunk after its keyword: two bytes of flags, language, translated
// keyword, text.
func internationalText(b []byte) []byte {
	if len(b) < 2 {
		return nil
	}
	compressed := b[0] == 1
	parts := bytes.SplitN(b[2:], []byte{0}, 3)
	if len(parts) < 3 {
		return nil
	}
	if compressed {
		return inflate(parts[2])
	}
	return parts[2]
}

// inflate decompresses what fits into 64 KiB: metadata before its orientation is far shorter.
func inflate(b []byte) []byte {
	r, err := zlib.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil
	}
	out, _ := io.ReadAll(io.LimitReader(r, 64<<10))
	return out
}
