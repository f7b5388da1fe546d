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
	"github.com/mmserve/mmserve/internal/ort"
)

// HostRunner is an opened decoder whose keys and values are in the host's memory: embed, one forward pass, sample. One
// goroutine uses it at a time.
type HostRunner struct {
	config  Config
	embed   *fusion.Embedder
	session *ort.Session
	kv      *kvCache
	convs   *convCache
	images  *imageInputs

	embeds  *ort.Memory[float32] // [rows × ids, hidden]
	logits  *ort.Memory[float32] // [sampling rows, vocab]
	lengths *ort.Memory[int32]   // seqlens_k, then total_sequence_length
	places  *ort.Memory[int32]   // row_places
	sample  *ort.Memory[int64]   // sample_rows
	layout  layout
	fewest  int          // rows of logits that a run must ask for
	in, out []ort.Tensor // scratch for one run
	tokens  []Token
	busy    atomic.Int64 // nanoseconds
}

// OpenHost builds the decoder's graph over the checkpoint, opens its session and reserves the KV cache.
func OpenHost(c Config, w *graph.Weights, o OpenOptions) (*HostRunner, error) {
	if o.MaxLen == 0 || o.MaxLen > c.MaxLen {
		o.MaxLen = c.MaxLen
	}
	if o.Slots < 1 {
		return nil, fmt.Errorf("decoder: %d slots, want at least 1", o.Slots)
	}
	c.plain = !o.Session.Provider.Kernels()
	b, err := c.Graph(w, o.Precision)
	if err != nil {
		return nil, err
	}
	table, err := w.Get("text.embed_tokens.weight", c.Vocab, c.Hidden)
	if err != nil {
		return nil, err
	}
	r := &HostRunner{config: c, images: newImageInputs(c)}
	if !o.Precision.EmptyRuns() {
		r.fewest = 1 // the integer kernel gives no rows a wrong shape
	}
	if r.embed, err = fusion.NewEmbedder(table, c.EmbedScale); err != nil {
		return nil, err
	}
	o.Session.ExternalDir = graph.Root
	if r.session, err = ort.NewSession(b, o.Session); err != nil {
		return nil, fmt.Errorf("decoder: %w", err)
	}
	if r.kv, err = newKVCache(c, o.Slots, o.MaxLen); err == nil {
		r.convs, err = newConvCache(c, o.Slots, o.MaxLen)
	}
	if err == nil {
		err = r.reserve(o.Slots, o.Slots)
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// reserve makes room for a run over n positions with k rows of logits.
func (r *HostRunner) reserve(n, k int) (err error) {
	if err = grow(&r.embeds, n*r.config.Hidden); err == nil {
		if err = grow(&r.logits, k*r.config.Vocab); err == nil {
			if err = grow(&r.lengths, r.kv.slots+1); err == nil {
				err = errors.Join(grow(&r.sample, k), grow(&r.places, 2*r.kv.slots))
			}
		}
	}
	return errors.Join(err, r.images.reserve(n))
}

// Capacity is what the KV cache was sized for, and what the graph's operators promise.
func (r *HostRunner) Capacity() Capacity {
	return Capacity{
		Slots: r.kv.slots, MaxLen: r.kv.maxLen, Exact: r.exact(), WholePrompt: r.config.WholePrompt,
		WholeImages: r.config.ImageBlocks, PrefixStep: r.config.prefixStep(), MaxDrafts: r.config.maxDrafts(),
		Mixed: r.config.mixes(),
	}
}

// exact tells that all layers run mmserve's own attention, which gives a position the same in whatever run.
func (r *HostRunner) exact() bool { return r.config.ownAttention() }

// Run does one step (see Batch) and returns a token for each row that has a sampler, in the order of the rows.
// The slice is valid until the next Run.
func (r *HostRunner) Run(_ context.Context, b *Batch) ([]Token, error) {
	for _, m := range b.Moves {
		r.kv.move(m)
		r.convs.move(m)
	}
	for _, rel := range b.Releases {
		if err := errors.Join(r.kv.release(rel), r.convs.release(rel)); err != nil {
			return nil, err
		}
	}
	if b.Wipe {
		if err := errors.Join(r.embeds.WipeAll(), r.logits.WipeAll(), r.images.wipe()); err != nil {
			return nil, err
		}
	}
	if len(b.Rows) == 0 {
		return nil, nil // an attention node over no rows would crash the process
	}
	if err := r.check(b.Rows); err != nil {
		return nil, err
	}
	r.layout.arrange(b.Rows, r.config.mixes())
	wanted := 0
	for _, row := range b.Rows {
		wanted += row.logits()
	}
	if err := r.reserve(r.layout.count, max(wanted, 1)); err != nil {
		return nil, err
	}
	sample := r.sample.Slice()[:0]
	for i, row := range b.Rows {
		for at := len(row.IDs) - row.logits(); at < len(row.IDs); at++ {
			sample = append(sample, int64(r.layout.first[i]+at))
		}
	}
	if wanted == 0 {
		wanted = r.fewest
		r.sample.Slice()[0] = 0 // an earlier, longer run's index may be out of range
	}
	logits, err := r.forward(wanted)
	if err != nil {
		return nil, err
	}
	r.tokens = r.tokens[:0]
	for _, row := range b.Rows {
		if r.tokens, err = row.pick(r.tokens, logits, r.config.Vocab); err != nil {
			return nil, err
		}
		logits = logits[row.logits()*r.config.Vocab:]
	}
	return r.tokens, nil
}

// Logits runs a whole prompt in slot 0 and returns the logits of every position, [len(IDs), vocab]. It is for
// verification; nothing else may use the runner meanwhile. The slice is valid until the next call.
func (r *HostRunner) Logits(in fusion.Input) ([]float32, error) {
	rows := []Row{{IDs: in.IDs, Spans: in.Spans}}
	if err := r.check(rows); err != nil {
		return nil, err
	}
	if err := r.reserve(len(in.IDs), len(in.IDs)); err != nil {
		return nil, err
	}
	for i := range in.IDs {
		r.sample.Slice()[i] = int64(i)
	}
	r.layout.arrange(rows, r.config.mixes())
	return r.forward(len(in.IDs))
}

// check refuses what the attention kernel would answer with silently wrong values or a crash.
func (r *HostRunner) check(rows []Row) error {
	width := (&Batch{Rows: rows}).Width()
	for i, row := range rows {
		if most := r.config.longestStep(); width > most && (len(rows) > 1 || row.Drafts > 0) {
			return fmt.Errorf("decoder: row %d is %d positions wide with its drafts, want %d at most", i, width, most)
		}
	}
	return checkRows(rows, r.Capacity(), r.config.ShortestPrompt())
}

// forward embeds the rows of r.layout and runs the graph; the first wanted entries of sample say which positions'
// logits to give.
func (r *HostRunner) forward(wanted int) ([]float32, error) {
	l, hidden := &r.layout, r.config.Hidden
	n, lengths := len(l.rows), r.lengths.Slice()
	for i, row := range l.rows {
		dst := r.embeds.Slice()[l.first[i]*hidden:][:l.room(i)*hidden]
		if err := r.embed.Embed(dst[:len(row.IDs)*hidden], row.IDs, row.Past, row.Spans); err != nil {
			return nil, err
		}
		for at := len(row.IDs); at < l.room(i); at++ { // any finite values would do
			copy(dst[at*hidden:], dst[:hidden])
		}
		lengths[i] = int32(row.Past + l.room(i) - 1)
	}
	// The longest row's length. Were it S, the kernel would take the step for a first prompt, whatever seqlens_k
	// says; check has seen to it that this is so only where there is no past.
	lengths[n] = slices.Max(lengths[:n]) + 1
	var views viewList
	defer views.destroy()
	if err := r.inputs(&views, wanted); err != nil {
		return nil, err
	}
	began := time.Now()
	err := r.session.Run(r.in, r.out)
	r.busy.Add(int64(time.Since(began)))
	if err != nil {
		return nil, fmt.Errorf("decoder: %w", err)
	}
	return r.logits.Slice()[:wanted*r.config.Vocab], nil
}

// inputs makes r.in and r.out those of the run of r.layout.
func (r *HostRunner) inputs(views *viewList, wanted int) (err error) {
	l, n := &r.layout, len(r.layout.rows)
	rows, width := l.dims()
	r.in = append(r.in[:0], view(views, r.embeds.Slice(), rows, width, r.config.Hidden), view(views, r.lengths.Slice(), n),
		view(views, r.lengths.Slice()[n:], 1), view(views, r.sample.Slice(), wanted))
	r.out = append(r.out[:0], view(views, r.logits.Slice(), wanted, r.config.Vocab))
	first, slots := l.rows[0].Slot, n
	if l.mixed {
		places := r.places.Slice()
		for i, row := range l.rows {
			places[2*i], places[2*i+1] = int32(l.first[i]), int32(row.Slot)
		}
		r.in = append(r.in, view(views, places, n, 2))
		first, slots = 0, r.kv.slots
	}
	if r.in, err = r.images.tensors(r.in, views, l); err != nil {
		return err
	}
	if r.in, err = r.convs.tensors(r.in, views, l.rows, l.width); err != nil {
		return err
	}
	states, err := r.convs.view(first, slots)
	if err != nil {
		return err
	}
	kv, err := r.kv.view(first, slots)
	if err != nil {
		return err
	}
	r.in, r.out = append(append(r.in, states...), kv...), append(append(r.out, states...), kv...)
	return views.err
}

// Busy is the time spent within ONNX Runtime so far; what else a step takes is mmserve's own. Any goroutine may ask.
func (r *HostRunner) Busy() time.Duration { return time.Duration(r.busy.Load()) }

// Close frees the session and all memory.
func (r *HostRunner) Close() error {
	err := r.session.Close()
	if r.kv != nil {
		err = errors.Join(err, r.kv.close(), r.convs.close())
	}
	r.embeds.Free()
	r.logits.Free()
	r.lengths.Free()
	r.places.Free()
	r.sample.Free()
	r.images.free()
	return err
}
