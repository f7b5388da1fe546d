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
	sample  *ort.Memory[int64]   // sample_rows
	fewest  int                  // rows of logits that a run must ask for
	in, out []ort.Tensor         // scratch for one run
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
				err = grow(&r.sample, k)
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
	width, wanted := b.Width(), 0
	for _, row := range b.Rows {
		wanted += row.logits()
	}
	if err := r.reserve(len(b.Rows)*width, max(wanted, 1)); err != nil {
		return nil, err
	}
	sample := r.sample.Slice()[:0]
	for i, row := range b.Rows {
		for at := len(row.IDs) - row.logits(); at < len(row.IDs); at++ {
			sample = append(sample, int64(i*width+at))
		}
	}
	if wanted == 0 {
		wanted = r.fewest
		r.sample.Slice()[0] = 0 // an earlier, longer run's index may be out of range
	}
	logits, err := r.forward(b.Rows, width, wanted)
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
	return r.forward(rows, len(in.IDs), len(in.IDs))
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

// forward embeds the rows, each padded to width positions, and runs the graph; the first wanted entries of sample say
// which positions' logits to give.
func (r *HostRunner) forward(rows []Row, width, wanted int) ([]float32, error) {
	n, hidden := len(rows), r.config.Hidden
	lengths := r.lengths.Slice()
	for i, row := range rows {
		dst := r.embeds.Slice()[i*width*hidden : (i+1)*width*hidden]
		if err := r.embed.Embed(dst[:len(row.IDs)*hidden], row.IDs, row.Past, row.Spans); err != nil {
			return nil, err
		}
		for at := len(row.IDs); at < width; at++ { // any finite values would do
			copy(dst[at*hidden:], dst[:hidden])
		}
		lengths[i] = int32(row.Past + width - 1)
	}
	// The longest row's length. Were it S, the kernel would take the step for a first prompt, whatever seqlens_k
	// says; check has seen to it that this is so only where there is no past.
	lengths[n] = slices.Max(lengths[:n]) + 1
	kv, err := r.kv.view(rows[0].Slot, n)
	if err != nil {
		return nil, err
	}
	var views viewList
	embeds := view(&views, r.embeds.Slice(), n, width, hidden)
	seqlens := view(&views, lengths, n)
	total := view(&views, lengths[n:], 1)
	sample := view(&views, r.sample.Slice(), wanted)
	logits := view(&views, r.logits.Slice(), wanted, r.config.Vocab)
	defer views.destroy()
	r.in, err = r.images.tensors(append(r.in[:0], embeds, seqlens, total, sample), &views, rows, width)
	if err == nil {
		r.in, err = r.convs.tensors(r.in, &views, rows, width)
	}
	states, stateErr := r.convs.view(rows[0].Slot, n)
	if err = errors.Join(err, stateErr, views.err); err != nil {
		return nil, err
	}
	r.in = append(append(r.in, states...), kv...)
	r.out = append(append(append(r.out[:0], logits), states...), kv...)
	began := time.Now()
	err = r.session.Run(r.in, r.out)
	r.busy.Add(int64(time.Since(began)))
	if err != nil {
		return nil, fmt.Errorf("decoder: %w", err)
	}
	return r.logits.Slice()[:wanted*r.config.Vocab], nil
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
	r.sample.Free()
	r.images.free()
	return err
}
