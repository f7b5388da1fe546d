package vision

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/internal/imaging"
)

// Preprocessor turns an encoded image into the tiles that a tower takes. Implementations are values with the
// settings of a preprocessor_config.json; their methods may be called concurrently.
type Preprocessor interface {
	// Side is the side of a tile in pixels, of a patch where images are not cut into tiles.
	Side() int
	// Grid tells how an image of w×h pixels, after orientation, will be cut. It decodes nothing.
	Grid(w, h int) Grid
	// Measure tells how an image of w×h pixels, after orientation, will be cut, and bounds the memory that is held beside
	// the decoder's: intermediate sizes, tiles and pixel values. Its error wraps ErrImage where the size cannot be taken.
	Measure(w, h int, split bool) (Measured, error)
	// Prepare decodes an image and makes it into tiles. With split false it stays one tile where the settings would
	// cut it. Errors wrap ErrImage, or are the context's cause. It waits for the budget of l, runs on the caller's
	// goroutine and lends work to the other cores.
	Prepare(ctx context.Context, data []byte, l Limits, split bool) (*Image, error)
	// Normalize maps the bytes of one tile, planar RGB, to pixel values; those of a Patcher are of any number of patches.
	Normalize(dst []float32, src []uint8)
}

// processors are keyed by the class that image_processor_type names, without the suffix of its backend. tower is how
// the model's tower takes images of any size, where that is known.
var processors = map[string]func(raw []byte, tower Patches) (Preprocessor, error){
	"Idefics3ImageProcessor": parseTiles,
	"SmolVLMImageProcessor":  parseTiles,
	"CLIPImageProcessor": SingleTile{
		Size: 224, ShortestEdge: 224, Resample: 3, Normalization: Normalization{Mean: clipMean, Std: clipStd},
	}.parse,
	"LlavaImageProcessor": SingleTile{
		Size: 224, ShortestEdge: 224, Resample: 3, Normalization: Normalization{Mean: clipMean, Std: clipStd},
	}.parse,
	"LlavaOnevisionImageProcessor": parseAnyResTiles,
	"LlavaNextImageProcessor":      parseLlavaNext,
	"GotOcr2ImageProcessor":        parseGotOcr2,
	"Qwen2VLImageProcessor":        parseQwen2VL,
	"Glm4vImageProcessor":          parseGlm46V,
	"Glm46VImageProcessor":         parseGlm46V,
	"PaddleOCRVLImageProcessor":    parsePaddleOCRVL,
	"PixtralImageProcessor":        parsePixtral,
	"Lfm2VlImageProcessor":         parseLfm2VL,
	"SiglipImageProcessor": SingleTile{Size: 224, Resample: 3,
		Normalization: Normalization{Mean: half, Std: half}}.parse,
	"ViTImageProcessor": SingleTile{Size: 224, Resample: 2,
		Normalization: Normalization{Mean: half, Std: half}}.parse,
	// Gemma 3's can pan and scan, which only the call of the reference's processor turns on, whatever the file says:
	// images stay whole here, too.
	"Gemma3ImageProcessor": SingleTile{Size: 224, Resample: 2,
		Normalization: Normalization{Mean: half, Std: half}}.parse,
}

func parseTiles(raw []byte, _ Patches) (Preprocessor, error) { return ParseIdefics3(raw) }

// ParsePreprocessor reads a preprocessor_config.json. class is the image processor of a file that names none.
func ParsePreprocessor(preprocessorConfigJSON []byte, class string) (Preprocessor, error) {
	return ParsePreprocessorFor(preprocessorConfigJSON, class, Patches{})
}

// ParsePreprocessorFor is ParsePreprocessor for a tower that takes images of any size in patches: where the file says
// nothing of them the tower's count, and a file that contradicts the tower is refused.
func ParsePreprocessorFor(preprocessorConfigJSON []byte, class string, tower Patches) (Preprocessor, error) {
	var c struct {
		Type      string `json:"image_processor_type"`
		Extractor string `json:"feature_extractor_type"` // what files of 2022 say instead
	}
	if err := json.Unmarshal(preprocessorConfigJSON, &c); err != nil {
		return nil, err
	}
	if c.Type == "" {
		c.Type = c.Extractor
	}
	c.Type = strings.Replace(c.Type, "FeatureExtractor", "ImageProcessor", 1) // which either key may have
	if c.Type != "" {
		class = strings.TrimSuffix(strings.TrimSuffix(c.Type, "Fast"), "Pil")
	}
	parse, ok := processors[class]
	if !ok {
		return nil, fmt.Errorf("image_processor_type %q is not supported; supported are %s", c.Type, strings.Join(slices.Sorted(maps.Keys(processors)), ", "))
	}
	return parse(preprocessorConfigJSON, tower)
}

// SameKind tells whether a preprocessor is of the kind that a class would make of the same file.
func SameKind(p Preprocessor, preprocessorConfigJSON []byte, class string) bool {
	parse, ok := processors[class]
	if !ok {
		return false
	}
	want, err := parse(preprocessorConfigJSON, Patches{})
	return err == nil && fmt.Sprintf("%T", p) == fmt.Sprintf("%T", want)
}

// Normalization maps bytes to pixel values: (byte × Rescale − Mean) / Std, in the parts that DoRescale and DoNormalize
// leave.
type Normalization struct {
	DoRescale, DoNormalize bool
	Rescale                float64
	Mean, Std              [3]float32
}

