package main

import (
	"errors"
	"strings"
	"testing"
)

func TestCheckServers(t *testing.T) {
	for _, servers := range []string{
		"localhost:8080", "127.0.0.1:8080", "[::1]:8080", ":8080", "a:1,b:2", "unix:///run/s", "unix:s", "dns:///a:1",
		"dns:a", "passthrough:a",
	} {
		if err := checkServers(servers); err != nil {
			t.Errorf("%s: %v", servers, err)
		}
	}
	for _, servers := range []string{"localhost", "::1", "[::1]", "localhost:", "a:1,b", "http://localhost:8080", ""} {
		if err := checkServers(servers); err == nil || !strings.Contains(err.Error(), "want host:port") {
			t.Errorf("%s: %v", servers, err)
		}
	}
	for _, command := range []string{"health", "chat", "bench"} {
		if code, _, errs := mmserve(t, command, "--server=localhost"); code == 0 || !strings.Contains(errs, "want host:port") {
			t.Errorf("%s: status %d, %s", command, code, errs)
		}
	}
}

// Who takes one listener for another is told, and so is who forgets TLS or speaks it to nobody.
func TestHints(t *testing.T) {
	s := startSecure(t)
	plaintext := serveAt(t)
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"no TLS":       {[]string{"--server", s.addr}, "does the server speak TLS?"},
		"TLS to none":  {[]string{"--server", plaintext, "--tls"}, "the server speaks no TLS"},
		"another port": {[]string{"--server", s.web, "--tls-ca", s.ca}, "is this the HTTP listener?"},
		"an authority": {[]string{"--server", s.addr, "--tls"}, "--tls-ca names the authority"},
	} {
		if code, _, errs := mmserve(t, append([]string{"health"}, c.args...)...); code != 1 || !strings.Contains(errs, c.want) {
			t.Errorf("%s: status %d, %s; want %q", name, code, errs, c.want)
		}
	}
	if err := hinted(errors.New("note that the frame header looked like an HTTP/1.1 header")); !strings.Contains(err.Error(), "HTTP listener") {
		t.Error(err)
	}
	if err := errors.New("connection refused"); hinted(err) != err || hinted(nil) != nil {
		t.Error("a hint where there is none to give")
	}
}
