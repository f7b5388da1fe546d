package imaging

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
)

// refusedName gives the name of a format that is known and not read.
func refusedName(data []byte) (name string, ok bool) {
	if len(data) >= 12 && string(data[4:8]) == "ftyp" {
		return brand(data), true
	}
	for _, f := range []struct{ name, magic string }{
		{"JPEG XL", "\xff\x0a"}, {"JPEG XL", "\x00\x00\x00\x0cJXL \r\n\x87\n"},
		{"JPEG 2000", "\x00\x00\x00\x0cjP  \r\n\x87\n"}, {"JPEG 2000", "\xff\x4f\xff\x51"},
		{"PDF", "%PDF-"}, {"PostScript", "%!PS"}, {"PostScript", "\xc5\xd0\xd3\xc6"},
		{"Photoshop", "8BPS"}, {"OpenEXR", "\x76\x2f\x31\x01"}, {"Radiance HDR", "#?RADIANCE"}, {"QOI", "qoif"},
		{"DDS", "DDS "}, {"JPEG XR", "II\xbc\x01"}, {"ICNS", "icns"},
		{"GIMP", "gimp xcf"}, {"MNG", "\x8aMNG\r\n\x1a\n"}, {"JNG", "\x8bJNG\r\n\x1a\n"},
		{"Matroska or WebM", "\x1aE\xdf\xa3"}, {"gzip", "\x1f\x8b"}, {"ZIP", "PK\x03\x04"},
	} {
		if bytes.HasPrefix(data, []byte(f.magic)) {
			return f.name, true
		}
	}
	switch {
	case isSVG(data):
		return "SVG", true
	case len(data) >= 6 && string(data[:4]) == "\x00\x00\x02\x00" && binary.LittleEndian.Uint16(data[4:]) > 0:
		return "Windows cursor", true // a TGA, which begins so too, has zeros here
	}
	return "", false
}

// brand names a file of the ISO base media format by its brands.
func brand(data []byte) string {
	size := min(int(min(binary.BigEndian.Uint32(data), 1<<10)), len(data))
	brands := string(data[8:max(size, 12)])
	for _, b := range []struct{ mark, name string }{
		{"avif", "AVIF"}, {"avis", "AVIF"}, {"heic", "HEIC"}, {"heix", "HEIC"}, {"heim", "HEIC"}, {"heis", "HEIC"},
		{"hevc", "HEIC"}, {"hevx", "HEIC"}, {"mif1", "HEIF"}, {"msf1", "HEIF"}, {"jp2 ", "JPEG 2000"}, {"crx ", "Canon raw"},
	} {
		if strings.Contains(brands, b.mark) {
			return b.name
		}
	}
	return "MP4 or QuickTime video"
}

// isSVG looks for the root element where an XML file may have it.
func isSVG(data []byte) bool {
	head := bytes.TrimPrefix(data[:min(len(data), 4<<10)], []byte("\xef\xbb\xbf"))
	head = bytes.TrimLeft(head, " \t\r\n")
	return bytes.HasPrefix(head, []byte("<svg")) ||
		(bytes.HasPrefix(head, []byte("<?xml")) || bytes.HasPrefix(head, []byte("<!"))) && bytes.Contains(head, []byte("<svg"))
}

// Refused is the error of a file whose first bytes are those of a format that is known and not read, nil of any other.
func Refused(data []byte) error {
	if _, ok := refusedName(data); ok {
		return unknown(data)
	}
	return nil
}

// unknown is the error for a file of no format that is read.
func unknown(data []byte) error {
	if name, ok := refusedName(data); ok {
		return fmt.Errorf("%w: %s of %d bytes is not supported, convert it to JPEG or PNG", ErrImage, name, len(data))
	}
	var names []string
	for _, f := range formats {
		names = append(names, f.name)
	}
	return fmt.Errorf("%w: %d bytes of unknown format, want one of %s", ErrImage, len(data), strings.Join(names, ", "))
}
