package modeltest

import (
	"os"
	"testing"

	"github.com/mmserve/mmserve/internal/ort"
)

// OnWebGPU skips a test that `make test-webgpu` did not start.
func OnWebGPU(t testing.TB) ort.Options {
	t.Helper()
	if os.Getenv("MMSERVE_TEST_WEBGPU") == "" {
		t.Skip("`make test-webgpu` runs it")
	}
	StartLibrary(t)
	p, err := ort.ParseProvider("webgpu")
	if err != nil {
		t.Fatal(err)
	}
	return ort.Options{Provider: p}
}
