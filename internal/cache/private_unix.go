//go:build unix

package cache

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// private says why others could have written a file or folder, nil where only its owner can, who is this user or root.
func private(st fs.FileInfo) error {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("its owner is not known")
	}
	if uid := os.Geteuid(); int(sys.Uid) != uid && sys.Uid != 0 {
		return fmt.Errorf("it belongs to user %d, want %d, who runs this: name another folder with --cache-dir", sys.Uid, uid)
	}
	if mode := st.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Errorf("others may write it (mode %04o): run chmod go-w, or name another folder with --cache-dir", mode)
	}
	return nil
}
