package decoder

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// ExportRunner is a decoder that somebody else made into ONNX graphs, as Optimum and transformers.js lay them out: one
// that embeds ids, and one that takes the keys and values of a step's past and gives them with the step's own. What it
// feeds them follows from what they declare. One goroutine uses it at a time.
type ExportRunner struct {
	config  ExportConfig
	embed   *idEmbedder
	session *ort.Session
	feeds   []feed // one for each of the graph's inputs
	kv      *concatCache
	hidden  int
	states  *encoderStates // nil for a decoder alone

	axes                            int  // of positions: 1, or 3 where they are places in time, height and width
	together                        bool // rows of different lengths may share a run
	numLogitsToKeep, useCacheBranch bool // inputs that the graph has

	embeds    *ort.Floats // nil where the graph takes ids
	ids       *ort.Memory[int64]
	logits    *ort.Floats
	mask      *ort.Memory[int64]
	positions *ort.Memory[int64]
	flags     *ort.Memory[uint8]
	in, out   []ort.Tensor // scratch for one run
	tokens    []Token
}

// ExportConfig is what the graphs of an exported decoder leave open.
type ExportConfig struct {
	// Vocab is the number of ids that have an embedding and logits; MaxLen that of positions of one sequence.
	Vocab, MaxLen int
	// FirstPosition is what position_ids calls the first position.
	FirstPosition int
	// EncoderStates is the number of a sequence's first positions that are the encoder's, in an encoder-decoder for which
	// it is always the same. In others Start is the number of ids at a prompt's end that are the decoder's. Both are 0
	// for a decoder alone.
	EncoderStates, Start int
}

// ExportFiles are the graphs of an exported decoder. Embed has no path where the decoder takes ids, Encoder none where
// patches are what it attends to, or where there is nothing such.
type ExportFiles struct {
	Embed, Encoder, Decoder ort.File
}

// exportStep is one run of an exported decoder.
type exportStep struct {
	concatStep
	views viewList
	kept  int // positions of each row that get logits
}

// feed makes the tensor of one input.
type feed func(s *exportStep) ort.Tensor

// OpenExport opens the graphs and reserves the caches.
func OpenExport(c ExportConfig, f ExportFiles, o OpenOptions) (*ExportRunner, error) {
	if o.MaxLen == 0 || o.MaxLen > c.MaxLen {
		o.MaxLen = c.MaxLen
	}
	if o.Slots < 1 {
		return nil, fmt.Errorf("decoder: %d slots, want at least 1", o.Slots)
	}
	x := &ExportRunner{config: c, axes: 1}
	err := x.open(f, o)
	if err == nil && o.Slots > 1 && x.states == nil && !scalesRuns(f.Decoder) {
		err = x.probe()
	}
	if err != nil {
		return nil, errors.Join(err, x.Close())
	}
	return x, nil
}

