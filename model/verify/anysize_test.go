package verify

import (
	"testing"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/model/modeltest"
)

// anySizeCheckpoints are the folders of models whose towers take images of any size, with their configurations.
var anySizeCheckpoints = map[string][]string{
	"qwen2_vl":      {"config.json", "config.4x.json"},
	"qwen2_5_vl":    {"config.json", "config.4x.json"},
	"qwen3_vl":      {"config.json", "config.4x.json"},
	"paddleocr_vl":  {"config.json", "config.4x.json"},
	"lighton_ocr":   {"config.json", "config.4x.json"},
	"glm_ocr":       {"config.json"},
	"glm4v":         {"config.json", "config.4x.json"},
	"mistral3":      {"config.json", "config.4x.json"},
	"llava-pixtral": {"config.json", "config.4x.json"},
	"lfm2_vl":       {"config.json", "config.4x.json"},
}

// Image features, those for later layers and logits are within a ten-thousandth of the reference's largest, ids the
// same, with config.json as transformers 5 and 4 write it and with mmserve's own operators and without.
func TestAnySizeReferences(t *testing.T) {
	modeltest.StartLibrary(t)
	for name, configs := range anySizeCheckpoints {
		for _, config := range configs {
			t.Run(name+"/"+config, func(t *testing.T) { checkAnySize(t, name, config) })
		}
		t.Run(name+"/plain", func(t *testing.T) {
			defer func(own bool) { graph.HasKernels = own }(graph.HasKernels)
			graph.HasKernels = false
			checkAnySize(t, name, configs[0])
		})
	}
}

func checkAnySize(t *testing.T, name, config string) {
	want, err := safetensors.OpenFile(modeltest.References(name))
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	m, err := model.Open(withConfig(t, modeltest.TinyDir(name), config))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if len(m.Warnings) > 0 {
		t.Errorf("warnings %q", m.Warnings)
	}
	v, err := New(m, 2e-4, graph.FP32, ort.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	checks, err := v.tensors(references{want})
	if err != nil || len(checks) != 3+m.Decoder.Deepstack {
		t.Fatalf("%+v %v", checks, err)
	}
	last := len(checks) - 1
	for _, c := range checks[:last] {
		most := largest(t, references{want}, c.Name)
		t.Logf("%s: %.1e of %.1f", c.Name, c.Value, most)
		if !(c.Value <= 1e-4*most) {
			t.Errorf("%s differ by %g, the largest is %g", c.Name, c.Value, most)
		}
	}
	if !checks[last].OK {
		t.Errorf("%+v", checks[last])
	}
}
