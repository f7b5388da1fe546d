//go:build unix

package host

import "golang.org/x/sys/unix"

// FreeDisk is the space in bytes that this process may still write under dir; 0 where the system does not say.
func FreeDisk(dir string) uint64 {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return 0
	}
	return uint64(st.Bavail) * uint64(st.Bsize)
}
