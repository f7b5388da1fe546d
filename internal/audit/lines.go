package audit

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
)

// errLongLine says that a line has more bytes than lines may have. What follows it can be read.
var errLongLine = errors.New("the line is too long")

// lineReader reads lines of bounded length.
type lineReader struct {
	r    *bufio.Reader
	most int
}

func newLineReader(r io.Reader, most int) *lineReader {
	return &lineReader{bufio.NewReaderSize(r, max(most, 256<<10)), most}
}

// next gives a line with its newline, valid until the next call. io.EOF comes with what stands after the last newline.
func (l *lineReader) next() ([]byte, error) {
	line, err := l.r.ReadSlice('\n')
	if err == nil && len(line) <= l.most {
		return line, nil
	}
	if errors.Is(err, io.EOF) && len(line) <= l.most {
		return line, err
	}
	for errors.Is(err, bufio.ErrBufferFull) {
		_, err = l.r.ReadSlice('\n')
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return nil, errLongLine
}

// repairEnd cuts off what a file has after its last newline, which a process left that was killed amid a write. It
// gives the last line, nil of a file without lines, and how many bytes were cut off.
func repairEnd(f *os.File, most int) (last []byte, torn int64, err error) {
	last, torn, err = endOf(f, most)
	if err != nil || torn == 0 {
		return last, torn, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	return last, torn, f.Truncate(st.Size() - torn)
}

// endOf gives the last line of a file, nil of one without lines, and how many bytes it has after that.
func endOf(f *os.File, most int) (last []byte, torn int64, err error) {
	st, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	tail := make([]byte, min(st.Size(), int64(2*most)))
	if _, err := f.ReadAt(tail, st.Size()-int64(len(tail))); err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, err
	}
	whole := tail[:bytes.LastIndexByte(tail, '\n')+1]
	if len(whole) == 0 && int64(len(tail)) < st.Size() {
		return nil, 0, errors.New("its end is no line")
	}
	torn = int64(len(tail) - len(whole))
	if len(whole) == 0 {
		return nil, torn, nil
	}
	return whole[bytes.LastIndexByte(whole[:len(whole)-1], '\n')+1:], torn, nil
}
