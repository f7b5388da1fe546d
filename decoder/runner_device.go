package decoder

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// DeviceRunner is an opened decoder whose weights, keys and values stay in a device's memory. A decode step sends each
// row's id and length there and gets an id back; logits come only where a sampler or the prompt's log-probabilities
// need them. One goroutine uses it at a time.
type DeviceRunner struct {
	config       Config
	session, top *ort.Session
	kv           *deviceKV
	images       *imageInputs
	maxLen       int
	longest      int // positions of one run of a prompt

	ids     *ort.Memory[int32]
	patches *ort.Memory[float32]
	shape   *ort.Memory[int64]
	lengths *ort.Memory[int32]   // seqlens_k, then total_sequence_length
	sample  *ort.Memory[int64]   // sample_rows
	best    *ort.Memory[float32] // the most likely token's logit of each row of logits
	bestIDs *ort.Memory[int64]
	tops    *ort.Memory[float32] // [rows, mostLikely]
	topIDs  *ort.Memory[int64]
	host    *ort.Memory[float32] // logits, when they are needed
	noPatch ort.Tensor           // stands for patches where there are none
	logits  ort.Tensor           // on the device, for as many rows as a run has asked for
	rows    int
	views   map[int]ort.Tensor // of the first n rows of logits

	in, out []ort.Tensor
	layout  layout
	tokens  []Token
	busy    atomic.Int64 // nanoseconds
}

// fewPositions is the longest run of a prompt where the provider's fused attention is wrong for longer ones.
const fewPositions = 16

