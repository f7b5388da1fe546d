package socket

import (
	"net"
	"testing"
)

func TestNear(t *testing.T) {
	for _, c := range []struct {
		address net.Addr
		want    bool
	}{
		{&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80}, true},
		{&net.TCPAddr{IP: net.IPv4(127, 9, 9, 9), Port: 80}, true},
		{&net.TCPAddr{IP: net.IPv6loopback, Port: 80}, true}, {name("unix:/run/a.sock"), false},
		{&net.TCPAddr{Port: 80}, false}, {&net.TCPAddr{IP: net.IPv4zero, Port: 80}, false},
		{&net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 80}, false},
		{&net.UDPAddr{IP: net.IPv6loopback, Port: 80}, false},
	} {
		if got := Near(c.address); got != c.want {
			t.Errorf("%v: %t, want %t", c.address, got, c.want)
		}
	}
}

func TestOwnHost(t *testing.T) {
	for host, want := range map[string]bool{
		"": true, "localhost": true, "LocalHost:80": true, "localhost.": true, "a.localhost:80": true, "127.0.0.1": true,
		"127.0.0.1:80": true, "[::1]": true, "[::1]:80": true, "[fe80::1%eth0]:80": true, "10.0.0.1:80": true,
		"evil.example": false, "evil.example:80": false, "127.0.0.1.evil.example": false, "localhost.evil.example": false,
		"evillocalhost": false, "2130706433": false, "127.1": false, "x": false, "localhost:80:80": false, "[localhost": true,
	} {
		if got := OwnHost(host); got != want {
			t.Errorf("%q: %t, want %t", host, got, want)
		}
	}
}
