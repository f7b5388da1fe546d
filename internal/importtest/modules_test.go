package importtest

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// users lists the third-party modules, by the beginning of their import paths, and the packages that may import them,
// with all below each. A module that is not here may be imported by none: adding one is a decision, which this list
// records.
var users = map[string][]string{
	"code.dny.dev/ssrf":                 {"internal/fetch"},
	"github.com/alecthomas/kong":        {"cmd/mmserve"},
	"github.com/bmatcuk/doublestar/v4":  {"caption"},
	"github.com/coreos/go-oidc/v3":      {"internal/auth"},
	"github.com/corona10/goimagehash":   {"caption"},
	"github.com/disintegration/imaging": {"caption", "cmd/mmserve", "internal/imaging", "vision"},
	"github.com/ergochat/readline":      {"cmd/mmserve"},
	"github.com/go-jose/go-jose/v4":     {"internal/auth"},
	"github.com/jackc/pgx/v5":           {"conversation"},
	"github.com/klauspost/compress":     {"internal/imaging"},
	"github.com/nats-io/nats-server/v2": {"cmd/mmserve"},
	"github.com/nats-io/nats.go":        {"caption"},
	"github.com/nyaruka/phonenumbers":   {"safety"},
	"github.com/parquet-go/parquet-go":  {"caption"},
	"github.com/prometheus":             {"internal/telemetry", "loadtest"},
	"github.com/rivo/uniseg":            {"cmd/mmserve", "internal/tokenizer"},
	"github.com/ulikunitz/xz":           {"internal/imaging"},
	"github.com/vbauerster/mpb/v8":      {"caption", "cmd/mmserve"},
	"github.com/x448/float16":           {"internal/ort", "internal/safetensors", "model"},
	"github.com/yalue/onnxruntime_go":   {"internal/ort"},
	"github.com/yuin/goldmark":          {"cmd/mmserve"},
	"go.opentelemetry.io":               {"internal/telemetry", "serving", "server", "cmd/mmserve"},
	"gocloud.dev":                       {"caption", "cmd/mmserve"},
	"go.yaml.in/yaml/v3":                {"cmd/mmserve", "model", "safety", "serving"},
	"golang.org/x/image":                {"internal/imaging", "vision"},
	"golang.org/x/net":                  {"cmd/internal/attack"},
	"golang.org/x/sync":                 {"caption", "cmd", "internal", "loadtest", "model", "serving", "vision"},
	"golang.org/x/sys":                  {"internal", "cmd/mmserve/internal/lineedit"},
	"golang.org/x/term":                 {"cmd/mmserve"},
	"golang.org/x/text":                 {"internal/tokenizer", "cmd/mmserve", "safety"},
	"golang.org/x/time":                 {"internal/audit", "server", "serving"},
	"google.golang.org/genproto":        {"caption", "client", "cmd/mmserve", "server"},
	"google.golang.org/grpc": {"caption", "client", "cmd", "internal/admin", "loadtest", "proto",
		"server"},
	"modernc.org/sqlite":                       {"conversation"},
	"google.golang.org/protobuf":               {"caption", "client", "cmd", "loadtest", "proto", "server"},
	"google.golang.org/protobuf/encoding":      {"cmd/mmserve", "internal/onnx", "server"},
	"github.com/santhosh-tekuri/jsonschema/v6": {}, // tests compare with it
}

func TestModules(t *testing.T) {
	used := map[string]bool{}
	err := eachFile(func(file string, imports []string) {
		from := filepath.ToSlash(filepath.Dir(file))
		for _, to := range imports {
			if domain, _, _ := strings.Cut(to, "/"); !strings.Contains(domain, ".") || strings.HasPrefix(to, module) {
				continue
			}
			m := moduleOf(to)
			used[m] = true
			if !slices.ContainsFunc(users[m], func(dir string) bool { return under(from, dir) }) {
				t.Errorf("%s imports %s: of its module only %q may be imported by %v", file, to, m, users[m])
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for m, dirs := range users {
		if len(dirs) > 0 && !used[m] {
			t.Errorf("%s is imported by none: leave it out", m)
		}
	}
}

// moduleOf is the longest beginning of an import path that users lists; empty if there is none.
func moduleOf(imported string) (m string) {
	for prefix := range users {
		if under(imported, prefix) && len(prefix) > len(m) {
			m = prefix
		}
	}
	return m
}

// eachFile calls do for each Go file of the module that is neither a test nor a tool, with its path from the module's
// root.
func eachFile(do func(file string, imports []string)) error {
	return eachSource(func(path, file string) error {
		if strings.HasSuffix(path, "_test.go") || under(path, "tools") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		var imports []string
		for _, s := range f.Imports {
			imports = append(imports, strings.Trim(s.Path.Value, `"`))
		}
		do(path, imports)
		return nil
	})
}

// eachSource calls do for each Go file of the repository, with its path from the root, in slashes, and its name for
// opening.
func eachSource(do func(path, file string) error) error {
	root := filepath.Join("..", "..")
	return filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && slices.Contains([]string{"node_modules", ".git", ".cache", "bin", "testdata"}, d.Name()):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(file, ".go"):
			return nil
		}
		path, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		return do(filepath.ToSlash(path), file)
	})
}
