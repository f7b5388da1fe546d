package decoder

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// ShortConv has some layers mix each position with the few before it, channel by channel, instead of attending.
// Reference: transformers Lfm2ShortConv.
type ShortConv struct {
	// Taps is the number of positions that are mixed, the newest included.
	Taps int
	// Bias says whether the convolution and the projections around it carry one.
	Bias bool
	// Layers says which layers do.
	Layers []bool
}

// convPeriod is the number of positions after which a sequence's state is kept for others to start from.
const convPeriod = 64

func (s *ShortConv) validate(layers int) error {
	switch {
	case s.Taps < 2 || s.Taps > convPeriod/2:
		return fmt.Errorf("text_config.conv_L_cache is %d, want 2 to %d", s.Taps, convPeriod/2)
	case len(s.Layers) != layers:
		return fmt.Errorf("text_config.layer_types has %d layers, num_hidden_layers is %d", len(s.Layers), layers)
	case !slices.Contains(s.Layers, false):
		return errors.New("text_config.layer_types has no layer of full_attention")
	}
	return nil
}

// convLayers lists the layers that are short convolutions.
func (c Config) convLayers() (list []int) {
	for i := range c.Layers {
		if c.isConv(i) {
			list = append(list, i)
		}
	}
	return list
}

func (c Config) isConv(i int) bool { return c.ShortConv != nil && c.ShortConv.Layers[i] }

// prefixStep is what the number of positions that a sequence starts with from another's has to be a multiple of.
func (c Config) prefixStep() int {
	if c.ShortConv != nil {
		return convPeriod
	}
	return 1
}

// longestStep is the most positions of a decode step: more would overwrite the state before it.
func (c Config) longestStep() int {
	if c.ShortConv != nil {
		return convPeriod - c.ShortConv.Taps
	}
	return c.MaxLen
}

// maxDrafts is the most drafts of a row, 0 where any number will do.
func (c Config) maxDrafts() int {
	if c.ShortConv != nil {
		return c.longestStep() - 1
	}
	return 0
}

// convBytesPerToken is the memory of the states that are kept, in bytes for a position over all layers.
func (c Config) convBytesPerToken() int64 {
	if c.ShortConv == nil {
		return 0
	}
	n := int64(len(c.convLayers())) * int64(c.ShortConv.Taps-1) * int64(c.Hidden) * 4
	return (n + convPeriod - 1) / convPeriod
}

// convBytes is the memory that a sequence's newest states take, however short it is.
func (c Config) convBytes() int64 {
	if c.ShortConv == nil {
		return 0
	}
	rows := int64(convPeriod + c.ShortConv.Taps)
	return int64(len(c.convLayers())) * (rows*int64(c.Hidden)*4 + int64(os.Getpagesize()))
}

// convSteps are the inputs of a graph that say where a step's columns are; see convCache.
type convSteps struct{ from, to, of string }

// convInputs adds them: conv_from [B, taps-1, 1], the rows of the columns before each row's first position; conv_to
// [N, 2], the slot and row that each column which is kept goes to; conv_of [N, 2], the slot and number of that column
// among those before and in the step. Then past_conv of each layer [B, rows, hidden]; and the outputs present_conv,
// which are bound to the same memory.
func (c Config) convInputs(b *graph.Builder) (s convSteps) {
	if c.ShortConv == nil {
		return s
	}
	s.from = b.Input("conv_from", onnx.I64, "B", c.ShortConv.Taps-1, 1)
	s.to, s.of = b.Input("conv_to", onnx.I64, "N", 2), b.Input("conv_of", onnx.I64, "N", 2)
	for _, i := range c.convLayers() {
		b.Input(fmt.Sprintf("past_conv.%d", i), onnx.F32, "B", "R", c.Hidden)
		b.Output(fmt.Sprintf("present_conv.%d", i), onnx.F32, "B", "R", c.Hidden)
	}
	return s
}

// shortConv is layer i over x. All of it but the projections is done value by value, so that a position gets the same
// to the last bit whatever it runs with.
func (c Config) shortConv(b *graph.Builder, s convSteps, i int, x string) string {
	p, taps, bias := fmt.Sprintf("text.layers.%d.conv.", i), c.ShortConv.Taps, c.ShortConv.Bias
	third := int64(c.Hidden)
	parts := b.OpN("", "Split", onnx.Attrs{"axis": -1},
		[]string{b.Linear(x, p+"in_proj", c.Hidden, 3*c.Hidden, bias), b.I64s(third, third, third)}, 3)
	state := fmt.Sprintf("past_conv.%d", i)
	before := b.Op("GatherND", onnx.Attrs{"batch_dims": 1}, state, s.from)
	columns := b.Op("Concat", onnx.Attrs{"axis": 1}, before, b.Op("Mul", nil, parts[0], parts[2]))
	b.Node("", "ScatterND", nil, []string{state, s.to, b.Op("GatherND", nil, columns, s.of)},
		[]string{fmt.Sprintf("present_conv.%d", i)})
	kernel := b.OpN("", "Split", onnx.Attrs{"axis": 2},
		[]string{b.Weight(p+"conv.weight", c.Hidden, 1, taps), b.I64s(slices.Repeat([]int64{1}, taps)...)}, taps)
	var sum string
	for t := range taps {
		end := b.I64s(int64(t + 1 - taps))
		if t+1 == taps {
			end = b.I64s(1 << 31)
		}
		column := b.Op("Slice", nil, columns, b.I64s(int64(t)), end, b.I64s(1))
		tap := b.Op("Mul", nil, column, b.Op("Reshape", nil, kernel[t], b.I64s(third)))
		if t == 0 {
			sum = tap
		} else {
			sum = b.Op("Add", nil, sum, tap)
		}
	}
	if bias {
		sum = b.Op("Add", nil, sum, b.Weight(p+"conv.bias", c.Hidden))
	}
	return b.Linear(b.Op("Mul", nil, parts[1], sum), p+"out_proj", c.Hidden, c.Hidden, bias)
}

