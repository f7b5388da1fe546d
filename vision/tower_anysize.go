package vision

import (
	"context"
	"errors"
	"fmt"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/internal/safetensors"
)

// AnySizeTower is a tower for images of any size over a checkpoint. Images share a run where they are small.
type AnySizeTower struct {
	AnySize
	session *ort.Session
	table   []float32 // of positions, [Side·Side, hidden]
	most    int       // patches of an image
	packs   bool      // a run takes several images
	// What a run takes, in the order of the graph's inputs, and gives.
	patches, cos, sin, positions, features ort.Room[float32]
	images, windows                        ort.Room[int32]
	loaded                                 []placed
	ran                                    int       // images of the last run
	ordered                                []float32 // features, row by row
	scratch                                []float32
}

// placed is an image in a run.
type placed struct {
	runOrder
	// patch and window are where its patches and windows begin, among those of the run.
	patch, window int
}

// tokenAt is where its embeddings begin.
func (p placed) tokenAt(t *AnySizeTower) int { return p.patch / (t.MergeSize * t.MergeSize) }

// maxImages is the most images of a run.
const maxImages = 16

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
	t := &AnySizeTower{AnySize: a, most: mostAnySize, packs: graph.OwnSequences(a.head(), on)}
	if !t.packs {
		t.most = a.MostPatches(ScoredRunBytes, true)
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

// MaxParts is the most images of a run.
func (t *AnySizeTower) MaxParts() int {
	if t.packs {
		return maxImages
	}
	return 1
}

// Parts is the number of an image's tiles, if it is cut, and the whole.
func (t *AnySizeTower) Parts(img *Image) int { return img.Grid.Tiles() }

// patchesAtOnce bounds the pixel values that are normalised before they go to their places.
const patchesAtOnce = 64

// Load implements Tower: the part is a tile or the whole image. Places are filled from the first on.
func (t *AnySizeTower) Load(place int, img *Image, i int, normalize Normalizer) error {
	if place < 0 || place >= t.MaxParts() || place > len(t.loaded) || i < 0 || i >= t.Parts(img) {
		return fmt.Errorf("vision tower: part %d of %d at place %d of %d, want a part at the next", i, t.Parts(img), place,
			len(t.loaded))
	}
	if err := t.check(img, t.values()); err != nil {
		return err
	}
	g, at := t.part(img.Grid, i)
	n := t.count(g)
	if n > t.most {
		return fmt.Errorf("%w: it becomes %d patches, this vision tower takes at most %d", ErrImage, n, t.most)
	}
	t.loaded = t.loaded[:place]
	p := placed{}
	if place > 0 {
		last := t.loaded[place-1]
		p.patch, p.window = last.patch+len(last.source), last.window+len(last.windows)
		if p.patch+n > targetPatches || !t.shares(n) || !t.shares(len(t.loaded[0].source)) {
			return errFull
		}
	} else if err := t.reserve(n); err != nil {
		return err
	}
	p.runOrder = t.AnySize.order(g.Height/t.PatchSize, g.Width/t.PatchSize)
	t.loadPixels(p, img.Pixels[at:], normalize)
	t.loadPositions(p, g)
	t.images.Slice()[place] = int32(n)
	copy(t.windows.Slice()[p.window:], p.windows)
	t.loaded = append(t.loaded, p)
	return nil
}

// shares tells whether an image of n patches may share a run. One that becomes a single row of a matrix may not: it is
// multiplied by other kernels alone, whose last bits are others.
func (t *AnySizeTower) shares(n int) bool { return n > t.MergeSize*t.MergeSize }

// reserve makes room for a run that begins with an image of n patches.
func (t *AnySizeTower) reserve(n int) error {
	if t.packs && t.shares(n) {
		n = max(n, targetPatches)
	}
	half, tokens, table := t.head()/2, n/(t.MergeSize*t.MergeSize), 0
	if t.Positions.Side > 0 {
		table = n * t.Hidden
	}
	return errors.Join(t.patches.Fit(n*t.values()), t.cos.Fit(n*half), t.sin.Fit(n*half), t.positions.Fit(table),
		t.features.Fit(tokens*t.Width), t.images.Fit(maxImages), t.windows.Fit(tokens))
}

// loadPixels normalises patches and puts them where they run.
func (t *AnySizeTower) loadPixels(p placed, pixels []uint8, normalize Normalizer) {
	bytes, values := 3*t.PatchSize*t.PatchSize, t.values()
	place := make([]int32, len(p.source)) // of an image's patches in the run
	for i, s := range p.source {
		place[s] = int32(p.patch + i)
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
func (t *AnySizeTower) loadPositions(p placed, g Grid) {
	rows, cols := g.Height/t.PatchSize, g.Width/t.PatchSize
	if !t.NoRope {
		t.loadAngles(p, rows, cols)
	}
	if t.table == nil {
		return
	}
	down, across := t.Positions.taps(rows), t.Positions.taps(cols)
	to := t.positions.Slice()[p.patch*t.Hidden:]
	for i, row := range p.row {
		t.Positions.mix(to[i*t.Hidden:(i+1)*t.Hidden], t.table, down[row], across[p.col[i]])
	}
}

// loadAngles fills in what each patch of so many rows and columns turns by.
func (t *AnySizeTower) loadAngles(p placed, rows, cols int) {
	quarter := t.head() / 4
	rowCos, rowSin := t.Rope.angles(rows, t.head(), 0)
	colCos, colSin := t.Rope.angles(cols, t.head(), 1)
	cos, sin := t.cos.Slice()[2*p.patch*quarter:], t.sin.Slice()[2*p.patch*quarter:]
	for i, row := range p.row {
		r, c := int(row)*quarter, int(p.col[i])*quarter
		copy(cos[2*i*quarter:], rowCos[r:r+quarter])
		copy(cos[(2*i+1)*quarter:], colCos[c:c+quarter])
		copy(sin[2*i*quarter:], rowSin[r:r+quarter])
		copy(sin[(2*i+1)*quarter:], colSin[c:c+quarter])
	}
}

// Run implements Tower.
func (t *AnySizeTower) Run(ctx context.Context, n int) error {
	if n < 1 || n > len(t.loaded) {
		return fmt.Errorf("vision tower: a run of %d images, want 1 to the %d that are loaded", n, len(t.loaded))
	}
	last := t.loaded[n-1]
	count, windows := last.patch+len(last.source), last.window+len(last.windows)
	in, err := t.inputs(n, count, windows)
	defer func() {
		for _, v := range in {
			v.Destroy()
		}
	}()
	if err != nil {
		return err
	}
	tokens := last.tokenAt(t) + len(last.token)
	out, err := ort.View(t.features.Slice(), tokens, t.Width)
	if err != nil {
		return err
	}
	defer out.Destroy()
	t.ran = 0
	if err := t.session.RunContext(ctx, in, []ort.Tensor{out}); err != nil {
		return fmt.Errorf("vision tower: %w", err)
	}
	t.ran = n
	t.sort(tokens)
	return nil
}

// inputs are those of a run of n images with so many patches and windows, as far as they could be made.
func (t *AnySizeTower) inputs(n, count, windows int) (in []ort.Tensor, err error) {
	half := t.head() / 2
	add := func(v ort.Tensor, failed error) {
		in, err = append(in, v), errors.Join(err, failed)
	}
	add(ort.View(t.patches.Slice(), count, t.values()))
	if !t.NoRope {
		add(ort.View(t.cos.Slice(), count, half))
		add(ort.View(t.sin.Slice(), count, half))
	}
	add(ort.View(t.images.Slice(), n))
	if t.Window > 0 {
		add(ort.View(t.windows.Slice(), windows))
	}
	if t.table != nil {
		add(ort.View(t.positions.Slice(), count, t.Hidden))
	}
	return in, err
}

// sort puts the features of each image in the order of its rows.
func (t *AnySizeTower) sort(tokens int) {
	got := t.features.Slice()[:tokens*t.Width]
	if t.ordered = got; t.Window == 0 {
		return
	}
	t.ordered = make([]float32, len(got))
	for _, p := range t.loaded[:t.ran] {
		first := p.tokenAt(t)
		for i, at := range p.token {
			copy(t.ordered[(first+int(at))*t.Width:][:t.Width], got[(first+i)*t.Width:])
		}
	}
}

// Patches implements Tower.
func (t *AnySizeTower) Patches(place int) []float32 {
	p := t.loaded[place]
	first := p.tokenAt(t)
	return t.ordered[first*t.Width : (first+len(p.token))*t.Width]
}

// Pack implements Tower: the graph has done it.
func (t *AnySizeTower) Pack(_ Grid, patches []float32) []float32 { return patches }

// Wipe implements Tower.
func (t *AnySizeTower) Wipe() error {
	clear(t.scratch)
	clear(t.ordered)
	t.loaded, t.ordered, t.ran = nil, nil, 0
	return errors.Join(t.patches.Wipe(), t.features.Wipe(), t.positions.Wipe())
}

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
