//go:build !linux && !darwin

package socket

import "net"

const maxPath = 100

func lock(string) (unlock func(), err error) { return func() {}, nil }

func listenPrivate(path string) (net.Listener, error) { return net.Listen("unix", path) }
