package verify

import (
	"slices"
	"sync"
	"testing"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/model/modeltest"
	"github.com/mmserve/mmserve/vision"
)

// change is a part of a tower that is left out, or done otherwise.
type change struct {
	what string
	make func(t *vision.AnySize)
}

var (
	otherRope = []change{
		{"rope's base", func(t *vision.AnySize) { t.Rope.Theta = 100 }},
		{"rope's kind", func(t *vision.AnySize) { t.Rope.Alternate = !t.Rope.Alternate }},
	}
	noTable    = change{"position table", func(t *vision.AnySize) { t.Positions = vision.PositionTable{} }}
	patchBias  = change{"bias of patches", func(t *vision.AnySize) { t.PatchBias = false }}
	patchNorm  = change{"norm of patches", func(t *vision.AnySize) { t.PatchNorm = false }}
	postNorm   = change{"last norm", func(t *vision.AnySize) { t.PostNorm = false }}
	layerEps   = change{"epsilon of norms", func(t *vision.AnySize) { t.Norm.Eps = 0.1 }}
	qkvBias    = change{"bias of queries, keys and values", func(t *vision.AnySize) { t.QKVBias = false }}
	outBias    = change{"bias behind attention", func(t *vision.AnySize) { t.OutBias = false }}
	mlpBias    = change{"biases of the MLP", func(t *vision.AnySize) { t.MLPBias = false }}
	activation = change{"activation", func(t *vision.AnySize) { t.Activation, t.Merger = "silu", merger(t, "silu") }}
	toGelu     = change{"activation", func(t *vision.AnySize) { t.Activation, t.Merger = "gelu", merger(t, "gelu") }}
	fewer      = change{"last layer", func(t *vision.AnySize) { t.Layers-- }}
)

// merger has another activation where it has one of its own.
func merger(t *vision.AnySize, activation string) vision.Merger {
	switch m := t.Merger.(type) {
	case vision.UnfoldMerger:
		m.Activation = activation
		return m
	case vision.MLPMerger:
		m.Activation = activation
		return m
	case vision.DownsampleMerger:
		m.Activation = activation
		return m
	}
	return t.Merger
}

func sampled(s vision.Sampling) change {
	return change{"sampling of the table", func(t *vision.AnySize) { t.Positions.Sampling = s }}
}

// ablations are, for each family, the parts that its reference values have to notice.
var ablations = map[string][]change{
	"qwen2_vl": slices.Concat(otherRope, []change{qkvBias, outBias, mlpBias, toGelu, fewer, layerEps}),
	"qwen2_5_vl": slices.Concat(otherRope, []change{
		qkvBias, outBias, mlpBias, toGelu, layerEps, {"windows", func(t *vision.AnySize) { t.Window = 0 }},
		{"smaller windows", func(t *vision.AnySize) { t.Window -= 2 }},
		{"layers without windows", func(t *vision.AnySize) { t.Whole = nil }},
		{"which layers have windows", func(t *vision.AnySize) { t.Whole = []int{0, 2} }},
	}),
	"qwen3_vl": slices.Concat(otherRope, []change{
		noTable, sampled(vision.Centres), sampled(vision.Cubic), patchBias, qkvBias, outBias, mlpBias, activation,
		{"layers of deepstack", func(t *vision.AnySize) { t.Deepstack = []int{1, 3} }},
		layerEps,
	}),
	"mistral3":      slices.Concat(otherRope, []change{patchNorm, layerEps, activation, fewer}),
	"llava-pixtral": slices.Concat(otherRope, []change{patchNorm, layerEps, activation, fewer}),
	"lighton_ocr":   slices.Concat(otherRope, []change{patchNorm, layerEps, toGelu, fewer}),
	"paddleocr_vl": slices.Concat(otherRope, []change{
		noTable, sampled(vision.Corners), sampled(vision.Cubic), patchBias, qkvBias, outBias, mlpBias, postNorm, activation,
	}),
	"glm_ocr": slices.Concat(otherRope, []change{
		patchBias, qkvBias, outBias, mlpBias, postNorm, toGelu,
		{"norms of queries and keys", func(t *vision.AnySize) { t.QKNorm = false }},
	}),
	"glm4v": slices.Concat(otherRope, []change{
		noTable, sampled(vision.Corners), sampled(vision.Centres), patchBias, patchNorm, postNorm, toGelu,
	}),
	"lfm2_vl": {
		noTable, sampled(vision.Corners), sampled(vision.Centres), sampled(vision.Cubic), patchBias, qkvBias, outBias,
		mlpBias, postNorm, activation, fewer, shuffle("norm of blocks", func(m *vision.ShuffleMerger) { m.Norm = false }),
		shuffle("biases of the connector", func(m *vision.ShuffleMerger) { m.Bias = false }),
		shuffle("activation of the connector", func(m *vision.ShuffleMerger) { m.Activation = "silu" }),
		{"what does not rotate", func(t *vision.AnySize) { t.NoRope, t.Rope = false, vision.AxisRope{Theta: 100} }},
	},
}

