package model

import (
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/tokenizer"
	"github.com/mmserve/mmserve/model/families"
	"github.com/mmserve/mmserve/vision"
)

// A tokenizer that knows no images learns the placeholder, once.
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
	none, err := addPlaceholder([]byte(`{"added_tokens": []}`), l)
	if want := `{"added_tokens":[{"id":50257,"content":"\u003cimage\u003e","special":true}]}`; err != nil || string(none) != want {
		t.Errorf("%s %v, want %s", none, err, want)
	}
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
		m := &Model{files: fstest.MapFS{"generation_config.json": {Data: []byte(c.generation)},
			"config.json": {Data: []byte(c.config)}}}
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
		file, config string
		want         decoder.Sampling
		ignored      []string
	}{
		{"", `{}`, decoder.Sampling{}, nil},
		{`{"temperature": 0.5, "top_k": 3}`, `{}`, decoder.Sampling{}, nil},
		{`{"do_sample": true}`, `{}`, decoder.Sampling{Temperature: 1, TopK: 50, TopP: 1}, nil},
		{`{"do_sample": true, "temperature": 0.2, "top_k": null, "top_p": 0.9}`, `{}`, decoder.Sampling{Temperature: 0.2, TopK: 50, TopP: 0.9}, nil},
		{`{"do_sample": true, "top_k": 0}`, `{}`, decoder.Sampling{Temperature: 1, TopP: 1}, nil},
		{`{"do_sample": true, "min_p": 0.05, "typical_p": 0.9}`, `{}`, decoder.Sampling{Temperature: 1, TopK: 50, TopP: 1, MinP: 0.05, TypicalP: 0.9}, nil},
		// What a file says holds in a greedy answer, too.
		{`{"repetition_penalty": 1.2, "suppress_tokens": [3], "bad_words_ids": [[5], [2], [6, 7]], "min_new_tokens": 4, "sequence_bias": [[[8], -1.5], [[1, 2], 3]]}`, `{}`,
			decoder.Sampling{RepetitionPenalty: 1.2, Suppress: []int32{3, 5}, MinTokens: 4, Stop: []int32{2},
				LogitBias: map[int32]float32{8: -1.5}},
			[]string{"bad_words_ids (of more than one token)", "sequence_bias (of more than one token)"}},
		{`{"num_beams": 4, "num_beam_groups": 1, "no_repeat_ngram_size": 0, "max_new_tokens": 16, "forced_eos_token_id": null, "stop_strings": [], "min_length": 5}`, `{}`,
			decoder.Sampling{}, []string{"min_length", "num_beams"}},
		// config.json counts only where there is no generation_config.json, its decoder only where it is silent itself.
		{`{}`, `{"do_sample": true}`, decoder.Sampling{}, nil},
		{"", `{"do_sample": true, "top_p": null, "decoder": {"do_sample": false, "top_p": 0.5}, "generator": "x"}`, decoder.Sampling{Temperature: 1, TopK: 50, TopP: 0.5}, nil},
		{"", `{"text_config": {"repetition_penalty": 1.1, "num_beams": 2}}`, decoder.Sampling{RepetitionPenalty: 1.1}, []string{"num_beams"}},
	} {
		files := fstest.MapFS{"config.json": {Data: []byte(tt.config)}}
		if tt.file != "" {
			files["generation_config.json"] = &fstest.MapFile{Data: []byte(tt.file)}
		}
		got, ignored, err := (&Model{files: files}).defaults([]int32{2})
		if err != nil || !reflect.DeepEqual(got, tt.want) || !slices.Equal(ignored, tt.ignored) {
			t.Errorf("%s %s: %+v %v %v, want %+v %v", tt.file, tt.config, got, ignored, err, tt.want, tt.ignored)
		}
	}
	for file, want := range map[string]string{
		`{"do_sample": 7}`:                       "generation_config.json: do_sample: ",
		`{"do_sample": true, "temperature": -1}`: "temperature is -1; want from 0 up to 100",
		`{"do_sample": true, "top_k": -1}`:       "top_k is -1; want 0 or more",
		`{"repetition_penalty": 0}`:              "repetition_penalty is 0; want above 0 up to 10",
		`{"min_new_tokens": -2}`:                 "min_new_tokens is -2; want 0 or more",
		`{"sequence_bias": [7]}`:                 "sequence_bias: ",
	} {
		_, _, err := (&Model{files: fstest.MapFS{"generation_config.json": {Data: []byte(file)}}}).defaults(nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %s", file, err, want)
		}
	}
}

