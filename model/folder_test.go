package model

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/model/modeltest"
)

// files are a folder's, by name.
type files map[string][]byte

// readFiles reads testdata/folders/base and lays another folder of testdata/folders over it.
func readFiles(t *testing.T, over string) files {
	t.Helper()
	all := files{}
	for _, dir := range []string{"base", over} {
		list, err := filepath.Glob(modeltest.Path("testdata", "folders", dir, "*"))
		if err != nil || len(list) == 0 {
			t.Fatal(dir, err)
		}
		for _, path := range list {
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			all[filepath.Base(path)] = raw
		}
	}
	return all
}

// write puts the files into a new folder.
func (f files) write(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, raw := range f {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		modeltest.WriteFile(t, path, raw)
	}
	return dir
}

// edit changes a JSON file; a nil value takes the key out. Keys with a dot are of an object inside.
func (f files) edit(t *testing.T, name string, values map[string]any) {
	t.Helper()
	var c map[string]any
	if raw, ok := f[name]; !ok {
		c = map[string]any{}
	} else if err := json.Unmarshal(raw, &c); err != nil {
		t.Fatal(err)
	}
	for key, v := range values {
		in := c
		if outer, inner, ok := strings.Cut(key, "."); ok {
			in, key = c[outer].(map[string]any), inner
		}
		if in[key] = v; v == nil {
			delete(in, key)
		}
	}
	raw, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	f[name] = raw
}

// tensors changes model.safetensors.
func (f files) tensors(t *testing.T, change func(map[string]safetensors.Tensor)) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "model.safetensors")
	modeltest.WriteFile(t, path, f["model.safetensors"])
	c, err := safetensors.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	all := map[string]safetensors.Tensor{}
	for _, name := range c.Names() {
		all[name], _ = c.Tensor(name)
	}
	change(all)
	var list []safetensors.Tensor
	for _, name := range slices.Sorted(maps.Keys(all)) {
		tensor := all[name]
		tensor.Name = name
		list = append(list, tensor)
	}
	var b bytes.Buffer
	if err := safetensors.Write(&b, list); err != nil {
		t.Fatal(err)
	}
	f["model.safetensors"] = b.Bytes()
}

// opened is what became of a folder.
type opened struct {
	*Model
	text     *Processor
	warnings string
}

func openAll(t *testing.T, dir string) (opened, error) {
	t.Helper()
	m, err := Open(dir)
	if err != nil {
		return opened{}, err
	}
	t.Cleanup(func() { m.Close() })
	text, err := m.OpenProcessor()
	if err != nil {
		return opened{}, err
	}
	return opened{m, text, strings.Join(slices.Concat(m.Warnings, text.Warnings), "\n")}, nil
}

// Every handed folder is served as transformers 5.12.1 serves it, or refused by the name of what is wrong.
func TestHandedFolders(t *testing.T) {
	base, err := openAll(t, readFiles(t, "base").write(t))
	if err != nil || base.warnings != "" {
		t.Fatal(err, base.warnings)
	}
	same := func(t *testing.T, o opened) {
		t.Helper()
		if !reflect.DeepEqual(o.Decoder, base.Decoder) ||
			!bytes.Equal(o.source.(*checkpoint).Checkpoint.Digest(), base.source.(*checkpoint).Checkpoint.Digest()) {
			t.Error("another model than the base")
		}
	}
	for name, c := range map[string]struct {
		without string
		refused []string // parts of the error
		warned  string
		check   func(*testing.T, opened)
	}{
		"03_bin_only": {without: "model.safetensors",
			refused: []string{"pytorch_model.bin", "save it again"}},
		"05_stale_index_beside_single": {warned: "model.safetensors.index.json", check: same},
		"06_single_and_other_shards":   {warned: "model-00001-of-00002.safetensors", check: same},
		"14_lfs_pointer":               {refused: []string{"model.safetensors", "Git LFS pointer"}},
		"20_adapter_only": {without: "model.safetensors config.json",
			refused: []string{"adapter_config.json", "org/base", "merge"}},
		"21_base_with_adapter":              {refused: []string{"adapter_config.json", "LORA", "merge"}},
		"30_awq":                            {refused: []string{"quantization_config", "awq"}},
		"32_bnb4":                           {refused: []string{"quantization_config", "bitsandbytes"}},
		"34_fp8":                            {refused: []string{"quantization_config", "fp8"}},
		"36_quant_config_but_float_weights": {warned: "compressed-tensors", check: same},
		"40_gguf_only":                      {without: "model.safetensors", refused: []string{"model-Q4_K_M.gguf", "GGUF"}},
		"50_no_lm_head_untied":              {refused: []string{"lm_head.weight", "tie_word_embeddings"}},
		"51_tied_but_other_lm_head":         {warned: "lm_head.weight differs", check: same},
		"k5_missing_added_in_decoder": {check: func(t *testing.T, o opened) {
			same(t, o)
			if got := o.text.Tokenizer.Encode("a<end_of_utterance>", false); !slices.Equal(got, []int32{4, 2}) {
				t.Errorf("ids %v, want one token for the end", got)
			}
			if !slices.Contains(o.text.Guarded, "<end_of_utterance>") {
				t.Errorf("a user can write it: %q", o.text.Guarded)
			}
		}},
		"p0_nested_image_processor": {check: func(t *testing.T, o opened) {
			same(t, o)
			if g := o.text.Preprocessor.Grid(512, 512); g.Tiles() != 1 {
				t.Errorf("%d tiles, the nested processor cuts no image", g.Tiles())
			}
		}},
		"t2_lfs_tokenizer": {refused: []string{"tokenizer.json", "Git LFS pointer"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := readFiles(t, name)
			for n := range strings.FieldsSeq(c.without) {
				delete(f, n)
			}
			o, err := openAll(t, f.write(t))
			if (err != nil) != (c.refused != nil) {
				t.Fatalf("error %v, want one of %q", err, c.refused)
			}
			for _, part := range c.refused {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %v does not name %q", err, part)
				}
			}
			if !strings.Contains(o.warnings, c.warned) || c.refused == nil && c.warned == "" && o.warnings != "" {
				t.Errorf("warnings %q, want %q", o.warnings, c.warned)
			}
			if c.check != nil {
				c.check(t, o)
			}
		})
	}
}