// open opens what f names and checks that it fits together; what the decoder's graph declares says what it is fed.
func (x *ExportRunner) open(f ExportFiles, o OpenOptions) (err error) {
	if f.Embed.Path != "" {
		if x.embed, err = newIDEmbedder(f.Embed, x.config.Vocab, o.Session); err != nil {
			return err
		}
	}
	fail := func(err error) error { return fmt.Errorf("%s: %w", f.Decoder.Path, err) }
	var own, cross []onnx.Value
	for _, in := range f.Decoder.Inputs {
		list := &own
		if strings.Contains(in.Name, ".encoder.") {
			list = &cross
		}
		feed, err := x.bind(in, len(*list))
		if err != nil {
			return fail(err)
		}
		if isPast(in.Name) {
			*list = append(*list, in)
		}
		x.feeds = append(x.feeds, feed)
	}
	logits, ok := onnx.Find(f.Decoder.Outputs, "logits")
	if !ok {
		return fail(errors.New("it has no output logits"))
	}
	outputs := []string{"logits"}
	for _, in := range slices.Concat(own, cross) {
		name := strings.Replace(in.Name, "past_key_values", "present", 1)
		v, ok := onnx.Find(f.Decoder.Outputs, name)
		if !ok || v.Type != in.Type {
			return fail(fmt.Errorf("it has input %s of %s, but no output %s like it", in.Name, in.Type, name))
		}
		outputs = append(outputs, name)
	}
	switch n := len(logits.Dims); {
	case n != 3:
		return fail(fmt.Errorf("output logits has %d dimensions, want 3", n))
	case logits.Dims[2].Size > 0 && logits.Dims[2].Size != x.config.Vocab:
		return fail(fmt.Errorf("output logits has %d values a position, config.json's vocabulary has %d", logits.Dims[2].Size, x.config.Vocab))
	case (x.embeds == nil) == (x.ids == nil), x.embeds != nil && x.embed == nil:
		return fail(errors.New("want an input inputs_embeds and a graph that embeds ids, or an input input_ids"))
	case (x.states != nil) != (x.config.EncoderStates+x.config.Start > 0), len(cross) > 0 && !x.useCacheBranch:
		return fail(errors.New("want encoder_hidden_states in an encoder-decoder and nowhere else, and use_cache_branch where caches of its own hold what they project to"))
	}
	if x.logits, err = ort.AllocFloats(logits.Type, 1); err != nil {
		return fail(fmt.Errorf("output logits: %w", err))
	}
	if x.kv, err = newConcatCache(own, o.Slots, o.MaxLen); err != nil {
		return fail(err)
	}
	if x.states != nil {
		if err := x.states.open(f.Encoder, cross, o); err != nil {
			return err
		}
	}
	if x.session, err = ort.OpenFile(f.Decoder, outputs, o.Session); err != nil {
		return fail(err)
	}
	return nil
}

func isPast(name string) bool { return strings.HasPrefix(name, "past_key_values.") }

// bind says what an input is fed with; cache is the number of caches before it.
func (x *ExportRunner) bind(in onnx.Value, cache int) (feed, error) {
	want := func(t onnx.DType, dims int) error {
		if in.Type != t || len(in.Dims) != dims {
			return fmt.Errorf("input %s is %s of %d dimensions, want %s of %d", in.Name, in.Type, len(in.Dims), t, dims)
		}
		return nil
	}
	switch {
	case in.Name == "inputs_embeds":
		if len(in.Dims) != 3 || !sane(in.Dims[2]) {
			return nil, fmt.Errorf("input inputs_embeds has shape %v, want three dimensions, the last known and at most %d", in.Dims, most)
		}
		x.hidden = in.Dims[2].Size
		var err error
		x.embeds, err = ort.AllocFloats(in.Type, 1)
		return func(s *exportStep) ort.Tensor {
			return s.floats(x.embeds, len(s.rows), s.width, x.hidden)
		}, err
	case in.Name == "input_ids":
		var err error
		x.ids, err = ort.Alloc[int64](1)
		return func(s *exportStep) ort.Tensor {
			return view(&s.views, x.ids.Slice(), len(s.rows), s.width)
		}, errors.Join(err, want(onnx.I64, 2))
	case in.Name == "encoder_hidden_states":
		if len(in.Dims) != 3 || !sane(in.Dims[2]) {
			return nil, fmt.Errorf("input encoder_hidden_states has shape %v, want three dimensions, the last known and at most %d", in.Dims, most)
		}
		e := x.encoder()
		e.declared = in
		return func(s *exportStep) ort.Tensor { return s.add(e.hidden(s.rows[0].Slot)) }, nil
	case in.Name == "encoder_attention_mask":
		e := x.encoder()
		return func(s *exportStep) ort.Tensor { return s.add(e.seen(s.rows[0].Slot)) }, want(onnx.I64, 2)
	case in.Name == "attention_mask":
		return func(s *exportStep) ort.Tensor {
			return view(&s.views, x.mask.Slice(), len(s.rows), s.past+s.width)
		}, want(onnx.I64, 2)
	case in.Name == "position_ids" && len(in.Dims) == 3: // in time, height and width
		if x.axes = in.Dims[0].Size; x.axes != 3 {
			return nil, fmt.Errorf("input position_ids has shape %v, want 3 first", in.Dims)
		}
		return func(s *exportStep) ort.Tensor {
			return view(&s.views, x.positions.Slice(), x.axes, len(s.rows), s.width)
		}, want(onnx.I64, 3)
	case in.Name == "position_ids":
		return func(s *exportStep) ort.Tensor {
			return view(&s.views, x.positions.Slice(), len(s.rows), s.width)
		}, want(onnx.I64, 2)
	case in.Name == "num_logits_to_keep" || in.Name == "logits_to_keep":
		x.numLogitsToKeep = true
		return func(s *exportStep) ort.Tensor { return s.add(ort.Scalar(int64(s.kept))) }, want(onnx.I64, 0)
	case in.Name == "use_cache_branch":
		x.useCacheBranch = true
		return func(s *exportStep) ort.Tensor {
			x.flags.Slice()[0] = 0
			if s.past > 0 {
				x.flags.Slice()[0] = 1
			}
			return s.add(ort.ViewAs(x.flags.Slice(), onnx.Bool, 1))
		}, want(onnx.Bool, 1)
	case isPast(in.Name) && strings.Contains(in.Name, ".encoder."):
		e := x.encoder()
		return func(s *exportStep) ort.Tensor { return s.add(e.past(cache, s.rows[0].Slot, s.past == 0)) }, nil
	case isPast(in.Name):
		return func(s *exportStep) ort.Tensor {
			t := x.kv.tensors[cache]
			return s.add(ort.ViewAs(t.buffers(s.concatStep)[0].Slice(), t.value.Type, len(s.rows), t.heads, s.past, t.dim))
		}, nil
	}
	return nil, fmt.Errorf("input %s (%s) is not supported", in.Name, in.Type)
}

