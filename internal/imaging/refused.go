package imaging

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// signatures are the first bytes of formats that are known and not read.
var signatures = []struct{ name, magic string }{
	{"JPEG XL", "\xff\x0a"}, {"JPEG XL", "\x00\x00\x00\x0cJXL \r\n\x87\n"},
	{"JPEG 2000", "\x00\x00\x00\x0cjP  \r\n\x87\n"}, {"JPEG 2000", "\xff\x4f\xff\x51"},
	{"PDF", "%PDF-"}, {"EPS", "\xc5\xd0\xd3\xc6"}, {"Photoshop (PSD)", "8BPS"}, {"OpenEXR", "\x76\x2f\x31\x01"},
	{"Radiance HDR", "#?RADIANCE"}, {"QOI", "qoif"}, {"DDS", "DDS "}, {"JPEG XR", "II\xbc\x01"}, {"ICNS", "icns"},
	{"GIMP", "gimp xcf"}, {"MNG", "\x8aMNG\r\n\x1a\n"}, {"JNG", "\x8bJNG\r\n\x1a\n"}, {"DjVu", "AT&TFORM"},
	{"Windows metafile", "\xd7\xcd\xc6\x9a"}, {"BPG", "BPG\xfb"}, {"FLIF", "FLIF"}, {"XPM", "/* XPM */"},
	{"camera raw", "FUJIFILMCCD-RAW"}, {"camera raw", "IIU\x00"}, {"camera raw", "IIRO"}, {"camera raw", "FOVb"},
	{"camera raw", "II*\x00\x10\x00\x00\x00CR"}, {"FITS", "SIMPLE  ="}, {"HDF5", "\x89HDF\r\n\x1a\n"},
	{"NumPy array", "\x93NUMPY"}, {"gzip", "\x1f\x8b"}, {"bzip2", "BZh"}, {"XZ", "\xfd7zXZ\x00"},
	{"Zstandard", "\x28\xb5\x2f\xfd"}, {"7-Zip", "7z\xbc\xaf\x27\x1c"}, {"RAR", "Rar!\x1a\x07"}, {"ZIP", "PK\x03\x04"},
	{"ZIP", "PK\x05\x06"}, {"Microsoft Office document", "\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"},
	{"MPEG video", "\x00\x00\x01\xba"}, {"MPEG video", "\x00\x00\x01\xb3"}, {"Flash video", "FLV\x01"},
	{"Ogg", "OggS"}, {"MP3", "ID3"}, {"FLAC", "fLaC"}, {"Windows Media", "\x30\x26\xb2\x75\x8e\x66\xcf\x11"},
	{"Git LFS pointer", "version https://git-lfs.github.com/spec/"},
}

// refusedName gives the name of a format that is known and not read. Text that is of no such format has none: some
// formats that are read are text.
func refusedName(data []byte) (name string, ok bool) {
	if len(data) >= 12 && string(data[4:8]) == "ftyp" {
		return brand(data), true
	}
	for _, f := range signatures {
		if bytes.HasPrefix(data, []byte(f.magic)) {
			return f.name, true
		}
	}
	switch {
	case bytes.HasPrefix(data, []byte("%!PS")):
		if line, _, _ := bytes.Cut(data[:min(len(data), 100)], []byte("\n")); bytes.Contains(line, []byte("EPSF")) {
			return "EPS", true
		}
		return "PostScript", true
	case bytes.HasPrefix(data, []byte("\x1aE\xdf\xa3")):
		if bytes.Contains(data[:min(len(data), 64)], []byte("webm")) {
			return "WebM video", true
		}
		return "Matroska video", true
	case len(data) >= 12 && string(data[:4]) == "RIFF" && string(data[8:12]) == "AVI ":
		return "AVI video", true
	case len(data) >= 12 && string(data[:4]) == "RIFF" && string(data[8:12]) == "WAVE":
		return "WAV", true
	case len(data) > 376 && data[0] == 'G' && data[188] == 'G' && data[376] == 'G' && !isGIF(data):
		return "MPEG video", true
	case len(data) >= 132 && string(data[128:132]) == "DICM":
		return "DICOM", true
	case len(data) >= 6 && string(data[:4]) == "\x00\x00\x02\x00" && binary.LittleEndian.Uint16(data[4:]) > 0:
		return "Windows cursor", true // a TGA, which begins so too, has zeros here
	}
	return markup(data)
}

