package verify

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/vision"
)

// references are the tensors of a file of reference values.
type references struct{ *safetensors.Checkpoint }

func (r references) floats(name string) (values []float32, shape []int, err error) {
	t, ok := r.Tensor(name)
	if !ok {
		return nil, nil, fmt.Errorf("the file has no tensor %q", name)
	}
	values, err = t.Floats()
	return values, t.Shape, err
}

func (r references) ids(name string) ([]int32, error) {
	t, ok := r.Tensor(name)
	if !ok {
		return nil, fmt.Errorf("the file has no tensor %q", name)
	}
	wide, err := t.Ints()
	return narrow(wide), err
}

func narrow(wide []int64) []int32 {
	list := make([]int32, len(wide))
	for i, id := range wide {
		list[i] = int32(id)
	}
	return list
}

// tensors compares stage by stage: image features from the reference's pixels, logits and ids from the features
// computed here.
func (v *Verifier) tensors(want references) ([]Check, error) {
	images, patches, err := v.features(want)
	if err != nil {
		return nil, err
	}
	features := "image_features"
	if v.Model.Decoder.EncoderStates > 0 {
		features = "encoder_last_hidden_state"
	}
	checks, err := v.compareFeatures(features, slices.Concat(patches...), want)
	if err != nil {
		return nil, err
	}
	text, err := want.ids("input_ids")
	if err != nil {
		return checks, err
	}
	// An encoder-decoder's reference counts the text only.
	states := slices.Repeat([]int32{v.Model.Layout.ImageTokenID}, v.Model.Decoder.EncoderStates)
	in, err := v.Model.Layout.Locate(slices.Concat(states, text), images)
	if err != nil {
		return checks, err
	}
	for i := range images {
		if err := in.Attach(i, patches[i], v.Model.Decoder.PatchWidth()); err != nil {
			return checks, err
		}
	}
	logits, err := v.Runner.Logits(in)
	if err != nil {
		return checks, err
	}
	k, err := v.compare("logits", logits[len(states)*v.Model.Decoder.Vocab:], want)
	if err != nil {
		return checks, err
	}
	checks = append(checks, k)
	generated, err := want.ids("generated")
	if err != nil {
		return checks, err
	}
	if len(states) > 0 {
		if len(generated) == 0 {
			return checks, errors.New("generated is empty, want the decoder's start token at least")
		}
		in.IDs, generated = append(states, generated[0]), generated[1:]
	}
	got, err := v.greedy(in, len(generated))
	return append(checks, sameIDs("generated_ids", got, generated)), err
}

// features runs the reference's pixels through the tower, and gives each image with its patch embeddings. Without
// image_sizes all tiles are of one image.
func (v *Verifier) features(want references) (images []*vision.Image, patches [][]float32, err error) {
	values, shape, err := want.floats("pixel_values")
	if err != nil {
		return nil, nil, err
	}
	if v.Model.AnySize != nil {
		return v.anySizeFeatures(want, values, shape)
	}
	if v.Model.NativeResolution != nil {
		return nil, nil, errors.New("images of any size in ready-made graphs: supported are reference values of conversations, .jsonl")
	}
	tile := 3 * v.Model.Tower.ImageSize * v.Model.Tower.ImageSize
	grids, err := v.grids(want, len(values)/tile)
	if err != nil {
		return nil, nil, err
	}
	each := len(values) / len(grids) // images of fewer tiles than others are padded
	most := 0
	for _, g := range grids {
		most = max(most, g.Tiles())
	}
	if len(values) == 0 || most*tile*len(grids) != len(values) {
		return nil, nil, fmt.Errorf("pixel_values has shape %v, want %d × %d tiles of %d values", shape, len(grids), max(most, 1), tile)
	}
	for i, g := range grids {
		at := values[i*each:]
		img := &vision.Image{Grid: g, Pixels: make([]uint8, g.Tiles()*tile)}
		features, err := vision.Encode(v.Tower, img, func(dst []float32, _ []uint8) { at = at[copy(dst, at):] })
		if err != nil {
			return nil, nil, err
		}
		images, patches = append(images, img), append(patches, features)
	}
	return images, patches, nil
}

// grids says how the images of a reference are cut, which has so many tiles in all.
func (v *Verifier) grids(want references, tiles int) ([]vision.Grid, error) {
	t, ok := want.Tensor("image_sizes")
	if !ok {
		return []vision.Grid{{Rows: tiles - 1, Cols: 1}}, nil
	}
	const most = 1 << 16
	sizes, err := t.Ints()
	if err != nil || len(sizes) == 0 || len(sizes) > 2*tiles || len(sizes)%2 != 0 || slices.Min(sizes) < 1 ||
		slices.Max(sizes) > most {
		return nil, fmt.Errorf("image_sizes has shape %v, want the height and width of each image, 1 to %d", t.Shape, most)
	}
	var grids []vision.Grid
	for size := range slices.Chunk(sizes, 2) {
		grids = append(grids, v.Model.Connector.Grid(v.Model.Tower, int(size[1]), int(size[0])))
	}
	return grids, nil
}

func (v *Verifier) compare(name string, got []float32, r references) (Check, error) {
	values, shape, err := r.floats(name)
	if err != nil {
		return Check{}, err
	}
	if len(got) != len(values) {
		return Check{}, fmt.Errorf("%s: the model gives %d values, the file has shape %v", name, len(got), shape)
	}
	want, most := make([]float64, len(values)), 0.0
	for i, x := range values {
		want[i] = float64(x)
		most = max(most, math.Abs(want[i]))
	}
	k := v.near(name, got, want)
	k.OK = k.OK || most <= math.MaxFloat32 && k.Value <= min(roundingShare, v.tolerance/2)*most
	return k, nil
}

// roundingShare is the part of a tensor's largest value by which float32 arithmetic in another order may be off.
const roundingShare = 1e-4
