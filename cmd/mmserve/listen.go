package main

import (
	"fmt"
	"io/fs"
	"net"
	"strconv"
	"time"

	"github.com/mmserve/mmserve/internal/socket"
)

// listenFlags are about connections, whatever is spoken on them.
type listenFlags struct {
	SocketMode            socketMode    `default:"0600" placeholder:"MODE" env:"MMSERVE_SOCKET_MODE" help:"Permissions of unix sockets, in octal: who may write may call."`
	MaxConnectionAge      time.Duration `default:"0s" env:"MMSERVE_MAX_CONNECTION_AGE" help:"How old a connection gets, give or take a tenth, before its client is told to make another (GOAWAY), so that load spreads over servers that come later; 0: any age."`
	MaxConnectionAgeGrace time.Duration `default:"0s" env:"MMSERVE_MAX_CONNECTION_AGE_GRACE" help:"How long calls on such a connection may still take; 0: until they are over."`
}

func (f listenFlags) check() error {
	for _, c := range []struct {
		flag  string
		value time.Duration
	}{{"--max-connection-age", f.MaxConnectionAge}, {"--max-connection-age-grace", f.MaxConnectionAgeGrace}} {
		if c.value < 0 || c.value > maxDuration {
			return fmt.Errorf("%s %v: want 0s to %v", c.flag, c.value, maxDuration)
		}
	}
	return nil
}

// listen opens the listener of a flag: host:port, or a unix socket.
func (f listenFlags) listen(flag, address string) (net.Listener, error) {
	path, unix, err := socket.Path(address)
	var lis net.Listener
	switch {
	case err != nil:
	case unix:
		lis, err = socket.Listen(path, fs.FileMode(f.SocketMode))
	default:
		lis, err = net.Listen("tcp", address)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", flag, address, err)
	}
	return lis, nil
}

// socketMode is the permissions of a file, in octal.
type socketMode fs.FileMode

// UnmarshalText takes the owner's reading and writing at least: the server's own health check needs them.
func (m *socketMode) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 8, 32)
	if err != nil || n&^0o666 != 0 || n&0o600 != 0o600 {
		return fmt.Errorf("%.40q; want 0600 to 0666 in octal, without execution: 0660 lets the socket's group call", text)
	}
	*m = socketMode(n)
	return nil
}

// String is what UnmarshalText reads.
func (m socketMode) String() string { return fmt.Sprintf("%04o", uint32(m)) }
