//go:build linux || darwin

package socket

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
)

// Whoever may read the folder cannot keep a server from listening; the lock is left to nobody.
func TestListenBesideALockedFolder(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(filepath.Join(dir, "s"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if list, err := os.ReadDir(dir); err != nil || len(list) != 1 {
		t.Errorf("%v, %v; want the socket alone", list, err)
	}
}

// The lock is a file of the caller's own, which no link leads elsewhere.
func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	unlock, err := lock(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := permissions(t, path+".lock"); got != 0o600 {
		t.Errorf("permissions %o", got)
	}
	if _, err := tryLock(path + ".lock"); !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Errorf("a second: %v", err)
	}
	unlock()
	if err := os.Symlink("elsewhere", path+".lock"); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path, 0o600); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("through a link: %v", err)
	}
}

// What somebody puts in a socket's place before it has its permissions keeps its own.
func TestSetMode(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Symlink(file, link)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, link} {
		if _, err := setMode(path, 0o666); !errors.Is(err, errNoSocket) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if got := permissions(t, file); runtime.GOOS == "linux" && got != 0o600 {
		t.Errorf("permissions %o", got)
	}
	if err := removeSocket(link); err != nil || permissions(t, link) == 0 {
		t.Errorf("a link is taken for a socket: %v", err)
	}
	path := filepath.Join(dir, "s")
	leave(t, path)
	for _, mode := range []fs.FileMode{0o666, 0o600} {
		if st, err := setMode(path, mode); err != nil || st == nil || permissions(t, path) != mode {
			t.Errorf("a socket: %v", err)
		}
	}
}
