package decoder

import (
	"context"
	"errors"
	"fmt"

	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
)

// Runner is an opened decoder: HostRunner, DeviceRunner or ExportRunner. One goroutine uses it at a time.
type Runner interface {
	// Capacity is what the KV cache was sized for, and what the operators promise.
	Capacity() Capacity
	// Run does one step (see Batch) and returns the tokens of the rows that have a sampler, in the order of the rows. The
	// slice is valid until the next Run. An error other than ErrDevice concerns the rows of the batch only.
	Run(ctx context.Context, b *Batch) ([]Token, error)
	// Logits runs a whole prompt in slot 0 and returns the logits of every position, [len(IDs), vocab]. It is for
	// verification; nothing else may use the runner meanwhile. The slice is valid until the next call.
	Logits(in fusion.Input) ([]float32, error)
	// Close frees the sessions and all memory.
	Close() error
}

var (
	_ Runner = (*HostRunner)(nil)
	_ Runner = (*DeviceRunner)(nil)
	_ Runner = (*ExportRunner)(nil)
)

// OpenOptions size a Runner.
type OpenOptions struct {
	// Slots is the number of sequences whose KV is resident; MaxLen the positions of each (0: all the model has).
	Slots, MaxLen int
	// Precision of the linear layers; "" is FP32.
	Precision graph.Precision
	Session   ort.Options
}

// cutImage gives a span of which the row has some positions and not all.
func (row *Row) cutImage() (fusion.Span, bool) {
	end := row.Past + len(row.IDs)
	for _, s := range row.Spans {
		if s.Start < end && row.Past < s.Start+s.Len && (s.Start < row.Past || end < s.Start+s.Len) {
			return s, true
		}
	}
	return fusion.Span{}, false
}

// logits is the number of positions, the last of the row, whose logits are wanted.
func (row *Row) logits() int {
	switch {
	case row.Prompt != nil:
		return len(row.IDs)
	case row.Sampler != nil:
		return 1 + row.Drafts
	}
	return 0
}

// pick appends the tokens that follow from the row's logits, [row.logits(), vocab].
func (row *Row) pick(tokens []Token, logits []float32, vocab int) ([]Token, error) {
	if row.Prompt != nil {
		for i := range row.IDs {
			if err := row.Prompt.Add(row.Past+i, logits[i*vocab:(i+1)*vocab]); err != nil {
				return tokens, err
			}
		}
		logits = logits[(len(row.IDs)-1-row.Drafts)*vocab:]
	}
	if row.Sampler == nil {
		return tokens, nil
	}
	for i := range 1 + row.Drafts {
		t, err := row.Sampler.Sample(logits[i*vocab : (i+1)*vocab])
		if err != nil {
			return tokens, err
		}
		tokens = append(tokens, t)
		if i < row.Drafts && t.ID != row.IDs[len(row.IDs)-row.Drafts+i] {
			break
		}
	}
	return tokens, nil
}

// checkRows refuses rows that are no step for a runner of the given capacity. shortest is the fewest ids that a
// sequence starts with.
func checkRows(rows []Row, c Capacity, shortest int) error {
	width := (&Batch{Rows: rows}).Width()
	for i, row := range rows {
		n := row.Past + width
		if c.Mixed {
			n = row.Past + len(row.IDs)
		}
		switch {
		case len(row.IDs) == 0:
			return fmt.Errorf("decoder: row %d has no ids", i)
		case row.Past < 0 || n > c.MaxLen:
			return fmt.Errorf("decoder: row %d would reach position %d, the KV cache has %d", i, n, c.MaxLen)
		case row.Slot < 0 || row.Slot >= c.Slots:
			return fmt.Errorf("decoder: row %d is in slot %d of %d", i, row.Slot, c.Slots)
		case row.Drafts < 0 || row.Drafts >= len(row.IDs) || row.Drafts > 0 && (row.Sampler == nil || !c.Exact):
			return fmt.Errorf("decoder: row %d has %d drafts of %d ids, sampler %t, exact %t", i, row.Drafts, len(row.IDs), row.Sampler != nil, c.Exact)
		case c.Mixed && i > 0 && row.Slot <= rows[i-1].Slot:
			return fmt.Errorf("decoder: row %d is in slot %d, after one in slot %d; want slots in ascending order", i, row.Slot, rows[i-1].Slot)
		case !c.Mixed && len(rows) > 1 && (len(row.IDs) != 1+row.Drafts || row.Slot != i || row.Past == 0):
			return fmt.Errorf("decoder: row %d of a decode step has %d ids, %d drafts, slot %d, past %d; want 1 id that is no draft, its own index, a past", i, len(row.IDs), row.Drafts, row.Slot, row.Past)
		case c.WholePrompt && row.Past > 0 && len(row.IDs) != 1:
			return fmt.Errorf("decoder: row %d goes on with %d ids, but the model's first chunk holds the whole prompt", i, len(row.IDs))
		case row.Past == 0 && len(row.IDs) < shortest:
			return fmt.Errorf("decoder: row %d starts with %d ids, the model wants at least %d", i, len(row.IDs), shortest)
		}
		if s, cut := row.cutImage(); cut && c.WholeImages {
			return fmt.Errorf("decoder: row %d has positions [%d,%d), which cut the image at [%d,%d)", i, row.Past, row.Past+len(row.IDs), s.Start, s.Start+s.Len)
		}
	}
	return nil
}

// grow replaces m by a larger memory when it is too small. What it held is lost.
func grow[T ort.Element](m **ort.Memory[T], n int) error {
	if *m != nil && len((*m).Slice()) >= n {
		return nil
	}
	bigger, err := ort.Alloc[T](n)
	if err != nil {
		return err
	}
	(*m).Free()
	*m = bigger
	return nil
}

// wipe puts zeros over a memory, if there is one.
func wipe[T ort.Element](m *ort.Memory[T]) error {
	if m == nil {
		return nil
	}
	return m.WipeAll()
}

// viewList keeps the views made for one run and the first error met.
type viewList struct {
	list []ort.Tensor
	err  error
}

func view[T ort.Element](l *viewList, data []T, dims ...int) ort.Tensor {
	t, err := ort.View(data, dims...)
	if err != nil {
		l.err = errors.Join(l.err, err)
		return t
	}
	l.list = append(l.list, t)
	return t
}

func (l *viewList) destroy() {
	for _, t := range l.list {
		t.Destroy()
	}
}