// brands are those of the ISO base media format, the more telling first.
var brands = []struct {
	name  string
	marks []string
}{
	{"AVIF", []string{"avif", "avis"}},
	{"HEIC", []string{"heic", "heix", "heim", "heis", "hevc", "hevx", "hevm", "hevs"}},
	{"HEIF", []string{"mif1", "msf1", "mif2"}},
	{"JPEG 2000", []string{"jp2 ", "jpx ", "jph "}},
	{"camera raw", []string{"crx "}},
	{"QuickTime video", []string{"qt  "}},
}

// brand names a file of the ISO base media format: its first brand, then those that it is compatible with.
func brand(data []byte) string {
	size := min(int(min(binary.BigEndian.Uint32(data), 1<<10)), len(data))
	list := []string{string(data[8:12])}
	for at := 16; at+4 <= size; at += 4 {
		list = append(list, string(data[at:at+4]))
	}
	for _, b := range brands {
		if slices.ContainsFunc(list, func(mark string) bool { return slices.Contains(b.marks, mark) }) {
			return b.name
		}
	}
	return "MP4 video"
}

// markup names text that stands for something else than itself, by where it begins.
func markup(data []byte) (name string, ok bool) {
	head := bytes.TrimPrefix(data[:min(len(data), 4<<10)], []byte("\xef\xbb\xbf"))
	head = bytes.ToLower(bytes.TrimLeft(head, " \t\r\n"))
	begins := func(list ...string) bool {
		return slices.ContainsFunc(list, func(s string) bool { return bytes.HasPrefix(head, []byte(s)) })
	}
	xml := begins("<?xml", "<!")
	switch {
	case begins("<svg"), xml && bytes.Contains(head, []byte("<svg")):
		return "SVG", true
	case begins("<html", "<head", "<body", "<script", "<!doctype html"), xml && bytes.Contains(head, []byte("<html")):
		return "HTML", true
	case xml:
		return "XML", true
	case isJSON(head):
		return "JSON", true
	case begins("data:image/", "data:application/", "data:;"):
		return urlName, true
	case begins("/9j/", "ivborw0kggo", "r0lgod", "ukligr") && isBase64(head[:min(len(head), firstText)]):
		return base64Name, true
	}
	return "", false
}

const (
	urlName    = "data: URL"
	base64Name = "base64 text"
	// firstText is how much of a file tells that it is text, in bytes.
	firstText = 512
)

// isJSON looks at how a text begins.
func isJSON(head []byte) bool {
	if len(head) < 2 || head[0] != '{' && head[0] != '[' {
		return false
	}
	next := bytes.TrimLeft(head[1:], " \t\r\n")
	if len(next) == 0 {
		return false
	}
	if head[0] == '{' {
		return next[0] == '"' || next[0] == '}'
	}
	return bytes.IndexByte([]byte(`"{[]-0123456789tfn`), next[0]) >= 0
}

func isBase64(head []byte) bool {
	return bytes.Trim(head, "abcdefghijklmnopqrstuvwxyz0123456789+/=-_\r\n") == nil
}

// isText says whether a file begins as text does: whole characters, none of them a control character.
func isText(data []byte) bool {
	head := data[:min(len(data), firstText)]
	for len(head) > 0 {
		r, n := utf8.DecodeRune(head)
		cut := r == utf8.RuneError && n == 1 && len(head) < utf8.UTFMax && len(data) > firstText // a character goes on
		if r == utf8.RuneError && n == 1 && !cut || r < ' ' && r != '\t' && r != '\r' && r != '\n' || r == 0x7f {
			return false
		}
		head = head[n:]
	}
	return true
}

// Refused is the error of a file whose first bytes are those of a format that is known and not read, nil of any other.
func Refused(data []byte) error {
	if _, ok := refusedName(data); ok {
		return unknown(data)
	}
	return nil
}

// wanted are the formats to send instead.
const wanted = "send JPEG, PNG, WebP, GIF, TIFF or BMP"

// unknown is the error for a file of no format that is read.
func unknown(data []byte) error {
	name, ok := refusedName(data)
	switch {
	case name == urlName || name == base64Name:
		return fmt.Errorf("%w: the file is a %s, which is not supported; send the bytes that it stands for", ErrImage, name)
	case ok:
		return fmt.Errorf("%w: the file is %s, which is not supported; %s", ErrImage, name, wanted)
	case isText(data):
		return fmt.Errorf("%w: the file is text of %d bytes, which is no image; %s", ErrImage, len(data), wanted)
	}
	var names []string
	for _, f := range formats {
		names = append(names, f.name)
	}
	return fmt.Errorf("%w: %d bytes of unknown format, want one of %s", ErrImage, len(data), strings.Join(names, ", "))
}
