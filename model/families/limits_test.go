package families

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/model/modeltest"
)

// changed is a tiny model's config.json with a field of a section set, of the whole file where the section is empty.
func changed(t *testing.T, name, section, field string, value any) []byte {
	t.Helper()
	raw, err := os.ReadFile(modeltest.Path("testdata", "tiny-hf", name, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var c map[string]any
	if err := json.Unmarshal(raw, &c); err != nil {
		t.Fatal(err)
	}
	in := c
	if section != "" {
		var ok bool
		if in, ok = c[section].(map[string]any); !ok {
			t.Fatalf("%s has no %s", name, section)
		}
	}
	in[field] = value
	if raw, err = json.Marshal(c); err != nil {
		t.Fatal(err)
	}
	return raw
}

// Numbers that norms, ropes and tables make no number of are refused by name.
func TestNumbersOutOfRange(t *testing.T) {
	for _, c := range []struct {
		name, section, field string
		value                any
		want                 string
	}{
		{"qwen2_vl", "text_config", "rms_norm_eps", -1, "text_config.rms_norm_eps is -1"},
		{"internvl", "text_config", "rms_norm_eps", 1e30, "text_config.rms_norm_eps is 1e+30"},
		{"lfm2_vl", "text_config", "norm_eps", -1e-3, "text_config.rms_norm_eps is -0.001"},
		{"lfm2_vl", "vision_config", "layer_norm_eps", -1, "vision_config.layer_norm_eps (rms_norm_eps) is -1"},
		{"glm4v", "vision_config", "rms_norm_eps", -1, "vision_config.layer_norm_eps (rms_norm_eps) is -1"},
		{"gemma3", "vision_config", "layer_norm_eps", 7, "vision_config.layer_norm_eps (rms_norm_eps) is 7"},
		{"vitgpt2", "decoder", "layer_norm_epsilon", -1, "decoder.layer_norm_epsilon is -1"},
		{"vitgpt2", "encoder", "layer_norm_eps", -1, "layer_norm_eps (rms_norm_eps) is -1"},
		{"glm4v", "vision_config", "image_size", 1, "a position table of 0×0"},
		{"paddleocr_vl", "vision_config", "image_size", 1, "a position table of 0×0"},
		{"mistral3", "vision_config", "rope_parameters", map[string]any{"rope_theta": 1e-9}, "vision_config.rope_theta is 1e-09"},
	} {
		_, _, err := Read(changed(t, c.name, c.section, c.field, c.value))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s with %s.%s %v: %v, want %q", c.name, c.section, c.field, c.value, err, c.want)
		}
	}
}

// patch_size counts, whatever spatial_patch_size says besides.
func TestSpatialPatchSize(t *testing.T) {
	_, want, err := Read(changed(t, "qwen2_vl", "vision_config", "depth", 1))
	if err != nil {
		t.Fatal(err)
	}
	_, got, err := Read(changed(t, "qwen2_vl", "vision_config", "spatial_patch_size", 60))
	if err != nil || got.AnySize.PatchSize != want.AnySize.PatchSize {
		t.Errorf("patches of %d (%v), want %d", got.AnySize.PatchSize, err, want.AnySize.PatchSize)
	}
}
