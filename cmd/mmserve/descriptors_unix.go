//go:build unix

package main

import "syscall"

// spareDescriptors are kept for files, the admin listener and exporters.
const spareDescriptors = 64

// connectionLimit is how many connections the process has file descriptors for, up to most.
func connectionLimit(most int) int {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil || l.Cur > uint64(most+spareDescriptors) {
		return most
	}
	return max(int(l.Cur)-spareDescriptors, int(l.Cur)/2, 1)
}
