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

// pick settles one stage's precision. auto takes int4 never: its answers differ from the checkpoint's more often than
// int8's.
func pick(flag, text string, m *model.Model, at ort.Provider, why *string) (graph.Precision, error) {
	if text != "auto" {
		return graph.Precision(text), checkPrecision(flag, text, at)
	}
	p, reason := graph.FP32, ""
	switch can := at.Can(); {
	case m.Weights == nil:
		reason = "ready-made graphs have the precision they were made with"
	case at.Kernels():
		p, reason = graph.INT8, "mmserve's own int8 operators run on this processor"
	case at.Name() == "cpu":
		reason = "this processor lacks what mmserve's own int8 operators need"
	case can.FP16 && can.DeviceTensors:
		p, reason = graph.FP16, "the execution provider "+at.Name()+" multiplies in 16 bits"
	default:
		reason = "the execution provider " + at.Name() + " takes no other"
	}
	text = fmt.Sprintf("%s auto chose %s: %s", flag, p, reason)
	if *why != "" && *why != text { // the decoder's, on another provider
		text = *why + "; for the tower, " + text
	}
	*why = text
	return p, nil
}

// checkPrecision refuses a precision that a provider has no operators for.
func checkPrecision(flag, text string, at ort.Provider) error {
	p, can := graph.Precision(text), at.Can()
	switch {
	case p == graph.FP16 && !(can.FP16 && can.DeviceTensors):
		return fmt.Errorf("%s fp16: the %s provider multiplies no faster in 16 bits; it takes %s", flag, at.Name(), takes(at))
	case p.Quantized() && at.Name() != "cpu":
		return fmt.Errorf("%s %s runs on the cpu provider only; %s takes %s", flag, text, at.Name(), takes(at))
	}
	return nil
}

// takes lists the precisions that a provider has operators for.
func takes(at ort.Provider) string {
	switch can := at.Can(); {
	case at.Name() == "cpu":
		return "fp32, int8 and int4"
	case can.FP16 && can.DeviceTensors:
		return "fp32 and fp16"
	}
	return "fp32"
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
