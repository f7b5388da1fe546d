package socket

import (
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// setMode gives the socket at path its permissions, and tells which file it is. What somebody has put in its place, a
// symbolic link too, stays as it is and is an error: the file is opened without being followed or used, and changed by
// that descriptor.
func setMode(path string, mode fs.FileMode) (fs.FileInfo, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("%s %w", path, errNoSocket)
	}
	if st.Mode().Perm() == mode {
		return st, nil
	}
	return st, os.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), mode)
}
