package graph

import (
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// FP16 holds weights, keys and values in 16 bits and multiplies in them. Sums of layers, norms and logits stay float32.
const FP16 Precision = "fp16"

func init() {
	runs := func(at ort.Provider) bool { return at.Can().FP16 && at.Can().DeviceTensors }
	registerPrecision(precision{
		name: FP16, rank: 1, help: "fp16 (on a GPU)", weight: 0.5, values: onnx.F16, drift: 2e-3, emptyRuns: true,
		runs: runs, refusal: ": the %s provider multiplies no faster in 16 bits",
		auto: func(at ort.Provider) string {
			if !runs(at) {
				return ""
			}
			return "the execution provider " + at.Name() + " multiplies in 16 bits"
		},
	})
}
