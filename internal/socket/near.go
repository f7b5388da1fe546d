package socket

import (
	"net"
	"net/netip"
	"strings"
)

// Near says whether web pages reach what listens on an address from this machine alone: on loopback. None reaches a
// unix socket.
func Near(a net.Addr) bool {
	if a.Network() != "tcp" {
		return false
	}
	at, err := netip.ParseAddrPort(a.String())
	return err == nil && at.Addr().Unmap().IsLoopback()
}

// OwnHost says whether the Host of a request is one that nobody can have made to resolve to this machine: an IP
// address, localhost and what is below it, or none. A web page of any other name may ask here as if this were where it
// came from.
func OwnHost(host string) bool {
	name := HostName(host)
	if name == "" || name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return true
	}
	_, err := netip.ParseAddr(name)
	return err == nil
}

// HostName is the name or the IP address of a Host, without port, brackets and final dot, in lower case.
func HostName(host string) string {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	}
	return strings.ToLower(strings.TrimSuffix(name, "."))
}
