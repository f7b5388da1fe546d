package importtest

import (
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// native lists the packages that may hold C, assembly or cgo: the kernels, and the binding to ONNX Runtime.
var native = []string{"internal/kernels", "internal/ort"}

// TestNativeCode holds that C and assembly stay in the packages of native, and that kernels stand below all others.
func TestNativeCode(t *testing.T) {
	root, found := filepath.Join("..", ".."), 0
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && slices.Contains([]string{"node_modules", ".git", "tools", "testdata"}, d.Name()):
			return filepath.SkipDir
		case !slices.Contains([]string{".c", ".h", ".s", ".S", ".cc", ".cpp"}, filepath.Ext(p)):
			return nil
		}
		file, err := filepath.Rel(root, p)
		found++
		checkNative(t, filepath.ToSlash(file))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < 10 {
		t.Errorf("found %d files of C only", found)
	}
	err = eachFile(func(file string, imports []string) {
		file = filepath.ToSlash(file)
		if slices.Contains(imports, "C") {
			checkNative(t, file)
		}
		for _, to := range imports {
			if under(file, "internal/kernels") && strings.Contains(to, ".") {
				t.Errorf("%s imports %s: kernels stand on the standard library alone", file, to)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

func checkNative(t *testing.T, file string) {
	t.Helper()
	if !slices.ContainsFunc(native, func(dir string) bool { return under(file, dir) }) {
		t.Errorf("%s: C, assembly and cgo belong in %s", file, strings.Join(native, " or "))
	}
}
