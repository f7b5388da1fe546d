package caption

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/bmatcuk/doublestar/v4"
)

// Match says which names of a folder, a glob or an archive count as images.
type Match struct {
	// Include are glob patterns over the path or its last part; none stands for the image formats' extensions.
	Include []string
	// Exclude are glob patterns that win over Include.
	Exclude []string
}

// Check refuses a pattern that is not one.
func (m Match) Check() error {
	for _, p := range append(m.Include[:len(m.Include):len(m.Include)], m.Exclude...) {
		if !doublestar.ValidatePattern(p) {
			return fmt.Errorf("pattern %q: want a glob such as *.jpg or **/cats/*", p)
		}
	}
	return nil
}

func (m Match) has(path string) bool {
	if matchesAny(m.Exclude, path) {
		return false
	}
	if len(m.Include) == 0 {
		return isImageName(path)
	}
	return matchesAny(m.Include, path)
}

func matchesAny(patterns []string, path string) bool {
	for _, p := range patterns {
		if doublestar.MatchUnvalidated(p, path) || doublestar.MatchUnvalidated(p, filepath.Base(path)) {
			return true
		}
	}
	return false
}

// File lists a single file, whatever its name.
func File(path string) Source {
	return func(context.Context) iter.Seq2[Item, error] {
		return func(yield func(Item, error) bool) { yield(fileItem(path), nil) }
	}
}

// fileItem is the item of a path. What is no regular file is an item with an error.
func fileItem(path string) Item {
	it := Item{Path: path, Local: true, Open: func(context.Context) (io.ReadCloser, error) { return openRegular(path) }}
	info, err := os.Stat(path)
	if err == nil {
		err = regular(info)
	}
	if err != nil {
		it.Err = fileError(err)
		return it
	}
	it.Version, it.Size = fileVersion(info), info.Size()
	return it
}

func fileVersion(info fs.FileInfo) string {
	return fmt.Sprintf("%d-%d", info.Size(), info.ModTime().UnixNano())
}

// regular refuses what reading may hang on: FIFOs, sockets, devices.
func regular(info fs.FileInfo) error {
	if info.Mode().IsRegular() {
		return nil
	}
	kind := "a device"
	switch {
	case info.IsDir():
		kind = "a folder"
	case info.Mode()&fs.ModeNamedPipe != 0:
		kind = "a FIFO"
	case info.Mode()&fs.ModeSocket != 0:
		kind = "a socket"
	}
	return itemErrorf(codeInvalid, "it is %s, want a regular file", kind)
}

// openRegular opens a regular file. It never waits for the other end of a FIFO.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fileError(err)
	}
	info, err := f.Stat()
	if err == nil {
		err = regular(info)
	}
	if err != nil {
		f.Close()
		return nil, fileError(err)
	}
	return f, nil
}

// fileError gives an error of the file system the code of its row.
func fileError(err error) error {
	var known *itemError
	if errors.As(err, &known) {
		return err
	}
	var p *fs.PathError
	if errors.As(err, &p) {
		err = p.Err // the row names the path
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return &itemError{codeNotFound, err}
	case errors.Is(err, fs.ErrPermission):
		return &itemError{codePermission, err}
	case errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.ENXIO):
		return &itemError{codeInvalid, err}
	}
	return &itemError{codeRead, err}
}

// Folder lists the images below a folder, in the order of their names. Links to folders are followed, loops are not.
func Folder(dir string, m Match) Source {
	return func(ctx context.Context) iter.Seq2[Item, error] {
		return func(yield func(Item, error) bool) {
			w := walker{ctx: ctx, match: m, root: dir, yield: yield}
			if err := w.walk(dir); err != nil && !errors.Is(err, errStop) {
				yield(Item{}, err)
			}
		}
	}
}

// walker goes through folders depth first. Its memory does not grow with the size of a folder.
type walker struct {
	ctx   context.Context
	match Match
	root  string
	yield func(Item, error) bool
	above []fs.FileInfo // the folders from the root to here, to see a loop
}

func (w *walker) walk(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return w.give(Item{Path: dir, Err: fileError(err)})
	}
	for _, up := range w.above {
		if os.SameFile(up, info) {
			return nil // a link back to a folder that is being listed
		}
	}
	w.above = append(w.above, info)
	defer func() { w.above = w.above[:len(w.above)-1] }()
	names, err := sortedNames(w.ctx, dir)
	if err != nil {
		if w.ctx.Err() != nil {
			return w.ctx.Err()
		}
		return w.give(Item{Path: dir, Err: fileError(err)})
	}
	defer names.close()
	for {
		name, kind, err := names.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = w.visit(filepath.Join(dir, name), kind)
		}
		if err != nil {
			return err
		}
	}
}

