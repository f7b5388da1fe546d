package caption

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// ErrLocked is the error of an output that another run writes to.
var ErrLocked = errors.New("another run writes to it")

// maxLine bounds a line of a journal that is read back: an answer and what is known of its image.
const maxLine = 16 << 20

// Journal is a file of rows, one a line, to which one run at a time appends. It is safe for concurrent use.
type Journal struct {
	path string

	mu         sync.Mutex
	f          *os.File
	end        int64 // length of the file, all of it whole lines
	index      *index
	superseded int64 // rows in the file that a later one replaces
	rows       int64
	dirty      bool // written since the last Sync
	broken     error
}

// OpenJournal opens the journal at path or makes it, and holds it until Close. A last line that a crash cut off is
// removed. truncate starts with an empty one.
func OpenJournal(path string, truncate bool) (_ *Journal, err error) {
	f, err := openLocked(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, pathless(err))
	}
	j := &Journal{path: path, f: f}
	defer func() {
		if err != nil {
			err = errors.Join(err, j.release())
		}
	}()
	if truncate {
		if err := f.Truncate(0); err != nil {
			return nil, err
		}
	}
	if j.index, err = newIndex(filepath.Dir(path)); err != nil {
		return nil, err
	}
	if err := j.load(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return j, nil
}

// openLocked opens path for appending, and locks it. The lock goes with the process, however it ends.
func openLocked(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND|syscall.O_NONBLOCK, 0o666)
		if err != nil {
			return nil, err
		}
		info, err := f.Stat()
		if err == nil {
			err = regular(info)
		}
		if err == nil {
			err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
			if errors.Is(err, syscall.EWOULDBLOCK) {
				err = ErrLocked
			}
		}
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		// The run before may have put a new file in place between opening and locking.
		if now, err := os.Stat(path); err == nil && os.SameFile(now, info) {
			return f, nil
		}
		f.Close()
	}
}

// pathless drops the path of an error whose reader has been told it.
func pathless(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// load reads the rows that are there into the index and cuts off what is not a whole line.
func (j *Journal) load() error {
	r := newLineReader(io.NewSectionReader(j.f, 0, 1<<62))
	for n := 1; ; n++ {
		line, err := r.next()
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("line %d: %w", n, err)
		}
		if len(line) == 0 {
			break
		}
		torn := err != nil || bytes.IndexByte(line, 0) >= 0 // a crash of the machine leaves zeros
		if torn {
			break
		}
		row, err := parseRow(line)
		if err != nil {
			return fmt.Errorf("line %d is not a row of captions: %w", n, err)
		}
		if err := j.note(row, j.end); err != nil {
			return err
		}
		j.end += int64(len(line))
	}
	return j.f.Truncate(j.end)
}

// lineReader gives lines with their ends; a last one without an end comes with io.EOF.
type lineReader struct{ r *bufio.Reader }

func newLineReader(r io.Reader) *lineReader { return &lineReader{bufio.NewReaderSize(r, 64<<10)} }

func (l *lineReader) next() ([]byte, error) {
	var line []byte
	for {
		part, err := l.r.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			if line = append(line, part...); len(line) > maxLine {
				return nil, fmt.Errorf("longer than %d bytes", maxLine)
			}
			continue
		}
		if line == nil {
			return part, err
		}
		return append(line, part...), err
	}
}

// note puts a row that stands at offset into the index.
func (j *Journal) note(r *Row, offset int64) error {
	id := r.identity()
	_, had, err := j.index.get(id)
	if err != nil {
		return err
	}
	if had {
		j.superseded++
	}
	j.rows++
	if err := j.index.put(id, offset); err != nil {
		return err
	}
	if r.Key == "" || !r.final() || r.DuplicateOf != "" {
		return nil
	}
	return j.index.put(keyHash(r.Key), offset)
}

// Append writes a row, by one write. After an error nothing of the row is in the file, and the journal takes no more.
func (j *Journal) Append(r *Row, _ []byte) error {
	line, err := r.line()
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken != nil {
		return j.broken
	}
	if _, err = j.f.Write(line); err == nil {
		err = j.note(r, j.end)
	}
	if err != nil {
		j.broken = fmt.Errorf("%s: %w", j.path, pathless(err))
		return errors.Join(j.broken, j.f.Truncate(j.end))
	}
	j.end += int64(len(line))
	j.dirty = true
	return nil
}

