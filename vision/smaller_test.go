package vision

import (
	"fmt"
	"reflect"
	"testing"
)

// Each step is the preprocessing that a configuration of the smaller size describes, and the steps end.
func TestSmaller(t *testing.T) {
	for name, c := range map[string]struct {
		config string // with a place for the size
		sizes  []any  // from the first on
	}{
		"Idefics3": {`{"image_processor_type": "Idefics3ImageProcessor", "size": {"longest_edge": %v},
			"max_image_size": {"longest_edge": 364}}`, []any{1500, 1456, 1092, 728, 364}},
		"LlavaOnevision": {`{"image_processor_type": "LlavaOnevisionImageProcessor", "size": {"height": 384, "width": 384},
			"image_grid_pinpoints": %v}`, []any{
			"[[384, 384], [384, 768], [768, 384], [768, 768]]", "[[384, 384], [384, 768], [768, 384]]", "[[384, 384]]",
		}},
		"Qwen2VL": {`{"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 784, "max_pixels": %v}`,
			[]any{7840, 6860, 6003, 5219, 4435, 3651, 2867, 2083, 1299}},
		"LlavaNext": {`{"image_processor_type": "LlavaNextImageProcessor", "size": {"shortest_edge": 336}, "crop_size": 336,
			"image_grid_pinpoints": %v}`, []any{"[[336, 672], [672, 336], [672, 672]]", "[[336, 672], [672, 336]]"}},
		"GotOcr2": {`{"image_processor_type": "GotOcr2ImageProcessor", "max_patches": %v}`, []any{3, 2, 1}},
		"Glm46V": {`{"image_processor_type": "Glm46VImageProcessor", "size": {"shortest_edge": 1, "longest_edge": %v}}`,
			[]any{7840, 6272, 4704, 3136, 1568}},
		"PaddleOCRVL": {`{"image_processor_type": "PaddleOCRVLImageProcessor", "min_pixels": 784, "max_pixels": %v}`,
			[]any{3136, 2352, 1568, 784}},
		"Pixtral": {`{"image_processor_type": "PixtralImageProcessor", "size": {"longest_edge": %v}}`,
			[]any{160, 140, 123, 107, 91, 75, 59, 43, 27}},
		"Lfm2VL": {`{"image_processor_type": "Lfm2VlImageProcessor", "min_image_tokens": 1, %v}`, []any{
			`"max_image_tokens": 3, "max_tiles": 3`, `"max_image_tokens": 3, "max_tiles": 2`,
			`"max_image_tokens": 3, "do_image_splitting": false`, `"max_image_tokens": 2, "do_image_splitting": false`,
			`"max_image_tokens": 1, "do_image_splitting": false`,
		}},
	} {
		var p Preprocessor
		for i, size := range c.sizes {
			want, err := ParsePreprocessor([]byte(fmt.Sprintf(c.config, size)), "")
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				p = want
				continue
			}
			next, ok := p.(Shrinker).Smaller()
			if !ok || !reflect.DeepEqual(next, want) {
				t.Errorf("%s: after %v comes %+v, %v; want %+v", name, c.sizes[i-1], next, ok, want)
				break
			}
			p = next
		}
		if next, ok := p.(Shrinker).Smaller(); ok {
			t.Errorf("%s: after the last comes %+v", name, next)
		}
	}
}
