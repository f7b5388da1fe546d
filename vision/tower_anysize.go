package vision

import (
	"errors"
	"fmt"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/internal/safetensors"
)

// AnySizeTower is a tower for images of any size over a checkpoint. Each image is a run.
type AnySizeTower struct {
	AnySize
	session *ort.Session
	table   []float32 // of positions, [Side·Side, hidden]
	// What a run takes, in the order of the graph's inputs, and gives.
	patches, cos, sin, positions, features ort.Room[float32]
	images, windows                        ort.Room[int32]
	most                                   int // patches of an image
	order                                  runOrder
	ordered                                []float32 // features, row by row
	loaded                                 bool
	scratch                                []float32
}

// OpenAnySize opens a session over AnySizeGraph.
func OpenAnySize(w *graph.Weights, a AnySize, p graph.Precision, o ort.Options) (*AnySizeTower, error) {
	on, err := graph.TargetOf(o, p)
	if err != nil {
		return nil, err
	}
	b, err := anySizeGraph(w, a, p, on)
	if err != nil {
		return nil, err
	}
	t := &AnySizeTower{AnySize: a, most: mostAnySize}
	if on.Device {
		t.most = a.MostPatches(DeviceRunBytes, true)
	}
	if t.table, err = a.readTable(w); err != nil {
		return nil, err
	}
	o.ExternalDir, o.Background = graph.Root, true // answers under way do not wait for images
	if t.session, err = ort.NewSession(b, o); err != nil {
		return nil, fmt.Errorf("vision tower: %w", err)
	}
	return t, nil
}

// readTable reads the table of positions, nil where there is none.
func (c AnySize) readTable(w *graph.Weights) ([]float32, error) {
	if c.Positions.Side == 0 {
		return nil, nil
	}
	t, err := c.positionTable(w)
	if err != nil {
		return nil, err
	}
	return t.Floats()
}

// positionTable is the table's tensor, empty where there is none.
func (c AnySize) positionTable(w *graph.Weights) (safetensors.Tensor, error) {
	if c.Positions.Side == 0 {
		return safetensors.Tensor{}, nil
	}
	return w.Get("vision.embeddings.position_embedding.weight", c.Positions.Side*c.Positions.Side, c.Hidden)
}

// WarmUp does nothing: each size of image has kernels of its own.
func (t *AnySizeTower) WarmUp() error { return nil }

// MaxParts is one image.
func (t *AnySizeTower) MaxParts() int { return 1 }

// Parts is the number of an image's tiles, if it is cut, and the whole.
func (t *AnySizeTower) Parts(img *Image) int { return img.Grid.Tiles() }

// patchesAtOnce bounds the pixel values that are normalised before they go to their places.
const patchesAtOnce = 64

// Load implements Tower: the part is a tile or the whole image.
func (t *AnySizeTower) Load(place int, img *Image, i int, normalize Normalizer) error {
	if place != 0 || i < 0 || i >= t.Parts(img) {
		return fmt.Errorf("vision tower: part %d of %d at place %d, want one a run", i, t.Parts(img), place)
	}
	if err := t.check(img); err != nil {
		return err
	}
	g, at := t.part(img.Grid, i)
	n := t.count(g)
	if n > t.most {
		return fmt.Errorf("%w: it becomes %d patches, this vision tower takes at most %d", ErrImage, n, t.most)
	}
	t.loaded = false
	t.order = t.AnySize.order(g.Height/t.PatchSize, g.Width/t.PatchSize)
	if err := t.reserve(n); err != nil {
		return err
	}
	t.loadPixels(img.Pixels[at:], normalize)
	t.loadPositions(g)
	copy(t.images.Slice(), []int32{int32(n)})
	copy(t.windows.Slice(), t.order.windows)
	t.loaded = true
	return nil
}

// reserve makes room for a run of n patches.
func (t *AnySizeTower) reserve(n int) error {
	half := t.head() / 2
	table := 0
	if t.Positions.Side > 0 {
		table = n * t.Hidden
	}
	return errors.Join(t.patches.Fit(n*t.values()), t.cos.Fit(n*half), t.sin.Fit(n*half), t.positions.Fit(table),
		t.features.Fit(len(t.order.token)*t.Width), t.images.Fit(1), t.windows.Fit(len(t.order.windows)))
}

