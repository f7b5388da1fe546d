package caption

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"path/filepath"
	"strings"
	"unicode/utf8"
)

// Item is one image to ask about, as a source lists it.
type Item struct {
	// Path names the image: a path, archive/member, or URL. Any bytes but NUL.
	Path string
	// Index counts the items of a run from 0; Run sets it.
	Index int64
	// Prompt replaces the run's prompt; empty keeps it.
	Prompt string
	// Version changes when the content may have, as size and time of change of a file do. Empty: unknown.
	Version string
	// Size is the content's length in bytes, as far as the source knows; else 0.
	Size int64
	// Data is the content, where the source had to read it; else nil.
	Data []byte
	// Open reads the content. It may be called from any goroutine, more than once.
	Open func(context.Context) (io.ReadCloser, error)
	// Local tells that Path is a file, beside which a sidecar can be written.
	Local bool
	// Err is why the item cannot be read. Nil for most.
	Err error
}

// Source lists items. An error ends the listing; what is wrong with one item is in its Err.
type Source func(context.Context) iter.Seq2[Item, error]

// extensions are those of the image formats that servers take.
var extensions = map[string]bool{
	".jpg": true, ".jpeg": true, ".jpe": true, ".png": true, ".gif": true, ".bmp": true, ".tif": true, ".tiff": true,
	".webp": true,
}

// isImageName tells whether a name ends as image files do.
func isImageName(name string) bool { return extensions[strings.ToLower(filepath.Ext(name))] }

// itemError is what is wrong with one item, with the code that its row gets.
type itemError struct {
	code string
	err  error
}

func (e *itemError) Error() string { return e.err.Error() }
func (e *itemError) Unwrap() error { return e.err }

func itemErrorf(code, format string, args ...any) error {
	return &itemError{code, fmt.Errorf(format, args...)}
}

// ID is how rows name the item: its path, or where that is not UTF-8, a text that no other path has.
func (it Item) ID() string {
	if utf8.ValidString(it.Path) {
		return it.Path
	}
	return strings.ToValidUTF8(it.Path, "\uFFFD") + "#" + shortHash(it.Path)
}

// Concat lists the items of several sources, one source after the other.
func Concat(sources ...Source) Source {
	return func(ctx context.Context) iter.Seq2[Item, error] {
		return func(yield func(Item, error) bool) {
			for _, s := range sources {
				for it, err := range s(ctx) {
					if !yield(it, err) || err != nil {
						return
					}
				}
			}
		}
	}
}

// errStop ends a listing that has yielded what was asked for.
var errStop = errors.New("stop")

// Limit lists the first n items.
func Limit(s Source, n int64) Source {
	return func(ctx context.Context) iter.Seq2[Item, error] {
		return func(yield func(Item, error) bool) {
			left := n
			if left <= 0 {
				return
			}
			for it, err := range s(ctx) {
				if !yield(it, err) || err != nil {
					return
				}
				if left--; left == 0 {
					return
				}
			}
		}
	}
}

// Shard lists every item of which this is the shard: the path's hash modulo n is i. All shards together list every item
// once, in whatever order each of them lists.
func Shard(s Source, i, n int) Source {
	return filter(s, func(it Item) bool { return pathShard(it.Path, n) == i })
}

// filter lists the items that keep wants.
func filter(s Source, keep func(Item) bool) Source {
	return func(ctx context.Context) iter.Seq2[Item, error] {
		return func(yield func(Item, error) bool) {
			for it, err := range s(ctx) {
				if err == nil && !keep(it) {
					continue
				}
				if !yield(it, err) || err != nil {
					return
				}
			}
		}
	}
}