// TestTemplateSource: every place where Hugging Face keeps templates, in the order of the reference's processor.
func TestTemplateSource(t *testing.T) {
	list := `[{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "list"}]`
	for _, tt := range []struct {
		files       map[string]string
		want, error string
	}{
		{nil, "", ""},
		{map[string]string{"tokenizer_config.json": `{"chat_template": "string"}`}, "string", ""},
		{map[string]string{"tokenizer_config.json": `{"chat_template": null}`}, "", ""},
		{map[string]string{"tokenizer_config.json": `{"chat_template": ` + list + `}`}, "list", ""},
		{map[string]string{"chat_template.json": `{"chat_template": {"default": "object", "rag": "x"}}`}, "object", ""},
		{map[string]string{"tokenizer_config.json": `{"chat_template": "a"}`, "processor_config.json": `{"chat_template": "b"}`}, "b", ""},
		{map[string]string{"processor_config.json": `{"chat_template": "b"}`, "chat_template.json": `{"chat_template": "c"}`}, "b", ""},
		{map[string]string{"processor_config.json": `{"chat_template": null}`, "chat_template.json": `{"chat_template": "c"}`}, "c", ""},
		{map[string]string{"processor_config.json": `{"chat_template": "b"}`, "chat_template.jinja": "d"}, "b", ""},
		{map[string]string{"chat_template.json": `{"chat_template": "c"}`, "chat_template.jinja": "d"}, "c", ""},
		{map[string]string{"tokenizer_config.json": `{"chat_template": "a"}`, "chat_template.jinja": "d"}, "d", ""},
		{map[string]string{"additional_chat_templates/default.jinja": "e", "additional_chat_templates/rag.jinja": "f",
			"tokenizer_config.json": `{"chat_template": "c"}`}, "e", ""},
		{map[string]string{"additional_chat_templates/rag.jinja": "f", "chat_template.json": `{"chat_template": "c"}`}, "",
			"both chat_template.json and additional_chat_templates/rag.jinja"},
		{map[string]string{"additional_chat_templates/rag.jinja": "f", "processor_config.json": `{"chat_template": "b"}`,
			"chat_template.json": `{}`}, "", "both chat_template.json and"},
		{map[string]string{"additional_chat_templates/rag.jinja": "f", "processor_config.json": `{"chat_template": "b"}`}, "b", ""},
		{map[string]string{"additional_chat_templates/default.jinja": "e", "chat_template.jinja": "d"}, "d", ""},
		{map[string]string{"additional_chat_templates/rag.jinja": "f", "tokenizer_config.json": `{"chat_template": "a"}`}, "a", ""},
		{map[string]string{"additional_chat_templates/rag.jinja": "f"}, "", "none of additional_chat_templates/rag.jinja is the default"},
		{map[string]string{"tokenizer_config.json": `{"chat_template": [{"name": "rag", "template": "x"}]}`}, "", `tokenizer_config.json: chat_template: none of ["rag"] is named "default"`},
		{map[string]string{"chat_template.json": `{"chat_template": {"rag": "x"}}`}, "", `chat_template.json: chat_template: none of ["rag"]`},
		{map[string]string{"chat_template.json": `{"chat_template": 7}`}, "", "chat_template.json: chat_template: "},
	} {
		files := fstest.MapFS{}
		for name, data := range tt.files {
			files[name] = &fstest.MapFile{Data: []byte(data)}
		}
		got, _, err := (&Model{files: files}).templateSource()
		if got != tt.want || (err == nil) != (tt.error == "") || err != nil && !strings.Contains(err.Error(), tt.error) {
			t.Errorf("%v: %q %v, want %q %s", tt.files, got, err, tt.want, tt.error)
		}
	}
}

