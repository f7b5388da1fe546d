package socket

import "testing"

func TestHostAndCaller(t *testing.T) {
	for peer, want := range map[string][2]string{
		"192.0.2.7:1234":              {"192.0.2.7", "192.0.2.7"},
		"[2001:db8:1:2:3:4:5:6]:1234": {"2001:db8:1:2::/64", "2001:db8:1:2::/64"},
		"[fe80::1%eth0]:1":            {"fe80::/64", "fe80::/64"},
		"[::ffff:192.0.2.7]:1":        {"192.0.2.7", "192.0.2.7"},
		"127.0.0.1:1234":              {"127.0.0.1", "127.0.0.1:1234"},
		"127.8.8.8:1":                 {"127.8.8.8", "127.8.8.8:1"},
		"[::1]:1234":                  {"::/64", "[::1]:1234"},
		"[::ffff:127.0.0.1]:1":        {"127.0.0.1", "[::ffff:127.0.0.1]:1"},
		"unix/1000:77":                {"unix/1000", "unix/1000:77"},
		"unix":                        {"unix", "unix"},
		"bufconn":                     {"bufconn", "bufconn"},
		"":                            {"", ""},
	} {
		if got := [2]string{Host(peer), Caller(peer)}; got != want {
			t.Errorf("%q: %q, want %q", peer, got, want)
		}
	}
}
