// Package decodertest has Runners without a model. They are honest: they keep a KV cache of their own, make the
// moves they are told, and refuse a batch that a real decoder could not run.
package decodertest

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
)

// Hash is a Runner whose logits are a hash of everything in a sequence's KV slot. A row that is given a wrong slot,
// past, move, span or sampler gets other tokens than Alone says: batched must equal alone, exactly.
type Hash struct {
	// Fail, if set, is asked once a Run, after the moves; what it returns is what Run returns.
	Fail func(*decoder.Batch) error
	// Chunk, if set, makes a runner that is not exact (decoder.Capacity): what a position holds depends on the run that
	// wrote it. Alone then cuts the prompt into chunks of this length.
	Chunk int
	// Loop, if set, makes a runner that repeats itself, as captions and documents do: seven times of eight the logits are
	// a hash of the last Loop positions only.
	Loop int
	// Differs, if set, makes a runner of which one in so many logits is not that of a runner without: a draft model.
	Differs int
	// Mixed makes a runner that takes rows of any lengths in one step (decoder.Capacity).
	Mixed bool
	// WholeImages makes a runner in which an image's positions see each other (decoder.Capacity).
	WholeImages bool

	maxLen int
	vocab  int
	slots  [][]uint64 // per slot, what its positions hold
	logits []float32
	tokens []decoder.Token
}

// NewHash returns a Runner of the given capacity whose tokens are in [0, vocab).
func NewHash(slots, maxLen, vocab int) *Hash {
	h := &Hash{maxLen: maxLen, vocab: vocab, slots: make([][]uint64, slots), logits: make([]float32, vocab)}
	for i := range h.slots {
		h.slots[i] = make([]uint64, 0, maxLen)
	}
	return h
}

// Holds says whether anything of the images of in is in the memory of any slot, be it needed or not. The runner has to
// be exact.
func (h *Hash) Holds(in fusion.Input) bool {
	kv := h.positions(in.IDs, 0, in.Spans)
	for _, s := range in.Spans {
		for _, v := range kv[s.Start : s.Start+s.Len] {
			for _, slot := range h.slots {
				if slices.Contains(slot[:cap(slot)], v) {
					return true
				}
			}
		}
	}
	return false
}

// Capacity is what NewHash was given.
func (h *Hash) Capacity() decoder.Capacity {
	return decoder.Capacity{Slots: len(h.slots), MaxLen: h.maxLen, Exact: h.Chunk == 0, Mixed: h.Mixed,
		WholeImages: h.WholeImages}
}

// Run makes the moves, then hashes each row. A batch that breaks decoder.Batch's contract gives decoder.ErrDevice: a
// real cache would be corrupt from there on. The slice is valid until the next Run.
func (h *Hash) Run(_ context.Context, b *decoder.Batch) ([]decoder.Token, error) {
	for _, m := range b.Moves {
		if err := h.move(m); err != nil {
			return nil, fmt.Errorf("%w: %w", decoder.ErrDevice, err)
		}
	}
	for _, r := range b.Releases {
		if r.Slot < 0 || r.Slot >= len(h.slots) || r.From < 0 || r.From >= r.To || r.To > h.maxLen {
			return nil, fmt.Errorf("%w: release %+v", decoder.ErrDevice, r)
		}
		clear(h.slots[r.Slot][:r.To][r.From:])
		h.slots[r.Slot] = h.slots[r.Slot][:min(r.From, len(h.slots[r.Slot]))]
	}
	for i, row := range b.Rows {
		if err := h.check(i, row, b); err != nil {
			return nil, fmt.Errorf("%w: %w", decoder.ErrDevice, err)
		}
	}
	if h.Fail != nil {
		if err := h.Fail(b); err != nil {
			return nil, err
		}
	}
	h.tokens = h.tokens[:0]
	for _, row := range b.Rows {
		slot := append(h.slots[row.Slot][:row.Past], h.positions(row.IDs, row.Past, row.Spans)...)
		h.slots[row.Slot] = slot
		if row.Prompt != nil {
			for end := row.Past + 1; end <= len(slot); end++ {
				h.logitsAfter(slot[:end])
				if err := row.Prompt.Add(end-1, h.logits); err != nil {
					return nil, err
				}
			}
		}
		if row.Sampler == nil {
			continue
		}
		for end := len(slot) - row.Drafts; end <= len(slot); end++ {
			t, err := h.sample(slot[:end], row.Sampler)
			if err != nil {
				return nil, err
			}
			h.tokens = append(h.tokens, t)
			if end < len(slot) && t.ID != row.IDs[len(row.IDs)-len(slot)+end] {
				break
			}
		}
	}
	return h.tokens, nil
}

