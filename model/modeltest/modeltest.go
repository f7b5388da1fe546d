// Package modeltest is what the tests of the model's rooms share: the library, the checkpoints in testdata, and
// decoders that are compared step by step.
package modeltest

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/mmserve/mmserve/internal/ort"
)

// StartLibrary loads ONNX Runtime, which `make ort` fetched.
func StartLibrary(t testing.TB) {
	t.Helper()
	lib, err := ort.FindLibrary(os.Getenv("MMSERVE_ORT_LIB"))
	if err != nil {
		t.Fatal(err)
	}
	if err := ort.Start(lib); err != nil {
		t.Fatal(err)
	}
}

// TinyCheckpoints are the folders of testdata/tiny-hf, with parts of the names of tensors that their models do not use.
var TinyCheckpoints = map[string][]string{
	"idefics3":           nil,
	"smolvlm":            nil,
	"paligemma":          nil,
	"paligemma2":         nil,
	"llava_onevision":    {"vision_tower.post_layernorm."},
	"vitgpt2":            {"encoder.pooler."},
	"llava":              {"vision_tower.encoder.layers.1.", "vision_tower.post_layernorm."},
	"internvl":           nil,
	"qwen2_vl":           nil,
	"qwen2_5_vl":         nil,
	"qwen3_vl":           nil,
	"mistral3":           nil,
	"llava-pixtral":      nil,
	"lighton_ocr":        nil,
	"paddleocr_vl":       nil,
	"glm_ocr":            nil,
	"lfm2_vl":            nil,
	"llava_next":         {"vision_tower.encoder.layers.2.", "vision_tower.post_layernorm."},
	"internvl-rms":       nil,
	"llava_next-granite": {"vision_tower.post_layernorm."},
	"gemma3":             nil,
}

// TinyDir is the folder of a tiny checkpoint.
func TinyDir(name string) string { return Path("testdata", "tiny-hf", name) }

// References is the file with what transformers computed of a tiny checkpoint.
func References(name string) string { return filepath.Join(TinyDir(name), "gold.safetensors") }

// Exists tells whether there is a file.
func Exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Sample is a file of the embedded model's sample images.
func Sample(t testing.TB, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile(Path("model", "tiny-vlm", "samples", name))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// Path is a path below the module's root, from the folder of the package that is tested.
func Path(elem ...string) string {
	root := "."
	for range 8 {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			break
		}
		root = filepath.Join(root, "..")
	}
	return filepath.Join(append([]string{root}, elem...)...)
}

// WriteFile writes a file of a test's folder.
func WriteFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Allocated is what the process has allocated since it began, in bytes.
func Allocated() uint64 {
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.TotalAlloc
}
