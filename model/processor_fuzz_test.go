package model

import (
	"testing"
	"testing/fstest"
)

// FuzzGeneration reads generation_config.json and config.json as they may come.
func FuzzGeneration(f *testing.F) {
	f.Add([]byte(`{"do_sample": true, "top_k": 5, "bad_words_ids": [[1], [2, 3]], "sequence_bias": [[[1], 2]], "num_beams": 2}`), false)
	f.Add([]byte(`{"decoder": {"top_p": 0.5, "do_sample": true}, "text_config": {"eos_token_id": [1]}, "temperature": null}`), true)
	f.Fuzz(func(t *testing.T, data []byte, config bool) {
		name := "generation_config.json"
		if config {
			name = "config.json"
		}
		s, _, err := (&Model{files: fstest.MapFS{name: {Data: data}}}).defaults([]int32{2})
		if err == nil && (s.Temperature < 0 || s.TopK < 0 || s.MinTokens < 0) {
			t.Errorf("%s gives %+v", data, s)
		}
	})
}

// FuzzTemplateSource reads the chat_template of a JSON file.
func FuzzTemplateSource(f *testing.F) {
	for _, seed := range []string{`{"chat_template": "x"}`, `{"chat_template": [{"name": "default", "template": "x"}]}`, `{"chat_template": {"default": "x"}}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(_ *testing.T, data []byte) {
		_, _, _ = (&Model{files: fstest.MapFS{"tokenizer_config.json": {Data: data}}}).templateSource()
	})
}