func (h *Hash) move(m decoder.Move) error {
	switch n := len(h.slots); {
	case m.From < 0 || m.From >= n || m.To < 0 || m.To >= n || m.From == m.To:
		return fmt.Errorf("move %+v between %d slots", m, n)
	case m.Len < 1 || m.Len > len(h.slots[m.From]) || m.Back < 0 || m.Back > len(h.slots[m.To]):
		return fmt.Errorf("move %+v of slots that hold %d and %d positions", m, len(h.slots[m.From]), len(h.slots[m.To]))
	}
	from, to := h.slots[m.From], h.slots[m.To]
	moved := slices.Clone(from[:m.Len])
	if m.Back > 0 {
		copy(from[:m.Back], to)
		h.slots[m.From] = from[:m.Back]
	}
	copy(to[:m.Len], moved)
	h.slots[m.To] = to[:m.Len]
	return nil
}

func (h *Hash) check(i int, row decoder.Row, b *decoder.Batch) error {
	switch {
	case row.Slot < 0 || row.Slot >= len(h.slots):
		return fmt.Errorf("row %d is in slot %d of %d", i, row.Slot, len(h.slots))
	case len(row.IDs) == 0:
		return fmt.Errorf("row %d has no ids", i)
	case row.Past < 0 || row.Past > len(h.slots[row.Slot]):
		return fmt.Errorf("row %d has past %d, slot %d holds %d positions", i, row.Past, row.Slot, len(h.slots[row.Slot]))
	case row.Propose != nil:
		return fmt.Errorf("row %d wants drafts, there is no draft model", i)
	case h.Mixed && i > 0 && row.Slot <= b.Rows[i-1].Slot:
		return fmt.Errorf("row %d is in slot %d, after one in slot %d", i, row.Slot, b.Rows[i-1].Slot)
	case row.Past+len(row.IDs) > h.maxLen || !h.Mixed && row.Past+b.Width() > h.maxLen:
		return fmt.Errorf("row %d would reach position %d of %d", i, row.Past+b.Width(), h.maxLen)
	case row.Drafts < 0 || row.Drafts >= len(row.IDs) || row.Drafts > 0 && (row.Sampler == nil || h.Chunk > 0):
		return fmt.Errorf("row %d has %d drafts of %d ids", i, row.Drafts, len(row.IDs))
	case !h.Mixed && len(b.Rows) > 1 && (row.Slot != i || len(row.IDs) != 1+row.Drafts || row.Past == 0):
		return fmt.Errorf("row %d of a decode step has slot %d, %d ids, %d drafts, past %d", i, row.Slot, len(row.IDs), row.Drafts, row.Past)
	}
	for _, s := range row.Spans {
		from, to := max(s.Start, row.Past), min(s.Start+s.Len, row.Past+len(row.IDs))
		if h.WholeImages && from < to && to-from < s.Len {
			return fmt.Errorf("row %d at [%d,%d) cuts the image at [%d,%d)", i, row.Past, row.Past+len(row.IDs), s.Start, s.Start+s.Len)
		}
	}
	return nil
}