// TestPatchesOfProcessor: how images of any size are cut, where the files and config.json may disagree.
func TestPatchesOfProcessor(t *testing.T) {
	qwen := `{"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "merge_size": 2}`
	pixtral := `"image_processor_type": "PixtralImageProcessor", "size": {"longest_edge": 280}`
	for _, tt := range []struct {
		class, preprocessor, processor string
		patch, merge                   int
		want                           string // the error, or the patches
	}{
		{"Qwen2VLImageProcessor", qwen, ``, 14, 2, "{14 2 2}"},
		{"Qwen2VLImageProcessor", `{"size": {"shortest_edge": 1024, "longest_edge": 4096}}`, ``, 16, 2, "{16 2 2}"},
		{"Qwen2VLImageProcessor", qwen, ``, 16, 2, "preprocessor_config.json: patch_size is 14, config.json's vision_config says 16"},
		{"Qwen2VLImageProcessor", qwen, ``, 14, 4, "merge_size is 2, config.json's vision_config says 4"},
		// The processor's own section counts before the file of old.
		{"Qwen2VLImageProcessor", qwen, `{"image_processor": {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 16}}`,
			16, 2, "{16 2 2}"},
		{"Qwen2VLImageProcessor", qwen, `{"image_processor": {"patch_size": 15}}`, 14, 2, "processor_config.json: patch_size is 15"},
		{"Qwen2VLImageProcessor", qwen, `{"image_processor": null}`, 14, 2, "{14 2 2}"},
		{"Qwen2VLImageProcessor", `{` + pixtral + `}`, ``, 14, 2, "of the kind Pixtral, model_type"},
		{"PixtralImageProcessor", `{` + pixtral + `, "patch_size": {"height": 14, "width": 14}}`,
			`{"patch_size": 14, "spatial_merge_size": 2}`, 14, 2, "{14 2 1}"},
		{"PixtralImageProcessor", `{` + pixtral + `, "patch_size": 28}`, ``, 14, 2, "{14 2 1}"},
		{"PixtralImageProcessor", `{` + pixtral + `}`, `{"patch_size": 16}`, 14, 2, "processor_config.json: patch_size is 16"},
		{"PixtralImageProcessor", `{` + pixtral + `}`, `{"spatial_merge_size": 1}`, 14, 2,
			"processor_config.json: spatial_merge_size is 1, config.json says 2"},
		{"PixtralImageProcessor", ``, ``, 14, 2, "no preprocessor_config.json"},
	} {
		files := fstest.MapFS{}
		for name, data := range map[string]string{
			"preprocessor_config.json": tt.preprocessor, "processor_config.json": tt.processor,
		} {
			if data != "" {
				files[name] = &fstest.MapFile{Data: []byte(data)}
			}
		}
		m := &Model{files: files, Spec: families.Spec{ImageProcessor: tt.class,
			NativeResolution: &vision.NativeResolution{PatchSize: tt.patch, MergeSize: tt.merge}}}
		p, err := m.preprocessor()
		if err != nil {
			if !strings.Contains(err.Error(), tt.want) || strings.HasPrefix(tt.want, "{") {
				t.Errorf("%s %s: %v, want %s", tt.preprocessor, tt.processor, err, tt.want)
			}
			continue
		}
		if got := fmt.Sprint(p.(vision.Patcher).Patches()); got != tt.want {
			t.Errorf("%s %s: %s, want %s", tt.preprocessor, tt.processor, got, tt.want)
		}
	}
}

// An image processor repeats patches as often as the tower's patches have frames, or is refused: the values of one
// would lie in those of the next.
func TestFramesOfProcessor(t *testing.T) {
	for _, tt := range []struct {
		class, config string
		frames        int
		want          string // the error, or the patches
	}{
		{"Qwen2VLImageProcessor", `{"temporal_patch_size": 4}`, 2, "temporal_patch_size is 4, config.json's vision_config says 2"},
		{"Qwen2VLImageProcessor", `{"temporal_patch_size": 1}`, 2, "temporal_patch_size is 1, config.json's vision_config says 2"},
		{"Qwen2VLImageProcessor", `{}`, 4, "{14 2 4}"},
		{"Glm46VImageProcessor", `{"temporal_patch_size": 1}`, 2, "temporal_patch_size is 1"},
		{"PaddleOCRVLImageProcessor", `{"temporal_patch_size": 2}`, 0, "temporal_patch_size is 2, config.json's vision_config says 1"},
		{"PaddleOCRVLImageProcessor", `{"temporal_patch_size": 1}`, 0, "{14 2 1}"},
	} {
		size := vision.NativeResolution{PatchSize: 14, MergeSize: 2}
		m := &Model{files: fstest.MapFS{"preprocessor_config.json": &fstest.MapFile{Data: []byte(tt.config)}},
			Spec: families.Spec{ImageProcessor: tt.class, NativeResolution: &size,
				AnySize: &vision.AnySize{NativeResolution: size, Frames: tt.frames}}}
		p, err := m.preprocessor()
		if err != nil {
			if !strings.Contains(err.Error(), tt.want) || strings.HasPrefix(tt.want, "{") {
				t.Errorf("%s of %d frames: %v, want %s", tt.config, tt.frames, err, tt.want)
			}
			continue
		}
		if got := fmt.Sprint(p.(vision.Patcher).Patches()); got != tt.want {
			t.Errorf("%s of %d frames: %s, want %s", tt.config, tt.frames, got, tt.want)
		}
	}
}

// Files that have LFM2-VL's processor leave out the marks around an image are refused: prompts here have them.
func TestMarksOfProcessor(t *testing.T) {
	size := vision.NativeResolution{PatchSize: 16, MergeSize: 2, TileSize: 512}
	for config, want := range map[string]string{
		`{"use_image_special_tokens": false}`: "use_image_special_tokens is false", `{"use_image_special_tokens": true}`: "", `{}`: "",
	} {
		m := &Model{files: fstest.MapFS{"processor_config.json": &fstest.MapFile{Data: []byte(config)},
			"preprocessor_config.json": &fstest.MapFile{Data: []byte("{}")}},
			Spec: families.Spec{ImageProcessor: "Lfm2VlImageProcessor", NativeResolution: &size}}
		m.Layout.ImageTokens = size.Tokens
		if _, err := m.preprocessor(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", config, err, want)
		}
	}
}
