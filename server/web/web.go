// Package web is the playground: the built files of a page that asks the HTTP API of the server it came from. Its
// source is in src; `npm run build` writes dist, which is committed, so that a build of mmserve needs no Node.
package web

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"path"
)

// Policy is the Content-Security-Policy of the page: its own scripts, styles and server, images that its user picked,
// and no place where text could become markup or script.
const Policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; " +
	"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; " +
	"require-trusted-types-for 'script'; trusted-types 'none'"

//go:embed dist
var dist embed.FS

// File is one that a browser gets.
type File struct {
	// Type is its media type, ETag its validator: weak, as both bodies have the same.
	Type, ETag string
	// Body is what it holds, Zipped the same as gzip has it.
	Body, Zipped []byte
}

// Prefix begins the paths of all files but the page's, which is "/".
const Prefix = "/web/"

// types are the media types of files by their extensions; others are not served.
var types = map[string]string{
	".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
	".svg": "image/svg+xml",
}

// Files gives the page's files by their paths.
func Files() map[string]*File {
	entries, err := dist.ReadDir("dist")
	if err != nil {
		panic(err) // it is part of the program
	}
	list := make(map[string]*File, len(entries))
	for _, e := range entries {
		body, err := dist.ReadFile("dist/" + e.Name())
		if err != nil {
			panic(err)
		}
		sum := sha256.Sum256(body)
		f := &File{
			Type: types[path.Ext(e.Name())], ETag: `W/"` + hex.EncodeToString(sum[:16]) + `"`, Body: body, Zipped: zipped(body),
		}
		if e.Name() == "index.html" {
			list["/"] = f
		} else if f.Type != "" {
			list[Prefix+e.Name()] = f
		}
	}
	return list
}

func zipped(body []byte) []byte {
	var b bytes.Buffer
	w, _ := gzip.NewWriterLevel(&b, gzip.BestCompression) // a level that there is
	_, _ = w.Write(body)                                  // to memory
	_ = w.Close()
	return b.Bytes()
}
