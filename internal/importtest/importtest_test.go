// Package importtest holds the import order: imports only ever go down one list.
package importtest

import (
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/mmserve/mmserve/"

// rank is a package's place in the list; a package may import only what stands below it (or packages of internal/,
// which may import each other as far as Go allows).
var rank = map[string]int{
	"training": 10,
	"cmd":      10, "server": 9, "caption": 9, "loadtest": 9, "serving": 8, "safety": 7, "client": 6, "model": 6,
	"conversation": 6, "batching": 5, "decoder": 4, "fusion": 3, "vision": 2, "internal": 1, "proto": 0,
}

// never lists pairs that must not meet whatever their ranks.
var never = [][2]string{
	{"server", "model"}, {"server", "client"}, {"serving", "client"}, {"serving", "proto"}, {"batching", "internal/ort"},
	{"server", "internal/ort"}, {"client", "internal"},
}

// wire lists the packages that know what goes over the wire. Below the edges a request is a plain value, and an error
// has a kind.
var wire = []string{"caption", "client", "cmd", "internal/admin", "loadtest", "proto", "server"}

// TestWire holds that no other package imports gRPC, its codes and details, or the messages.
func TestWire(t *testing.T) {
	err := eachFile(func(file string, imports []string) {
		from := filepath.ToSlash(filepath.Dir(file))
		if slices.ContainsFunc(wire, func(dir string) bool { return under(from, dir) }) {
			return
		}
		for _, to := range imports {
			if under(to, "google.golang.org/grpc") || under(to, "google.golang.org/genproto") || under(to, module+"proto") {
				t.Errorf("%s imports %s, which only %v may", file, to, wire)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestImportOrder(t *testing.T) {
	files := 0
	err := eachFile(func(file string, imports []string) {
		files++
		for _, path := range imports {
			if to, ours := strings.CutPrefix(path, module); ours {
				check(t, filepath.ToSlash(filepath.Dir(file)), to)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 20 {
		t.Errorf("looked at %d files only", files)
	}
}

func check(t *testing.T, from, to string) {
	t.Helper()
	for _, pair := range never {
		if under(from, pair[0]) && under(to, pair[1]) {
			t.Errorf("%s imports %s: these two never meet", from, to)
		}
	}
	a, b := top(from), top(to)
	ra, okA := rank[a]
	rb, okB := rank[b]
	if !okA || !okB {
		t.Errorf("%s imports %s: give both a place in the list", from, to)
		return
	}
	if a != b && ra <= rb {
		t.Errorf("%s imports %s: imports go down cmd → server, caption, loadtest, client → serving → model → batching → decoder → fusion → vision → internal", from, to)
	}
}

func top(p string) string { first, _, _ := strings.Cut(p, "/"); return first }

func under(p, dir string) bool { return p == dir || strings.HasPrefix(path.Clean(p), dir+"/") }
