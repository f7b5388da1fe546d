package vision

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/imaging"
	"github.com/mmserve/mmserve/internal/racetest"
)

// The configurations that goldens/preprocess.json was made with.
var processorConfigs = map[string]string{
	"idefics3_512_lanczos": smolVLM,
	"idefics3_nosplit":     strings.Replace(smolVLM, `"do_image_splitting": true`, `"do_image_splitting": false`, 1),
	"vit_224_bilinear":     `{"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}, "resample": 2}`,
	"siglip_384_bicubic":   `{"image_processor_type": "SiglipImageProcessor", "size": {"height": 384, "width": 384}, "resample": 3}`,
	"clip_336_crop": `{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 336},
		"crop_size": {"height": 336, "width": 336}, "resample": 3}`,
	"llava_onevision_384": `{"image_processor_type": "LlavaOnevisionImageProcessor", "size": {"height": 384, "width": 384},
		"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}`,
	"qwen2vl_default": `{"image_processor_type": "Qwen2VLImageProcessor"}`,
}

// preprocessed is what transformers made of one photo with one processor.
type preprocessed struct {
	Photo, Processor string
	Size             [2]int // width and height
	Shape            []int
	SHA256           string `json:"sha256_f32"`
	Rows, Cols       int
	ImageSize        [2]int `json:"image_size"`
	THW              [3]int `json:"image_grid_thw"`
}

// checkGrid holds a grid and the size of a tile against the reference's shape.
func (c preprocessed) checkGrid(t *testing.T, p Preprocessor, g Grid) {
	t.Helper()
	if p, ok := p.(Qwen2VL); ok {
		frames, h, w := p.THW(g)
		if [3]int{frames, h, w} != c.THW || frames*h*w != c.Shape[0] ||
			3*p.TemporalPatchSize*p.PatchSize*p.PatchSize != c.Shape[1] {
			t.Errorf("%d×%d×%d patches, want %v in %v", frames, h, w, c.THW, c.Shape)
		}
		return
	}
	tiles := 1
	if len(c.Shape) == 5 {
		tiles = c.Shape[1]
	}
	if side := c.Shape[len(c.Shape)-1]; g.Tiles() != tiles || p.Side() != side {
		t.Errorf("%d tiles of %d pixels, want the shape %v", g.Tiles(), p.Side(), c.Shape)
	}
	if c.Rows != 0 && (g.Rows != c.Rows || g.Cols != c.Cols) {
		t.Errorf("grid %+v, want %d×%d", g, c.Rows, c.Cols)
	}
	if got := [2]int{g.Height, g.Width}; got != c.ImageSize {
		t.Errorf("image size %v, want %v", got, c.ImageSize)
	}
}

// Every processor over every photo, bit for bit. Of the photos that are not in this repository, the shapes; under the
// race detector, the pixels of two.
func TestPixelsAsTransformers(t *testing.T) {
	for _, c := range readGolden[[]preprocessed](t, "preprocess.json") {
		t.Run(c.Processor+"/"+c.Photo, func(t *testing.T) {
			t.Parallel()
			p, err := ParsePreprocessor([]byte(processorConfigs[c.Processor]), "")
			if err != nil {
				t.Fatal(err)
			}
			g := p.Grid(c.Size[0], c.Size[1])
			c.checkGrid(t, p, g)
			if racetest.Enabled && c.Photo != "photos/chelsea.png" && c.Photo != "pictures/cars.jpg" {
				return
			}
			data, ok := readImage(t, c.Photo)
			if !ok {
				return
			}
			img, err := p.Prepare(context.Background(), data, Limits{}, true)
			if err != nil {
				t.Fatal(err)
			}
			if img.Grid != g || img.Width != c.Size[0] || img.Height != c.Size[1] || img.Size != p.Side() {
				t.Errorf("Prepare gave %+v of %d, Grid foretold %+v", img.Grid, img.Size, g)
			}
			if sum(pixelValues(p, img)) != c.SHA256 {
				t.Error("other pixel values than transformers")
			}
		})
	}
}

