package model

import (
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"testing/fstest"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/tokenizer"
)

// A tokenizer that knows no pictures learns the placeholder, once.
func TestAddPlaceholder(t *testing.T) {
	z, err := os.Open(filepath.Join("..", "internal", "tokenizer", "testdata", "vit-gpt2.json.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	r, err := gzip.NewReader(z)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	l := fusion.Layout{Placeholder: "<image>", ImageTokenID: 50257}
	for range 2 {
		if raw, err = addPlaceholder(raw, l); err != nil {
			t.Fatal(err)
		}
	}
	tok, err := tokenizer.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	if got := tok.Encode("<image><image><|endoftext|>a cat", false); !slices.Equal(got, []int32{50257, 50257, 50256, 64, 3797}) {
		t.Errorf("ids %v", got)
	}
	if n := len(tok.AddedTokens()); n != 2 {
		t.Errorf("%d added tokens, want 2", n)
	}
}

func TestEOS(t *testing.T) {
	for _, c := range []struct {
		generation, config string
		want               []int32
	}{
		{`{"eos_token_id": [107, 1]}`, `{"eos_token_id": 5}`, []int32{1, 107}},
		{`{}`, `{"eos_token_id": 5, "text_config": {"eos_token_id": 6}}`, []int32{5}},
		{`{"eos_token_id": null}`, `{"text_config": {"eos_token_id": 6}}`, []int32{6}},
	} {
		m := &Model{files: fstest.MapFS{"generation_config.json": {Data: []byte(c.generation)}, "config.json": {Data: []byte(c.config)}}}
		tok, err := tokenizer.Parse([]byte(`{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}`))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := m.eos(tok, specialTokens{}); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s %s: %v %v, want %v", c.generation, c.config, got, err, c.want)
		}
	}
}

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
