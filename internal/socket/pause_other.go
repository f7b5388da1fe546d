//go:build !linux

package socket

import "net"

// Pause cannot have this system refuse connections to a listener.
func Pause(net.Listener) (resume func() error, ok bool) { return nil, false }