// Row gives the latest row about a question to an image; nil if there is none.
func (j *Journal) Row(path, question, prompt string) (*Row, error) {
	return j.lookup(identity(path, question, prompt))
}

// ByKey gives a row whose answer holds for everything with its key; nil if there is none.
func (j *Journal) ByKey(key string) (*Row, error) { return j.lookup(keyHash(key)) }

func (j *Journal) lookup(h hash16) (*Row, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	offset, ok, err := j.index.get(h)
	if err != nil || !ok {
		return nil, err
	}
	return j.at(offset)
}

// at reads the row that stands at offset.
func (j *Journal) at(offset int64) (*Row, error) {
	line, err := newSmallLineReader(io.NewSectionReader(j.f, offset, maxLine+1)).next()
	if err != nil {
		return nil, fmt.Errorf("%s: row at %d: %w", j.path, offset, err)
	}
	return parseRow(line)
}

func newSmallLineReader(r io.Reader) *lineReader { return &lineReader{bufio.NewReaderSize(r, 2<<10)} }

// Sync has what was appended survive a crash of the machine.
func (j *Journal) Sync() error {
	j.mu.Lock()
	dirty := j.dirty
	j.dirty = false
	j.mu.Unlock()
	if !dirty {
		return nil
	}
	if err := j.f.Sync(); err != nil {
		return fmt.Errorf("%s: %w", j.path, pathless(err))
	}
	return nil
}

// Close drops the rows that later ones replace, and gives the file free.
func (j *Journal) Close() error {
	err := j.Sync()
	if err == nil && j.superseded > 0 && j.broken == nil {
		err = j.compact()
	}
	return errors.Join(err, j.release())
}

func (j *Journal) release() error {
	var err error
	if j.index != nil {
		err = j.index.close()
	}
	return errors.Join(err, j.f.Close())
}

// Each calls f for every row that none replaces, in the order in which they were written.
func (j *Journal) Each(f func(*Row, []byte) error) error {
	r := newLineReader(io.NewSectionReader(j.f, 0, j.end))
	for offset := int64(0); offset < j.end; {
		line, err := r.next()
		if err != nil {
			return err
		}
		row, err := parseRow(line)
		if err != nil {
			return err
		}
		j.mu.Lock()
		latest, _, err := j.index.get(row.identity())
		j.mu.Unlock()
		if err != nil {
			return err
		}
		if latest == offset {
			if err := f(row, line); err != nil {
				return err
			}
		}
		offset += int64(len(line))
	}
	return nil
}

// drop rewrites the journal without some rows, and reads it again.
func (j *Journal) drop(which func(*Row) bool) error {
	err := replaceFile(j.path, func(w io.Writer) error {
		return j.Each(func(r *Row, line []byte) error {
			if which(r) {
				return nil
			}
			_, err := w.Write(line)
			return err
		})
	})
	if err != nil {
		return err
	}
	f, err := openLocked(j.path)
	if err != nil {
		return err
	}
	j.f.Close()
	fresh, err := newIndex(filepath.Dir(j.path))
	if err != nil {
		f.Close()
		return err
	}
	old := j.index
	j.f, j.index, j.end, j.rows, j.superseded = f, fresh, 0, 0, 0
	return errors.Join(old.close(), j.load())
}

// compact puts a file in place that has no replaced rows.
func (j *Journal) compact() error {
	return replaceFile(j.path, func(w io.Writer) error {
		return j.Each(func(_ *Row, line []byte) error {
			_, err := w.Write(line)
			return err
		})
	})
}

// replaceFile writes a file beside path and renames it to path when it is whole and on the disk.
func replaceFile(path string, write func(io.Writer) error) (err error) {
	tmp := filepath.Join(
		filepath.Dir(path),
		"."+clip(filepath.Base(path), 200)+".tmp",
	) // one left by a crash is overwritten
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o666)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			_ = os.Remove(tmp)
		}
	}()
	w := bufio.NewWriterSize(f, 256<<10)
	if err := write(w); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if info, err := os.Stat(path); err == nil {
		_ = f.Chmod(info.Mode().Perm())
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}

// clip cuts a name to at most n bytes.
func clip(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}