// floats are n values of a tensor as float32.
func floats(n int, v float32) safetensors.Tensor {
	t := safetensors.Tensor{DType: safetensors.F32, Shape: []int{n}}
	for range n {
		t.Data = binary.LittleEndian.AppendUint32(t.Data, uint32(int32(v)))
	}
	return t
}

// Other folders as people have them: refused by a name, warned of by one, or served in silence.
func TestFolderVariants(t *testing.T) {
	type change = func(t *testing.T, f files)
	config := func(values map[string]any) change {
		return func(t *testing.T, f files) { f.edit(t, "config.json", values) }
	}
	tensors := func(by func(map[string]safetensors.Tensor)) change {
		return func(t *testing.T, f files) { f.tensors(t, by) }
	}
	put := func(name, text string) change { return func(_ *testing.T, f files) { f[name] = []byte(text) } }
	rename := func(from, to string) change {
		return func(_ *testing.T, f files) { f[to] = f[from]; delete(f, from) }
	}
	const head, embed = "lm_head.weight", "model.text_model.embed_tokens.weight"
	for name, c := range map[string]struct {
		change  change
		refused string
		warned  string
	}{
		"dtype by its old name": {change: config(map[string]any{"dtype": nil, "torch_dtype": "bfloat16"})},
		"head equal to the table": {change: func(t *testing.T, f files) {
			config(map[string]any{"tie_word_embeddings": true})(t, f)
			f.tensors(t, func(l map[string]safetensors.Tensor) { l[head] = l[embed] })
		}},
		"head left out, nobody says": {change: func(t *testing.T, f files) {
			config(map[string]any{"tie_word_embeddings": nil, "text_config.tie_word_embeddings": nil})(t, f)
			f.tensors(t, func(l map[string]safetensors.Tensor) { delete(l, head) })
		}, warned: "the embedding table is the head"},
		"old buffers": {change: tensors(func(l map[string]safetensors.Tensor) {
			l["model.text_model.layers.0.self_attn.rotary_emb.inv_freq"] = floats(8, 1)
			l["model.vision_model.embeddings.position_ids"] = floats(16, 1)
		})},
		"a layer more": {change: tensors(func(l map[string]safetensors.Tensor) {
			l["model.text_model.layers.2.mlp.up_proj.weight"] = l["model.text_model.layers.1.mlp.up_proj.weight"]
		}), warned: "1 tensors of the checkpoint are not used"},
		"a layer fewer": {change: config(map[string]any{"text_config.num_hidden_layers": 3}), refused: "text_config.num_hidden_layers is 3, the checkpoint has 2"},
		"a tensor missing": {change: tensors(func(l map[string]safetensors.Tensor) { delete(l, "model.text_model.layers.1.mlp.up_proj.weight") }),
			refused: "lacks 1 of"},
		"other shape":      {change: config(map[string]any{"text_config.intermediate_size": 80}), refused: "want [80 40]"},
		"other vocabulary": {change: config(map[string]any{"text_config.vocab_size": 99}), refused: "want [99 40]"},
		"integer weights": {change: tensors(func(l map[string]safetensors.Tensor) {
			x := l[head]
			x.DType = safetensors.I32
			l[head] = x
		}), refused: "is I32"},
		"packed, not said": {change: tensors(func(l map[string]safetensors.Tensor) {
			l["model.text_model.layers.0.mlp.up_proj.qweight"] = floats(4, 1)
		}), refused: "quantised"},
		"float8, not said": {change: tensors(func(l map[string]safetensors.Tensor) {
			x := floats(25, 1)
			x.DType, x.Shape = safetensors.E4M3, []int{100}
			l[head] = x
		}), refused: "lm_head.weight"},
		"LoRA inside": {change: tensors(func(l map[string]safetensors.Tensor) {
			l["model.text_model.layers.0.self_attn.q_proj.lora_A.weight"] = floats(4, 1)
		}), refused: "adapter"},
		"GPTQ": {change: config(map[string]any{"quantization_config": map[string]any{"quant_method": "gptq",
			"bits": 4}}), refused: `"gptq"`},
		"of the text model": {change: config(map[string]any{"text_config.quantization_config": map[string]any{
			"quant_method": "torchao"}}), refused: `"torchao"`},
		"MLX": {change: config(map[string]any{"quantization": map[string]any{"group_size": 64, "bits": 4}}),
			refused: `"mlx"`},
		"ModelOpt's file": {change: put("hf_quant_config.json", `{}`), warned: "hf_quant_config.json"},
		"code": {change: config(map[string]any{"auto_map": map[string]any{"AutoModel": "modeling_x.X"}}),
			warned: "auto_map"},
		"rope": {change: config(map[string]any{"text_config.rope_parameters": map[string]any{"rope_type": "longrope",
			"rope_theta": 1e4}}), refused: `"longrope"`},
		"model type":       {change: config(map[string]any{"model_type": "mllama"}), refused: `model_type "mllama"`},
		"keys in capitals": {change: put("generation_config.json", `{"DO_SAMPLE": true, "Temperature": 7000}`)},
		"equal keys":       {change: put("generation_config.json", `{"repetition_penalty": 99, "repetition_penalty": 1.0}`)},
		"NaN":              {change: put("generation_config.json", "{\"top_k\": 5,\n\"temperature\": NaN}"), refused: "line 2 has the number NaN"},
		"a list":           {change: put("generation_config.json", `[]`), refused: "want a JSON object"},
		"empty":            {change: put("generation_config.json", ``), refused: "generation_config.json: the file is empty"},
		"deep": {change: put("generation_config.json", `{"a":`+strings.Repeat("[", 100000)),
			refused: "nest more than 64 deep"},
		"huge number": {change: config(map[string]any{"text_config.hidden_size": json.Number("1e300")}),
			refused: "hidden_size"},
		"negative":   {change: config(map[string]any{"text_config.hidden_size": -1}), refused: "text_config.hidden_size is -1, want 1 to"},
		"layers":     {change: config(map[string]any{"text_config.num_hidden_layers": 1 << 24}), refused: "num_hidden_layers is 16777216, want 1 to 1024"},
		"vocabulary": {change: config(map[string]any{"text_config.vocab_size": 1 << 24}), refused: "vocab_size is 16777216, want 1 to 1048576"},
		"image size": {change: config(map[string]any{"vision_config.image_size": 1 << 20}), refused: "image_size"},
		"a shard missing": {change: func(_ *testing.T, f files) {
			delete(f, "model.safetensors")
			f["model.safetensors.index.json"] = []byte(`{"weight_map": {"a": "model-00001-of-00002.safetensors"}}`)
		}, refused: "model-00001-of-00002.safetensors"},
		"shards elsewhere": {change: func(_ *testing.T, f files) {
			delete(f, "model.safetensors")
			f["model.safetensors.index.json"] = []byte(`{"weight_map": {"a": "../x.safetensors"}}`)
		}, refused: "plain file name"},
		"shards without index":  {change: rename("model.safetensors", "model-00001-of-00001.safetensors"), refused: "the index of the shards"},
		"weights by other name": {change: rename("model.safetensors", "model.fp16.safetensors"), refused: "model.fp16.safetensors"},
		"cut off": {change: func(_ *testing.T,
			f files) {
			f["model.safetensors"] = f["model.safetensors"][:5000]
		}, refused: "truncated"},
		"SentencePiece only": {change: rename("tokenizer.json", "tokenizer.model"), refused: "tokenizer.model"},
		"no tokenizer":       {change: rename("tokenizer.json", "x"), refused: "no tokenizer.json"},
		"web page":           {change: put("tokenizer.json", "<!DOCTYPE html>\n<html>"), refused: "web page"},
		"moved token": {change: put("tokenizer_config.json", `{"added_tokens_decoder": {"7": {"content": "<image>"}}}`),
			warned: `"<image>" has 90, not 7`},
		"token without embedding": {change: put("added_tokens.json", `{"<new>": 100}`), warned: `"<new>" (100)`},
		"end that is none":        {change: put("generation_config.json", `{"eos_token_id": [2, 500]}`), warned: "eos_token_id 500"},
		"image_seq_len":           {change: put("processor_config.json", `{"image_seq_len": 64}`), warned: "image_seq_len is 64"},
		"image_seq_length": {change: put("processor_config.json", `{"image_seq_length": 64}`),
			warned: "image_seq_length is 64"},
		"other processor": {change: put("preprocessor_config.json", `{"image_processor_type": "CLIPImageProcessor", "size": 32, "crop_size": 32}`), refused: "SingleTile"},
		"tiles without number": {change: func(t *testing.T, f files) {
			f.edit(t, "preprocessor_config.json", map[string]any{"size": map[string]any{"longest_edge": 4096}})
		}, refused: "tiles of 32 pixels"},
		"null section": {change: put("processor_config.json", `{"image_processor": null}`)},
		"no processor": {change: rename("preprocessor_config.json", "x"), refused: "preprocessor_config.json"},
	} {
		t.Run(name, func(t *testing.T) {
			f := readFiles(t, "base")
			c.change(t, f)
			o, err := openAll(t, f.write(t))
			if (err == nil) != (c.refused == "") || err != nil && !strings.Contains(err.Error(), c.refused) {
				t.Fatalf("error %v, want %q", err, c.refused)
			}
			if !strings.Contains(o.warnings, c.warned) || err == nil && c.warned == "" && o.warnings != "" {
				t.Errorf("warnings %q, want %q", o.warnings, c.warned)
			}
		})
	}
}

