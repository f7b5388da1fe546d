package vision

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
)

// Sizes that the reference's functions give for images of every kind; the zero Grid is their refusal.
func TestSizesAsTransformers(t *testing.T) {
	processors := make([]Preprocessor, 6)
	for i, c := range []struct {
		config string
		tower  Patches
	}{
		{config: `{"image_processor_type": "PaddleOCRVLImageProcessor"}`},
		{config: `{"image_processor_type": "Glm46VImageProcessor"}`},
		{`{"image_processor_type": "PixtralImageProcessor", "size": {"longest_edge": 1540}}`, Patches{14, 2, 1}},
		{config: `{"image_processor_type": "Lfm2VlImageProcessor"}`},
		{config: `{"image_processor_type": "GotOcr2ImageProcessor", "size": {"height": 448, "width": 448}}`},
		{config: `{"image_processor_type": "GotOcr2ImageProcessor", "size": {"height": 448, "width": 448},
			"min_patches": 2, "max_patches": 6}`},
	} {
		p, err := ParsePreprocessorFor([]byte(c.config), "", c.tower)
		if err != nil {
			t.Fatal(err)
		}
		processors[i] = p
	}
	size := func(w, h int) Grid { return Grid{Width: w, Height: h} }
	tiles := func(cols, rows int) Grid { return Grid{Rows: rows, Cols: cols} }
	for _, c := range []struct {
		w, h int
		want [6]Grid
	}{
		{1, 1, [6]Grid{size(392, 392), size(84, 84), size(28, 28), size(256, 256), {}, tiles(2, 2)}},
		{13, 13, [6]Grid{size(392, 392), size(84, 84), size(28, 28), size(256, 256), {}, tiles(2, 2)}},
		{27, 40, [6]Grid{size(336, 476), size(84, 112), size(28, 56), size(224, 320), tiles(2, 3), tiles(2, 3)}},
		{28, 28, [6]Grid{size(392, 392), size(84, 84), size(28, 28), size(256, 256), {}, tiles(2, 2)}},
		{10, 2000, [6]Grid{size(28, 5600), size(28, 5600), size(28, 1540), size(32, 3648), tiles(1, 12), tiles(1, 6)}},
		{2000, 10, [6]Grid{size(5600, 28), size(5600, 28), size(1540, 28), size(3648, 32), tiles(12, 1), tiles(6, 1)}},
		{640, 480, [6]Grid{size(644, 476), size(644, 476), size(644, 504), size(576, 416), tiles(4, 3), tiles(3, 2)}},
		{4000, 3000, [6]Grid{size(1764, 1316), size(2800, 2100), size(1540, 1176), {2, 3, 576, 416},
			tiles(4, 3), tiles(3, 2)}},
		{9000, 6000, [6]Grid{size(1876, 1232), size(2968, 1960), size(1540, 1036), {2, 3, 608, 416},
			tiles(3, 2), tiles(3, 2)}},
		{199, 1, [6]Grid{size(5572, 28), size(5572, 28), size(224, 28), size(3616, 32), tiles(12, 1), tiles(6, 1)}},
		{1, 150, [6]Grid{size(56, 4704), size(28, 4200), size(28, 168), size(32, 3136), tiles(1, 12), tiles(1, 6)}},
		{3, 601, [6]Grid{{}, {}, size(28, 616), {}, tiles(1, 12), tiles(1, 6)}},
		{42, 70, [6]Grid{size(308, 504), size(84, 112), size(56, 84), size(224, 352), tiles(2, 3), tiles(2, 3)}},
		{2416, 3543, [6]Grid{size(1260, 1848), size(1988, 2912), size(1064, 1540), {3, 2, 416, 608},
			tiles(2, 3), tiles(2, 3)}},
	} {
		for i, p := range processors {
			m, err := p.Measure(c.w, c.h, true)
			_, tiled := p.(GotOcr2)
			refused := c.want[i] == Grid{} && !tiled
			if m.Grid != c.want[i] || (err != nil) != refused || refused && !errors.Is(err, ErrImage) {
				t.Errorf("%T of %d×%d: %+v %v, want %+v", p, c.w, c.h, m.Grid, err, c.want[i])
			}
		}
	}
}