// OpenDevice builds the decoder's graph over the checkpoint for a provider that has memory of its own, opens its
// session there and reserves the KV cache.
func OpenDevice(c Config, w *graph.Weights, o OpenOptions) (_ *DeviceRunner, err error) {
	if o.MaxLen == 0 || o.MaxLen > c.MaxLen {
		o.MaxLen = c.MaxLen
	}
	if o.Slots < 1 {
		return nil, fmt.Errorf("decoder: %d slots, want at least 1", o.Slots)
	}
	on, err := graph.TargetOf(o.Session, o.Precision)
	if err != nil {
		return nil, fmt.Errorf("decoder: %w", err)
	}
	b, err := c.deviceGraph(w, o.Precision, on)
	if err != nil {
		return nil, fmt.Errorf("decoder: %w", err)
	}
	r := &DeviceRunner{
		config: c, maxLen: o.MaxLen, longest: o.MaxLen, views: map[int]ort.Tensor{}, images: newImageInputs(c),
	}
	r.images.flat = true
	if !on.Fused {
		r.longest = fewPositions
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	o.Session.ExternalDir = graph.Root
	if r.session, err = ort.NewSession(b, o.Session); err != nil {
		return nil, fmt.Errorf("decoder: %w", err)
	}
	if c.Vocab > mostLikely {
		if r.top, err = ort.NewSession(topGraph(c.Vocab), o.Session); err != nil {
			return nil, fmt.Errorf("decoder: %w", err)
		}
	}
	if r.kv, err = newDeviceKV(r.session, o.Session, b.Type(), c, o.Slots, o.MaxLen); err != nil {
		return nil, err
	}
	if r.noPatch, err = r.session.Tensor(onnx.F32, 1, c.Hidden); err != nil {
		return nil, err
	}
	if r.shape, err = ort.Alloc[int64](3); err == nil {
		if r.lengths, err = ort.Alloc[int32](o.Slots + 1); err == nil {
			err = r.reserve(o.Slots, o.Slots)
		}
	}
	return r, err
}

// reserve makes room for a run over n positions with k rows of logits.
func (r *DeviceRunner) reserve(n, k int) error {
	err := errors.Join(grow(&r.ids, n), grow(&r.sample, k), grow(&r.best, k), grow(&r.bestIDs, k), r.images.reserve(n))
	if err != nil || k <= r.rows {
		return err
	}
	r.logits.Destroy() // with its views
	clear(r.views)
	r.rows = 0
	if r.logits, err = r.session.Tensor(onnx.F32, k, r.config.Vocab); err == nil {
		r.rows = k
	}
	return err
}

// Capacity is what the KV cache was sized for.
func (r *DeviceRunner) Capacity() Capacity {
	return Capacity{Slots: r.kv.slots, MaxLen: r.maxLen}
}

// Run does one step (see Batch) and returns a token for each row that has a sampler, in the order of the rows.
// The slice is valid until the next Run. Releases do nothing: the memory is the device's, reserved whole.
func (r *DeviceRunner) Run(_ context.Context, b *Batch) ([]Token, error) {
	for _, m := range b.Moves {
		if err := r.kv.move(m); err != nil {
			return nil, err
		}
	}
	if b.Wipe {
		if err := errors.Join(wipe(r.patches), wipe(r.host), wipe(r.tops), r.images.wipe()); err != nil {
			return nil, err
		}
	}
	r.tokens = r.tokens[:0]
	if len(b.Rows) == 0 {
		return r.tokens, nil
	}
	if err := checkRows(b.Rows, r.Capacity(), r.config.ShortestPrompt()); err != nil {
		return nil, err
	}
	if len(b.Rows) > 1 {
		return r.tokens, r.step(b.Rows)
	}
	// The pieces of a prompt that the provider's attention takes at once; what is wanted of the row comes with the last.
	row := b.Rows[0]
	for from := 0; from < len(row.IDs); from += r.longest {
		to := min(from+r.longest, len(row.IDs))
		piece := row
		piece.Past, piece.IDs = row.Past+from, row.IDs[from:to]
		if to < len(row.IDs) {
			piece.Sampler = nil
		}
		if err := r.step([]Row{piece}); err != nil {
			return nil, err
		}
	}
	return r.tokens, nil
}

// step runs rows, and picks their tokens.
func (r *DeviceRunner) step(rows []Row) error {
	wanted, most := 0, 1
	for _, row := range rows {
		wanted += row.logits()
		switch n := row.most(); {
		case n == 0 || n > mostLikely || r.top == nil && n > 1:
			most = r.config.Vocab
		default:
			most = max(most, n)
		}
	}
	width := len(rows[0].IDs)
	if err := r.reserve(len(rows)*width, max(wanted, 1)); err != nil {
		return err
	}
	sample := r.sample.Slice()[:0]
	for i, row := range rows {
		for at := width - row.logits(); at < width; at++ {
			sample = append(sample, int64(i*width+at))
		}
	}
	if wanted == 0 {
		r.sample.Slice()[0] = 0 // a tensor of no rows is no tensor
	}
	if err := r.forward(rows, max(wanted, 1)); err != nil || wanted == 0 {
		return err
	}
	return r.pick(rows, wanted, most)
}

// most is Sampler.Most of a row's sampler; 1 where nothing is sampled and 0 where the prompt's logits are wanted.
func (row *Row) most() int {
	switch {
	case row.Prompt != nil:
		return 0
	case row.Sampler == nil:
		return 1
	}
	return row.Sampler.Most()
}

// pick appends the rows' tokens to r.tokens, from as many of the most likely ones as it takes: the vocabulary is all.
func (r *DeviceRunner) pick(rows []Row, wanted, most int) error {
	ids, logits, n := r.bestIDs.Slice(), r.best.Slice(), 1
	if most > 1 && most <= mostLikely {
		if err := r.topOf(wanted); err != nil {
			return err
		}
		ids, logits, n = r.topIDs.Slice(), r.tops.Slice(), mostLikely
	}
	if most <= mostLikely {
		i := 0
		for _, row := range rows {
			if row.Sampler == nil {
				continue
			}
			t, ok, err := row.Sampler.Pick(ids[i*n:(i+1)*n], logits[i*n:(i+1)*n])
			if err != nil {
				return err
			}
			if !ok { // only this one has to see all
				if t, err = r.sampleAll(row, i, wanted); err != nil {
					return err
				}
			}
			r.tokens = append(r.tokens, t)
			i++
		}
		return nil
	}
	all, err := r.read(wanted)
	if err != nil {
		return err
	}
	for _, row := range rows {
		if r.tokens, err = row.pick(r.tokens, all, r.config.Vocab); err != nil {
			return err
		}
		all = all[row.logits()*r.config.Vocab:]
	}
	return nil
}

// topOf finds the mostLikely tokens of the first n rows of logits.
func (r *DeviceRunner) topOf(n int) error {
	if err := errors.Join(grow(&r.tops, n*mostLikely), grow(&r.topIDs, n*mostLikely)); err != nil {
		return err
	}
	logits, err := r.firstLogits(n)
	if err != nil {
		return err
	}
	var views viewList
	defer views.destroy()
	out := []ort.Tensor{view(&views, r.tops.Slice(), n, mostLikely), view(&views, r.topIDs.Slice(), n, mostLikely)}
	if views.err != nil {
		return views.err
	}
	if err := r.top.Run([]ort.Tensor{logits}, out); err != nil {
		return fmt.Errorf("decoder: %w", err)
	}
	return nil
}

func (r *DeviceRunner) sampleAll(row Row, i, n int) (Token, error) {
	all, err := r.read(n)
	if err != nil {
		return Token{}, err
	}
	return row.Sampler.Sample(all[i*r.config.Vocab : (i+1)*r.config.Vocab])
}

// read brings the first n rows of logits to the process's memory.
func (r *DeviceRunner) read(n int) ([]float32, error) {
	if err := grow(&r.host, n*r.config.Vocab); err != nil {
		return nil, err
	}
	logits, err := r.firstLogits(n)
	if err != nil {
		return nil, err
	}
	host, err := ort.View(r.host.Slice(), n, r.config.Vocab)
	if err != nil {
		return nil, err
	}
	defer host.Destroy()
	return r.host.Slice()[:n*r.config.Vocab], ort.Copy(host, logits)
}

// firstLogits is the first n rows of logits.
func (r *DeviceRunner) firstLogits(n int) (ort.Tensor, error) {
	if v, ok := r.views[n]; ok {
		return v, nil
	}
	v, err := r.logits.Start(n, r.config.Vocab)
	if err == nil {
		r.views[n] = v
	}
	return v, err
}

// forward runs the graph over rows of one width; the first wanted entries of sample say which positions' logits to
// give.
func (r *DeviceRunner) forward(rows []Row, wanted int) error {
	n, width := len(rows), len(rows[0].IDs)
	ids, lengths, shape := r.ids.Slice(), r.lengths.Slice(), r.shape.Slice()
	patches := 0
	for i, row := range rows {
		var err error
		if patches, err = r.place(ids[i*width:(i+1)*width], row, patches); err != nil {
			return err
		}
		lengths[i] = int32(row.Past + width - 1)
	}
	lengths[n] = slices.Max(lengths[:n]) + 1 // as in Runner
	shape[0], shape[1], shape[2] = int64(n), int64(width), -1
	logits, err := r.firstLogits(wanted)
	if err != nil {
		return err
	}
	var kv []ort.Tensor
	if n == 1 && (width > 1 || rows[0].Slot > 0) {
		kv, err = r.kv.one(rows[0].Slot, rows[0].Past, width)
	} else {
		kv, err = r.kv.first(n)
	}
	if err != nil {
		return err
	}
	var views viewList
	defer views.destroy()
	from := r.noPatch
	if patches > 0 {
		from = view(&views, r.patches.Slice(), patches, r.config.Hidden)
	}
	r.in = append(r.in[:0], view(&views, ids, n*width), from, view(&views, shape, 3), view(&views, lengths, n),
		view(&views, lengths[n:], 1), view(&views, r.sample.Slice(), wanted))
	r.layout.arrange(rows, false)
	if r.in, err = r.images.tensors(r.in, &views, &r.layout); err != nil {
		return err
	}
	r.out = append(r.out[:0], logits, view(&views, r.best.Slice(), wanted), view(&views, r.bestIDs.Slice(), wanted))
	if views.err != nil {
		return views.err
	}
	r.in, r.out = append(r.in, kv...), append(r.out, kv...)
	began := time.Now()
	err = r.session.Run(r.in, r.out)
	r.busy.Add(int64(time.Since(began)))
	if err != nil {
		return fmt.Errorf("decoder: %w", err)
	}
	return nil
}

// place writes the ids of a row, and for the positions of its spans where their patches are: behind the first n of
// r.patches, of which it returns how many there are then.
func (r *DeviceRunner) place(ids []int32, row Row, n int) (int, error) {
	hidden := r.config.Hidden
	copy(ids, row.IDs)
	for i, id := range ids {
		span := slices.IndexFunc(row.Spans,
			func(s fusion.Span) bool { return s.Start <= row.Past+i && row.Past+i < s.Start+s.Len })
		if span < 0 {
			if id < 0 || int(id) >= r.config.Vocab {
				return n, fmt.Errorf("token id %d has no embedding: the table has %d rows", id, r.config.Vocab)
			}
			continue
		}
		s := row.Spans[span]
		values, err := s.Part(row.Past+i-s.Start, 0, hidden)
		if err != nil {
			return n, err
		}
		if n == 0 {
			if err := grow(&r.patches, len(ids)*hidden); err != nil {
				return n, err
			}
		}
		copy(r.patches.Slice()[n*hidden:], values)
		ids[i] = int32(-1 - n)
		n++
	}
	return n, nil
}

// Logits runs a whole prompt in slot 0 and returns the logits of every position, [len(IDs), vocab]. It is for
// verification; nothing else may use the runner meanwhile. The slice is valid until the next call.
func (r *DeviceRunner) Logits(in fusion.Input) ([]float32, error) {
	list := make([]float32, 0, len(in.IDs)*r.config.Vocab)
	if err := checkRows([]Row{{IDs: in.IDs, Spans: in.Spans}}, r.Capacity(), r.config.ShortestPrompt()); err != nil {
		return nil, err
	}
	for from := 0; from < len(in.IDs); from += r.longest {
		row := Row{Past: from, IDs: in.IDs[from:min(from+r.longest, len(in.IDs))], Spans: in.Spans}
		n := len(row.IDs)
		if err := r.reserve(n, n); err != nil {
			return nil, err
		}
		for i := range n {
			r.sample.Slice()[i] = int64(i)
		}
		if err := r.forward([]Row{row}, n); err != nil {
			return nil, err
		}
		logits, err := r.read(n)
		if err != nil {
			return nil, err
		}
		list = append(list, logits...)
	}
	return list, nil
}

// Device is where the decoder runs.
func (r *DeviceRunner) Device() *ort.Device { return r.session.Device() }

// Busy is the time spent within ONNX Runtime's runs of the decoder so far. Any goroutine may ask.
func (r *DeviceRunner) Busy() time.Duration { return time.Duration(r.busy.Load()) }

// Close frees the sessions and all memory.
func (r *DeviceRunner) Close() error {
	var err error
	if r.kv != nil {
		err = r.kv.close()
	}
	if r.top != nil {
		err = errors.Join(err, r.top.Close())
	}
	if r.session != nil {
		err = errors.Join(err, r.session.Close())
	}
	r.ids.Free()
	r.patches.Free()
	r.shape.Free()
	r.lengths.Free()
	r.sample.Free()
	r.best.Free()
	r.bestIDs.Free()
	r.tops.Free()
	r.topIDs.Free()
	r.host.Free()
	r.images.free()
	return err
}