// What older folders say in special_tokens_map.json holds over tokenizer_config.json, unless that has an
// added_tokens_decoder.
func TestSpecialTokensMap(t *testing.T) {
	for config, want := range map[string]string{
		`{"eos_token": "a"}`:                             "<|im_start|>",
		`{"eos_token": "a", "added_tokens_decoder": {}}`: "a",
	} {
		f := readFiles(t, "base")
		f["tokenizer_config.json"] = []byte(config)
		f["special_tokens_map.json"] = []byte(`{"eos_token": {"content": "<|im_start|>"}, "bos_token": null}`)
		o, err := openAll(t, f.write(t))
		if err != nil {
			t.Fatal(err)
		}
		if id, _ := o.text.Tokenizer.TokenID(want); !slices.Contains(o.text.EOS, id) {
			t.Errorf("%s: ends %v, want that of %s, %d", config, o.text.EOS, want, id)
		}
	}
}

// A context that no machine has the tables for is cut before anything is taken.
func TestContextIsCut(t *testing.T) {
	f := readFiles(t, "base")
	f.edit(t, "config.json", map[string]any{"text_config.max_position_embeddings": 1 << 24})
	before := modeltest.Allocated()
	o, err := openAll(t, f.write(t))
	if err != nil || !strings.Contains(o.warnings, "max_position_embeddings is 16777216: the context is cut to 262144 tokens") {
		t.Fatal(err, o.warnings)
	}
	if took := modeltest.Allocated() - before; took > 100<<20 {
		t.Errorf("opening it allocated %d MiB", took>>20)
	}
}

// Nothing but a regular file is read, and none waits for a writer.
func TestOnlyRegularFiles(t *testing.T) {
	for _, name := range []string{"config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json",
		"preprocessor_config.json",
		"processor_config.json", "chat_template.jinja", "model.safetensors", "special_tokens_map.json"} {
		for kind, replace := range map[string]func(path string) error{
			"pipe":   func(path string) error { return syscall.Mkfifo(path, 0o600) },
			"device": func(path string) error { return os.Symlink("/dev/zero", path) },
			"folder": func(path string) error { return os.Mkdir(path, 0o700) },
		} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				dir := readFiles(t, "base").write(t)
				path := filepath.Join(dir, name)
				os.Remove(path)
				if err := replace(path); err != nil {
					t.Fatal(err)
				}
				done := make(chan error, 1)
				go func() {
					m, err := Open(dir)
					if err == nil {
						defer m.Close()
						_, err = m.OpenProcessor()
					}
					done <- err
				}()
				select {
				case err := <-done:
					if err == nil || !strings.Contains(err.Error(), "not a regular file") {
						t.Errorf("error %v", err)
					}
				case <-time.After(20 * time.Second):
					t.Fatal("it waits")
				}
			})
		}
	}
}
