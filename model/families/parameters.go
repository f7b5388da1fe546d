package families

import (
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/vision"
)

// CanonicalNeeds lists every parameter of the model by its canonical name, with its shape.
func (s Spec) CanonicalNeeds() ([]graph.Shape, error) { return graph.Needs(s.ask) }

// Needs lists every parameter of the model by the name that its checkpoints give it, with its shape.
func (s Spec) Needs() ([]graph.Shape, error) {
	list, err := s.CanonicalNeeds()
	for i, p := range list {
		list[i].Name = s.CheckpointName(p.Name)
	}
	return list, err
}

// ask asks w for every parameter.
func (s Spec) ask(w *graph.Weights) error {
	if _, err := s.TowerGraph(w, graph.FP32); err != nil {
		return err
	}
	if _, err := w.Get("text.embed_tokens.weight", s.Decoder.Vocab, s.Decoder.Hidden); err != nil {
		return err
	}
	_, err := s.ShortDecoder().Graph(w, graph.FP32)
	return err
}

// TowerGraph builds the graph of the tower with its connector.
func (s Spec) TowerGraph(w *graph.Weights, p graph.Precision) (*graph.Builder, error) {
	if s.AnySize != nil {
		return vision.AnySizeGraph(w, *s.AnySize, p)
	}
	if s.DaViT != nil {
		return vision.DaViTGraph(w, *s.DaViT, p)
	}
	return vision.TowerGraph(w, s.Tower, s.Connector, p)
}

// ShortDecoder is the decoder with a context of a few positions: the same parameters, and position tables, which are
// none, that are short.
func (s Spec) ShortDecoder() decoder.Config {
	d := s.Decoder
	if d.EncoderStates == 0 && d.Bart == nil {
		d.MaxLen = min(d.MaxLen, 16)
	}
	return d
}

// CheckpointName is what checkpoints call a parameter.
func (s Spec) CheckpointName(canonical string) string {
	for _, prefix := range s.Prefixes {
		if name, ok := prefix.Stored(canonical); ok {
			return name
		}
	}
	return canonical
}