// add keeps a view until the step's end.
func (s *exportStep) add(t ort.Tensor, err error) ort.Tensor {
	if err != nil {
		s.views.err = errors.Join(s.views.err, err)
		return t
	}
	s.views.list = append(s.views.list, t)
	return t
}

func (s *exportStep) floats(f *ort.Floats, dims ...int) ort.Tensor { return s.add(f.View(dims...)) }

// reserve makes room for a run over n rows of width ids, with a mask of masked positions and k rows of logits.
func (x *ExportRunner) reserve(n, width, masked, k int) error {
	var err error
	if x.embeds != nil {
		err = x.embeds.Grow(n * width * x.hidden)
	} else {
		err = grow(&x.ids, n*width)
	}
	if err == nil {
		err = x.logits.Grow(k * x.config.Vocab)
	}
	if err == nil {
		err = grow(&x.mask, masked)
	}
	if err == nil {
		err = grow(&x.positions, x.axes*n*width)
	}
	if err == nil {
		err = grow(&x.flags, 1)
	}
	return err
}

// Capacity is what the caches were sized for. The graph promises nothing about bits; one with a branch for the first
// step takes a whole prompt there.
func (x *ExportRunner) Capacity() Capacity {
	return Capacity{Slots: x.kv.slots, MaxLen: x.kv.maxLen, WholePrompt: x.useCacheBranch || x.states != nil}
}

// shortest is the fewest ids that a sequence starts with.
func (x *ExportRunner) shortest() int {
	if x.states == nil {
		return 1
	}
	return max(x.config.EncoderStates, x.config.Start) + 1
}

// Together tells whether rows of different lengths share a run. Where the graph has given other answers then, each row
// has a run of its own.
func (x *ExportRunner) Together() bool { return x.together }

// Run does one step (see Batch) and returns a token for each row that has a sampler, in the order of the rows.
// The slice is valid until the next Run.
func (x *ExportRunner) Run(_ context.Context, b *Batch) ([]Token, error) {
	for _, m := range b.Moves {
		x.kv.move(m)
		if x.states != nil {
			x.states.move(m)
		}
	}
	if err := x.release(b); err != nil {
		return nil, err
	}
	if err := checkRows(b.Rows, x.Capacity(), x.shortest()); err != nil {
		return nil, err
	}
	x.tokens = x.tokens[:0]
	share := 1
	if x.together {
		share = max(len(b.Rows), 1)
	}
	for rows := range slices.Chunk(b.Rows, share) {
		want := 1
		if rows[0].Prompt != nil { // a chunk, and so the only row
			want = len(rows[0].IDs)
		}
		logits, err := x.forward(rows, want)
		if err != nil {
			return nil, err
		}
		for i, row := range rows {
			if x.tokens, err = row.pick(x.tokens, logits(i), x.config.Vocab); err != nil {
				return nil, err
			}
		}
	}
	return x.tokens, nil
}

