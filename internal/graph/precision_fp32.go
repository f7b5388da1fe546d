package graph

import (
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// FP32 multiplies float32 by float32.
const FP32 Precision = "fp32"

func init() {
	registerPrecision(precision{
		name: FP32, help: "fp32", weight: 1, values: onnx.F32, drift: 2e-3, emptyRuns: true,
		runs: func(ort.Provider) bool { return true },
	})
}
