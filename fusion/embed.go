package fusion

import (
	"cmp"
	"fmt"

	"github.com/mmserve/mmserve/internal/safetensors"
)

// Embedder writes inputs_embeds: embedding rows read from the mapped checkpoint, with patches over them.
type Embedder struct {
	table        safetensors.Tensor
	rows, hidden int
	scale        float32
}

// NewEmbedder reads rows from the embedding table [rows, hidden]. scale multiplies them, and not patches; 0 is 1.
func NewEmbedder(table safetensors.Tensor, scale float32) (*Embedder, error) {
	if len(table.Shape) != 2 {
		return nil, fmt.Errorf("embedding table %q has shape %v, want [vocabulary, hidden]", table.Name, table.Shape)
	}
	return &Embedder{table: table, rows: table.Shape[0], hidden: table.Shape[1], scale: cmp.Or(scale, 1)}, nil
}

// Hidden is the width of a row, Rows the number of ids that have one.
func (e *Embedder) Hidden() int { return e.hidden }

// Rows is the number of ids that have an embedding; an id past it may exist in the tokenizer but cannot be fed.
func (e *Embedder) Rows() int { return e.rows }

// Embed fills dst, [len(ids), hidden], for the ids of positions [past, past+len(ids)) of a sequence with the
// given image spans.
func (e *Embedder) Embed(dst []float32, ids []int32, past int, spans []Span) error {
	next := 0 // of spans, which lie in order
	for i, id := range ids {
		for next < len(spans) && spans[next].Start+spans[next].Len <= past+i {
			next++
		}
		if next < len(spans) && spans[next].Start <= past+i {
			continue
		}
		if id < 0 || int(id) >= e.rows {
			return fmt.Errorf("token id %d has no embedding: the table has %d rows", id, e.rows)
		}
		row := dst[i*e.hidden : (i+1)*e.hidden]
		if err := e.table.FloatsInto(row, int(id)*e.hidden); err != nil {
			return err
		}
		if e.scale != 1 {
			for j := range row {
				row[j] *= e.scale
			}
		}
	}
	return Place(dst[:len(ids)*e.hidden], e.hidden, past, spans)
}

// Place writes the patch embeddings of spans over dst, [n, hidden], which holds positions [past, past+n) of a sequence.
func Place(dst []float32, hidden, past int, spans []Span) error {
	return PlacePart(dst, hidden, 0, past, spans)
}

// PlacePart is Place for part number part of what stands for each patch: 0 is its embedding, and behind it may lie
// features for layers of the decoder, of hidden values each.
func PlacePart(dst []float32, hidden, part, past int, spans []Span) error {
	n := len(dst) / hidden
	for _, s := range spans {
		lo, hi := max(s.Start, past), min(s.Start+s.Len, past+n)
		if lo >= hi {
			continue
		}
		for at := lo; at < hi; at++ {
			values, err := s.Part(at-s.Start, part, hidden)
			if err != nil {
				return err
			}
			copy(dst[(at-past)*hidden:(at-past+1)*hidden], values)
		}
	}
	return nil
}

// Part is part number part, of hidden values, of what stands for a patch of the span; see PlacePart.
func (s Span) Part(patch, part, hidden int) ([]float32, error) {
	if s.Patches == nil {
		return nil, fmt.Errorf("the image at position %d has no patch embeddings attached", s.Start)
	}
	width := len(s.Patches) / s.Len
	if width*s.Len != len(s.Patches) || width%hidden != 0 || width <= part*hidden {
		return nil, fmt.Errorf("the image at position %d has %d values for %d patches, want a multiple of %d each, %d or more", s.Start, len(s.Patches), s.Len, hidden, (part+1)*hidden)
	}
	return s.Patches[patch*width+part*hidden:][:hidden], nil
}
