package model

import (
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/vision"
)

// Needs lists every parameter of the model by the name that its checkpoints give it, with its shape.
func (s Spec) Needs() ([]graph.Shape, error) {
	list, err := s.needs()
	for i, p := range list {
		list[i].Name = s.checkpointName(p.Name)
	}
	return list, err
}

// parameters asks w for every parameter. The position tables, which are none, are made short.
func (s Spec) parameters(w *graph.Weights) error {
	if _, err := vision.TowerGraph(w, s.Tower, s.Connector, graph.FP32); err != nil {
		return err
	}
	if _, err := w.Get("text.embed_tokens.weight", s.Decoder.Vocab, s.Decoder.Hidden); err != nil {
		return err
	}
	_, err := short(s.Decoder).Graph(w, graph.FP32)
	return err
}

// short is a decoder of the same parameters and a context of a few positions.
func short(d decoder.Config) decoder.Config {
	if d.EncoderStates == 0 {
		d.MaxLen = min(d.MaxLen, 16)
	}
	return d
}

// checkpointName is what checkpoints call a parameter.
func (s Spec) checkpointName(canonical string) string {
	for _, prefix := range s.Prefixes {
		if name, ok := prefix.Stored(canonical); ok {
			return name
		}
	}
	return canonical
}
