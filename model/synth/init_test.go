package synth

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/model/families"
	"github.com/mmserve/mmserve/model/modeltest"
)

// The same seed makes the same checkpoint, in shards too; float32 and bfloat16 hold the same values, float16 nearly.
func TestInit(t *testing.T) {
	config := modeltest.Path("testdata", "tiny-hf", "llava", "config.json")
	floats := func(o InitOptions) map[string][]float32 {
		t.Helper()
		dir := filepath.Join(t.TempDir(), "new", "folder")
		if err := Init(config, dir, o); err != nil {
			t.Fatal(err)
		}
		shards, err := filepath.Glob(filepath.Join(dir, "*.safetensors"))
		if err != nil || (len(shards) > 1) != (o.ShardBytes > 0) {
			t.Errorf("%+v: files %v %v", o, shards, err)
		}
		m, err := model.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if _, err := m.OpenProcessor(); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
		values := map[string][]float32{}
		ckpt, err := safetensors.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer ckpt.Close()
		for _, name := range ckpt.Names() {
			w, _ := ckpt.Tensor(name)
			if w.DType != o.dtype() {
				t.Errorf("%+v: %s is %s", o, name, w.DType)
			}
			if values[name], err = w.Floats(); err != nil {
				t.Fatal(err)
			}
		}
		return values
	}
	equal := func(a, b map[string][]float32) bool { return maps.EqualFunc(a, b, slices.Equal) }
	base := floats(InitOptions{Seed: 3})
	if !equal(base, floats(InitOptions{Seed: 3, DType: "f32"})) ||
		!equal(base, floats(InitOptions{Seed: 3, DType: "bf16", ShardBytes: 20_000})) {
		t.Error("the weights do not follow from the seed alone")
	}
	if equal(base, floats(InitOptions{Seed: 4})) {
		t.Error("another seed gives the same weights")
	}
	for name, half := range floats(InitOptions{Seed: 3, DType: "f16"}) {
		for i, v := range half {
			if d := v - base[name][i]; d > 1e-3 || d < -1e-3 {
				t.Fatalf("%s: %v as float16, %v as bfloat16", name, v, base[name][i])
			}
		}
	}
	if err := Init(config, t.TempDir(), InitOptions{DType: "int4"}); err == nil ||
		!strings.Contains(err.Error(), "want f32, bf16 or f16") {
		t.Errorf("int4: %v", err)
	}
}

// A folder with a tokenizer keeps it, its template and its preprocessor.
func TestInitFromFolder(t *testing.T) {
	from, dir := modeltest.Path("model", "tiny-vlm"), t.TempDir()
	if err := Init(from, dir, InitOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tokenizer.json", "chat_template.jinja", "preprocessor_config.json", "generation_config.json"} {
		want, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != string(want) {
			t.Errorf("%s differs: %v", name, err)
		}
	}
	var c map[string]any
	raw, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err == nil {
		err = json.Unmarshal(raw, &c)
	}
	if err != nil || c["dtype"] != "bfloat16" || c["model_type"] != "idefics3" {
		t.Errorf("config.json says %v %v: %v", c["dtype"], c["model_type"], err)
	}
}

// Special tokens have the ids of config.json, every id has a token, and text comes back where letters have room.
func TestStandInTokenizer(t *testing.T) {
	for _, tt := range []struct {
		vocab, image, bos, eos int
		text                   bool
	}{{100, 90, 1, 2, false}, {1500, 1499, 0, 7, true}, {8000, 7190, 1, 7999, true}} {
		raw, err := os.ReadFile(modeltest.Path("model", "tiny-vlm", "config.json"))
		if err != nil {
			t.Fatal(err)
		}
		config := strings.NewReplacer(`"vocab_size": 768`, fmt.Sprintf(`"vocab_size": %d`, tt.vocab), `"image_token_id": 7`,
			fmt.Sprintf(`"image_token_id": %d`, tt.image),
			`"bos_token_id": 1`, fmt.Sprintf(`"bos_token_id": %d`,
				tt.bos), `"eos_token_id": 4`, fmt.Sprintf(`"eos_token_id": %d`, tt.eos)).Replace(string(raw))
		file, dir := filepath.Join(t.TempDir(), "config.json"), t.TempDir()
		modeltest.WriteFile(t, file, []byte(config))
		if err := Init(file, dir, InitOptions{}); err != nil {
			t.Fatal(err)
		}
		m, err := model.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		text, err := m.OpenProcessor()
		if err != nil {
			t.Fatal(err)
		}
		if text.Tokenizer.Size() != tt.vocab || text.BOS != "<|im_start|>" ||
			!slices.Equal(text.EOS, []int32{int32(tt.eos)}) {
			t.Errorf("%+v: %d tokens, BOS %q, EOS %v", tt, text.Tokenizer.Size(), text.BOS, text.EOS)
		}
		for id := range int32(tt.vocab) {
			if content, _, ok := text.Tokenizer.Token(id); !ok || content == "" {
				t.Fatalf("%+v: id %d has no token", tt, id)
			}
		}
		if id, ok := text.Tokenizer.TokenID("<|im_start|>"); !ok || id != int32(tt.bos) {
			t.Errorf("%+v: BOS has id %d", tt, id)
		}
		const words = "the large blue star, at the top? 7"
		if got := text.Tokenizer.Decode(text.Tokenizer.Encode(words, false), true); got != words {
			t.Errorf("%+v: %q comes back as %q", tt, words, got)
		}
		const all = "Ünïcödé 中文 {}\n"
		if got := text.Tokenizer.Decode(text.Tokenizer.Encode(all, false), false); (got == all) != tt.text {
			t.Errorf("%+v: %q comes back as %q", tt, all, got)
		}
	}
}

