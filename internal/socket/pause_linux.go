package socket

import (
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Pause has the system refuse connections to a TCP listener, which keeps its address, until resume is called. Without
// that a listener whose server is not ready can only take connections and break them off, and a balancer that has sent
// a request by then may not send it elsewhere. ok is false where the listener cannot be paused, and goes on.
// Nobody may be in Accept meanwhile.
func Pause(lis net.Listener) (resume func() error, ok bool) {
	tcp, ok := lis.(*net.TCPListener)
	if !ok {
		return nil, false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, false
	}
	listen := func() error { return control(raw, func(fd int) error { return unix.Listen(fd, syscall.SOMAXCONN) }) }
	err = control(raw, func(fd int) error {
		address, err := unix.Getsockname(fd)
		if err == nil {
			err = unix.Shutdown(fd, unix.SHUT_RD)
		}
		if err != nil {
			return err
		}
		// A port that the system had picked it has taken back; another is still the socket's, which is EINVAL.
		if err = unix.Bind(fd, address); errors.Is(err, unix.EINVAL) {
			err = nil
		}
		return err
	})
	if err != nil {
		return nil, false
	}
	return listen, true
}

// control runs do with the file descriptor of raw.
func control(raw syscall.RawConn, do func(fd int) error) (err error) {
	if outer := raw.Control(func(fd uintptr) { err = do(int(fd)) }); outer != nil {
		return outer
	}
	return err
}
