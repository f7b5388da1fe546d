//go:build !linux && !darwin

package socket

import (
	"io/fs"
	"net"
	"os"
)

const maxPath = 100

func lock(string) (unlock func(), err error) { return func() {}, nil }

func setMode(path string, mode fs.FileMode) (fs.FileInfo, error) {
	if err := os.Chmod(path, mode); err != nil {
		return nil, err
	}
	return os.Lstat(path)
}

func listenPrivate(path string, _ fs.FileMode) (net.Listener, error) { return net.Listen("unix", path) }