// shuffle changes the merger of LFM2-VL.
func shuffle(what string, make func(*vision.ShuffleMerger)) change {
	return change{what, func(t *vision.AnySize) {
		m := t.Merger.(vision.ShuffleMerger)
		make(&m)
		t.Merger = m
	}}
}

// Every part of every tower is noticed: without it, or done otherwise, image features move by far more than the
// tolerance of the reference values.
func TestAnySizePartsCount(t *testing.T) {
	modeltest.StartLibrary(t)
	for name := range anySizeCheckpoints {
		if len(ablations[name]) == 0 {
			t.Errorf("%s: nothing is left out", name)
		}
		for _, c := range ablations[name] {
			t.Run(name+"/"+c.what, func(t *testing.T) {
				if moved := moves(t, name, c); !(moved > 1e-2) {
					t.Errorf("without it image features move by %g, want more than a hundredth", moved)
				}
			})
		}
	}
}

// moves is how far a change takes the features of a family's reference at most.
func moves(t *testing.T, name string, c change) (most float64) {
	t.Helper()
	want, err := safetensors.OpenFile(modeltest.References(name))
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	m, err := model.Open(modeltest.TinyDir(name))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	changed := *m.AnySize
	c.make(&changed)
	v := Verifier{Sessions: Sessions{Model: m}}
	if v.Tower, err = vision.OpenAnySize(m.Weights, changed, graph.FP32, ort.Options{Threads: 1}); err != nil {
		t.Fatal(err)
	}
	defer v.Tower.Close()
	_, patches, err := v.features(references{want})
	if err != nil {
		t.Fatal(err)
	}
	checks, err := v.compareFeatures("image_features", slices.Concat(patches...), references{want})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range checks {
		most = max(most, k.Value)
	}
	return most
}

// What blocks are made of counts, too: patches of a block in another order, blocks in another order, and the images'
// shapes exchanged give other features, and an image after a larger one those that it has alone, whatever the threads.
func TestAnySizeOrder(t *testing.T) {
	modeltest.StartLibrary(t)
	for name := range anySizeCheckpoints {
		for _, p := range []graph.Precision{graph.FP32, graph.INT8} {
			t.Run(name+"/"+string(p), func(t *testing.T) {
				m, err := model.Open(modeltest.TinyDir(name))
				if err == nil {
					_, err = m.LoadQuantized(t.TempDir(), p, graph.FP32)
				}
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				inOrder(t, m, p)
			})
		}
	}
}

