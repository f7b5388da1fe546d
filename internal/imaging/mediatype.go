package imaging

import (
	"mime"
	"strings"
)

// mediaTypes are the formats' names in HTTP, the registered one first.
var mediaTypes = map[string][]string{
	"jpeg": {"image/jpeg", "image/jpg", "image/pjpeg"},
	"png":  {"image/png", "image/x-png", "image/apng"},
	"gif":  {"image/gif"},
	"bmp":  {"image/bmp", "image/x-bmp", "image/x-ms-bmp"},
	"tiff": {"image/tiff", "image/tif", "image/x-tiff"},
	"webp": {"image/webp"},
	"ico":  {"image/vnd.microsoft.icon", "image/x-icon", "image/ico"},
	"ppm": {"image/x-portable-anymap", "image/x-portable-pixmap", "image/x-portable-graymap",
		"image/x-portable-bitmap", "image/x-portable-floatmap"},
	"tga": {"image/x-tga", "image/x-targa", "image/tga"},
}

// octets is the media type of a file of which nothing is known.
const octets = "application/octet-stream"

// MediaType is the media type of an image file, as its first bytes tell it: image/jpeg, say.
func MediaType(data []byte) string {
	if f := find(data); f != nil {
		return mediaTypes[f.name][0]
	}
	return octets
}

// IsMediaType tells whether a caller's claim holds of a file that MediaType found a type for. No claim, and
// application/octet-stream, hold of all.
func IsMediaType(claim, found string) bool {
	if claim == "" {
		return true
	}
	claim, _, err := mime.ParseMediaType(claim)
	if err != nil {
		return false
	}
	if claim == octets {
		return true
	}
	for _, names := range mediaTypes {
		if names[0] != found {
			continue
		}
		for _, name := range names {
			if strings.EqualFold(name, claim) {
				return true
			}
		}
	}
	return false
}
