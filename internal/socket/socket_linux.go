package socket

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// caller is what the kernel tells of the process that connected.
func caller(c *net.UnixConn) string {
	raw, err := c.SyscallConn()
	if err != nil {
		return "unix"
	}
	name := "unix"
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			name = fmt.Sprintf("unix/%d:%d", cred.Uid, cred.Pid)
		}
	})
	return name
}
