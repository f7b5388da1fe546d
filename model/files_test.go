package model

import (
	"slices"
	"testing"
	"testing/fstest"
)

// TestGraphsSayWhatIsNotRead has descriptions of quantisation beside graphs, in both places and in config.json.
func TestGraphsSayWhatIsNotRead(t *testing.T) {
	files := fstest.MapFS{"quantize_config.json": {}, "onnx/quantize_config.json": {}, "onnx/ort_config.json": {},
		"onnx/decoder_model_merged.onnx": {}}
	got, err := changedGraphs(files, []byte(`{"quantization_config":{"quant_method":"gptq"},"auto_map":{},"compression_config":null}`))
	want := []string{
		"quantize_config.json is not read: the graphs are run as they are",
		"onnx/ort_config.json is not read: the graphs are run as they are",
		"onnx/quantize_config.json is not read: the graphs are run as they are",
		"config.json's quantization_config is not read: the graphs are run as they are",
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q %v, want %q", got, err, want)
	}
}
