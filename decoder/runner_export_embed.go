package decoder

import (
	"errors"
	"fmt"

	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// idEmbedder is the exported graph that turns ids into embeddings.
type idEmbedder struct {
	session *ort.Session
	vocab   int
	ids     *ort.Memory[int64]
	embeds  *ort.Floats
}

func newIDEmbedder(f ort.File, vocab int, o ort.Options) (*idEmbedder, error) {
	out, ok := onnx.Find(f.Outputs, "inputs_embeds")
	if !ok || len(out.Dims) != 3 || len(f.Inputs) != 1 || f.Inputs[0].Type != onnx.I64 {
		return nil, fmt.Errorf("%s: want one input, ids of int64, and an output inputs_embeds of three dimensions", f.Path)
	}
	e := &idEmbedder{vocab: vocab}
	var err error
	if e.session, err = ort.OpenFile(f, []string{"inputs_embeds"}, o); err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path, err)
	}
	if e.embeds, err = ort.AllocFloats(out.Type, 1); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: output inputs_embeds: %w", f.Path, err), e.close())
	}
	return e, nil
}

// embed fills dst, [len(ids), hidden], for the ids of positions [past, past+len(ids)) of a sequence with the given
// image spans.
func (e *idEmbedder) embed(dst []float32, ids []int32, past int, spans []fusion.Span) error {
	n, hidden := len(ids), len(dst)/len(ids)
	if err := grow(&e.ids, n); err != nil {
		return err
	}
	if err := e.embeds.Grow(n * hidden); err != nil {
		return err
	}
	wide := e.ids.Slice()[:n]
	for i, id := range ids {
		wide[i] = int64(id)
	}
	for _, s := range spans {
		// What stands for a patch need not be an id of the table.
		for at := max(s.Start, past); at < min(s.Start+s.Len, past+n); at++ {
			wide[at-past] = 0
		}
	}
	for _, id := range wide {
		if id < 0 || int(id) >= e.vocab {
			return fmt.Errorf("token id %d has no embedding: the table has %d rows", id, e.vocab)
		}
	}
	in, err := ort.View(wide, 1, n)
	if err != nil {
		return err
	}
	defer in.Destroy()
	out, err := e.embeds.View(1, n, hidden)
	if err != nil {
		return err
	}
	defer out.Destroy()
	if err := e.session.Run([]ort.Tensor{in}, []ort.Tensor{out}); err != nil {
		return fmt.Errorf("embed ids: %w", err)
	}
	copy(dst, e.embeds.Load(0, n*hidden))
	return fusion.Place(dst, hidden, past, spans)
}

func (e *idEmbedder) close() error {
	var err error
	if e.session != nil {
		err = e.session.Close()
	}
	e.ids.Free()
	e.embeds.Free()
	return err
}