// release makes a batch's releases.
func (x *ExportRunner) release(b *Batch) error {
	for _, rel := range b.Releases {
		whole := rel
		if x.states != nil {
			rel = x.states.behind(rel)
		}
		if err := x.kv.release(rel); err != nil {
			return err
		}
		if x.states != nil {
			if err := x.states.wipe(whole); err != nil {
				return err
			}
		}
	}
	if !b.Wipe {
		return nil
	}
	err := errors.Join(x.kv.wipeSteps(), x.embeds.Wipe())
	if x.embed != nil {
		err = errors.Join(err, x.embed.embeds.Wipe())
	}
	if x.states != nil {
		e := x.states
		err = errors.Join(err, e.cross.wipeSteps(), e.embeds.Wipe(), e.out.Wipe(), e.states.Wipe())
	}
	return err
}

// Logits runs a whole prompt in slot 0 and returns the logits of every position, [len(IDs), vocab]. It is for
// verification; nothing else may use the runner meanwhile. The slice is valid until the next call.
func (x *ExportRunner) Logits(in fusion.Input) ([]float32, error) {
	rows := []Row{{IDs: in.IDs, Spans: in.Spans}}
	if err := checkRows(rows, x.Capacity(), x.shortest()); err != nil {
		return nil, err
	}
	if x.states == nil {
		_, err := x.forward(rows, len(in.IDs))
		return x.logits.Load(0, len(in.IDs)*x.config.Vocab), err
	}
	// What the encoder reads has no logits.
	n := len(in.IDs) - x.config.encoded(len(in.IDs))
	if _, err := x.forward(rows, n); err != nil {
		return nil, err
	}
	logits := make([]float32, len(in.IDs)*x.config.Vocab)
	copy(logits[(len(in.IDs)-n)*x.config.Vocab:], x.logits.Load(0, n*x.config.Vocab))
	return logits, nil
}

// forward runs the graph over rows of equally many ids, for the logits of the last want positions of each, and gives
// those of a row.
func (x *ExportRunner) forward(rows []Row, want int) (last func(row int) []float32, err error) {
	if x.states != nil {
		if rows, err = x.encode(rows); err != nil {
			return nil, err
		}
	}
	s := &exportStep{concatStep: x.kv.begin(rows), kept: want}
	defer s.views.destroy()
	n, width, total := len(rows), s.width, s.past+s.width
	if !x.numLogitsToKeep {
		s.kept = width
	}
	if err := x.reserve(n, width, n*total, n*s.kept); err != nil {
		return nil, err
	}
	for i, row := range rows {
		if err := x.enter(i, row); err != nil {
			return nil, err
		}
		mask := x.mask.Slice()[i*total : (i+1)*total]
		clear(mask)
		from := x.kv.offset(s.past, row.Past)
		for j := range row.Past + width {
			mask[from+j] = 1
		}
		places(row.Spans, row.Past, width, func(j int, p [3]int64) {
			for a := range x.axes {
				x.positions.Slice()[(a*n+i)*width+j] = p[a] + int64(x.config.FirstPosition)
			}
		})
	}
	if x.embeds != nil {
		x.embeds.Store(n * width * x.hidden)
	}
	x.in, x.out = x.in[:0], x.out[:0]
	for _, f := range x.feeds {
		x.in = append(x.in, f(s))
	}
	x.out = append(x.out, s.floats(x.logits, n, s.kept, x.config.Vocab))
	for _, t := range x.kv.tensors {
		x.out = append(x.out, s.add(ort.ViewAs(t.buffers(s.concatStep)[1].Slice(), t.value.Type, n, t.heads, total, t.dim)))
	}
	if x.states != nil {
		x.out = append(x.out, x.states.present(s)...)
	}
	if s.views.err != nil {
		return nil, s.views.err
	}
	if err := x.session.Run(x.in, x.out); err != nil {
		return nil, fmt.Errorf("decoder: %w", err)
	}
	x.kv.end(s.concatStep)
	if x.states != nil {
		x.states.keep(s)
	}
	return func(row int) []float32 {
		end := (row + 1) * s.kept * x.config.Vocab
		return x.logits.Load(end-want*x.config.Vocab, end)
	}, nil
}

