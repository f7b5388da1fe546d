package verify

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/model/modeltest"
)

func TestReadCases(t *testing.T) {
	files := fstest.MapFS{
		"good.jsonl": {Data: []byte("\n" + `{"id": "a", "prompt_ids": [1]}` + "\n\n" + `{"images": ["data:image/png;base64,AAE="]}`)},
		"bad.jsonl":  {Data: []byte("{}\n{")},
	}
	cases, err := readCases(files, "good.jsonl")
	if err != nil || len(cases) != 2 || cases[0].ID != "a" || cases[1].ID != "line 4" {
		t.Errorf("%+v %v", cases, err)
	}
	if data, err := readImage(files, cases[1].Images[0]); err != nil || string(data) != "\x00\x01" {
		t.Errorf("image %q %v", data, err)
	}
	for _, name := range []string{"data:image/png,AAE=", "data:;base64,!", "../good.jsonl", "/etc/passwd", "none.png"} {
		if _, err := readImage(files, name); err == nil {
			t.Errorf("%s was read", name)
		}
	}
	if _, err := readCases(files, "bad.jsonl"); err == nil || !strings.Contains(err.Error(), "bad.jsonl, line 2") {
		t.Errorf("error %v", err)
	}
}

func FuzzReadCases(f *testing.F) {
	f.Add([]byte(`{"id": "a", "images": ["data:image;base64,AAE="], "messages": [{"role": "user", "content": [{"type": "image"}]}], "first_step_top5": [[1, 2.5]], "precision": "int8"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		files := fstest.MapFS{"gold.jsonl": {Data: data}}
		cases, err := readCases(files, "gold.jsonl")
		if err != nil {
			return
		}
		for _, g := range cases {
			for _, name := range g.Images {
				_, _ = readImage(files, name)
			}
		}
	})
}

// Reference values that name what the model does not have are an error of their case.
func TestRefusedReferences(t *testing.T) {
	modeltest.StartLibrary(t)
	run := func(dir, file string) (c Case) {
		m, err := model.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		v, err := New(m, 1, graph.FP32, ort.Options{Threads: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		if err := v.File(file, func(got Case) { c = got }); err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, id := range []string{"1e300", "-1", "1000000"} {
		file := filepath.Join(t.TempDir(), "gold.jsonl")
		modeltest.WriteFile(t, file, []byte(`{"prompt": [{"type": "text", "text": "Hello"}], "first_step_top5": [[`+id+`, 0]], "generated_ids": [1]}`))
		if c := run("", file); c.Err == nil || !strings.Contains(c.Err.Error(), "first_step_top5: id") {
			t.Errorf("id %s: %+v", id, c)
		}
	}
	for _, c := range []struct{ name, tensor, want string }{
		{"vitgpt2", "generated", "generated is empty"},
		{"llava_onevision", "image_sizes", "image_sizes has shape"},
		{"idefics3", "pixel_values", "pixel_values has shape"},
	} {
		from, err := safetensors.OpenFile(modeltest.References(c.name))
		if err != nil {
			t.Fatal(err)
		}
		defer from.Close()
		var list []safetensors.Tensor
		for _, name := range from.Names() {
			tensor, _ := from.Tensor(name)
			if name == c.tensor {
				tensor.Shape, tensor.Data = []int{0}, nil
			}
			list = append(list, tensor)
		}
		var b bytes.Buffer
		if err := safetensors.Write(&b, list); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "gold.safetensors")
		modeltest.WriteFile(t, file, b.Bytes())
		if got := run(modeltest.TinyDir(c.name), file); got.Err == nil || !strings.Contains(got.Err.Error(), c.want) {
			t.Errorf("%s without %s: %+v", c.name, c.tensor, got)
		}
	}
}
