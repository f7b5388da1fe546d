package caption

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// maxListLine bounds an entry of a list.
const maxListLine = 1 << 20

// entry is what a list says of one image. The first of Path, Image and FileName that is set names it.
type entry struct {
	Path     string `json:"path"`
	Image    string `json:"image"`
	FileName string `json:"file_name"`
	Prompt   string `json:"prompt"`

	bad string // why there is no entry; empty for most
}

// listColumns are the columns of a list that name the image.
var listColumns = []string{"path", "image", "file_name"}

func (e entry) name() string { return cmp.Or(e.Path, e.Image, e.FileName) }

// item opens what an entry names, from the list's folder.
func (e entry) item(dir string, m Match) Source {
	path := e.name()
	if path == "" {
		return nil
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	s := openListed(path, m)
	if e.Prompt == "" {
		return s
	}
	return func(ctx context.Context) iter.Seq2[Item, error] {
		return func(yield func(Item, error) bool) {
			for it, err := range s(ctx) {
				it.Prompt = e.Prompt
				if !yield(it, err) {
					return
				}
			}
		}
	}
}

// openListed opens a name that is no pattern: a folder, an archive, or else a file, there or not.
func openListed(path string, m Match) Source {
	if isArchive(path) {
		return Archive(path, m)
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return Folder(path, m)
	}
	return File(path)
}

// isList tells whether a file's name says that it lists images.
func isList(path string) bool {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".jsonl", ".csv", ".parquet":
		return true
	}
	return false
}

// List lists the images that a .jsonl, .csv or .parquet file names in a column path, image or file_name, relative to
// its folder, each with its own prompt where there is a column prompt.
func List(path string, m Match) Source {
	read := map[string]func(io.ReaderAt, int64, func(entry) error) error{
		".jsonl": jsonlEntries, ".csv": csvEntries, ".parquet": parquetEntries,
	}[strings.ToLower(filepath.Ext(path))]
	return func(ctx context.Context) iter.Seq2[Item, error] {
		return func(yield func(Item, error) bool) {
			f, err := openRegular(path)
			if err != nil {
				yield(Item{}, fmt.Errorf("%s: %w", path, err))
				return
			}
			defer f.Close()
			info, err := f.Stat()
			if err == nil {
				n := 0
				err = read(f, info.Size(), func(e entry) error {
					n++
					s := e.item(filepath.Dir(path), m)
					if s == nil {
						s = badEntry(
							path,
							n,
							cmp.Or(e.bad, "no image: want one of the columns "+strings.Join(listColumns, ", ")),
						)
					}
					return giveAll(ctx, s, yield)
				})
			}
			if err != nil && !errors.Is(err, errStop) {
				yield(Item{}, fmt.Errorf("%s: %w", path, err))
			}
		}
	}
}

// badEntry is an item for an entry of a list that names no image. The others go on.
func badEntry(list string, n int, why string) Source {
	return func(context.Context) iter.Seq2[Item, error] {
		return func(yield func(Item, error) bool) {
			yield(
				Item{
					Path: fmt.Sprintf("%s#%d", list, n),
					Err:  itemErrorf(codeInvalid, "entry %d of the list: %s", n, why),
				},
				nil,
			)
		}
	}
}

// giveAll yields what a source lists.
func giveAll(ctx context.Context, s Source, yield func(Item, error) bool) error {
	for it, err := range s(ctx) {
		if err != nil {
			return err
		}
		if !yield(it, nil) {
			return errStop
		}
	}
	return ctx.Err()
}

// jsonlEntries reads one object a line; a line that is a string is a path.
func jsonlEntries(r io.ReaderAt, size int64, give func(entry) error) error {
	lines := boundedLines(io.NewSectionReader(r, 0, size), '\n')
	for n := 1; ; n++ {
		line, err := lines()
		if errors.Is(err, io.EOF) {
			return nil
		}
		var e entry
		line = bytes.TrimSpace(line)
		switch {
		case errors.Is(err, errLongLine):
			e.bad = err.Error()
		case err != nil:
			return fmt.Errorf("line %d: %w", n, err)
		case len(line) == 0:
			continue
		case line[0] == '"':
			err = json.Unmarshal(line, &e.Path)
		default:
			err = json.Unmarshal(line, &e)
		}
		if err != nil && e.bad == "" {
			e = entry{bad: "not an object with an image's path"}
		}
		if err := give(e); err != nil {
			return err
		}
	}
}