func TestParsePreprocessor(t *testing.T) {
	clip := `"image_processor_type": "CLIPImageProcessor"`
	for config, want := range map[string]Preprocessor{
		`{` + clip + `}`: SingleTile{Size: 224, ShortestEdge: 224, Resample: 3, Normalization: Normalization{DoRescale: true,
			DoNormalize: true, Rescale: 1. / 255, Mean: clipMean, Std: clipStd}},
		`{"image_processor_type": "LlavaImageProcessorFast", "size": 336, "crop_size": 300, "do_pad": true, "resample": 2, "do_normalize": false}`: SingleTile{
			Size: 300, ShortestEdge: 336, Pad: true, Resample: 2, Normalization: Normalization{DoRescale: true,
				Rescale: 1. / 255, Mean: clipMean, Std: clipStd}},
		`{"feature_extractor_type": "ViTFeatureExtractor", "size": 64, "do_rescale": null}`: SingleTile{Size: 64, Resample: 2,
			Normalization: Normalization{DoRescale: true, DoNormalize: true, Rescale: 1. / 255, Mean: half, Std: half}},
		`{"feature_extractor_type": "ViTFeatureExtractor", "image_processor_type": "ViTFeatureExtractor", "size": 64}`: SingleTile{Size: 64, Resample: 2,
			Normalization: Normalization{DoRescale: true, DoNormalize: true, Rescale: 1. / 255, Mean: half, Std: half}},
		// Without a crop CLIP's processor takes an exact size too.
		`{` + clip + `, "size": {"height": 8, "width": 8}, "do_center_crop": false, "image_mean": 0, "image_std": 1}`: SingleTile{Size: 8,
			Resample: 3, Normalization: Normalization{DoRescale: true, DoNormalize: true, Rescale: 1. / 255,
				Std: [3]float32{1, 1, 1}}},
	} {
		got, err := ParsePreprocessor([]byte(config), "")
		if err != nil || got != want {
			t.Errorf("%s: %+v %v, want %+v", config, got, err, want)
		}
	}
	if p, err := ParsePreprocessor([]byte(`{}`), "ViTImageProcessor"); err != nil || p.Side() != 224 {
		t.Errorf("the family's class: %+v %v", p, err)
	}
	if p, err := ParsePreprocessor([]byte(`{"size": {"height": 64, "width": 64}}`), "LlavaOnevisionImageProcessor"); err != nil || p.Side() != 64 {
		t.Errorf("a size over the class's default: %+v %v", p, err)
	}
	onevision := `"image_processor_type": "LlavaOnevisionImageProcessor"`
	for config, want := range map[string]string{
		`{"image_processor_type": "FuyuImageProcessor"}`: `"FuyuImageProcessor" is not supported`,
		`{}`:                                 "not supported",
		`[]`:                                 "cannot unmarshal",
		`{` + clip + `, "do_resize": false}`: "do_resize",
		`{` + clip + `, "do_center_crop": false}`:                                      "do_center_crop",
		`{` + clip + `, "crop_size": 225}`:                                             "crop_size is 225",
		`{` + clip + `, "size": {"height": 8, "width": 8}, "crop_size": 9}`:            "crop_size is 9",
		`{` + clip + `, "size": {"height": 8, "width": 9}}`:                            "9×8",
		`{` + clip + `, "size": {"shortest_edge": 99999}}`:                             "99999",
		`{` + clip + `, "resample": 0}`:                                                "resample is 0",
		`{` + clip + `, "image_std": [1, 0, 1]}`:                                       "image_std",
		`{` + clip + `, "image_mean": 1e300}`:                                          "image_mean is [+Inf",
		`{` + clip + `, "image_std": [1, 1, 1e30]}`:                                    "want at most 1e+06",
		`{` + onevision + `, "size": {"shortest_edge": 384}}`:                          "size has no height",
		`{` + onevision + `, "size": 32, "image_grid_pinpoints": [[32, 32], [32, 0]]}`: "[32 0]",
		`{` + onevision + `, "size": 32, "image_grid_pinpoints": [[48, 32]]}`:          "[48 32]",
		`{` + onevision + `, "do_resize": false}`:                                      "do_resize",
	} {
		if p, err := ParsePreprocessor([]byte(config), ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v %v, want an error with %q", config, p, err, want)
		}
	}
}

