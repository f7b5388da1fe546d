package decoder

import (
	"errors"
	"fmt"
	"slices"

	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// concatCache keeps the keys and values of an exported decoder, whose graph takes a step's past and gives it back with
// the step's positions. The truth lies slot by slot in store. A step's past is gathered from there, every row as long
// as the longest, with zeros before the others' or behind; what a step adds is scattered back. Decode steps of the
// same rows take what the step before gave as it is.
type concatCache struct {
	slots, maxLen int
	// behind pads behind a row's past; the step's positions then come right after it and not after the padding.
	behind  bool
	tensors []*concatTensor
	// resident are the rows whose keys and values the last decode step left in each tensor's batch[0].
	resident []residentRow
}

// residentRow is a slot and the number of its positions.
type residentRow struct{ slot, past int }

// concatTensor is the keys or the values of one layer.
type concatTensor struct {
	value      onnx.Value // as the graph's input declares it
	heads, dim int
	vector     int                   // bytes of one position of one head
	store      *ort.Memory[uint8]    // [slots, heads, max len, dim]
	batch      [2]*ort.Memory[uint8] // past and present of a decode step, [rows, heads, positions, dim]
	chunk      [2]*ort.Memory[uint8] // those of a prefill chunk, of one row
}

// concatStep is the part of a step that the caches know.
type concatStep struct {
	rows   []Row
	width  int // ids of each row
	past   int // positions of past that each row is given
	decode bool
}

// newConcatCache reserves the caches that a graph's inputs declare.
func newConcatCache(inputs []onnx.Value, slots, maxLen int) (*concatCache, error) {
	c := &concatCache{slots: slots, maxLen: maxLen}
	for _, in := range inputs {
		if len(in.Dims) != 4 || !sane(in.Dims[1]) || !sane(in.Dims[3]) || in.Type.Size() == 0 {
			return nil, errors.Join(fmt.Errorf("input %s is %s of shape %v, want four dimensions of which the second, heads, and the last, values of a head, are known and at most %d", in.Name, in.Type, in.Dims, most), c.close())
		}
		t := &concatTensor{value: in, heads: in.Dims[1].Size, dim: in.Dims[3].Size}
		t.vector = t.dim * in.Type.Size()
		c.tensors = append(c.tensors, t)
		length := t.heads * maxLen * t.vector
		for _, m := range []struct {
			at    **ort.Memory[uint8]
			bytes int
		}{{&t.store, slots * length}, {&t.batch[0], slots * length}, {&t.batch[1], slots * length}, {&t.chunk[0],
			length}, {&t.chunk[1], length}} {
			var err error
			if *m.at, err = ort.Alloc[uint8](m.bytes); err != nil {
				return nil, errors.Join(fmt.Errorf("KV cache: %w", err), c.close())
			}
		}
	}
	return c, nil
}

// most bounds what one dimension of a graph may be; sane tells of one that is known and within it.
const most = 1 << 16

func sane(d onnx.Dim) bool { return d.Size >= 1 && d.Size <= most }

// begin gathers what the rows of a step have had so far, unless it is there already.
func (c *concatCache) begin(rows []Row) concatStep {
	s := concatStep{rows: rows, width: len(rows[0].IDs)}
	s.decode = s.width == 1
	for _, r := range rows {
		s.past = max(s.past, r.Past)
	}
	if s.decode && slices.EqualFunc(rows, c.resident,
		func(r Row, at residentRow) bool { return residentRow{r.Slot, r.Past} == at }) {
		return s
	}
	for _, r := range rows {
		c.forget(r.Slot)
	}
	if s.decode {
		c.resident = c.resident[:0]
	}
	for _, t := range c.tensors {
		dst := t.buffers(s)[0].Slice()
		for i, r := range rows {
			for h := range t.heads {
				row := dst[(i*t.heads+h)*s.past*t.vector:][:s.past*t.vector]
				from := c.offset(s.past, r.Past) * t.vector
				to := from + r.Past*t.vector
				clear(row[:from])
				copy(row[from:to], c.position(t, r.Slot, h, 0))
				clear(row[to:])
			}
		}
	}
	return s
}

// offset is where a row's positions start in a step whose longest has longest.
func (c *concatCache) offset(longest, past int) int {
	if c.behind {
		return 0
	}
	return longest - past
}

// buffers are the past and present that a step uses.
func (t *concatTensor) buffers(s concatStep) *[2]*ort.Memory[uint8] {
	if s.decode {
		return &t.batch
	}
	return &t.chunk
}

// position is where head h of slot's keys or values of position n, and those after it, are kept.
func (c *concatCache) position(t *concatTensor, slot, h, n int) []byte {
	head := t.store.Slice()[(slot*t.heads+h)*c.maxLen*t.vector:][:c.maxLen*t.vector]
	return head[n*t.vector:]
}

// end keeps what a step gave.
func (c *concatCache) end(s concatStep) {
	length := s.past + s.width
	for _, t := range c.tensors {
		b := t.buffers(s)
		src := b[1].Slice()
		for i, r := range s.rows {
			for h := range t.heads {
				row := src[(i*t.heads+h)*length*t.vector:][:length*t.vector]
				from := (c.offset(s.past, r.Past) + r.Past) * t.vector
				copy(c.position(t, r.Slot, h, r.Past), row[from:from+s.width*t.vector])
			}
		}
		if s.decode {
			b[0], b[1] = b[1], b[0]
		}
	}
	if s.decode {
		c.resident = c.resident[:0]
		for _, r := range s.rows {
			c.resident = append(c.resident, residentRow{r.Slot, r.Past + 1})
		}
	}
}

// forget makes the next decode step gather, if it has to do with slot.
func (c *concatCache) forget(slot int) {
	if slices.ContainsFunc(c.resident, func(r residentRow) bool { return r.slot == slot }) {
		c.resident = c.resident[:0]
	}
}

// move is kvCache.move.
func (c *concatCache) move(m Move) {
	c.forget(m.To)
	c.forget(m.From)
	for _, t := range c.tensors {
		for h := range t.heads {
			from, to := c.position(t, m.From, h, 0), c.position(t, m.To, h, 0)
			n, back := m.Len*t.vector, m.Back*t.vector
			both := min(n, back)
			exchange(from[:both], to[:both])
			copy(to[both:n], from[both:])
			if back > both {
				copy(from[both:back], to[both:])
			}
		}
	}
}

// release is kvCache.release.
func (c *concatCache) release(r Release) error {
	for _, t := range c.tensors {
		for h := range t.heads {
			head := (r.Slot*t.heads + h) * c.maxLen
			if err := t.store.Wipe((head+r.From)*t.vector, (head+r.To)*t.vector); err != nil {
				return fmt.Errorf("give back KV cache: %w", err)
			}
		}
	}
	return nil
}

// wipeSteps puts zeros over what steps took and gave; the next one gathers its past from the slots.
func (c *concatCache) wipeSteps() error {
	c.resident = c.resident[:0]
	var err error
	for _, t := range c.tensors {
		for _, m := range []*ort.Memory[uint8]{t.batch[0], t.batch[1], t.chunk[0], t.chunk[1]} {
			err = errors.Join(err, m.WipeAll())
		}
	}
	return err
}

func (c *concatCache) close() error {
	var err error
	for _, t := range c.tensors {
		for _, m := range []*ort.Memory[uint8]{t.store, t.batch[0], t.batch[1], t.chunk[0], t.chunk[1]} {
			err = errors.Join(err, m.Free())
		}
	}
	c.tensors = nil
	return err
}
