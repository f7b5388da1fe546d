//go:build unix

package digest

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// settled is how long ago a file's last change must be: file systems tell times apart by some milliseconds only, and a
// change within the same one would not show.
var settled = 2 * time.Second

// Of stamps an open file: which it is, its size, and when its content and its inode last changed. The last cannot be
// set by a program, as the one before can.
func Of(f *os.File) Stamp {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return ""
	}
	if time.Since(time.Unix(st.Ctim.Unix())) < settled {
		return ""
	}
	return Stamp(fmt.Sprintf("%d %d %d %d.%09d %d.%09d", st.Dev, st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec,
		st.Ctim.Nsec))
}
