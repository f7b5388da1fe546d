// Package socket listens on unix sockets: with the permissions that were meant, beside no other server, and with
// callers that have a name. It also says which listeners and names of hosts are this machine's own.
package socket

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Path is the file that an address such as unix:///run/mmserve.sock or unix:mmserve.sock names, as gRPC's targets do.
// It is false for any other address. Abstract sockets, which have no permissions, are refused.
func Path(address string) (path string, ok bool, err error) {
	if strings.HasPrefix(address, "unix-abstract:") {
		return "", true, fmt.Errorf("%q: abstract sockets have no permissions; want unix:///path", address)
	}
	path, ok = strings.CutPrefix(address, "unix:")
	if !ok {
		return "", false, nil
	}
	if rest, slashes := strings.CutPrefix(path, "//"); slashes {
		if path = rest; !strings.HasPrefix(path, "/") {
			return "", true, fmt.Errorf("%q: want three slashes before an absolute path, as unix:///run/mmserve.sock", address)
		}
	}
	switch {
	case path == "" || strings.HasSuffix(path, "/"):
		return "", true, fmt.Errorf("%q: want a file's path, as unix:///run/mmserve.sock", address)
	case path[0] == '@' || strings.ContainsRune(path, 0):
		return "", true, fmt.Errorf("%q: abstract sockets have no permissions; want unix:///path", address)
	case len(path) > maxPath:
		return "", true, fmt.Errorf("the path of a socket has %d bytes, at most %d work", len(path), maxPath)
	}
	return path, true, nil
}

// askTime is how long a server that may be there has to take a connection.
const askTime = time.Second

// Listen makes a socket at path that has exactly mode's permissions before anybody can connect. One that was left
// behind is replaced: a socket at which nothing listens. Anything else in its place is an error. The listener's
// connections have named callers (see Named); it removes the socket when it is closed.
func Listen(path string, mode fs.FileMode) (net.Listener, error) {
	unlock, err := lock(path) // two that start at once do not both find the same leftover
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := removeStale(path); err != nil {
		return nil, err
	}
	lis, err := listenPrivate(path, mode.Perm())
	if err != nil {
		return nil, err
	}
	lis.(*net.UnixListener).SetUnlinkOnClose(false) // it would remove whatever is there by then
	l := &listener{Listener: lis, path: path}
	if l.file, err = setMode(path, mode.Perm()); err != nil { // the umask took some
		return nil, errors.Join(err, lis.Close(), removeSocket(path))
	}
	return l, nil
}

// errNoSocket marks what somebody has put in a socket's place.
var errNoSocket = errors.New("is there and is no socket")

// removeSocket removes a socket, and nothing that has come in its place.
func removeSocket(path string) error {
	if st, err := os.Lstat(path); err != nil || st.Mode().Type() != fs.ModeSocket {
		return err
	}
	return os.Remove(path)
}

// removeStale removes a socket at which nothing listens.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s %w", path, errNoSocket)
	}
	conn, err := net.DialTimeout("unix", path, askTime)
	switch {
	case err == nil:
		_ = conn.Close()
		return fmt.Errorf("%s: another server listens there", path)
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	}
	return fmt.Errorf("%s is there, and whether a server listens cannot be told: %w", path, err)
}

// listener removes its socket once, and only if the file is still the one it made.
type listener struct {
	net.Listener
	path  string
	file  os.FileInfo
	close sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return Named(conn), nil
}

func (l *listener) Close() error {
	l.close.Do(func() {
		if st, err := os.Lstat(l.path); err == nil && os.SameFile(st, l.file) {
			_ = os.Remove(l.path)
		}
	})
	return l.Listener.Close()
}

func (l *listener) Addr() net.Addr { return name("unix:" + l.path) }

// name is an address on a unix socket.
type name string

func (name) Network() string  { return "unix" }
func (n name) String() string { return string(n) }

// Named gives a connection of a unix socket, whose caller has no address, the name of the caller's process:
// "unix/1000:4711", its user and its number, where the system tells, or else "unix". As with host:port, what is
// before the colon is shared by what belongs together. Other connections stay as they are.
func Named(conn net.Conn) net.Conn {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return conn
	}
	return named{c, name(caller(c))}
}

type named struct {
	*net.UnixConn
	remote name
}

func (n named) RemoteAddr() net.Addr { return n.remote }