// normalizationConfig is the part of a preprocessor_config.json that Normalization comes from.
type normalizationConfig struct {
	DoRescale *bool           `json:"do_rescale"`
	Rescale   *float64        `json:"rescale_factor"`
	Normalize *bool           `json:"do_normalize"`
	Mean      json.RawMessage `json:"image_mean"`
	Std       json.RawMessage `json:"image_std"`
}

// maxMean bounds what is subtracted from pixel values and what they are divided by: they are 255 at most.
const maxMean = 1e6

// half is the mean and the deviation of most vision towers (IMAGENET_STANDARD_MEAN and _STD in transformers).
var half = [3]float32{0.5, 0.5, 0.5}

// clipMean and clipStd are CLIP's (OPENAI_CLIP_MEAN and _STD in transformers).
var (
	clipMean = [3]float32{0.48145466, 0.4578275, 0.40821073}
	clipStd  = [3]float32{0.26862954, 0.26130258, 0.27577711}
)

func (c normalizationConfig) parse(mean, std [3]float32) (n Normalization, err error) {
	n = Normalization{DoRescale: or(c.DoRescale, true), Rescale: or(c.Rescale, 1./255), DoNormalize: or(c.Normalize, true)}
	if !(n.Rescale > 0 && n.Rescale <= 1) {
		return n, fmt.Errorf("rescale_factor is %g, want more than 0 and at most 1", n.Rescale)
	}
	if n.Mean, err = channels("image_mean", c.Mean, mean); err != nil {
		return n, err
	}
	if n.Std, err = channels("image_std", c.Std, std); err != nil {
		return n, err
	}
	if slices.Contains(n.Std[:], 0) {
		return n, fmt.Errorf("image_std is %v, want no zero", n.Std)
	}
	for _, v := range slices.Concat(n.Mean[:], n.Std[:]) {
		if math.Abs(float64(v)) > maxMean {
			return n, fmt.Errorf("image_mean is %v and image_std %v, want at most %g", n.Mean, n.Std, float64(maxMean))
		}
	}
	return n, nil
}

func or[T any](v *T, missing T) T {
	if v == nil {
		return missing
	}
	return *v
}

// channels reads a number, or one for each of red, green and blue.
func channels(name string, raw json.RawMessage, missing [3]float32) ([3]float32, error) {
	if raw == nil || string(raw) == "null" {
		return missing, nil
	}
	var list []float64
	if json.Unmarshal(raw, &list) == nil && len(list) == 3 {
		return [3]float32{float32(list[0]), float32(list[1]), float32(list[2])}, nil
	}
	var x float64
	if json.Unmarshal(raw, &x) == nil {
		return [3]float32{float32(x), float32(x), float32(x)}, nil
	}
	return [3]float32{}, fmt.Errorf("%s: want a number or three", name)
}

// Normalize maps the bytes of one tile, planar RGB, to pixel values. Each is rounded as in transformers: rescaled in
// float64, kept as float32, then shifted and divided in float32.
func (n Normalization) Normalize(dst []float32, src []uint8) {
	plane := len(src) / 3
	for c := range 3 {
		table := n.table(c)
		out := dst[c*plane:][:plane]
		for i, b := range src[c*plane:][:plane] {
			out[i] = table[b]
		}
	}
}

// normalizePatches maps the bytes of any number of patches, planar RGB of so many pixels, each plane frames times.
func (n Normalization) normalizePatches(dst []float32, src []uint8, area, frames int) {
	for c := range 3 {
		table := n.table(c)
		for at := c * area; at < len(src); at += 3 * area {
			out := dst[at*frames:][:area*frames]
			for i, b := range src[at:][:area] {
				out[i] = table[b]
			}
			for t := 1; t < frames; t++ {
				copy(out[t*area:], out[:area])
			}
		}
	}
}

// table gives the pixel values of channel c by byte.
func (n Normalization) table(c int) (table [256]float32) {
	for i := range table {
		v := float32(i)
		if n.DoRescale {
			v = float32(float64(i) * n.Rescale)
		}
		if n.DoNormalize {
			v = (v - n.Mean[c]) / n.Std[c]
		}
		table[i] = v
	}
	return table
}

// checkResample refuses a filter that is not known.
func checkResample(n int) error {
	if _, ok := imaging.Filters[n]; !ok {
		return fmt.Errorf("resample is %d, want 1 (Lanczos), 2 (bilinear) or 3 (bicubic)", n)
	}
	return nil
}

// pixelsVersion goes up when the same file and configuration would give other pixels than before, so that patch
// embeddings that somebody kept are not taken for those of the new pixels.
const pixelsVersion = 3

// Describe names the preprocessing that p applies: equal texts stand for equal pixels of equal files. It is "" for nil.
func Describe(p Preprocessor) string {
	if p == nil {
		return ""
	}
	return fmt.Sprintf("%T v%d %+v", p, pixelsVersion, p)
}

// digest names what the tower will see: the preprocessing that was applied, then the file.
func digest(p Preprocessor, file [32]byte) (d [32]byte) {
	h := sha256.New()
	fmt.Fprintln(h, Describe(p))
	h.Write(file[:])
	h.Sum(d[:0])
	return d
}
