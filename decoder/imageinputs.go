package decoder

import (
	"errors"
	"fmt"
	"slices"

	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// imageInputs are what a step's graph takes beside embeddings where a decoder treats the positions of images otherwise
// than text. Most decoders have none.
type imageInputs struct {
	config Config
	turns  *turns
	flat   bool // values between layers are [rows·width, hidden]

	cos, sin *ort.Memory[float32] // [rows, width, pairs]
	ends     *ort.Memory[int32]   // [rows, width]
	deep     *ort.Memory[float32] // [deepstack, rows, width, hidden]
}

// deepstackInputs adds the inputs of what is added behind each of the first layers: [B, S, hidden], on a device
// [B·S, hidden]; or a single row of zeros, which stands for a step without images.
func (c Config) deepstackInputs(b *graph.Builder) (names []string) {
	for i := range c.Deepstack {
		dims := []any{"DB", "DS", c.Hidden}
		if b.Device {
			dims = dims[1:]
		}
		names = append(names, b.Input(fmt.Sprintf("deepstack.%d", i), onnx.F32, dims...))
	}
	return names
}

func newImageInputs(c Config) *imageInputs { return &imageInputs{config: c, turns: c.turns()} }

// reserve makes room for a run over n positions.
func (m *imageInputs) reserve(n int) error {
	var err error
	if m.turns != nil {
		pairs := len(m.turns.frequencies)
		err = errors.Join(grow(&m.cos, n*pairs), grow(&m.sin, n*pairs))
	}
	if m.config.ImageBlocks {
		err = errors.Join(err, grow(&m.ends, n))
	}
	if m.config.Deepstack > 0 {
		err = errors.Join(err, grow(&m.deep, m.config.Deepstack*m.config.Hidden))
	}
	return err
}

// tensors appends the inputs for the positions of a run, those behind a row's ids included.
func (m *imageInputs) tensors(list []ort.Tensor, views *viewList, l *layout) ([]ort.Tensor, error) {
	n, width := l.dims()
	if m.turns != nil {
		m.turn(l)
		pairs := len(m.turns.frequencies)
		list = append(list, view(views, m.cos.Slice(), n, width, pairs), view(views, m.sin.Slice(), n, width, pairs))
	}
	if m.config.ImageBlocks {
		m.blocks(l)
		list = append(list, view(views, m.ends.Slice(), n, width))
	}
	if m.config.Deepstack > 0 {
		return m.deepstack(list, views, l)
	}
	return list, nil
}

// turn writes the cosines and sines of the positions' places.
func (m *imageInputs) turn(l *layout) {
	pairs := len(m.turns.frequencies)
	cos, sin := m.cos.Slice(), m.sin.Slice()
	for i, row := range l.rows {
		places(row.Spans, row.Past, l.room(i), func(j int, p [3]int64) {
			at := (l.first[i] + j) * pairs
			m.turns.at(p, cos[at:at+pairs], sin[at:at+pairs])
		})
	}
}

// blocks writes the last position that each position sees: of an image its last, of text itself.
func (m *imageInputs) blocks(l *layout) {
	for i, row := range l.rows {
		ends := m.ends.Slice()[l.first[i]:][:l.room(i)]
		for j := range ends {
			ends[j] = int32(row.Past + j)
		}
		for _, s := range row.Spans {
			for at := max(s.Start, row.Past); at < min(s.Start+s.Len, row.Past+len(row.IDs)); at++ {
				ends[at-row.Past] = int32(s.Start + s.Len - 1)
			}
		}
	}
}

// deepstack appends what is added behind each of the first layers: features at the positions of images, zeros at the
// others, and a single row of zeros where a step has no image.
func (m *imageInputs) deepstack(list []ort.Tensor, views *viewList, l *layout) ([]ort.Tensor, error) {
	layers, hidden := m.config.Deepstack, m.config.Hidden
	n, width := l.dims()
	if !slices.ContainsFunc(l.rows, Row.overImages) {
		zeros := m.deep.Slice()[:hidden]
		clear(zeros)
		for range layers {
			list = append(list, m.hidden(views, zeros, 1, 1))
		}
		return list, nil
	}
	size := l.count * hidden
	if err := grow(&m.deep, layers*size); err != nil {
		return list, err
	}
	for layer := range layers {
		all := m.deep.Slice()[layer*size:][:size]
		clear(all)
		for i, row := range l.rows {
			dst := all[l.first[i]*hidden:][:len(row.IDs)*hidden]
			if err := fusion.PlacePart(dst, hidden, 1+layer, row.Past, row.Spans); err != nil {
				return list, err
			}
		}
		list = append(list, m.hidden(views, all, n, width))
	}
	return list, nil
}

// hidden shapes hidden values for n rows of width positions.
func (m *imageInputs) hidden(views *viewList, data []float32, n, width int) ort.Tensor {
	if m.flat {
		return view(views, data, n*width, m.config.Hidden)
	}
	return view(views, data, n, width, m.config.Hidden)
}

// overImages tells whether any of the row's ids stands for a patch.
func (row Row) overImages() bool {
	return slices.ContainsFunc(row.Spans,
		func(s fusion.Span) bool { return s.Start < row.Past+len(row.IDs) && row.Past < s.Start+s.Len })
}

// wipe puts zeros over what is left of images.
func (m *imageInputs) wipe() error { return wipe(m.deep) }

func (m *imageInputs) free() {
	m.cos.Free()
	m.sin.Free()
	m.ends.Free()
	m.deep.Free()
}
