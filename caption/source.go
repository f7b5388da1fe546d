package caption

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// Open gives the source that a command's argument names: a file, a folder, or a pattern. A name that exists is never
// taken for a pattern.
func Open(in string, m Match) (Source, error) {
	if in == "" {
		return nil, errors.New("an empty name")
	}
	info, err := os.Stat(in)
	switch {
	case err == nil && info.IsDir():
		return Folder(in, m), nil
	case (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENAMETOOLONG)) && hasMeta(in):
		return Glob(in, m), nil
	}
	return File(in), nil
}
