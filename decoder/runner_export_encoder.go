package decoder

import (
	"errors"
	"fmt"

	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// encoderStates keeps what the decoder of an exported encoder-decoder attends to: for each slot the states of its
// sequence's encoder, and the keys and values that the first step projected them to where the graph has caches for
// these. Steps are runs of one row.
type encoderStates struct {
	declared onnx.Value // encoder_hidden_states
	width    int
	maxLen   int
	lengths  []int                // of each slot's states
	store    *ort.Memory[float32] // [slots, max len, width]
	cross    *concatCache         // caches of slots whose length is that of the states

	session *ort.Session // nil where patches are the states
	embeds  *ort.Floats  // what the encoder takes
	out     *ort.Floats  // what it gives
	states  *ort.Floats  // of the row that runs
	ones    *ort.Memory[int64]
}

// encoded is the number of positions of a prompt of n that are the encoder's.
func (c ExportConfig) encoded(n int) int {
	if c.EncoderStates > 0 {
		return c.EncoderStates
	}
	return n - c.Start
}

// encoder gives x.states, which the first input that has to do with an encoder makes.
func (x *ExportRunner) encoder() *encoderStates {
	if x.states == nil {
		x.states = &encoderStates{}
	}
	return x.states
}

func (e *encoderStates) open(f ort.File, cross []onnx.Value, o OpenOptions) (err error) {
	if len(e.declared.Dims) != 3 {
		return errors.New("decoder: inputs of an encoder-decoder without encoder_hidden_states")
	}
	e.width, e.maxLen, e.lengths = e.declared.Dims[2].Size, o.MaxLen, make([]int, o.Slots)
	if e.cross, err = newConcatCache(cross, o.Slots, o.MaxLen); err != nil {
		return err
	}
	if e.store, err = ort.Alloc[float32](o.Slots * o.MaxLen * e.width); err != nil {
		return err
	}
	if e.ones, err = ort.Alloc[int64](o.MaxLen); err != nil {
		return err
	}
	for i := range e.ones.Slice() {
		e.ones.Slice()[i] = 1
	}
	if e.states, err = ort.AllocFloats(e.declared.Type, o.MaxLen*e.width); err != nil || f.Path == "" {
		return err
	}
	out, ok := onnx.Find(f.Outputs, "last_hidden_state")
	if !ok || len(f.Inputs) != 2 {
		return fmt.Errorf("%s: want inputs inputs_embeds and attention_mask, and an output last_hidden_state", f.Path)
	}
	for _, in := range f.Inputs {
		switch {
		case in.Name == "inputs_embeds" && len(in.Dims) == 3:
			if e.embeds, err = ort.AllocFloats(in.Type, o.MaxLen*e.width); err != nil {
				return err
			}
		case in.Name == "attention_mask" && in.Type == onnx.I64 && len(in.Dims) == 2:
		default:
			return fmt.Errorf("%s: input %s (%s, %d dimensions) is not supported", f.Path, in.Name, in.Type, len(in.Dims))
		}
	}
	if e.out, err = ort.AllocFloats(out.Type, o.MaxLen*e.width); err != nil {
		return err
	}
	if f.Inputs[0].Name == "inputs_embeds" { // run feeds the mask first
		f.Inputs = []onnx.Value{f.Inputs[1], f.Inputs[0]}
	}
	e.session, err = ort.OpenFile(f, []string{out.Name}, o.Session)
	return err
}

// encode runs the encoder over the first part of a sequence that starts, and gives the row as the decoder knows it:
// with the positions behind the encoder's only.
func (x *ExportRunner) encode(rows []Row) ([]Row, error) {
	e, row := x.states, rows[0]
	if row.Past == 0 {
		n := x.config.encoded(len(row.IDs))
		dst := e.store.Slice()[row.Slot*e.maxLen*e.width:][:n*e.width]
		if err := x.encoderInput(dst, row.IDs[:n], row.Spans); err != nil {
			return nil, err
		}
		if e.session != nil {
			if err := e.run(dst); err != nil {
				return nil, err
			}
		}
		e.lengths[row.Slot] = n
		row.IDs, row.Past = row.IDs[n:], n
	}
	if row.Past -= e.lengths[row.Slot]; row.Past < 0 {
		return nil, fmt.Errorf("decoder: slot %d has no encoder's states for a sequence of this length", row.Slot)
	}
	row.Spans = nil
	return []Row{row}, nil
}

// encoderInput writes patches, and between them the embeddings of ids.
func (x *ExportRunner) encoderInput(dst []float32, ids []int32, spans []fusion.Span) error {
	if x.embed != nil {
		return x.embed.embed(dst, ids, 0, spans)
	}
	covered := 0
	for _, s := range spans {
		covered += min(s.Start+s.Len, len(ids)) - min(s.Start, len(ids))
	}
	if covered != len(ids) {
		return fmt.Errorf("decoder: %d of the encoder's %d positions have patches, want all", covered, len(ids))
	}
	return fusion.Place(dst, x.states.width, 0, spans)
}

// run replaces embeddings [n, width] by the encoder's states.
func (e *encoderStates) run(embeds []float32) error {
	n := len(embeds) / e.width
	copy(e.embeds.Slice(), embeds)
	e.embeds.Store(len(embeds))
	var s exportStep
	defer s.views.destroy()
	mask := view(&s.views, e.ones.Slice(), 1, n)
	in, out := s.floats(e.embeds, 1, n, e.width), s.floats(e.out, 1, n, e.width)
	if s.views.err != nil {
		return s.views.err
	}
	if err := e.session.Run([]ort.Tensor{mask, in}, []ort.Tensor{out}); err != nil {
		return fmt.Errorf("encoder: %w", err)
	}
	copy(embeds, e.out.Load(0, len(embeds)))
	return nil
}

// hidden are a slot's states.
func (e *encoderStates) hidden(slot int) (ort.Tensor, error) {
	n := e.lengths[slot]
	copy(e.states.Slice(), e.store.Slice()[slot*e.maxLen*e.width:][:n*e.width])
	e.states.Store(n * e.width)
	return e.states.View(1, n, e.width)
}

// seen is the mask of a slot's states.
func (e *encoderStates) seen(slot int) (ort.Tensor, error) {
	return ort.View(e.ones.Slice(), 1, e.lengths[slot])
}

// past is cache i of what a slot's states project to; it is empty in the first step.
func (e *encoderStates) past(i, slot int, first bool) (ort.Tensor, error) {
	t, n := e.cross.tensors[i], e.lengths[slot]
	if first {
		n = 0
	}
	for h := range t.heads {
		copy(t.chunk[0].Slice()[h*n*t.vector:][:n*t.vector], e.cross.position(t, slot, h, 0))
	}
	return ort.ViewAs(t.chunk[0].Slice(), t.value.Type, 1, t.heads, n, t.dim)
}

// present is where a step's projections go. Later steps give what means nothing, of any shape: it is dropped.
func (e *encoderStates) present(s *exportStep) []ort.Tensor {
	list := make([]ort.Tensor, len(e.cross.tensors))
	if s.past > 0 {
		return list
	}
	for i, t := range e.cross.tensors {
		list[i] = s.add(ort.ViewAs(t.chunk[1].Slice(), t.value.Type, 1, t.heads, e.lengths[s.rows[0].Slot], t.dim))
	}
	return list
}

// keep keeps what the first step projected.
func (e *encoderStates) keep(s *exportStep) {
	if s.past > 0 {
		return
	}
	slot := s.rows[0].Slot
	for _, t := range e.cross.tensors {
		size := e.lengths[slot] * t.vector
		for h := range t.heads {
			copy(e.cross.position(t, slot, h, 0), t.chunk[1].Slice()[h*size:][:size])
		}
	}
}

// move takes a slot's states along, or exchanges them. Sequences of an encoder-decoder move whole.
func (e *encoderStates) move(m Move) {
	from, to := m.From, m.To
	long := max(e.lengths[from], e.lengths[to]) * e.width
	a, b := e.store.Slice()[from*e.maxLen*e.width:][:long], e.store.Slice()[to*e.maxLen*e.width:][:long]
	cross := Move{From: from, To: to, Len: e.lengths[from]}
	if m.Back > 0 {
		cross.Back = e.lengths[to]
		exchange(a, b)
		e.lengths[from], e.lengths[to] = e.lengths[to], e.lengths[from]
	} else {
		copy(b, a)
		e.lengths[to] = e.lengths[from]
	}
	e.cross.move(cross)
}

// wipe puts zeros over the states of a slot, if all of it is released.
func (e *encoderStates) wipe(r Release) error {
	if r.From > 0 {
		return nil
	}
	err := e.store.Wipe(r.Slot*e.maxLen*e.width, (r.Slot+1)*e.maxLen*e.width)
	e.lengths[r.Slot] = 0
	return errors.Join(err, e.cross.release(Release{Slot: r.Slot, To: e.maxLen}))
}

// behind counts a release from the end of a slot's states.
func (e *encoderStates) behind(r Release) Release {
	n := e.lengths[r.Slot]
	return Release{Slot: r.Slot, From: max(r.From-n, 0), To: max(r.To-n, 0)}
}

func (e *encoderStates) close() error {
	var err error
	if e.session != nil {
		err = e.session.Close()
	}
	if e.cross != nil {
		err = errors.Join(err, e.cross.close())
	}
	e.store.Free()
	e.embeds.Free()
	e.out.Free()
	e.states.Free()
	e.ones.Free()
	return err
}
