package main

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

var rewriteFlags = flag.Bool("rewrite-flags", false, "write testdata/flags.txt anew")

// TestFlags holds the command line: the name, default, variable and choices of each command's flags. What scripts and
// manifests rely on changes with testdata/flags.txt only.
func TestFlags(t *testing.T) {
	parser, err := kong.New(&cli{}, flagVariables)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	var walk func(n *kong.Node)
	walk = func(n *kong.Node) {
		for _, f := range n.Flags {
			lines = append(lines, fmt.Sprintf("%s --%s short=%q default=%q env=%s enum=%q required=%t negatable=%q placeholder=%q",
				n.Path(), f.Name, f.Short, f.Default, strings.Join(f.Envs, ","), f.Enum, f.Required, f.Tag.Negatable,
				f.PlaceHolder))
		}
		for _, c := range n.Children {
			walk(c)
		}
	}
	walk(parser.Model.Node)
	slices.Sort(lines)
	got := strings.Join(lines, "\n") + "\n"
	golden := filepath.Join("testdata", "flags.txt")
	if *rewriteFlags {
		if err := os.WriteFile(golden, []byte(got), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	old := strings.Split(string(want), "\n")
	for _, l := range lines {
		if !slices.Contains(old, l) {
			t.Errorf("new: %s", l)
		}
	}
	for _, l := range old {
		if l != "" && !slices.Contains(lines, l) {
			t.Errorf("gone: %s", l)
		}
	}
}

// TestFlagsOnce holds that a variable, and so the flag behind it, is declared in one place.
func TestFlagsOnce(t *testing.T) {
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, name := range names {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			field, ok := n.(*ast.Field)
			if !ok || field.Tag == nil {
				return true
			}
			tag, err := strconv.Unquote(field.Tag.Value)
			if err != nil {
				t.Fatal(err)
			}
			env, ok := reflect.StructTag(tag).Lookup("env")
			if env == "MMSERVE_LISTEN" && name == "health.go" { // --server: the address that serve listens on, asked
				return true
			}
			if env == "MMSERVE_TLS_CERT" && name == "health.go" { // --tls-pin: the certificate that serve has
				return true
			}
			if ok && found[env] != "" {
				t.Errorf("%s declares the flag of %s, as %s does", name, env, found[env])
			}
			found[env] = name
			return true
		})
	}
	if len(found) < 40 {
		t.Errorf("found %d variables only", len(found))
	}
}