// convCache holds the columns that short convolutions look back at: a tensor a layer, [slots, rows, hidden]. The last
// taps-1 columns of each convPeriod positions have rows of their own, so that another sequence can start after them;
// the others share convPeriod rows, by their position modulo that. The last row is zeros, the columns before a
// sequence.
type convCache struct {
	slots, hidden, taps, rows int
	layers                    []*ort.Memory[float32]
	views                     map[[2]int][]ort.Tensor
	from, to, of              *ort.Memory[int64]
}

// newConvCache is nil for a decoder without short convolutions.
func newConvCache(c Config, slots, maxLen int) (*convCache, error) {
	if c.ShortConv == nil {
		return nil, nil
	}
	v := &convCache{slots: slots, hidden: c.Hidden, taps: c.ShortConv.Taps, views: map[[2]int][]ort.Tensor{}}
	v.rows = v.used(maxLen) + 1
	for range c.convLayers() {
		m, err := ort.Alloc[float32](slots * v.rows * v.hidden)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("states of convolutions: %w", err), v.close())
		}
		v.layers = append(v.layers, m)
	}
	return v, nil
}

// used is the number of rows that the first n positions of a sequence take.
func (v *convCache) used(n int) int { return convPeriod + (n+convPeriod-1)/convPeriod*(v.taps-1) }

// row is where the column of a position is; kept says whether it stays there.
func (v *convCache) row(p int) (row int, kept bool) {
	if p < 0 {
		return v.rows - 1, true
	}
	at := p%convPeriod - (convPeriod - (v.taps - 1))
	if at < 0 {
		return p % convPeriod, false
	}
	return convPeriod + p/convPeriod*(v.taps-1) + at, true
}

// tensors appends the inputs that say where columns are, for rows of width positions each, those behind a row's ids
// included.
func (v *convCache) tensors(in []ort.Tensor, views *viewList, rows []Row, width int) ([]ort.Tensor, error) {
	if v == nil {
		return in, nil
	}
	n := len(rows)
	if err := errors.Join(grow(&v.from, n*(v.taps-1)), grow(&v.to, 2*n*width), grow(&v.of, 2*n*width)); err != nil {
		return in, err
	}
	from, to, of := v.from.Slice()[:0], v.to.Slice()[:0], v.of.Slice()[:0]
	for i, r := range rows {
		for p := r.Past - (v.taps - 1); p < r.Past; p++ {
			row, _ := v.row(p)
			from = append(from, int64(row))
		}
		for j := range width {
			if row, kept := v.row(r.Past + j); kept || j >= width-convPeriod {
				to, of = append(to, int64(i), int64(row)), append(of, int64(i), int64(v.taps-1+j))
			}
		}
	}
	return append(in, view(views, from, n, v.taps-1, 1), view(views, to, len(to)/2, 2), view(views, of, len(of)/2, 2)), nil
}

// view gives the states of slots [from, from+n). They are made once.
func (v *convCache) view(from, n int) ([]ort.Tensor, error) {
	if v == nil {
		return nil, nil
	}
	key := [2]int{from, n}
	if list, ok := v.views[key]; ok {
		return list, nil
	}
	var list []ort.Tensor
	for _, m := range v.layers {
		t, err := ort.View(m.Slice()[from*v.rows*v.hidden:], n, v.rows, v.hidden)
		if err != nil {
			return nil, err
		}
		list = append(list, t)
	}
	v.views[key] = list
	return list, nil
}

// move is Move.
func (v *convCache) move(m Move) {
	if v == nil {
		return
	}
	n, back := v.used(m.Len)*v.hidden, 0
	if m.Back > 0 {
		back = v.used(m.Back) * v.hidden
	}
	both := min(n, back)
	for _, mem := range v.layers {
		from, to := mem.Slice()[m.From*v.rows*v.hidden:], mem.Slice()[m.To*v.rows*v.hidden:]
		exchange(from[:both], to[:both])
		copy(to[both:n], from[both:])
		if back > both {
			copy(from[both:back], to[both:])
		}
	}
}

// release puts zeros over the columns of positions [r.From, r.To). Those that a sequence of r.From positions goes on
// from stay, and those that others start from.
func (v *convCache) release(r Release) error {
	if v == nil {
		return nil
	}
	wipe := func(from, to int) (err error) {
		for _, mem := range v.layers {
			at := r.Slot * v.rows
			err = errors.Join(err, mem.Wipe((at+from)*v.hidden, (at+max(from, to))*v.hidden))
		}
		return err
	}
	if r.From == 0 {
		return wipe(0, v.rows)
	}
	first := convPeriod + r.From/convPeriod*(v.taps-1) + max(0, r.From%convPeriod-(convPeriod-(v.taps-1)))
	err := wipe(first, min(v.used(r.To), v.rows-1))
	for p := r.From; p < min(r.To, r.From+convPeriod-(v.taps-1)); p++ {
		if row, kept := v.row(p); !kept {
			err = errors.Join(err, wipe(row, row+1))
		}
	}
	if err != nil {
		return fmt.Errorf("give back states of convolutions: %w", err)
	}
	return nil
}

func (v *convCache) close() error {
	if v == nil {
		return nil
	}
	var err error
	for _, list := range v.views {
		for _, t := range list {
			t.Destroy()
		}
	}
	for _, m := range v.layers {
		err = errors.Join(err, m.Free())
	}
	return errors.Join(err, v.from.Free(), v.to.Free(), v.of.Free())
}
