package model

import (
	"reflect"
	"testing"
	"testing/fstest"

	"github.com/mmserve/mmserve/decoder"
)

func TestDefaults(t *testing.T) {
	for _, tt := range []struct {
		file string
		want decoder.Sampling
	}{
		{"", decoder.Sampling{}},
		{`{"temperature": 0.5, "top_k": 3}`, decoder.Sampling{}},
		{`{"do_sample": true}`, decoder.Sampling{Temperature: 1, TopK: 50, TopP: 1}},
		{`{"do_sample": true, "temperature": 0.2, "top_k": null, "top_p": 0.9}`, decoder.Sampling{Temperature: 0.2, TopK: 50, TopP: 0.9}},
		{`{"do_sample": true, "top_k": 0}`, decoder.Sampling{Temperature: 1, TopP: 1}},
	} {
		files := fstest.MapFS{}
		if tt.file != "" {
			files["generation_config.json"] = &fstest.MapFile{Data: []byte(tt.file)}
		}
		got, err := (&Model{files: files}).defaults()
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v %v, want %+v", tt.file, got, err, tt.want)
		}
	}
}
