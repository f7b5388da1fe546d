package vision

import (
	"context"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/racetest"
)

const (
	imageNet = `"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]`
	halves   = `"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]`
	granite  = `"image_grid_pinpoints": [[384, 384], [384, 768], [384, 1152], [384, 1536], [384, 1920], [384, 2304],
		[384, 2688], [384, 3072], [384, 3456], [384, 3840], [768, 384], [768, 768], [768, 1152], [768, 1536], [768, 1920],
		[1152, 384], [1152, 768], [1152, 1152], [1536, 384], [1536, 768], [1920, 384], [1920, 768], [2304, 384],
		[2688, 384], [3072, 384], [3456, 384], [3840, 384]]`
)

// newerProcessors are the settings that goldens/preprocess2.json was made with: a file, the tower's patches where the
// reference's processor hands them over, and whether images may be cut.
var newerProcessors = map[string]struct {
	config string
	tower  Patches
	whole  bool
}{
	"qwen2_5_vl_real": {config: `{"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 12845056,
		"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}`, tower: Patches{14, 2, 2}},
	"qwen3_vl_real": {config: `{"image_processor_type": "Qwen2VLImageProcessorFast", "patch_size": 16, ` + halves + `,
		"size": {"shortest_edge": 65536, "longest_edge": 16777216}}`, tower: Patches{16, 2, 2}},
	"qwen3_vl_max256tokens": {config: `{"image_processor_type": "Qwen2VLImageProcessor", ` + halves + `,
		"size": {"shortest_edge": 65536, "longest_edge": 262144}}`, tower: Patches{16, 2, 0}},
	"gemma3_896": {config: `{"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 896, "width": 896},
		"do_pan_and_scan": true, "pan_and_scan_max_num_crops": 4}`},
	"internvl_448_crop12": {config: `{"image_processor_type": "GotOcr2ImageProcessorFast", "crop_to_patches": false,
		"size": {"height": 448, "width": 448}, ` + imageNet + `}`},
	"internvl_448_whole": {config: `{"image_processor_type": "GotOcr2ImageProcessor", "size": {"height": 448, "width": 448}, ` +
		imageNet + `}`, whole: true},
	"mistral3_1540_patch14_merge2": {config: `{"image_processor_type": "PixtralImageProcessor",
		"patch_size": {"height": 14, "width": 14}, "size": {"longest_edge": 1540}}`, tower: Patches{14, 2, 1}},
	"pixtral_1024_patch16": {config: `{"image_processor_type": "PixtralImageProcessor", "patch_size": 16,
		"size": {"longest_edge": 1024}}`, tower: Patches{16, 1, 1}},
	"llava_next_336": {config: `{"image_processor_type": "LlavaNextImageProcessor", "size": {"shortest_edge": 336},
		"crop_size": {"height": 336, "width": 336}}`},
	"llava_next_granite_384": {config: `{"image_processor_type": "LlavaNextImageProcessor", ` + halves + `, ` + granite + `,
		"size": {"height": 384, "width": 384}, "crop_size": {"height": 384, "width": 384}}`},
	"lfm2_vl_512_torchvision": {config: `{"image_processor_type": "Lfm2VlImageProcessorFast"}`},
	"lfm2_vl_whole_torchvision": {config: `{"image_processor_type": "Lfm2VlImageProcessorFast",
		"do_image_splitting": false}`},
	"paddleocr_vl_class_defaults": {config: `{"image_processor_type": "PaddleOCRVLImageProcessor"}`},
	"paddleocr_vl_real": {config: `{"image_processor_type": "PaddleOCRVLImageProcessor", "min_pixels": 147384,
		"max_pixels": 2822400, ` + halves + `}`},
	"glm_ocr_class_defaults": {config: `{"image_processor_type": "Glm46VImageProcessor"}`},
	"glm4v_class_defaults":   {config: `{"image_processor_type": "Glm4vImageProcessor"}`},
}

// preprocessed2 is what transformers made of one photo with one processor.
type preprocessed2 struct {
	preprocessed
	Mean, Std  float64
	Head       []float64
	NumPatches []int    `json:"num_patches"`
	Shapes     [][2]int `json:"spatial_shapes"`
	ImageRows  []int    `json:"image_rows"`
	ImageCols  []int    `json:"image_cols"`
}

// checkGrid holds a grid against the reference's shapes and counts.
func (c preprocessed2) checkGrid(t *testing.T, p Preprocessor, g Grid) {
	t.Helper()
	switch p := p.(type) {
	case Lfm2VL:
		rows, cols, tiles := max(g.Rows, 1), max(g.Cols, 1), [][2]int(nil)
		for range g.Rows * g.Cols {
			tiles = append(tiles, [2]int{p.TileSize / p.PatchSize, p.TileSize / p.PatchSize})
		}
		tiles = append(tiles, [2]int{g.Height / p.PatchSize, g.Width / p.PatchSize})
		if !slices.Equal(tiles, c.Shapes) || rows != c.ImageRows[0] || cols != c.ImageCols[0] ||
			[2]int{g.Height, g.Width} != c.ImageSize {
			t.Errorf("%+v, want %d×%d of %v, the whole %v", g, c.ImageRows[0], c.ImageCols[0], c.Shapes, c.ImageSize)
		}
	case Pixtral:
		if [2]int{g.Height, g.Width} != c.ImageSize || c.Shape[2] != g.Height || c.Shape[3] != g.Width {
			t.Errorf("%+v, want %v", g, c.ImageSize)
		}
	case Patcher:
		s := p.Patches()
		got := [3]int{1, g.Height / s.Patch, g.Width / s.Patch}
		if got != c.THW || got[1]*got[2] != c.Shape[0] {
			t.Errorf("%v patches, want %v in %v", got, c.THW, c.Shape)
		}
	case GotOcr2:
		if g.Tiles() != c.NumPatches[0] || g.Tiles() != c.Shape[0] || p.Side() != c.Shape[3] {
			t.Errorf("%+v, want %v", g, c.Shape)
		}
	default:
		c.preprocessed.checkGrid(t, p, g)
	}
}

