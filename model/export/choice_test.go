package export

import (
	"strings"
	"testing"

	"github.com/mmserve/mmserve/model/families"
)

// Which files are run, by what was asked, what config.json says and what is there.
func TestExportChoice(t *testing.T) {
	dir := t.TempDir()
	files := []string{"vision_encoder.onnx", "vision_encoder_fp16.onnx", "embed_tokens_q4f16.onnx", "decoder_model_merged_q4.onnx",
		"decoder_model_merged_quantized.onnx", "decoder_model_merged_odd.onnx"}
	for asked, want := range map[string]string{
		"":                        "fp32 q4f16 q8",
		"odd":                     "error",
		"decoder_model_merged=q4": "fp32 q4f16 q4",
		"decoder_model_merged=odd,vision_encoder=fp16": "fp16 q4f16 odd",
		"vision_encoder=q4":                            "error",
	} {
		c, err := newChoice(dir, asked, []byte(`{}`))
		if err != nil {
			t.Fatal(err)
		}
		c.files = files
		if got := c.types(); got != want {
			t.Errorf("%q gives %s, want %s", asked, got, want)
		}
	}
	for config, want := range map[string]string{
		`{"dtype": "fp16"}`:                         "fp16 q4f16 q8",
		`{"dtype": {"decoder_model_merged": "q4"}}`: "fp32 q4f16 q4",
	} {
		c, err := newChoice(dir, "", []byte(`{"transformers.js_config": `+config+`}`))
		if err != nil {
			t.Fatal(err)
		}
		c.files = files
		if got := c.types(); got != want {
			t.Errorf("%s gives %s, want %s", config, got, want)
		}
	}
}

// types are the dtypes of the three sessions.
func (c choice) types() string {
	var list []string
	for _, session := range []string{families.VisionGraph, families.EmbedGraph, families.DecoderGraph} {
		dtype, _, err := c.pick(session)
		if err != nil {
			return "error"
		}
		list = append(list, dtype)
	}
	return strings.Join(list, " ")
}

// No config.json makes the choice among graphs panic, and one that is read finds those that are there.
func FuzzChoice(f *testing.F) {
	f.Add([]byte(`{"transformers.js_config": {"dtype": "q4"}}`))
	f.Add([]byte(`{"transformers.js_config": {"dtype": {"embed_tokens": "fp16"}}}`))
	f.Add([]byte(`{"model_type": "idefics3"}`))
	f.Fuzz(func(t *testing.T, config []byte) {
		if c, err := newChoice("none", "", config); err == nil {
			c.files = []string{"embed_tokens_q4.onnx", "embed_tokens.onnx"}
			if _, _, err := c.pick("embed_tokens"); err != nil {
				t.Errorf("%s: %v", config, err)
			}
		}
	})
}
