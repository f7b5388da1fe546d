package fetch

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// Host is one that files may be fetched from.
type Host struct {
	scheme string
	name   string // in lower case; ".example.com" stands for all names below example.com
	port   uint16
}

// ParseHost reads a host of an allow-list: example.com, *.example.com for the names below it, either with a port where
// that is not 443. With http:// before it, it is asked without TLS.
func ParseHost(s string) (Host, error) {
	h := Host{scheme: "https"}
	rest := s
	if scheme, after, ok := strings.Cut(s, "://"); ok {
		h.scheme, rest = scheme, after
	}
	if h.scheme != "https" && h.scheme != "http" {
		return h, fmt.Errorf("%q: want https:// or http://, or none, before a host", s)
	}
	h.port = defaultPorts[h.scheme]
	host, wild := strings.CutPrefix(rest, "*.")
	u, err := url.Parse(h.scheme + "://" + host)
	if err != nil || u.Host != host || host == "" {
		return h, fmt.Errorf("%q: want a host, as example.com, *.example.com or example.com:8443", s)
	}
	if u.Port() != "" {
		if h.port, err = parsePort(u.Port()); err != nil {
			return h, fmt.Errorf("%q: %w", s, err)
		}
	}
	if h.name, err = hostName(u); err != nil {
		return h, fmt.Errorf("%q: %w", s, err)
	}
	if _, err := netip.ParseAddr(h.name); wild && (err == nil || !strings.Contains(h.name, ".")) {
		return h, fmt.Errorf("%q: want two names or more after *, as *.example.com", s)
	}
	if wild {
		h.name = "." + h.name
	}
	return h, nil
}

var defaultPorts = map[string]uint16{"https": 443, "http": 80}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, errors.New("want a port of 1 to 65535")
	}
	return uint16(n), nil
}

// allows says whether a URL's parts are those of h.
func (h Host) allows(scheme, name string, port uint16) bool {
	if scheme != h.scheme || port != h.port {
		return false
	}
	if strings.HasPrefix(h.name, ".") {
		return strings.HasSuffix(name, h.name) && len(name) > len(h.name)
	}
	return name == h.name
}

// parse reads a URL and checks it.
func (f *Fetcher) parse(raw string) (*url.URL, error) {
	if len(raw) > maxURL {
		return nil, refused("it has %d bytes, at most %d are taken", len(raw), maxURL)
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, refused("it is malformed")
	}
	u.Fragment, u.RawFragment = "", ""
	return u, f.check(u)
}

// check judges a URL by its scheme, host and port.
func (f *Fetcher) check(u *url.URL) error {
	port, ok := defaultPorts[u.Scheme]
	switch {
	case !ok:
		return refused("its scheme is not taken, want https")
	case u.Opaque != "" || u.Host == "":
		return refused("it has no host")
	case u.User != nil:
		return refused("it has a user before its host, want none")
	}
	if u.Port() != "" {
		var err error
		if port, err = parsePort(u.Port()); err != nil {
			return refused("%v", err)
		}
	} else if strings.HasSuffix(u.Host, ":") {
		return refused("it has a colon and no port")
	}
	name, err := hostName(u)
	if err != nil {
		return refused("%v", err)
	}
	for _, h := range f.options.Hosts {
		if h.allows(u.Scheme, name, port) {
			return nil
		}
	}
	return refused("its host, with its scheme and port, is none that this server may fetch from (--media-allow-urls)")
}

// hostName is a URL's host in lower case: an IP address in its usual form, or a name of letters, digits, hyphens and
// underscores. Other spellings of addresses, which some resolvers take, are refused.
func hostName(u *url.URL) (string, error) {
	name := strings.ToLower(u.Hostname())
	if strings.HasPrefix(u.Host, "[") || strings.Contains(name, ":") {
		a, err := netip.ParseAddr(name)
		if err != nil || a.Zone() != "" || !a.Is6() || a.Is4In6() || a.String() != name {
			return "", errors.New("its host is no IPv6 address in the usual form")
		}
		return name, nil
	}
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return "", errors.New("its host is no name of ASCII letters, digits and hyphens between single dots")
		}
	}
	last := labels[len(labels)-1]
	if last[0] >= '0' && last[0] <= '9' { // as browsers tell addresses from names
		if a, err := netip.ParseAddr(name); err != nil || !a.Is4() {
			return "", errors.New("its host is no IPv4 address in the usual form")
		}
	}
	return name, nil
}
