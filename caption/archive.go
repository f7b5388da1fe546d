package caption

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strings"

	"github.com/mmserve/mmserve/internal/imaging"
)

// isArchive tells whether a name is that of a tar archive, plain or gzipped.
func isArchive(path string) bool {
	p := strings.ToLower(path)
	return strings.HasSuffix(p, ".tar") || isGzipped(p)
}

func isGzipped(path string) bool {
	p := strings.ToLower(path)
	return strings.HasSuffix(p, ".tar.gz") || strings.HasSuffix(p, ".tgz")
}

// Archive lists the images in a tar archive, such as a WebDataset shard, as path/member. An archive that is cut off or
// broken is an item with an error, after those before the fault.
func Archive(path string, m Match) Source {
	return func(ctx context.Context) iter.Seq2[Item, error] {
		return func(yield func(Item, error) bool) {
			f, err := openRegular(path)
			if err != nil {
				yield(Item{Path: path, Err: err}, nil)
				return
			}
			defer f.Close()
			a := archive{path: path, match: m, file: f, yield: yield}
			if info, err := f.Stat(); err == nil {
				a.version = fileVersion(info)
			}
			if err := a.list(ctx, f); err != nil && !errors.Is(err, errStop) {
				if ctx.Err() != nil {
					yield(Item{}, ctx.Err())
					return
				}
				yield(Item{Path: path, Err: itemErrorf(codeRead, "archive: %w", err)}, nil)
			}
		}
	}
}

// archive is a tar archive that is being listed.
type archive struct {
	path    string
	version string
	match   Match
	file    *os.File // nil where members cannot be read later
	yield   func(Item, error) bool
}

func (a *archive) list(ctx context.Context, r io.Reader) error {
	if isGzipped(a.path) {
		z, err := gzip.NewReader(bufio.NewReaderSize(r, 256<<10))
		if err != nil {
			return err
		}
		r, a.file = z, nil
	}
	t := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg || !a.match.has(h.Name) {
			continue
		}
		it, err := a.item(h, t)
		if err != nil {
			return err
		}
		if !a.yield(it, nil) {
			return errStop
		}
	}
}

// item is a member. One of a plain file is read when its turn comes, others at once.
func (a *archive) item(h *tar.Header, t *tar.Reader) (Item, error) {
	limit := imaging.DefaultLimits().MaxBytes
	it := Item{Path: a.path + "/" + h.Name, Version: a.version, Size: h.Size}
	switch {
	case h.Size > limit:
		it.Err = itemErrorf(codeInvalid, "%d bytes, at most %d are allowed", h.Size, limit)
		return it, nil
	case a.file == nil:
		data, err := readLimited(t, nil, limit)
		it.Data = data
		if it.Data == nil {
			it.Data = []byte{}
		}
		return it, err
	}
	offset, err := a.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return it, err
	}
	it.Version = fmt.Sprintf("%s-%d", a.version, offset)
	it.Open = func(context.Context) (io.ReadCloser, error) {
		f, err := openRegular(a.path)
		if err != nil {
			return nil, err
		}
		return section{io.NewSectionReader(f, offset, h.Size), f}, nil
	}
	return it, nil
}

// section is a part of a file that closes the file.
type section struct {
	*io.SectionReader
	io.Closer
}
