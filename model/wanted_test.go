package model

import (
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/model/families"
)

// recorded is a folder that remembers what was asked of it, there or not.
type recorded struct {
	fs.FS
	mu    sync.Mutex
	asked map[string]bool
}

func (r *recorded) Open(name string) (fs.File, error) {
	r.mu.Lock()
	r.asked[name] = true
	r.mu.Unlock()
	return r.FS.Open(name)
}

// foreignFiles are looked for, too: by their names alone.
var foreignFiles = []string{".", adapterConfig, safetensors.Single, safetensors.Index, "additional_chat_templates", "onnx"}

// All that opening a folder reads is wanted of a repository with the same files, for each family; and little else.
func TestWantedIsWhatIsRead(t *testing.T) {
	dirs, err := filepath.Glob("../testdata/tiny-hf/*")
	if err != nil || len(dirs) < 7 {
		t.Fatalf("%v, %v", dirs, err)
	}
	for _, dir := range append(dirs, "tiny-vlm") {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			config, err := folder.JSON(folder.Dir(dir), "config.json")
			if err != nil {
				t.Fatal(err)
			}
			if kind, err := families.ModelType(config); err != nil || families.Lookup(kind).Checkpoint == nil {
				t.Skipf("model_type %q is not there: %v", kind, err)
			}
			whole := folder.Exists(folder.Dir(dir), "tokenizer.json")
			wanted, absent, err := Wanted(folder.Dir(dir), WantedOptions{NoWeights: !whole})
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range absent {
				if folder.Exists(folder.Dir(dir), name) {
					t.Errorf("%s is said to be absent", name)
				}
			}
			for _, name := range wanted {
				if !folder.Exists(folder.Dir(dir), name) || strings.HasPrefix(name, "gold") {
					t.Errorf("%s is wanted", name)
				}
			}
			r := &recorded{FS: folder.Dir(dir), asked: map[string]bool{}}
			m, err := openFS("m", r)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			_, err = m.OpenProcessor()
			if whole && (err != nil || len(r.asked) < 12) {
				t.Errorf("%v; asked for %v only", err, r.asked)
			}
			known := slices.Concat(wanted, absent, quantizationFiles, slowTokenizers, foreignFiles)
			for name := range r.asked {
				if !slices.Contains(known, name) {
					t.Errorf("%s is looked for, and not wanted of a hub", name)
				}
			}
		})
	}
}

func TestWanted(t *testing.T) {
	config, err := fs.ReadFile(DefaultFiles(), "config.json")
	if err != nil {
		t.Fatal(err)
	}
	text := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	base := func(more fstest.MapFS) fstest.MapFS {
		files := fstest.MapFS{"config.json": {Data: config}, "tokenizer.json": {}, "README.md": {}, "x.py": {}}
		for name, f := range more {
			files[name] = f
		}
		return files
	}
	settings := []string{"config.json", "tokenizer.json"}
	shards := text(`{"weight_map":{"a":"m-2.safetensors","b":"m-1.safetensors","c":"m-2.safetensors"}}`)
	for name, c := range map[string]struct {
		files fstest.MapFS
		o     WantedOptions
		want  []string
	}{
		"one file": {base(fstest.MapFS{safetensors.Single: {}, "other.safetensors": {}, "model.gguf": {}}), WantedOptions{},
			[]string{safetensors.Single}},
		"one file and an index": {base(fstest.MapFS{safetensors.Single: {}, safetensors.Index: shards}), WantedOptions{},
			[]string{safetensors.Single}},
		"shards": {base(fstest.MapFS{
			safetensors.Index: shards, "m-1.safetensors": {}, "m-2.safetensors": {}, "m-3.safetensors": {},
		}), WantedOptions{}, []string{"m-1.safetensors", "m-2.safetensors", safetensors.Index}},
		"no weights":     {base(fstest.MapFS{safetensors.Single: {}}), WantedOptions{NoWeights: true}, nil},
		"none are there": {base(nil), WantedOptions{NoWeights: true}, nil},
		"templates": {base(fstest.MapFS{
			safetensors.Single: {}, "additional_chat_templates/a.jinja": {}, "chat_template.jinja": {},
		}), WantedOptions{}, []string{"chat_template.jinja", "additional_chat_templates/a.jinja", safetensors.Single}},
	} {
		got, _, err := Wanted(c.files, c.o)
		want := slices.Concat(settings, c.want)
		slices.Sort(got)
		slices.Sort(want)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v; want %v", name, got, err, want)
		}
	}
	for want, files := range map[string]fstest.MapFS{
		"names no file":                base(fstest.MapFS{safetensors.Index: text(`{}`)}),
		`names "m-1.safetensors"`:      base(fstest.MapFS{safetensors.Index: text(`{"weight_map":{"a":"m-1.safetensors"}}`)}),
		"rename a single file":         base(fstest.MapFS{"other.safetensors": {}}),
		"no model.safetensors or":      base(nil),
		"the layout of the authors'":   {"params.json": {}, "consolidated.safetensors": {}},
		"is a pipeline of diffusers":   {"model_index.json": {}},
		"config.json: line 1: invalid": {"config.json": text("nonsense"), "tokenizer.json": {}},
		"no tokenizer.json":            {"config.json": {Data: config}, safetensors.Single: {}, "tokenizer.model": {}},
	} {
		if got, _, err := Wanted(files, WantedOptions{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, error %v; want %q", got, err, want)
		}
	}
}