// loadPixels normalises patches and puts them where they run.
func (t *AnySizeTower) loadPixels(pixels []uint8, normalize Normalizer) {
	bytes, values := 3*t.PatchSize*t.PatchSize, t.values()
	place := make([]int32, len(t.order.source)) // of an image's patches in the run
	for i, s := range t.order.source {
		place[s] = int32(i)
	}
	if t.scratch == nil {
		t.scratch = make([]float32, patchesAtOnce*values)
	}
	to := t.patches.Slice()
	for from := 0; from < len(place); from += patchesAtOnce {
		n := min(patchesAtOnce, len(place)-from)
		normalize(t.scratch[:n*values], pixels[from*bytes:(from+n)*bytes])
		for i, at := range place[from : from+n] {
			copy(to[int(at)*values:][:values], t.scratch[i*values:])
		}
	}
}

// loadPositions fills in where each patch stands.
func (t *AnySizeTower) loadPositions(g Grid) {
	rows, cols := g.Height/t.PatchSize, g.Width/t.PatchSize
	if !t.NoRope {
		t.loadAngles(rows, cols)
	}
	if t.table == nil {
		return
	}
	down, across := t.Positions.taps(rows), t.Positions.taps(cols)
	for i, row := range t.order.row {
		t.Positions.mix(t.positions.Slice()[i*t.Hidden:(i+1)*t.Hidden], t.table, down[row], across[t.order.col[i]])
	}
}

// loadAngles fills in what each patch of so many rows and columns turns by.
func (t *AnySizeTower) loadAngles(rows, cols int) {
	quarter := t.head() / 4
	rowCos, rowSin := t.Rope.angles(rows, t.head(), 0)
	colCos, colSin := t.Rope.angles(cols, t.head(), 1)
	cos, sin := t.cos.Slice(), t.sin.Slice()
	for i, row := range t.order.row {
		r, c := int(row)*quarter, int(t.order.col[i])*quarter
		copy(cos[2*i*quarter:], rowCos[r:r+quarter])
		copy(cos[(2*i+1)*quarter:], colCos[c:c+quarter])
		copy(sin[2*i*quarter:], rowSin[r:r+quarter])
		copy(sin[(2*i+1)*quarter:], colSin[c:c+quarter])
	}
}

// Run implements Tower.
func (t *AnySizeTower) Run(n int) error {
	if n != 1 || !t.loaded {
		return fmt.Errorf("vision tower: a run of %d images, loaded %t, want one", n, t.loaded)
	}
	count, half := len(t.order.source), t.head()/2
	var in []ort.Tensor
	defer func() {
		for _, v := range in {
			v.Destroy()
		}
	}()
	var failed error
	add := func(v ort.Tensor, err error) {
		in, failed = append(in, v), errors.Join(failed, err)
	}
	add(ort.View(t.patches.Slice(), count, t.values()))
	if !t.NoRope {
		add(ort.View(t.cos.Slice(), count, half))
		add(ort.View(t.sin.Slice(), count, half))
	}
	add(ort.View(t.images.Slice(), 1))
	if t.Window > 0 {
		add(ort.View(t.windows.Slice(), len(t.order.windows)))
	}
	if t.table != nil {
		add(ort.View(t.positions.Slice(), count, t.Hidden))
	}
	if failed != nil {
		return failed
	}
	out, err := ort.View(t.features.Slice(), len(t.order.token), t.Width)
	if err != nil {
		return err
	}
	defer out.Destroy()
	if err := t.session.Run(in, []ort.Tensor{out}); err != nil {
		return fmt.Errorf("vision tower: %w", err)
	}
	return nil
}

// Patches implements Tower.
func (t *AnySizeTower) Patches(int) []float32 {
	got := t.features.Slice()[:len(t.order.token)*t.Width]
	if t.Window == 0 {
		return got
	}
	t.ordered = append(t.ordered[:0], got...)
	for i, at := range t.order.token {
		copy(t.ordered[int(at)*t.Width:][:t.Width], got[i*t.Width:])
	}
	return t.ordered
}

// Pack implements Tower: the graph has done it.
func (t *AnySizeTower) Pack(_ Grid, patches []float32) []float32 { return patches }

// Close frees the session and its memory.
func (t *AnySizeTower) Close() error {
	var err error
	if t.session != nil {
		err = t.session.Close()
	}
	for _, r := range []*ort.Room[float32]{&t.patches, &t.cos, &t.sin, &t.positions, &t.features} {
		r.Free()
	}
	t.images.Free()
	t.windows.Free()
	return err
}