// An image of which scaling leaves no pixel is refused, as by the reference.
func TestPixtralRefusesThreads(t *testing.T) {
	p, err := ParsePreprocessor([]byte(`{"image_processor_type": "PixtralImageProcessor", "size": {"height": 64, "width": 32}}`), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range [][2]int{{33, 1}, {1, 65}} {
		if _, err := p.Prepare(context.Background(), bitmap(size[0], size[1]), Limits{}, true); !errors.Is(err, ErrImage) ||
			!strings.Contains(err.Error(), "within 32×64") {
			t.Errorf("%v: %v", size, err)
		}
	}
	if m, err := p.Measure(32, 1, true); err != nil || (m.Grid != Grid{Width: 32, Height: 16}) {
		t.Errorf("%+v %v", m.Grid, err)
	}
}

func TestParseNewerPreprocessors(t *testing.T) {
	clip := Normalization{DoRescale: true, DoNormalize: true, Rescale: 1. / 255, Mean: clipMean, Std: clipStd}
	standard := Normalization{DoRescale: true, DoNormalize: true, Rescale: 1. / 255, Mean: half, Std: half}
	for _, c := range []struct {
		class, config string
		tower         Patches
		want          Preprocessor
	}{
		{"GotOcr2ImageProcessor", `{}`, Patches{}, GotOcr2{384, 1, 12, 3, clip}},
		{"GotOcr2ImageProcessor", `{"size": 32, "min_patches": 2, "max_patches": 4, "resample": 2}`, Patches{},
			GotOcr2{32, 2, 4, 2, clip}},
		{"Gemma3ImageProcessor", `{}`, Patches{}, SingleTile{Size: 224, Resample: 2, Normalization: standard}},
		{"LlavaNextImageProcessor", `{"size": 336, "crop_size": 336}`, Patches{}, LlavaNext{AnyResTiles{336,
			Pinpoints{{1, 2}, {2, 1}, {2, 2}, {3, 1}, {1, 3}}, 3, clip}}},
		{"PixtralImageProcessor", `{}`, Patches{}, Pixtral{1024, 1024, 16, 1, 3, clip}},
		{"PixtralImageProcessor", `{"patch_size": {"height": 28, "width": 28}, "size": {"longest_edge": 1540}}`, Patches{14, 2, 0},
			Pixtral{1540, 1540, 14, 2, 3, clip}},
		{"PixtralImageProcessor", `{"patch_size": 14, "size": {"height": 3, "width": 4}}`, Patches{14, 2, 0},
			Pixtral{4, 3, 14, 2, 3, clip}},
		{"Lfm2VlImageProcessor", `{}`, Patches{}, Lfm2VL{512, 2, 10, 64, 256, 16, 2, 2, 2, standard}},
		{"Lfm2VlImageProcessor", `{"do_image_splitting": false, "use_thumbnail": false}`, Patches{16, 2, 0},
			Lfm2VL{512, 1, 1, 64, 256, 16, 2, 2, 2, standard}},
		{"Glm46VImageProcessor", `{"size": {"shortest_edge": 12544, "longest_edge": 47040000}}`, Patches{},
			Glm46V{Qwen2VL{12544, 47040000, 14, 2, 2, 3, clip}}},
		{"Glm4vImageProcessor", `{}`, Patches{}, Glm46V{Qwen2VL{12544, 11760000, 14, 2, 2, 3, clip}}},
		{"PaddleOCRVLImageProcessor", `{}`, Patches{}, PaddleOCRVL{Qwen2VL{147456, 2359296, 14, 2, 1, 3, clip}}},
		// What a file leaves out, the tower says.
		{"Qwen2VLImageProcessor", `{"size": {"longest_edge": 16777216, "shortest_edge": 65536}}`, Patches{16, 2, 2},
			Qwen2VL{65536, 16777216, 16, 2, 2, 3, clip}},
	} {
		got, err := ParsePreprocessorFor([]byte(c.config), c.class, c.tower)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s %s: %+v %v, want %+v", c.class, c.config, got, err, c.want)
		}
	}
}