func inOrder(t *testing.T, m *model.Model, p graph.Precision) {
	tower := func(threads int) vision.Tower {
		tw, err := m.OpenTower(p, ort.Options{Threads: threads})
		if err != nil {
			t.Fatal(err)
		}
		return tw
	}
	one, two := tower(1), tower(2)
	defer one.Close()
	defer two.Close()
	small, large := drawn(m.AnySize, 3, 4), drawn(m.AnySize, 9, 7)
	alone := encode(t, one, small)
	encode(t, two, large)
	if !slices.Equal(encode(t, two, small), alone) {
		t.Error("after a larger image and with two threads the same image gives other features")
	}
	sharesRuns(t, two, m.AnySize)
	patch := 3 * m.AnySize.PatchSize * m.AnySize.PatchSize
	swapped := *small
	swapped.Pixels = slices.Concat(small.Pixels[patch:2*patch], small.Pixels[:patch], small.Pixels[2*patch:])
	if slices.Equal(encode(t, one, &swapped), alone) {
		t.Error("two patches exchanged give the same features")
	}
	turned := *small
	turned.Grid.Width, turned.Grid.Height = small.Grid.Height, small.Grid.Width
	if slices.Equal(encode(t, one, &turned), alone) {
		t.Error("as many patches in another shape give the same features")
	}
	for what, bad := range map[string]vision.Image{
		"no patches": {Size: small.Size}, "other patches": {Size: small.Size + 1, Grid: small.Grid, Pixels: small.Pixels},
		"too few": {Size: small.Size, Grid: small.Grid, Pixels: small.Pixels[1:]},
		"half a block": {Size: small.Size, Grid: vision.Grid{Width: small.Grid.Width, Height: small.Grid.Height + 1},
			Pixels: small.Pixels},
	} {
		if _, err := vision.Encode(one, &bad, spread(m.AnySize)); err == nil {
			t.Errorf("an image with %s was taken", what)
		}
	}
	if !slices.Equal(encode(t, one, small), alone) {
		t.Error("after images that were refused the same image gives other features")
	}
}

// sharesRuns has images of different shapes share runs, in every order that they come in: each gets the bits that it
// gets alone.
func sharesRuns(t *testing.T, tower vision.Tower, a *vision.AnySize) {
	t.Helper()
	var list []*vision.Image
	for _, size := range [][2]int{{3, 4}, {1, 1}, {5, 2}, {1, 9}, {9, 7}, {20, 18}} {
		list = append(list, drawn(a, size[0], size[1]))
	}
	var alone [][]float32
	for i, img := range list {
		img.Digest[0] = byte(i)
		alone = append(alone, encode(t, tower, img))
	}
	encoder := vision.NewEncoder(tower, spread(a), 0)
	defer encoder.Close()
	var work sync.WaitGroup
	for turn := range 3 {
		for i := range list {
			work.Go(func() {
				img := *list[(i*(turn+1)+turn)%len(list)]
				img.Digest[1] = byte(10*turn + i)
				got, _, err := encoder.Encode(t.Context(), &img)
				if err != nil || !slices.Equal(got, alone[img.Digest[0]]) {
					t.Errorf("image %d beside others gives other features: %v", img.Digest[0], err)
				}
			})
		}
	}
	work.Wait()
	if s := encoder.Stats(); graph.HasKernels && s.Runs >= s.Tiles {
		t.Errorf("%d images took %d runs", s.Tiles, s.Runs)
	}
}

// drawn is an image of so many blocks.
func drawn(t *vision.AnySize, rows, cols int) *vision.Image {
	block := t.PatchSize * t.MergeSize
	img := &vision.Image{Size: t.PatchSize, Grid: vision.Grid{Width: cols * block, Height: rows * block}}
	img.Pixels = make([]uint8, 3*img.Grid.Width*img.Grid.Height)
	for i := range img.Pixels {
		img.Pixels[i] = uint8(i * i >> 3)
	}
	return img
}

// spread makes pixel values of bytes, each plane as often as a patch has frames.
func spread(t *vision.AnySize) vision.Normalizer {
	area := t.PatchSize * t.PatchSize
	return func(dst []float32, src []uint8) {
		times := len(dst) / len(src)
		for i := range dst {
			dst[i] = float32(src[i/(area*times)*area+i%area])/128 - 1
		}
	}
}

func encode(t *testing.T, tower vision.Tower, img *vision.Image) []float32 {
	t.Helper()
	at := tower.(*vision.AnySizeTower)
	patches, err := vision.Encode(tower, img, spread(&at.AnySize))
	if err != nil {
		t.Fatal(err)
	}
	return patches
}
