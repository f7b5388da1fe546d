package socket

import (
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// setMode gives the socket at path its permissions, and tells which file it is. A symbolic link that somebody has put in
// its place is not followed; it, and all that is no socket, is an error.
func setMode(path string, mode fs.FileMode) (fs.FileInfo, error) {
	if err := unix.Fchmodat(unix.AT_FDCWD, path, uint32(mode), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, &fs.PathError{Op: "chmod", Path: path, Err: err}
	}
	st, err := os.Lstat(path)
	if err == nil && st.Mode().Type() != fs.ModeSocket {
		err = fmt.Errorf("%s %w", path, errNoSocket)
	}
	return st, err
}