// asReference puts pixel values into the order that the reference gives them in.
func asReference(p Preprocessor, img *Image, values []float32) []float32 {
	q, ok := p.(Patcher)
	if !ok {
		return values
	}
	s, g := q.Patches(), img.Grid
	switch p := p.(type) {
	case PaddleOCRVL:
		return rowByRow(values, s, g.Height, g.Width)
	case Pixtral:
		return planes(rowByRow(values, s, g.Height, g.Width), s, g.Height, g.Width)
	case Lfm2VL:
		var all []float32
		most := 3 * max(p.MaxTokens*p.MergeSize*p.MergeSize*s.Patch*s.Patch, p.TileSize*p.TileSize)
		take := func(h, w int) {
			tile := rowByRow(values[:3*h*w], s, h, w)
			all = append(append(all, tile...), make([]float32, most-len(tile))...)
			values = values[3*h*w:]
		}
		for range g.Rows * g.Cols {
			take(p.TileSize, p.TileSize)
		}
		take(g.Height, g.Width)
		return all
	}
	return values
}

// rowByRow undoes the order of blocks.
func rowByRow(values []float32, s Patches, h, w int) []float32 {
	n, cols := 3*s.Patch*s.Patch, w/s.Patch
	out := make([]float32, len(values))
	for i := range len(values) / n {
		block, in := i/(s.Merge*s.Merge), i%(s.Merge*s.Merge)
		y, x := block/(cols/s.Merge)*s.Merge+in/s.Merge, block%(cols/s.Merge)*s.Merge+in%s.Merge
		copy(out[(y*cols+x)*n:], values[i*n:][:n])
	}
	return out
}

// planes puts patches together to an image's planes.
func planes(values []float32, s Patches, h, w int) []float32 {
	out := make([]float32, len(values))
	for i, v := range values {
		patch, c, y, x := i/(3*s.Patch*s.Patch), i/(s.Patch*s.Patch)%3, i/s.Patch%s.Patch, i%s.Patch
		row, col := patch/(w/s.Patch), patch%(w/s.Patch)
		out[(c*h+row*s.Patch+y)*w+col*s.Patch+x] = v
	}
	return out
}

// patchValues are all pixel values of an image.
func patchValues(p Preprocessor, img *Image) []float32 {
	if q, ok := p.(Patcher); ok {
		values := make([]float32, len(img.Pixels)*q.Patches().Frames)
		p.Normalize(values, img.Pixels)
		return asReference(p, img, values)
	}
	return pixelValues(p, img)
}

// Every processor of the newer families over every photo, bit for bit; LFM2-VL's, which only torchvision resizes for,
// to a grey level. Of photos that are not in this repository, the shapes; under the race detector, the pixels of one.
func TestNewerPixelsAsTransformers(t *testing.T) {
	for _, c := range readGolden[[]preprocessed2](t, "preprocess2.json") {
		t.Run(c.Processor+"/"+c.Photo, func(t *testing.T) {
			t.Parallel()
			from, ok := newerProcessors[c.Processor]
			if !ok {
				t.Fatal("no settings")
			}
			p, err := ParsePreprocessorFor([]byte(from.config), "", from.tower)
			if err != nil {
				t.Fatal(err)
			}
			m, err := p.Measure(c.Size[0], c.Size[1], !from.whole)
			if err != nil {
				t.Fatal(err)
			}
			c.checkGrid(t, p, m.Grid)
			data, ok := readImage(t, c.Photo)
			if !ok || racetest.Enabled && c.Photo != "photos/chelsea.png" {
				return
			}
			img, err := p.Prepare(context.Background(), data, Limits{}, !from.whole)
			if err != nil {
				t.Fatal(err)
			}
			if img.Grid != m.Grid || img.Width != c.Size[0] || img.Height != c.Size[1] || img.Size != p.Side() {
				t.Errorf("Prepare gave %+v of %d, Measure foretold %+v", img.Grid, img.Size, m.Grid)
			}
			values := patchValues(p, img)
			if sum(values) == c.SHA256 {
				return
			}
			unscaled := c.Photo == "photos/astronaut.png"
			if !strings.HasSuffix(c.Processor, "torchvision") || unscaled {
				t.Fatal("other pixel values than transformers")
			}
			c.checkNear(t, p, values, img)
		})
	}
}

// checkNear holds values against the first of them, and all against their mean and deviation, to one grey level.
func (c preprocessed2) checkNear(t *testing.T, p Preprocessor, values []float32, img *Image) {
	const level, small = 2.0/255 + 1e-6, 2e-4
	if n := c.Shape[0] * c.Shape[1] * c.Shape[2]; len(values) != n {
		t.Fatalf("%d values, want %d", len(values), n)
	}
	for i, want := range c.Head {
		if math.Abs(float64(values[i])-want) > level {
			t.Errorf("value %d is %g, want %g", i, values[i], want)
		}
	}
	mean, square := 0.0, 0.0
	for _, v := range values {
		mean, square = mean+float64(v), square+float64(v)*float64(v)
	}
	n := float64(len(values))
	mean, square = mean/n, square/n
	if std := math.Sqrt(square - mean*mean); math.Abs(mean-c.Mean) > small || math.Abs(std-c.Std) > small {
		t.Errorf("mean %g and deviation %g, want %g and %g", mean, std, c.Mean, c.Std)
	}
}