func TestNewerPreprocessorsRefuse(t *testing.T) {
	for _, c := range []struct{ class, config, want string }{
		{"GotOcr2ImageProcessor", `{"max_patches": 1000000}`, "max_patches 1000000, want a range within 1 to 256"},
		{"GotOcr2ImageProcessor", `{"min_patches": 13}`, "min_patches is 13"},
		{"GotOcr2ImageProcessor", `{"min_patches": 0}`, "min_patches is 0"},
		{"GotOcr2ImageProcessor", `{"size": {"shortest_edge": 448}}`, "size has no height"},
		{"GotOcr2ImageProcessor", `{"size": {"height": 448, "width": 224}}`, "224×448"},
		{"GotOcr2ImageProcessor", `{"size": null}`, "size has no height"},
		{"GotOcr2ImageProcessor", `{"do_resize": false}`, "do_resize"},
		{"GotOcr2ImageProcessor", `{"resample": 4}`, "resample is 4"},
		{"GotOcr2ImageProcessor", `{"rescale_factor": 0}`, "rescale_factor is 0"},
		{"Gemma3ImageProcessor", `{"size": {"height": 1000000000, "width": 1000000000}}`, "want 1 to 4096"},
		{"LlavaNextImageProcessor", `{"size": 336}`, "crop_size is 224, supported is that of size, 336"},
		{"LlavaNextImageProcessor", `{"size": 336, "crop_size": {"height": 336, "width": 335}}`, "335×336"},
		{"LlavaNextImageProcessor", `{}`, "multiples of the tile's 224"},
		{"LlavaNextImageProcessor", `{"size": null}`, "is null"},
		{"LlavaNextImageProcessor", `{"do_resize": false}`, "do_resize"},
		{"LlavaNextImageProcessor", `{"size": 4, "crop_size": 4, "image_grid_pinpoints": [` +
			strings.Repeat("[4, 4], ", 256) + `[4, 4]]}`, "257 resolutions, want at most 256"},
		{"PixtralImageProcessor", `{"size": {"longest_edge": 1000000000}}`, "want longest_edge"},
		{"PixtralImageProcessor", `{"size": {"height": 64}}`, "size is 0×64"},
		{"PixtralImageProcessor", `{"patch_size": 16}`, "patch_size is 16, config.json's vision tower has patches of 14"},
		{"PixtralImageProcessor", `{"patch_size": {"height": 14, "width": 28}}`, "28×14"},
		{"PixtralImageProcessor", `{"patch_size": 1000}`, "patch_size is 1000"},
		{"PixtralImageProcessor", `{"do_center_crop": true}`, "do_center_crop"},
		{"Lfm2VlImageProcessor", `{"encoder_patch_size": 14, "tile_size": 28, "max_tiles": 1000000}`, "max_tiles 1000000"},
		{"Lfm2VlImageProcessor", `{"encoder_patch_size": 14, "tile_size": 500}`, "tile_size is 500, want a multiple of 28"},
		{"Lfm2VlImageProcessor", `{"encoder_patch_size": 14, "tile_size": 4088, "max_tiles": 3}`, "min_tiles is 2 and max_tiles 3"},
		{"Lfm2VlImageProcessor", `{"encoder_patch_size": 14, "tile_size": 28, "min_tiles": 1}`, "min_tiles is 1"},
		{"Lfm2VlImageProcessor", `{"encoder_patch_size": 14, "tile_size": 28, "max_image_tokens": 1000000000}`, "max_image_tokens 1000000000"},
		{"Lfm2VlImageProcessor", `{"encoder_patch_size": 14, "tile_size": 28, "max_pixels_tolerance": 0}`, "max_pixels_tolerance is 0"},
		{"Lfm2VlImageProcessor", `{"encoder_patch_size": 14, "tile_size": 28, "use_thumbnail": false}`, "use_thumbnail"},
		{"Lfm2VlImageProcessor", `{"encoder_patch_size": 16}`, "encoder_patch_size is 16, config.json's vision_config says 14"},
		{"Lfm2VlImageProcessor", `{"downsample_factor": 4}`, "downsample_factor is 4"},
		{"Qwen2VLImageProcessor", `{"patch_size": 16}`, "patch_size is 16, config.json's vision_config says 14"},
		{"Qwen2VLImageProcessor", `{"merge_size": 1}`, "merge_size is 1, config.json's vision_config says 2"},
		{"Qwen2VLImageProcessor", `{"temporal_patch_size": 1}`, "temporal_patch_size is 1"},
		{"Qwen2VLImageProcessor", `{"max_pixels": 1000000000}`, "1000000000 pixels"},
		{"Glm46VImageProcessor", `{"size": {"shortest_edge": 1, "longest_edge": 1000000000}}`, "1000000000 pixels"},
		{"Glm46VImageProcessor", `{"patch_size": 13}`, "patch_size is 13"},
		{"PaddleOCRVLImageProcessor", `{"min_pixels": -1}`, "-1 to 2359296 pixels"},
	} {
		if p, err := ParsePreprocessorFor([]byte(c.config), c.class, Patches{14, 2, 2}); err == nil ||
			!strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: %+v %v, want an error with %q", c.class, c.config, p, err, c.want)
		}
	}
}

// Detail of one tile is the whole, for each processor that cuts.
func TestNewerImagesWhole(t *testing.T) {
	for _, config := range []string{
		`{"image_processor_type": "GotOcr2ImageProcessor", "size": 64}`,
		`{"image_processor_type": "LlavaNextImageProcessor", "size": 64, "crop_size": 64, "image_grid_pinpoints": [[64, 128]]}`,
		`{"image_processor_type": "Lfm2VlImageProcessor", "tile_size": 64, "min_image_tokens": 1, "max_image_tokens": 4}`,
	} {
		p, err := ParsePreprocessor([]byte(config), "")
		if err != nil {
			t.Fatal(err)
		}
		cut, err := p.Prepare(context.Background(), bitmap(200, 100), Limits{}, true)
		if err != nil || cut.Grid.Tiles() < 3 {
			t.Fatalf("%s: %+v %v", config, cut, err)
		}
		whole, err := p.Prepare(context.Background(), bitmap(200, 100), Limits{}, false)
		if err != nil || whole.Grid.Tiles() != 1 {
			t.Fatalf("%s: %+v %v", config, whole, err)
		}
		if cut.Digest == whole.Digest {
			t.Errorf("%s: both have one digest", config)
		}
		if q, ok := p.(GotOcr2); ok {
			n := 3 * q.Size * q.Size
			if last := cut.Pixels[len(cut.Pixels)-n:]; string(last) != string(whole.Pixels) {
				t.Error("the last tile is not the whole")
			}
		}
	}
}
