package socket

import (
	"net"
	"net/netip"
	"strings"
)

// sitePrefix is the length in bits of the network of one site.
const sitePrefix = 64

// Host is a peer's address without its port, of IPv6 the network of one site: hosts there pick addresses as they like.
// Of a unix socket's it is the user.
func Host(peer string) string {
	host, _, err := net.SplitHostPort(peer)
	if err != nil {
		return peer
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	if ip = ip.Unmap().WithZone(""); ip.Is4() {
		return ip.String()
	}
	return netip.PrefixFrom(ip, sitePrefix).Masked().String()
}

// Caller is who a peer counts as where nothing else tells callers apart: its Host. Programs on this machine share one,
// so there each connection is a caller, and of a unix socket's each process.
func Caller(peer string) string {
	at, err := netip.ParseAddrPort(peer)
	if err == nil && at.Addr().Unmap().IsLoopback() || strings.HasPrefix(peer, "unix/") {
		return peer
	}
	return Host(peer)
}