// A padded tile is the same where do_pad asks for it and where an image of several, or of low detail, is left whole.
func TestSquaresAsPillow(t *testing.T) {
	configs := map[string]string{
		"llava":     `{"image_processor_type": "LlavaImageProcessor", "do_pad": true, "size": {"shortest_edge": 336}, "crop_size": 336}`,
		"onevision": processorConfigs["llava_onevision_384"],
	}
	for _, c := range readGolden[[]struct{ Photo, Processor, SHA256 string }](t, "squares.json") {
		p, err := ParsePreprocessor([]byte(configs[c.Processor]), "")
		if err != nil {
			t.Fatal(err)
		}
		img, err := p.Prepare(context.Background(), readFile(t, c.Photo), Limits{}, false)
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(img.Pixels); hex.EncodeToString(sum[:]) != c.SHA256 || img.Grid != (Grid{}) {
			t.Errorf("%s, %s: other pixels than Pillow's in %+v", c.Processor, c.Photo, img.Grid)
		}
	}
}

// With do_pad the bars are the mean's colour, and the image lies between them.
func TestPadToSquare(t *testing.T) {
	got := squared(4, 2, clipMean)
	if want := (imaging.Canvas{W: 4, H: 4, Y: 1, Color: [3]uint8{122, 116, 104}}); got != want { // int(mean * 255)
		t.Errorf("%+v, want %+v", got, want)
	}
}

// Whatever a configuration says, an image of any size becomes something whose cost is foretold, or is refused.
func FuzzParsePreprocessor(f *testing.F) {
	classes := slices.Sorted(maps.Keys(processors))
	for _, c := range processorConfigs {
		f.Add([]byte(c), uint8(0), 640, 480)
	}
	for _, c := range newerProcessors {
		f.Add([]byte(c.config), uint8(3), 4000, 30)
	}
	f.Fuzz(func(t *testing.T, config []byte, class uint8, w, h int) {
		p, err := ParsePreprocessorFor(config, classes[int(class)%len(classes)], Patches{})
		if err != nil || w < 1 || h < 1 || max(w, h) > 65535 {
			return
		}
		if g := p.Grid(w, h); g.Tiles() < 1 || p.Side() < 1 {
			t.Errorf("%+v gives %+v", p, g)
		}
		for _, split := range []bool{true, false} {
			m, err := p.Measure(w, h, split)
			if err != nil {
				continue
			}
			// At least what the pixels of the prepared image take, which are made once memory is granted.
			pixels := 3 * int64(m.Grid.Tiles()) * int64(p.Side()) * int64(p.Side())
			if q, ok := p.(Patcher); ok {
				pixels = 3 * int64(m.Grid.Width) * int64(m.Grid.Height)
				if block := q.Patches().Patch * q.Patches().Merge; m.Grid.Width < block || m.Grid.Height < block ||
					m.Grid.Width%block != 0 || m.Grid.Height%block != 0 {
					t.Errorf("%+v: %d×%d pixels become %+v", p, w, h, m.Grid)
				}
			}
			if m.Bytes < pixels || m.ScaledWidth < 1 || m.ScaledHeight < 1 {
				t.Errorf("%+v: %d×%d pixels become %+v", p, w, h, m)
			}
			if !split && m.Grid.Tiles() != 1 {
				t.Errorf("%+v: %d×%d pixels, whole, become %+v", p, w, h, m.Grid)
			}
		}
	})
}

// The choice of resolutions is that of the reference's select_best_resolution, which keeps pixels before it saves
// tiles.
func TestPinpoints(t *testing.T) {
	p, err := ParsePinpoints([][2]int{{384, 768}, {768, 384}, {768, 768}, {1152, 384}, {1536, 1536}}, 384)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ w, h, rows, cols int }{
		{1344, 1344, 4, 4}, {4000, 4000, 4, 4}, {500, 500, 2, 2}, {300, 900, 3, 1}, {900, 300, 4, 4}, {1, 1, 1, 2},
	} {
		if g := p.Grid(c.w, c.h, 384); g.Rows != c.rows || g.Cols != c.cols {
			t.Errorf("%d×%d: %d×%d tiles, want %d×%d", c.w, c.h, g.Rows, g.Cols, c.rows, c.cols)
		}
	}
}
