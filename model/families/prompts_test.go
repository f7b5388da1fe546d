package families

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/chat"
	"github.com/mmserve/mmserve/vision"
)

// promptCase is what transformers' processor made of one message with images before its text. In Expanded, {text*n} is
// a text n times.
type promptCase struct {
	Family       string
	Sizes        [][2]int // of the images, width and height
	Text         string
	Prompt       string // of the chat template
	Expanded     string
	Placeholders int
}

// promptFamilies are the sizes that the cases were made with, over the tiny checkpoint of each family, and the family's
// own chat template where it is here.
var promptFamilies = map[string]struct {
	folder, sizes, processor, template string
}{
	"qwen2_5_vl": {sizes: `{"vision_config": {"patch_size": 14, "window_size": 112}}`, template: "qwen2-vl-and-2.5-vl",
		processor: `{"min_pixels": 3136, "max_pixels": 12845056}`},
	"qwen3_vl": {sizes: `{"vision_config": {"patch_size": 16}}`, template: "qwen3-vl-instruct",
		processor: `{"size": {"shortest_edge": 65536, "longest_edge": 16777216}}`},
	"gemma3": {sizes: `{"mm_tokens_per_image": 256, "vision_config": {"image_size": 896, "patch_size": 14}}`,
		processor: `{"size": {"height": 896, "width": 896}}`},
	"internvl": {sizes: `{"vision_config": {"image_size": [448, 448], "patch_size": [14, 14]}}`, template: "internvl3-hf",
		processor: `{"size": {"height": 448, "width": 448}}`},
	"mistral3": {sizes: `{"vision_config": {"patch_size": 14, "image_size": 1540}}`,
		processor: `{"size": {"longest_edge": 1540}, "patch_size": {"height": 14, "width": 14}}`},
	"llava_next_336": {folder: "llava_next", sizes: `{"vision_config": {"image_size": 336, "patch_size": 14},
			"image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]}`,
		processor: `{"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}`},
	"lfm2_vl":      {sizes: `{"vision_config": {"patch_size": 16, "num_patches": 256}}`, processor: `{}`},
	"paddleocr_vl": {sizes: `{"vision_config": {"patch_size": 14, "image_size": 384}}`, processor: `{}`},
	"glm_ocr":      {sizes: `{"vision_config": {"patch_size": 14, "image_size": 336}}`, processor: `{}`},
}

// overlay puts the values of b, an object, into a.
func overlay(a, b map[string]any) {
	for k, v := range b {
		inner, ok := v.(map[string]any)
		if there, is := a[k].(map[string]any); ok && is {
			overlay(there, inner)
		} else {
			a[k] = v
		}
	}
}

// promptSpec reads a family with the sizes of the cases; false where there is no such family.
func promptSpec(t *testing.T, folder, sizes string) (s Spec, ok bool) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("../../testdata/tiny-hf", folder, "config.json"))
	if os.IsNotExist(err) {
		return s, false
	}
	if err != nil {
		t.Fatal(err)
	}
	var config, over map[string]any
	if err := json.Unmarshal(raw, &config); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(sizes), &over); err != nil {
		t.Fatal(err)
	}
	overlay(config, over)
	if raw, err = json.Marshal(config); err != nil {
		t.Fatal(err)
	}
	_, s, err = Read(raw)
	if err != nil && strings.Contains(err.Error(), "is not supported") {
		return s, false
	}
	if err != nil {
		t.Fatal(err)
	}
	return s, true
}

var runs = regexp.MustCompile(`\{([^{}]+?)\*(\d+)\}`)

// expanded writes runs out.
func expanded(text string) string {
	return runs.ReplaceAllStringFunc(text, func(run string) string {
		m := runs.FindStringSubmatch(run)
		n, _ := strconv.Atoi(m[2])
		return strings.Repeat(m[1], n)
	})
}

// Prompts with no, one and two images, from the sizes of image files to the text that is tokenized.
func TestPromptsAsTransformers(t *testing.T) {
	raw, err := os.ReadFile("testdata/prompts.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []promptCase
	if err := json.Unmarshal(raw, &cases); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		t.Run(c.Family+"/"+c.Text, func(t *testing.T) {
			f := promptFamilies[c.Family]
			folder := f.folder
			if folder == "" {
				folder = c.Family
			}
			s, ok := promptSpec(t, folder, f.sizes)
			if !ok {
				t.Skip("the family is not here")
			}
			var tower vision.Patches
			if n := s.NativeResolution; n != nil {
				tower = vision.Patches{Patch: n.PatchSize, Merge: n.MergeSize}
			}
			p, err := vision.ParsePreprocessorFor([]byte(f.processor), s.ImageProcessor, tower)
			if err != nil {
				t.Fatal(err)
			}
			grids, patches := make([]vision.Grid, len(c.Sizes)), 0
			for i, size := range c.Sizes {
				m, err := p.Measure(size[0], size[1], !s.Layout.SplitAlone || len(c.Sizes) == 1)
				if err != nil {
					t.Fatal(err)
				}
				grids[i] = m.Grid
				patches += s.Layout.Patches(m.Grid)
			}
			if patches != c.Placeholders {
				t.Errorf("%d patch embeddings, want %d", patches, c.Placeholders)
			}
			if f.template != "" {
				c.checkTemplate(t, f.template, s.Layout.Placeholder)
			}
			got, err := s.Layout.ExpandPrompt(c.Prompt, grids)
			if err != nil {
				t.Fatal(err)
			}
			if want := expanded(c.Expanded); got != want {
				t.Errorf("%d bytes, want %d: %.300q, want %.300q", len(got), len(want), got, want)
			}
		})
	}
}

// checkTemplate renders the message with the family's template.
func (c promptCase) checkTemplate(t *testing.T, name, placeholder string) {
	t.Helper()
	source, err := os.ReadFile(filepath.Join("../../internal/chat/testdata/templates", name+".jinja"))
	if err != nil {
		t.Fatal(err)
	}
	template, err := chat.Parse(string(source), chat.Options{Placeholder: placeholder})
	if err != nil {
		t.Fatal(err)
	}
	var parts []chat.Part
	for range c.Sizes {
		parts = append(parts, chat.Part{Image: true})
	}
	got, err := template.Render([]chat.Message{{Role: "user", Parts: append(parts, chat.Part{Text: c.Text})}})
	text := got.Text
	if got.Guard != 0 {
		text = strings.ReplaceAll(text, string(got.Guard), "")
	}
	if err != nil || text != c.Prompt {
		t.Errorf("template: %q %v, want %q", text, err, c.Prompt)
	}
}
