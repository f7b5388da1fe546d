package openai

import (
	"bytes"
	"encoding/base64"
	"strings"
)

// Image is an image of a message: a file's bytes, or where to get them.
type Image struct {
	// Data is the file; nil where URL is set.
	Data []byte
	// URL is an https: or http: one.
	URL string
	// Detail says how many tokens the image may cost.
	Detail Detail
	// Param is the field that the image came in, for errors.
	Param string
}

// Detail trades the tokens of an image for what can be seen in it.
type Detail int

const (
	// DetailAuto is the model's own preprocessing.
	DetailAuto Detail = iota
	// DetailLow takes the fewest tokens.
	DetailLow
	// DetailHigh takes at least those of DetailAuto.
	DetailHigh
)

var details = map[string]Detail{
	"": DetailAuto, "auto": DetailAuto, "low": DetailLow, "high": DetailHigh, "original": DetailHigh,
}

// imageURL reads a data: URL, base64 alone, or an https: or http: URL.
func (r *reading) imageURL(param string, n *node, detail string) *Image {
	d, ok := details[detail]
	if !ok {
		r.fault(strings.TrimSuffix(param, ".url")+".detail", CodeInvalidValue, "not known; want auto, low, high or original")
		return nil
	}
	img := &Image{Detail: d, Param: param}
	text := n.bytes()
	scheme, _, found := bytes.Cut(text[:min(len(text), longestScheme)], []byte(":"))
	var rest []byte
	switch {
	case !found:
		rest = text // base64 alone: it has no colon
	case bytes.EqualFold(scheme, []byte("data")):
		head, _, comma := bytes.Cut(text[:min(len(text), longestHead)], []byte(","))
		if !comma || !bytes.HasSuffix(head, []byte(";base64")) {
			r.fault(param, CodeInvalidValue, "a data: URL that is not base64; want data:image/…;base64,…")
			return nil
		}
		rest = text[len(head)+1:]
	case bytes.EqualFold(scheme, []byte("https")), bytes.EqualFold(scheme, []byte("http")):
		img.URL = string(text)
		return img
	default:
		r.fault(param, CodeInvalidValue, "a scheme that is not taken; want a data: URL, https: or http:")
		return nil
	}
	img.Data = r.base64(param, rest)
	return img
}

// longestScheme is where the colon of a URL has to be, longestHead the comma of a data: URL, in bytes.
const longestScheme, longestHead = 16, 256

// base64 decodes text, with or without padding.
func (r *reading) base64(param string, text []byte) []byte {
	if text = bytes.TrimSpace(text); len(text) == 0 {
		r.fault(param, CodeInvalidValue, "no data; want an image file in base64")
		return nil
	}
	encoding := base64.RawStdEncoding
	if bytes.HasSuffix(text, []byte("=")) {
		encoding = base64.StdEncoding
	}
	data := make([]byte, encoding.DecodedLen(len(text)))
	n, err := encoding.Decode(data, text)
	if err != nil {
		r.fault(param, CodeInvalidValue, "the data is not base64")
		return nil
	}
	return data[:n]
}
