package caption

import (
	"bufio"
	"container/heap"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// namesInMemory is how many names of a folder are sorted at once; more of them go through a temporary file.
var namesInMemory = 8192

// folderNames gives the names of a folder in byte order. os.ReadDir does as well, and keeps them all in memory.
type folderNames struct {
	runs runHeap
	file *os.File // holds all runs but those in memory; nil if none
}

// name is a name and its file type, as the folder has it.
type name struct {
	text string
	kind fs.FileMode
}

// nameRun is a sorted list of names, of which head is the next.
type nameRun struct {
	head name
	rest func() (name, error)
}

type runHeap []nameRun

func (h runHeap) Len() int           { return len(h) }
func (h runHeap) Less(i, j int) bool { return h[i].head.text < h[j].head.text }
func (h runHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *runHeap) Push(x any)        { *h = append(*h, x.(nameRun)) }
func (h *runHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

// sortedNames reads a folder. Close what it returns.
func sortedNames(ctx context.Context, dir string) (_ *folderNames, err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	f := &folderNames{}
	defer func() {
		if err != nil {
			f.close()
		}
	}()
	var offset int64
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		names, readErr := readNames(d)
		if readErr != nil && !errors.Is(readErr, io.EOF) {
			return nil, readErr
		}
		slices.SortFunc(names, func(a, b name) int { return strings.Compare(a.text, b.text) })
		if readErr != nil || len(names) < namesInMemory {
			return f, f.add(sliceRun(names))
		}
		n, err := f.spill(names, offset)
		if err != nil {
			return nil, err
		}
		offset += n
	}
}

// readNames reads up to namesInMemory names; io.EOF comes with the last ones.
func readNames(d *os.File) ([]name, error) {
	var names []name
	for len(names) < namesInMemory {
		entries, err := d.ReadDir(min(1024, namesInMemory-len(names)))
		for _, e := range entries {
			names = append(names, name{e.Name(), e.Type()})
		}
		if err != nil {
			return names, err
		}
	}
	return names, nil
}

// add puts a run into the heap unless it is empty.
func (f *folderNames) add(next func() (name, error)) error {
	head, err := next()
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return err
	}
	heap.Push(&f.runs, nameRun{head, next})
	return nil
}

func sliceRun(names []name) func() (name, error) {
	return func() (name, error) {
		if len(names) == 0 {
			return name{}, io.EOF
		}
		n := names[0]
		names = names[1:]
		return n, nil
	}
}

// spill writes a sorted run to the temporary file at offset; it returns how many bytes that took. A record is a byte of
// type, the name, and NUL, which no name has.
func (f *folderNames) spill(names []name, offset int64) (int64, error) {
	if f.file == nil {
		file, err := os.CreateTemp("", "mmserve-names-")
		if err != nil {
			return 0, err
		}
		f.file = file
		_ = os.Remove(file.Name()) // the open file stays
	}
	var n int64
	w := bufio.NewWriter(io.NewOffsetWriter(f.file, offset))
	for _, e := range names {
		_ = w.WriteByte(kindByte(e.kind))
		_, _ = w.WriteString(e.text)
		_ = w.WriteByte(0)
		n += int64(len(e.text)) + 2
	}
	if err := w.Flush(); err != nil {
		return 0, err
	}
	r := bufio.NewReaderSize(io.NewSectionReader(f.file, offset, n), 1024)
	return n, f.add(func() (name, error) {
		rec, err := r.ReadString(0)
		if err != nil {
			return name{}, err
		}
		return name{rec[1 : len(rec)-1], byteKind(rec[0])}, nil
	})
}

func kindByte(m fs.FileMode) byte {
	switch {
	case m.IsDir():
		return 'd'
	case m&fs.ModeSymlink != 0:
		return 'l'
	case m.IsRegular():
		return 'f'
	}
	return 'o'
}

func byteKind(b byte) fs.FileMode {
	switch b {
	case 'd':
		return fs.ModeDir
	case 'l':
		return fs.ModeSymlink
	case 'f':
		return 0
	}
	return fs.ModeIrregular
}

// next gives the next name; io.EOF after the last one.
func (f *folderNames) next() (string, fs.FileMode, error) {
	if len(f.runs) == 0 {
		return "", 0, io.EOF
	}
	run := heap.Pop(&f.runs).(nameRun)
	return run.head.text, run.head.kind, f.add(run.rest)
}

func (f *folderNames) close() {
	if f.file != nil {
		f.file.Close()
	}
}
