package main

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// ortLibraryFrom is the library that the repository at root fetched, by its whole path: for commands that run
// elsewhere.
func ortLibraryFrom(t *testing.T, root string) string {
	t.Helper()
	if lib := os.Getenv("MMSERVE_ORT_LIB"); lib != "" {
		return lib
	}
	arch := map[string]string{"amd64": "x64", "arm64": "arm64"}[runtime.GOARCH]
	folder := filepath.Join(root, "node_modules", "onnxruntime-node", "bin", "napi-v6", runtime.GOOS, arch)
	found, err := filepath.Glob(filepath.Join(folder, "libonnxruntime*"))
	if err != nil || len(found) == 0 {
		t.Skip("ONNX Runtime was not fetched: make ort")
	}
	path, err := filepath.Abs(found[0])
	if err != nil {
		t.Fatal(err)
	}
	return path
}