// enter writes the ids of row i of a run, or their embeddings.
func (x *ExportRunner) enter(i int, row Row) error {
	width := len(row.IDs)
	if x.embeds != nil {
		return x.embed.embed(x.embeds.Slice()[i*width*x.hidden:(i+1)*width*x.hidden], row.IDs, row.Past, row.Spans)
	}
	for j, id := range row.IDs {
		if id < 0 || int(id) >= x.config.Vocab {
			return fmt.Errorf("token id %d has no embedding: the table has %d rows", id, x.config.Vocab)
		}
		x.ids.Slice()[i*width+j] = int64(id)
	}
	return nil
}

// probeTolerance is the largest difference, in parts of the range of a row's logits, that may lie between a run of its
// own and one with others. Rounding stays far below: 1e-6 in float32, 2e-3 where values are float16. A graph that
// counts padding is far above.
const probeTolerance = 5e-3

// scalesRuns tells whether a graph quantises all rows of a run with one scale: what else is in the run would then
// change a row's answer, by little enough to be missed.
func scalesRuns(f ort.File) bool {
	return f.Operators["DynamicQuantizeLinear"] || f.Operators["DynamicQuantizeMatMul"]
}

// probe finds out whether rows of different lengths may share a run, and where the shorter ones are padded: before
// their past, or behind as ONNX Runtime's GroupQueryAttention has it. What the graph declares does not tell: some take
// their positions from shapes.
func (x *ExportRunner) probe() error {
	lengths := []int{2, 9}
	if x.kv.maxLen <= lengths[1] {
		return nil
	}
	ids := make([]int32, lengths[1]+1)
	for i := range ids {
		ids[i] = int32(i * 7919 % x.config.Vocab)
	}
	var rows []Row
	var alone [][]float32
	for i, n := range lengths {
		if _, err := x.forward([]Row{{Slot: i, IDs: ids[:n]}}, 1); err != nil {
			return err
		}
		row := Row{Slot: i, Past: n, IDs: ids[n : n+1]}
		last, err := x.forward([]Row{row}, 1)
		if err != nil {
			return err
		}
		rows, alone = append(rows, row), append(alone, slices.Clone(last(0)))
	}
	for _, x.kv.behind = range []bool{false, true} {
		last, err := x.forward(rows, 1)
		if err != nil {
			continue // a graph for one row
		}
		if x.together = near(last, alone); x.together {
			return nil
		}
	}
	return nil
}

// near tells whether rows of logits are those wanted but for rounding.
func near(got func(row int) []float32, want [][]float32) bool {
	for i, w := range want {
		allowed := probeTolerance * float64(slices.Max(w)-slices.Min(w))
		for j, v := range got(i) {
			if !(math.Abs(float64(v-w[j])) <= allowed) {
				return false
			}
		}
	}
	return true
}

// Close frees the sessions and all memory.
func (x *ExportRunner) Close() error {
	var err error
	if x.session != nil {
		err = x.session.Close()
	}
	if x.embed != nil {
		err = errors.Join(err, x.embed.close())
	}
	if x.kv != nil {
		err = errors.Join(err, x.kv.close())
	}
	if x.states != nil {
		err = errors.Join(err, x.states.close())
	}
	x.embeds.Free()
	x.ids.Free()
	x.logits.Free()
	x.mask.Free()
	x.positions.Free()
	x.flags.Free()
	return err
}
