package imaging

import (
	"bytes"
	"regexp"
)

var exifMark = []byte("Exif\x00\x00")

// exifOrientation reads tag 0x112 of the first directory of an EXIF block, which is a small TIFF file. found tells that
// the tag is there, whatever it says: 1 to 8, 0 for anything else. Pillow takes a number of any kind, not a byte or
// text.
func exifOrientation(b []byte) (v int, found bool) {
	for bytes.HasPrefix(b, exifMark) {
		b = b[len(exifMark):]
	}
	d, err := readTIFF(b)
	if err != nil {
		return 0, false
	}
	return d.orientation()
}

func (d tiffDirectory) orientation() (v int, found bool) {
	if n, ok := d.value(tagOrientation); ok && n >= 1 && n <= 8 {
		return int(n), true
	}
	return 0, d.has(tagOrientation)
}

var xmpTag = regexp.MustCompile(`tiff:Orientation(?:="|>)([0-9])`)

// xmpOrientation looks for the tag as Pillow does, without parsing the XML.
func xmpOrientation(b []byte) int {
	if m := xmpTag.FindSubmatch(b); m != nil && m[1][0] >= '1' && m[1][0] <= '8' {
		return int(m[1][0] - '0')
	}
	return 0
}

// maxMetadata bounds what is read of an EXIF block and of XMP, in every format: a camera's EXIF has 64 KiB at most, and
// the orientation stands in its first directory.
const maxMetadata = 1 << 20

// metadata are the blocks that may hold an orientation; EXIF counts before XMP. Both are parts of the file, not copies.
type metadata struct{ exif, xmp []byte }

func (m metadata) orientation() int {
	if v, found := exifOrientation(head(m.exif)); found {
		return v
	}
	return xmpOrientation(head(m.xmp))
}

// head is what is read of a block.
func head(b []byte) []byte { return b[:min(len(b), maxMetadata)] }
