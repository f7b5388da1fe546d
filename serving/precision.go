package serving

import (
	"fmt"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/model"
)

// choosePrecisions settles what each stage runs in, and refuses what its provider has no operators for.
func (c Config) choosePrecisions(m *model.Model, p *Plan) (err error) {
	why := &p.PrecisionReason
	if p.Decoder.Precision, err = pick("--precision", c.Precision, m, p.Decoder.Provider, why); err != nil {
		return err
	}
	flag, vision := "--precision", c.Precision
	if c.VisionPrecision != "" {
		flag, vision = "--vision-precision", c.VisionPrecision
	} else if vision != "auto" {
		vision = string(p.Decoder.Precision.Vision())
	}
	p.Vision.Precision, err = pick(flag, vision, m, p.Vision.Provider, why)
	return err
}

// pick settles one stage's precision.
func pick(flag, text string, m *model.Model, at ort.Provider, why *string) (graph.Precision, error) {
	if text != "auto" {
		p := graph.Precision(text)
		if err := p.Check(at); err != nil {
			return p, fmt.Errorf("%s %w", flag, err)
		}
		return p, nil
	}
	p, reason := graph.FP32, "ready-made graphs have the precision they were made with"
	if m.Weights != nil {
		p, reason = graph.ChoosePrecision(at)
	}
	text = fmt.Sprintf("%s auto chose %s: %s", flag, p, reason)
	if *why != "" && *why != text { // the decoder's, on another provider
		text = *why + "; for the tower, " + text
	}
	*why = text
	return p, nil
}

// PrecisionText names a stage's precision, which in ready-made graphs is the decoder's own.
func PrecisionText(m *model.Model, p graph.Precision) string {
	for _, g := range m.Graphs() {
		if g.Session == "decoder_model_merged" {
			return g.DType
		}
	}
	return string(p)
}