// Every family's text files can be made up for a vocabulary that has room for all special tokens.
func TestStandInsOfFamilies(t *testing.T) {
	for name := range modeltest.TinyCheckpoints {
		raw, err := os.ReadFile(modeltest.Path("testdata", "tiny-hf", name, "config.json"))
		if err != nil {
			t.Fatal(err)
		}
		file, dir := filepath.Join(t.TempDir(), "config.json"), t.TempDir()
		modeltest.WriteFile(t, file, []byte(strings.Replace(string(raw), `"vocab_size": 100`, `"vocab_size": 1500`, 1)))
		if err := Init(file, dir, InitOptions{}); err != nil {
			t.Fatal(err)
		}
		m, err := model.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		text, err := m.OpenProcessor()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		fence, special, ok := text.Tokenizer.Token(tokenID(text, "<fake_token_around_image>"))
		if wants := name == "idefics3" || name == "smolvlm"; wants != (ok && special && fence != "") {
			t.Errorf("%s: the fence around images is a token: %t", name, ok)
		}
	}
}

// An image processor that cuts images otherwise than config.json says is warned of.
func TestOtherPinpoints(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "model")
	if err := Init(filepath.Join(modeltest.TinyDir("llava_next"), "config.json"), dir, InitOptions{}); err != nil {
		t.Fatal(err)
	}
	m, err := model.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	file := filepath.Join(dir, "preprocessor_config.json")
	for _, c := range []struct {
		pinpoints string
		warned    bool
	}{{"[[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]", false}, {"[[32, 64]]", true}} {
		modeltest.WriteFile(t, file, []byte(`{"image_processor_type": "LlavaNextImageProcessor", "size": 32, "crop_size": 32,
			"image_grid_pinpoints": `+c.pinpoints+`}`))
		p, err := m.OpenProcessor()
		if err != nil {
			t.Fatal(err)
		}
		warned := slices.ContainsFunc(p.Warnings, func(w string) bool { return strings.Contains(w, "image_grid_pinpoints") })
		if warned != c.warned {
			t.Errorf("%s: warnings %q", c.pinpoints, p.Warnings)
		}
	}
}

// An image that would take more positions than any context has is refused with the model, before prompts are made.
func TestImagesBeyondContexts(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config.json")
	modeltest.WriteFile(t, config, []byte(`{"model_type": "internvl", "downsample_ratio": 1, "image_token_id": 90,
		"vision_config": {"hidden_size": 16, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 16,
			"image_size": 1024, "patch_size": 4}, "text_config": {"hidden_size": 16, "intermediate_size": 16,
			"num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1, "vocab_size": 300}}`))
	dir := filepath.Join(t.TempDir(), "model")
	if err := Init(config, dir, InitOptions{}); err != nil {
		t.Fatal(err)
	}
	m, err := model.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := m.OpenProcessor(); err == nil || !strings.Contains(err.Error(), "positions in 10 tiles") {
		t.Errorf("error %v", err)
	}
}

// tokenID is -1 for what is no token.
func tokenID(t *model.Processor, content string) int32 {
	if id, ok := t.Tokenizer.TokenID(content); ok {
		return id
	}
	return -1
}

func TestInitTooFewIDs(t *testing.T) {
	spec := families.Spec{}
	spec.Decoder.Vocab = 20
	spec.Layout.Placeholder = "<image>"
	if _, err := newVocabulary(spec, special{-1, -1}); err == nil || !strings.Contains(err.Error(), "a vocabulary of 20 has no room for letters") {
		t.Errorf("error %v", err)
	}
	spec.Layout.ImageTokenID = 20
	if _, err := newVocabulary(spec, special{-1, -1}); err == nil || !strings.Contains(err.Error(), "the image token is 20, the vocabulary has 20") {
		t.Errorf("error %v", err)
	}
	if got := (InitOptions{}).dtype(); got != safetensors.BF16 {
		t.Errorf("the default type is %s", got)
	}
}
