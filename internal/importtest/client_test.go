package importtest

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// clientModules are all modules that a program gets with package client.
var clientModules = []string{
	"github.com/mmserve/mmserve", "golang.org/x/net", "golang.org/x/sys", "golang.org/x/text",
	"google.golang.org/genproto/googleapis/rpc", "google.golang.org/grpc", "google.golang.org/protobuf",
}

// TestClientIsLight holds that who imports package client compiles nothing of the server, and no cgo.
func TestClientIsLight(t *testing.T) {
	c := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}},{{.ImportPath}}", "./client")
	c.Dir = "../.."
	c.Env = append(c.Environ(), "CGO_ENABLED=0")
	out, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	var modules []string
	for line := range strings.Lines(string(out)) {
		m, pkg, _ := strings.Cut(strings.TrimSpace(line), ",")
		if m != "" && !slices.Contains(modules, m) {
			modules = append(modules, m)
		}
		if ours, ok := strings.CutPrefix(pkg, module); ok && ours != "client" && !under(ours, "proto") {
			t.Errorf("client needs %s", pkg)
		}
	}
	slices.Sort(modules)
	if !slices.Equal(modules, clientModules) {
		t.Errorf("client needs the modules %q, want %q", modules, clientModules)
	}
}
