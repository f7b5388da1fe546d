package socket

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func TestPath(t *testing.T) {
	for address, want := range map[string]string{
		"unix:///run/a.sock": "/run/a.sock", "unix:a.sock": "a.sock", "unix:/run/a.sock": "/run/a.sock", "unix:./a": "./a",
	} {
		if got, ok, err := Path(address); got != want || !ok || err != nil {
			t.Errorf("%s: %q, %v, %v; want %q", address, got, ok, err, want)
		}
	}
	for _, address := range []string{"", "127.0.0.1:80", ":80", "/run/a.sock", "Unix:a", "localhost:unix"} {
		if _, ok, err := Path(address); ok || err != nil {
			t.Errorf("%s is taken for a socket: %v", address, err)
		}
	}
	for address, want := range map[string]string{
		"unix:": "want a file's path", "unix://": "want three slashes", "unix://run/a.sock": "want three slashes",
		"unix:///": "want a file's path", "unix:///run/": "want a file's path",
		"unix:@a": "abstract", "unix:\x00a": "abstract",
		"unix:///a\x00": "abstract", "unix-abstract:a": "abstract",
		"unix:" + strings.Repeat("a", 300): "300 bytes, at most",
	} {
		if _, ok, err := Path(address); !ok || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v; want an error with %q", address, ok, err, want)
		}
	}
}

func permissions(t *testing.T, path string) fs.FileMode {
	t.Helper()
	st, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Mode().Perm()
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for _, mode := range []fs.FileMode{0o600, 0o660, 0o666} {
		l, err := Listen(path, mode)
		if err != nil {
			t.Fatal(err)
		}
		if got := permissions(t, path); got != mode {
			t.Errorf("permissions %o, want %o", got, mode)
		}
		if got := l.Addr().String(); got != "unix:"+path {
			t.Error(got)
		}
		go func() {
			if c, err := net.Dial("unix", path); err == nil {
				_, _ = c.Write([]byte("x"))
				_ = c.Close()
			}
		}()
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if got := c.RemoteAddr().String(); got != "unix/"+strconv.Itoa(os.Getuid())+":"+strconv.Itoa(os.Getpid()) {
			t.Errorf("the caller is %q", got)
		}
		if got, err := io.ReadAll(c); string(got) != "x" || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
		_ = c.Close()
		if _, err := Listen(path, mode); err == nil || !strings.Contains(err.Error(), "another server listens") {
			t.Errorf("a second server: %v", err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the socket is left behind: %v", err)
		}
	}
}

// leave makes a socket at which nothing listens.
func leave(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
}

// Only a socket at which nothing listens is replaced.
func TestListenReplaces(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	leave(t, stale)
	l, err := Listen(stale, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file, link, sub := filepath.Join(dir, "file"), filepath.Join(dir, "link"), filepath.Join(dir, "sub")
	dead := filepath.Join(dir, "dead")
	leave(t, dead)
	err = errors.Join(os.WriteFile(file, []byte("keep"), 0o600), os.Symlink(dead, link), os.Mkdir(sub, 0o700))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, link, sub} {
		if _, err := Listen(path, 0o600); err == nil || !strings.Contains(err.Error(), "is no socket") {
			t.Errorf("%s: %v", path, err)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	datagrams, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "d"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	if _, err := Listen(filepath.Join(dir, "d"), 0o600); err == nil || !strings.Contains(err.Error(), "cannot be told") {
		t.Errorf("a socket of datagrams: %v", err)
	}
	if _, err := Listen(filepath.Join(dir, "none", "s"), 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
}

// A listener that is closed leaves alone what another has put in its place.
func TestCloseRemovesItsOwn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	old, err := Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	next, err := Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	_ = old.Close()
	_ = old.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the next server's socket is gone: %v", err)
	}
	_ = c.Close()
}

// Of many that start at once over a leftover one listens, and goes on being reached.
func TestListenAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for range 20 {
		leave(t, path)
		var won atomic.Pointer[net.Listener]
		var winners atomic.Int32
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				if l, err := Listen(path, 0o600); err == nil {
					winners.Add(1)
					won.Store(&l)
				}
			})
		}
		all.Wait()
		if n := winners.Load(); n != 1 {
			t.Fatalf("%d listen", n)
		}
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		_ = (*won.Load()).Close()
	}
}

func TestNamedLeavesOthersAlone(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if Named(a) != a {
		t.Error("a connection of no unix socket was changed")
	}
}

// On Linux a socket never has more permissions than it is to have in the end.
func TestListenPrivate(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the system gives a socket all that the umask leaves, and Listen takes some away afterwards")
	}
	path := filepath.Join(t.TempDir(), "s")
	l, err := listenPrivate(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if got := permissions(t, path); got&^0o600 != 0 {
		t.Errorf("permissions %o before they are set", got)
	}
}
