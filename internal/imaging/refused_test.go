package imaging

import (
	"bytes"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// iso is the first box of a file of the ISO base media format.
func iso(major string, compatible ...string) []byte {
	all := strings.Join(compatible, "")
	size := "\x00\x00\x00" + string(rune(16+len(all)))
	return []byte(size + "ftyp" + major + "\x00\x00\x00\x00" + all + "\x00\x00\x00\x08mdat")
}

// unread are files of formats that are known and not read, by what they are called.
var unread = map[string][][]byte{
	"HEIC": {iso("heic", "mif1", "heic"), iso("mif1", "heic", "hevc"), iso("msf1", "hevc"), iso("heix")},
	"HEIF": {iso("mif1", "miaf")},
	"AVIF": {iso("avif", "avif", "mif1", "miaf"), iso("mif1", "avif"), iso("avis", "msf1")},
	"PDF":  {[]byte("%PDF-1.7\n%\xe2\xe3\xcf\xd3\n")},
	"SVG": {
		[]byte(`<svg xmlns="http://www.w3.org/2000/svg"/>`), []byte("\xef\xbb\xbf \n<SVG/>"),
		[]byte("<?xml version=\"1.0\"?>\n<!-- a drawing -->\n<svg/>"),
		[]byte("<!DOCTYPE svg PUBLIC \"-//W3C//DTD SVG 1.1//EN\" \"x\">\n<svg></svg>"),
	},
	"JPEG XL":         {[]byte("\xff\x0a\xfa\x1f"), []byte("\x00\x00\x00\x0cJXL \r\n\x87\n\x00\x00\x00\x14ftypjxl ")},
	"JPEG 2000":       {[]byte("\x00\x00\x00\x0cjP  \r\n\x87\n"), []byte("\xff\x4f\xff\x51\x00\x29")},
	"Photoshop (PSD)": {[]byte("8BPS\x00\x01\x00\x00")},
	"EPS":             {[]byte("%!PS-Adobe-3.0 EPSF-3.0\n%%EOF"), []byte("\xc5\xd0\xd3\xc6\x20\x00\x00\x00")},
	"PostScript":      {[]byte("%!PS-Adobe-3.0\n%%Title: EPSF")},
	"MP4 video":       {iso("isom", "isom", "iso2", "avc1", "mp41"), iso("mp42"), iso("M4V "), iso("3gp4")},
	"QuickTime video": {iso("qt  ", "qt  ")},
	"WebM video":      {[]byte("\x1aE\xdf\xa3\x9fB\x86\x81\x01B\xf7\x81\x01B\x82\x84webmB\x87")},
	"Matroska video":  {[]byte("\x1aE\xdf\xa3\xa3B\x86\x81\x01B\x82\x88matroska")},
	"AVI video":       {[]byte("RIFF\x00\x10\x00\x00AVI LIST")},
	"WAV":             {[]byte("RIFF\x00\x10\x00\x00WAVEfmt ")},
	"MPEG video":      {[]byte("\x00\x00\x01\xba\x44"), bytes.Repeat(append([]byte("G"), make([]byte, 187)...), 3)},
	"HTML": {
		[]byte("<!DOCTYPE html><html><head>"), []byte("\n\n<HTML lang=de>"), []byte("<script>location='x'</script>"),
		[]byte("<?xml version=\"1.0\"?><!DOCTYPE html><html/>"),
	},
	"XML":         {[]byte(`<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>`)},
	"JSON":        {[]byte(`{"error": {"code": 404}}`), []byte(" [\n  1, 2]"), []byte("{}"), []byte(`[{"a":1}]`)},
	"a data: URL": {[]byte("data:image/png;base64,iVBORw0KGgo=")},
	"a base64 text": {
		[]byte("/9j/4AAQSkZJRgABAQAAAQ"), []byte("iVBORw0KGgoAAAANSUhEUgAA\r\nAAE="), []byte("R0lGODlhAQAB"),
	},
	"text of 14 bytes": {[]byte("no such image\n"), []byte("\tgr\u00fc\u00dfe\r\n\u2026!")},
	"DICOM":            {append(make([]byte, 128), "DICM"...)},
	"ZIP":              {[]byte("PK\x03\x04\x14\x00")},
	"gzip":             {[]byte("\x1f\x8b\x08\x00")},
	"Git LFS pointer":  {[]byte("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")},
	"camera raw":       {[]byte("II*\x00\x10\x00\x00\x00CR\x02\x00"), iso("crx ", "crx ", "isom")},
	"Windows cursor":   {[]byte("\x00\x00\x02\x00\x01\x00\x20\x20")},
}

// Files of formats that people send and that are not read are called by their names, with what to send instead.
func TestRefusedByName(t *testing.T) {
	for name, files := range unread {
		for i, data := range files {
			_, err := ReadHeader(t.Context(), data, Limits{})
			if !errors.Is(err, ErrImage) || !strings.Contains(err.Error(), "the file is "+name+", which is no") ||
				!strings.Contains(err.Error(), "; send ") {
				t.Errorf("%s, %d: %v", name, i, err)
			}
			if _, ok := Sniff(data); ok {
				t.Errorf("%s, %d: it is taken for a format that is read", name, i)
			}
		}
	}
	if err := Refused([]byte("P3 1 1 255 0 0 0")); err != nil {
		t.Errorf("an image that is text: %v", err)
	}
}

// No file that is read is taken for one that is not, base64 of one is, and no file makes a name out of its own bytes.
func TestRefusedNone(t *testing.T) {
	files, err := filepath.Glob("../../vision/testdata/*/*/*")
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // a folder
		}
		if _, err := ReadHeader(t.Context(), data, Limits{}); err != nil {
			continue
		}
		read++
		if err := Refused(data); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		text := []byte(base64.StdEncoding.EncodeToString(data))
		if err := Refused(text); bytes.HasPrefix(text, []byte("iVBORw0KGgo")) && err == nil {
			t.Errorf("%s as base64 is not refused", file)
		}
	}
	if read < 80 {
		t.Errorf("%d files only", read)
	}
}

// FuzzRefused holds that names are ours, whatever the bytes.
func FuzzRefused(f *testing.F) {
	names := map[string]bool{"": true}
	for _, s := range signatures {
		names[s.name] = true
	}
	for _, b := range brands {
		names[b.name] = true
	}
	for name, files := range unread {
		names[strings.TrimPrefix(name, "a ")] = true
		for _, data := range files {
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		name, ok := refusedName(data)
		if !names[name] || ok != (name != "") {
			t.Errorf("it is called %q", name)
		}
		if _, read := Sniff(data); read && ok {
			t.Error("it is refused and read")
		}
		_ = unknown(data)
	})
}
