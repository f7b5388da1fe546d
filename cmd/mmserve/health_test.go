package main

import (
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/socket/sockettest"
)

func TestHealth(t *testing.T) {
	addr := serveAt(t, "--slots", "1")
	if code, out, errs := mmserve(t, "health", "--server", addr); code != 0 || out+errs != "" {
		t.Errorf("a server that runs: status %d, %s%s", code, out, errs)
	}
	addr = sockettest.FreeAddress(t)
	if code, _, errs := mmserve(t, "health", "--server", addr, "--timeout", "1s"); code != 1 ||
		!strings.Contains(errs, "no server answers at "+addr) {
		t.Errorf("no server: status %d, %s", code, errs)
	}
}

func TestLocalAddress(t *testing.T) {
	for addr, want := range map[string]string{
		"0.0.0.0:8080": "127.0.0.1:8080", ":8080": "127.0.0.1:8080", "[::]:8080": "127.0.0.1:8080",
		"127.0.0.1:8080": "127.0.0.1:8080", "mm.example:80": "mm.example:80", "nonsense": "nonsense",
	} {
		if got := local(addr); got != "passthrough:"+want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}
