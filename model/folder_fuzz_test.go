package model

import (
	"encoding/binary"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/model/families"
	"github.com/mmserve/mmserve/model/modeltest"
)

// fuzzedFiles are the files of a folder that FuzzFolder makes up, in the order of its arguments; tokenizer.json is the
// handed one, which has a fuzzer of its own.
var fuzzedFiles = []string{"config.json", "generation_config.json", "tokenizer_config.json", "preprocessor_config.json",
	"processor_config.json",
	"model.safetensors.index.json", "chat_template.jinja"}

// image makes a safetensors file of a header: zeros for whatever data it describes, up to 1 MiB.
func image(header []byte) []byte {
	const most = 1 << 20
	var entries map[string]struct {
		Offsets []int64 `json:"data_offsets"`
	}
	_ = json.Unmarshal(header, &entries)
	var end int64
	for _, e := range entries {
		for _, at := range e.Offsets {
			if at <= most {
				end = max(end, at)
			}
		}
	}
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), make([]byte, end)...)
}

// headerOf is the header of a safetensors file.
func headerOf(file []byte) []byte { return file[8:][:binary.LittleEndian.Uint64(file)] }

// No folder makes opening it, or what comes before the first session, panic or take more memory than a small model may.
func FuzzFolder(f *testing.F) {
	root := modeltest.Path("testdata", "folders")
	read := func(elem ...string) []byte {
		raw, err := os.ReadFile(filepath.Join(elem...))
		if err != nil {
			return nil
		}
		return raw
	}
	seed := func(dirs ...string) {
		args := make([][]byte, len(fuzzedFiles))
		var header []byte
		for _, dir := range dirs {
			for i, name := range fuzzedFiles {
				if raw := read(dir, name); raw != nil {
					args[i] = raw
				}
			}
			if raw := read(dir, "model.safetensors"); len(raw) > 1000 {
				header = headerOf(raw)
			}
		}
		f.Add(args[0], args[1], args[2], args[3], args[4], args[5], args[6], header, "adapter_model.safetensors\nonnx/x.txt", false)
	}
	cases, err := os.ReadDir(root)
	if err != nil {
		f.Fatal(err)
	}
	for _, c := range cases {
		seed(filepath.Join(root, "base"), filepath.Join(root, c.Name()))
	}
	for name := range modeltest.TinyCheckpoints {
		seed(modeltest.TinyDir(name))
	}
	tokenizer := read(root, "base", "tokenizer.json")
	f.Fuzz(func(t *testing.T, config, generation, tokenizerConfig, preprocessor, processor, index, template,
		header []byte, listing string, sharded bool) {
		files := fstest.MapFS{"tokenizer.json": {Data: tokenizer}}
		for i, data := range [][]byte{config, generation, tokenizerConfig, preprocessor, processor, index, template} {
			if len(data) > 0 {
				files[fuzzedFiles[i]] = &fstest.MapFile{Data: data}
			}
		}
		for name := range strings.SplitSeq(listing, "\n") {
			if fs.ValidPath(name) && name != "." && len(files) < 50 && files[name] == nil {
				files[name] = &fstest.MapFile{Data: []byte("{}")}
			}
		}
		weights := "model.safetensors"
		if sharded {
			weights = "model-00001-of-00001.safetensors"
		}
		files[weights] = &fstest.MapFile{Data: image(header)}
		before := modeltest.Allocated()
		beforeSessions(t, files)
		if took := modeltest.Allocated() - before; took > 600<<20 {
			t.Errorf("%d MiB were allocated", took>>20)
		}
	})
}

// beforeSessions does with a folder what serve does before it opens a session.
func beforeSessions(t *testing.T, files fs.FS) {
	m, err := openFS("fuzzed", files)
	if err != nil {
		return
	}
	defer m.Close()
	if m.Decoder.KVBytesPerToken() <= 0 || m.KVTokens(1<<30, 4) < 0 ||
		m.MemoryPlan(graph.FP32, 4, m.Decoder.MaxLen, 256).Total(4) <= 0 {
		t.Errorf("no memory plan of %+v", m.Decoder)
	}
	text, err := m.OpenProcessor()
	if err != nil {
		return
	}
	for _, size := range [][2]int{{1, 1}, {640, 480}, {4096, 4096}, {1, 30000}} {
		g := text.Preprocessor.Grid(size[0], size[1])
		if g.Tiles() > families.MaxTiles {
			t.Errorf("%d tiles of an image of %d×%d pixels", g.Tiles(), size[0], size[1])
			continue
		}
		if m.Layout.Expand(g) == "" {
			t.Errorf("no placeholder of a grid %+v", g)
		}
	}
	text.Tokenizer.Encode("Hello <image>", true)
}
