package verify

import (
	"strings"
	"testing"
	"testing/fstest"
)

func TestReadGold(t *testing.T) {
	files := fstest.MapFS{
		"good.jsonl": {Data: []byte("\n" + `{"id": "a", "prompt_ids": [1]}` + "\n\n" + `{"images": ["data:image/png;base64,AAE="]}`)},
		"bad.jsonl":  {Data: []byte("{}\n{")},
	}
	cases, err := readGold(files, "good.jsonl")
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
	if _, err := readGold(files, "bad.jsonl"); err == nil || !strings.Contains(err.Error(), "bad.jsonl, line 2") {
		t.Errorf("error %v", err)
	}
}

func FuzzReadGold(f *testing.F) {
	f.Add([]byte(`{"id": "a", "images": ["data:image;base64,AAE="], "messages": [{"role": "user", "content": [{"type": "image"}]}], "first_step_top5": [[1, 2.5]], "precision": "int8"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		files := fstest.MapFS{"gold.jsonl": {Data: data}}
		cases, err := readGold(files, "gold.jsonl")
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