// positions is what the KV cache would hold for ids at [past, past+len(ids)): the id, or under a span the image's
// digest, the row of its patches and its map; if the runner is not exact, also which run wrote it.
func (h *Hash) positions(ids []int32, past int, spans []fusion.Span) []uint64 {
	kv := make([]uint64, len(ids))
	for i, id := range ids {
		kv[i] = mix(uint64(uint32(id)))
	}
	for _, s := range spans {
		for at := max(s.Start, past); at < min(s.Start+s.Len, past+len(ids)); at++ {
			kv[at-past] = mix(binary.LittleEndian.Uint64(s.Digest[:]) + uint64(s.Offset+at-s.Start))
			if s.Cols > 0 {
				kv[at-past] = mix(kv[at-past] + uint64(s.Rows<<32|s.Cols))
			}
			if h.WholeImages {
				kv[at-past] = mix(kv[at-past] + uint64(s.Len)) // each position sees all
			}
		}
	}
	if h.Chunk > 0 {
		for i := range kv {
			kv[i] = mix(kv[i] ^ uint64(past<<32|len(ids)))
		}
	}
	return kv
}

// sample asks the sampler for the token after a sequence's positions.
func (h *Hash) sample(kv []uint64, s *decoder.Sampler) (decoder.Token, error) {
	h.logitsAfter(kv)
	return s.Sample(h.logits)
}

// logitsAfter makes logits of a sequence's positions, a bell of about ±3.
func (h *Hash) logitsAfter(kv []uint64) {
	sum := digest(kv)
	if h.Loop > 0 && sum%8 > 0 {
		sum = digest(kv[max(len(kv)-h.Loop, 0):])
	}
	if h.Differs > 0 && mix(sum)%uint64(h.Differs) == 0 {
		sum++
	}
	for i := range h.logits {
		sum += 0x9e3779b97f4a7c15
		x := mix(sum)
		h.logits[i] = float32(uint16(x)&0x3fff+uint16(x>>16)&0x3fff+uint16(x>>32)&0x3fff)/8192 - 3
	}
}

func digest(kv []uint64) (sum uint64) {
	for _, x := range kv {
		sum = mix(sum ^ x)
	}
	return sum
}

// mix is SplitMix64's finalizer (Steele, Lea and Flood, 2014).
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// chunkEnd is where a chunk that starts at past ends: at the next multiple of chunk, or before the image there, or
// behind it if the chunk starts with it.
func (h *Hash) chunkEnd(past, chunk int, in fusion.Input) int {
	end := (past/chunk + 1) * chunk
	for _, s := range in.Spans {
		if h.WholeImages && s.Start < end && end < s.Start+s.Len {
			if end = s.Start; end <= past {
				end = s.Start + s.Len
			}
			break
		}
	}
	return min(end, len(in.IDs))
}

// Alone returns the tokens of a sequence that has the model to itself: at most limit, ended by a stop id (which is the
// last token) or by maxLen positions.
func (h *Hash) Alone(in fusion.Input, s decoder.Sampling, limit int, stop ...int32) ([]decoder.Token, error) {
	own := NewHash(1, h.maxLen, h.vocab)
	own.Loop = h.Loop
	sampler := decoder.NewSampler(s)
	sampler.Prompt(in.IDs)
	var kv []uint64
	for chunk := cmp.Or(h.Chunk, len(in.IDs)); len(kv) < len(in.IDs); {
		end := h.chunkEnd(len(kv), chunk, in)
		kv = append(kv, h.positions(in.IDs[len(kv):end], len(kv), in.Spans)...)
	}
	var tokens []decoder.Token
	for len(kv) <= h.maxLen && len(tokens) < limit {
		t, err := own.sample(kv, sampler)
		if err != nil {
			return nil, err
		}
		if t.ID == decoder.NotReady {
			runtime.Gosched()
			continue
		}
		tokens = append(tokens, t)
		if slices.Contains(stop, t.ID) {
			break
		}
		kv = append(kv, h.positions([]int32{t.ID}, len(kv), nil)...)
	}
	return tokens, nil
}