// csvEntries reads a table whose first row names the columns.
func csvEntries(r io.ReaderAt, size int64, give func(entry) error) error {
	c := csv.NewReader(bufio.NewReader(&fieldLimit{r: io.NewSectionReader(r, 0, size)}))
	c.ReuseRecord, c.FieldsPerRecord = true, 0
	head, err := c.Read()
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return err
	}
	path, prompt := -1, -1
	for i, h := range head {
		h = strings.ToLower(strings.TrimSpace(strings.TrimPrefix(h, "\uFEFF")))
		if path < 0 && slices.Contains(listColumns, h) {
			path = i
		}
		if h == "prompt" {
			prompt = i
		}
	}
	if path < 0 {
		return fmt.Errorf("the first row has none of the columns %s", strings.Join(listColumns, ", "))
	}
	for {
		rec, err := c.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		var e entry
		var bad *csv.ParseError
		switch {
		case errors.As(err, &bad):
			e.bad = bad.Err.Error()
		case err != nil:
			return err
		default:
			e.Path = rec[path]
			if prompt >= 0 {
				e.Prompt = rec[prompt]
			}
		}
		if err := give(e); err != nil {
			return err
		}
	}
}

// fieldLimit ends a CSV file in which no line ends for long: an open quote would have the reader hold all of it.
type fieldLimit struct {
	r    io.Reader
	long int
}

func (f *fieldLimit) Read(b []byte) (int, error) {
	n, err := f.r.Read(b)
	if i := bytes.LastIndexByte(b[:n], '\n'); i >= 0 {
		f.long = n - i
	} else if f.long += n; f.long > maxListLine {
		return 0, fmt.Errorf("a line longer than %d bytes", maxListLine)
	}
	return n, err
}

// errLongLine is the error of a line that is too long. The next one can be read.
var errLongLine = errors.New("the line is too long")

// boundedLines gives what end separates, the last one with or without it.
func boundedLines(r io.Reader, end byte) func() ([]byte, error) {
	return linesUpTo(r, end, maxListLine)
}

// linesUpTo gives lines of up to most bytes. One that is longer is passed over, and an error.
func linesUpTo(r io.Reader, end byte, most int) func() ([]byte, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	return func() ([]byte, error) {
		var line []byte
		long := false
		for {
			part, err := b.ReadSlice(end)
			if long = long || len(line)+len(part) > most; !long {
				line = append(line, part...)
			}
			switch {
			case errors.Is(err, bufio.ErrBufferFull):
				continue
			case err != nil && !errors.Is(err, io.EOF):
				return nil, err
			case long:
				return nil, fmt.Errorf("%w: more than %d bytes", errLongLine, most)
			case err != nil && len(line) > 0:
				return line, nil
			case err != nil:
				return nil, err
			}
			return line[:len(line)-1], nil
		}
	}
}

// Names lists the images that r names, each followed by end: a newline, or NUL for names that have newlines. r is read
// on a goroutine of its own, which a listing that ends early leaves behind if r does not end: it is meant for standard
// input.
func Names(r io.Reader, end byte, m Match) Source {
	return func(ctx context.Context) iter.Seq2[Item, error] {
		return func(yield func(Item, error) bool) {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			for line := range readNamesFrom(ctx, r, end) {
				s := openListed(line.name, m)
				switch {
				case errors.Is(line.err, errLongLine):
					s = badEntry("names", line.n, line.err.Error())
				case line.err != nil:
					yield(Item{}, fmt.Errorf("list of names: %w", line.err))
					return
				case len(line.name) == 0:
					continue
				}
				if err := giveAll(ctx, s, yield); err != nil {
					if !errors.Is(err, errStop) {
						yield(Item{}, err)
					}
					return
				}
			}
		}
	}
}

type listedName struct {
	name string
	n    int
	err  error
}

// readNamesFrom gives lines until the reader or ctx ends.
func readNamesFrom(ctx context.Context, r io.Reader, end byte) iter.Seq[listedName] {
	lines := make(chan listedName)
	go func() {
		defer close(lines)
		next := boundedLines(r, end)
		for n := 1; ; n++ {
			line, err := next()
			if errors.Is(err, io.EOF) {
				return
			}
			text := string(line)
			if end == '\n' {
				text = strings.TrimSuffix(text, "\r")
			}
			select {
			case lines <- listedName{text, n, err}:
			case <-ctx.Done():
				return
			}
			if err != nil && !errors.Is(err, errLongLine) {
				return
			}
		}
	}()
	return func(yield func(listedName) bool) {
		for {
			select {
			case line, ok := <-lines:
				if !ok || !yield(line) {
					return
				}
			case <-ctx.Done():
				yield(listedName{err: ctx.Err()})
				return
			}
		}
	}
}

// NamesFile lists the images that a file names, each name followed by end.
func NamesFile(path string, end byte, m Match) Source {
	return func(ctx context.Context) iter.Seq2[Item, error] {
		return func(yield func(Item, error) bool) {
			f, err := openRegular(path)
			if err != nil {
				yield(Item{}, fmt.Errorf("%s: %w", path, err))
				return
			}
			defer f.Close()
			for it, err := range Names(f, end, m)(ctx) {
				if !yield(it, err) {
					return
				}
			}
		}
	}
}
