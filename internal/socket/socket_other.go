//go:build !linux

package socket

import "net"

func caller(*net.UnixConn) string { return "unix" }
