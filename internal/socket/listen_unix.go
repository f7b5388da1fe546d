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

// lockTime is how long another that starts at the same path may take.
const lockTime = 5 * time.Second

// lock makes other callers of Listen for the path wait. The lock is on a file beside it that nobody else may open, not
// on the folder, which whoever may read it could lock for ever. unlock removes the file.
func lock(path string) (unlock func(), err error) {
	path += ".lock"
	for end := time.Now().Add(lockTime); ; time.Sleep(10 * time.Millisecond) {
		unlock, err := tryLock(path)
		if err == nil {
			return unlock, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) || time.Now().After(end) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
	}
}

// tryLock locks a file, EWOULDBLOCK where another has it.
func tryLock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("it is there and is no file")
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, err
	}
	// Whoever had it has removed it: others may have locked the next one.
	if now, err := os.Lstat(path); err != nil || !os.SameFile(st, now) {
		return nil, syscall.EWOULDBLOCK
	}
	return func() {
		_ = os.Remove(path)
		_ = f.Close()
	}, nil
}

// listenPrivate listens at path. On Linux the file gets no more permissions than its descriptor has, so that there is
// no moment at which others could connect.
func listenPrivate(path string, mode fs.FileMode) (net.Listener, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { _ = syscall.Fchmod(int(fd), uint32(mode)) }) // Darwin does not know it
	}}
	return config.Listen(context.Background(), "unix", path)
}