// visit lists one name of a folder: what lies below it, or itself.
func (w *walker) visit(path string, kind fs.FileMode) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	if kind&fs.ModeSymlink != 0 {
		if info, err := os.Stat(path); err == nil {
			kind = info.Mode().Type()
		}
	}
	rel, _ := filepath.Rel(w.root, path)
	if kind.IsDir() {
		if matchesAny(w.match.Exclude, rel) {
			return nil
		}
		return w.walk(path)
	}
	if !w.match.has(rel) {
		return nil
	}
	return w.give(fileItem(path))
}

func (w *walker) give(it Item) error {
	if !w.yield(it, nil) {
		return errStop
	}
	return nil
}

// Glob lists the files that match a pattern with *, ?, [], {} and **, and the images below the folders that match it.
// A pattern without a match is an error.
func Glob(pattern string, m Match) Source {
	return func(ctx context.Context) iter.Seq2[Item, error] {
		return func(yield func(Item, error) bool) {
			found := false
			err := doublestar.GlobWalk(
				os.DirFS(globBase(pattern)),
				globRest(pattern),
				func(p string, d fs.DirEntry) error {
					found = true
					path := filepath.Join(globBase(pattern), p)
					s := File(path)
					if info, err := os.Stat(path); err == nil && info.IsDir() {
						s = Folder(path, m)
					}
					for it, err := range s(ctx) {
						if !yield(it, err) || err != nil {
							return errStop
						}
					}
					return ctx.Err()
				},
			)
			switch {
			case errors.Is(err, errStop):
			case err != nil:
				yield(Item{}, fmt.Errorf("glob: %w", err))
			case !found:
				yield(Item{}, fmt.Errorf("%q: no such file, and nothing matches it as a pattern", pattern))
			}
		}
	}
}

func globBase(pattern string) string {
	base, _ := doublestar.SplitPattern(pattern)
	return base
}

func globRest(pattern string) string {
	_, rest := doublestar.SplitPattern(pattern)
	return rest
}

// Read reads an item's content, at most limit bytes of it.
func Read(ctx context.Context, it Item, limit int64) ([]byte, error) {
	if it.Err != nil {
		return nil, it.Err
	}
	if it.Data != nil {
		if int64(len(it.Data)) > limit {
			return nil, itemErrorf(codeInvalid, "%d bytes, at most %d are allowed", len(it.Data), limit)
		}
		return it.Data, nil
	}
	r, err := it.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	before := statOf(r)
	if before != nil && before.Size() > limit {
		return nil, itemErrorf(codeInvalid, "%d bytes, at most %d are allowed", before.Size(), limit)
	}
	if before != nil {
		limit = before.Size() // what is written to while it is read may have no end
	}
	data, err := readLimited(r, before, limit)
	if before != nil && errors.Is(err, errTooLong) {
		return nil, &itemError{codeChanged, errChanged}
	}
	if err != nil {
		return nil, fileError(err)
	}
	if after := statOf(r); before != nil && after != nil &&
		(after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime()) || after.Size() != int64(len(data))) {
		return nil, &itemError{codeChanged, errChanged}
	}
	return data, nil
}

// errChanged is the error of a file that was written to while it was read.
var errChanged = errors.New("the file changed while it was read")

// errTooLong is the error of a content that goes on where it should have ended.
var errTooLong = errors.New("too long")

// settle is how long a file that changed while it was read is left alone before it is read again.
const settle = 200 * time.Millisecond

func readLimited(r io.Reader, info fs.FileInfo, limit int64) ([]byte, error) {
	var b []byte
	if info != nil {
		b = make([]byte, 0, info.Size()+1)
	}
	r = io.LimitReader(r, limit+1)
	for {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	if int64(len(b)) > limit {
		return nil, itemErrorf(codeInvalid, "%w: more than %d bytes, which is all that is allowed", errTooLong, limit)
	}
	return b, nil
}

func statOf(r io.Reader) fs.FileInfo {
	f, ok := r.(interface{ Stat() (fs.FileInfo, error) })
	if !ok {
		return nil
	}
	info, err := f.Stat()
	if err != nil {
		return nil
	}
	return info
}

// hasMeta tells whether a path that names nothing is meant as a pattern.
func hasMeta(path string) bool { return strings.ContainsAny(path, "*?[{") }
