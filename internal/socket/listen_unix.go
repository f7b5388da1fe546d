//go:build linux || darwin

package socket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"
)

// maxPath is the longest path that the kernel takes, without its final zero.
const maxPath = len(syscall.RawSockaddrUnix{}.Path) - 1

// lockTime is how long another that starts in the same folder may take.
const lockTime = 5 * time.Second

// lock makes the folder's other callers of Listen wait.
func lock(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrPermission) { // it may still be written to
		return func() {}, nil
	}
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(lockTime); ; time.Sleep(10 * time.Millisecond) {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if err != syscall.EWOULDBLOCK && err != syscall.EINTR || time.Now().After(end) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
	}
}

// listenPrivate listens at path. On Linux the file gets no more permissions than its descriptor has, so that there is
// no moment at which others could connect.
func listenPrivate(path string, mode fs.FileMode) (net.Listener, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { _ = syscall.Fchmod(int(fd), uint32(mode)) }) // Darwin does not know it
	}}
	return config.Listen(context.Background(), "unix", path)
}
