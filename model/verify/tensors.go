package verify

import (
	"errors"
	"fmt"
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
	img, patches, err := v.features(want)
	if err != nil {
		return nil, err
	}
	features := "image_features"
	if v.Model.Decoder.EncoderStates > 0 {
		features = "encoder_last_hidden_state"
	}
	k, err := v.compare(features, patches, want)
	if err != nil {
		return nil, err
	}
	checks := []Check{k}
	text, err := want.ids("input_ids")
	if err != nil {
		return checks, err
	}
	// An encoder-decoder's reference counts the text only.
	states := slices.Repeat([]int32{v.Model.Layout.ImageTokenID}, v.Model.Decoder.EncoderStates)
	in, err := v.Model.Layout.Locate(slices.Concat(states, text), []*vision.Image{img})
	if err != nil {
		return checks, err
	}
	if err := in.Attach(0, patches, v.Model.Decoder.PatchWidth()); err != nil {
		return checks, err
	}
	logits, err := v.Runner.Logits(in)
	if err != nil {
		return checks, err
	}
	if k, err = v.compare("logits", logits[len(states)*v.Model.Decoder.Vocab:], want); err != nil {
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

// features runs the reference's pixels through the tower.
func (v *Verifier) features(want references) (*vision.Image, []float32, error) {
	values, shape, err := want.floats("pixel_values")
	if err != nil {
		return nil, nil, err
	}
	if v.Model.NativeResolution != nil {
		return nil, nil, errors.New("images of any size: supported are reference values of conversations, .jsonl")
	}
	tile := 3 * v.Model.Tower.ImageSize * v.Model.Tower.ImageSize
	img := &vision.Image{Grid: vision.Grid{Rows: len(values)/tile - 1, Cols: 1}, Pixels: make([]uint8, len(values))}
	if t, ok := want.Tensor("image_sizes"); ok {
		const most = 1 << 16
		size, err := t.Ints()
		if err != nil || len(size) != 2 || min(size[0], size[1]) < 1 || max(size[0], size[1]) > most {
			return nil, nil, fmt.Errorf("image_sizes has shape %v, want the height and width of one image, 1 to %d", t.Shape, most)
		}
		img.Grid = v.Model.Connector.Grid(v.Model.Tower, int(size[1]), int(size[0]))
	}
	if len(values) == 0 || img.Grid.Tiles()*tile != len(values) {
		return nil, nil, fmt.Errorf("pixel_values has shape %v, want %d tiles of %d values", shape, max(img.Grid.Tiles(), 1), tile)
	}
	patches, err := vision.Encode(v.Tower, img, func(dst []float32, _ []uint8) { values = values[copy(dst, values):] })
	return img, patches, err
}

func (v *Verifier) compare(name string, got []float32, r references) (Check, error) {
	values, shape, err := r.floats(name)
	if err != nil {
		return Check{}, err
	}
	if len(got) != len(values) {
		return Check{}, fmt.Errorf("%s: the model gives %d values, the file has shape %v", name, len(got), shape)
	}
	want := make([]float64, len(values))
	for i, x := range values {
		want[i] = float64(x)
	}
	return v.near(name, got, want), nil
}
