package ort

import ort "github.com/yalue/onnxruntime_go"

// Apple's processors, GPUs and Neural Engine. It has no stateful attention: graphs that mmserve builds need
// --allow-cpu-fallback.
// Reference: include/onnxruntime/core/providers/coreml/coreml_provider_factory.h.
func init() {
	register(&kind{
		name: "coreml", ep: "CoreMLExecutionProvider",
		can:   Capabilities{FP16: true},
		needs: "macOS and upstream's library for it",
		options: map[string]option{
			"AllowLowPrecisionAccumulationOnGPU": flag,
			"EnableOnSubgraphs":                  flag,
			"MLComputeUnits":                     oneOf("ALL", "CPUAndNeuralEngine", "CPUAndGPU", "CPUOnly"),
			"ModelCacheDirectory":                path,
			"ModelFormat":                        oneOf("MLProgram", "NeuralNetwork"),
			"ProfileComputePlan":                 flag,
			"RequireStaticInputShapes":           flag,
			"SpecializationStrategy":             oneOf("Default", "FastPrediction"),
		},
		defaults: map[string]string{"ModelFormat": "MLProgram"},
		configure: func(so *ort.SessionOptions, _ int, options map[string]string) error {
			return so.AppendExecutionProviderCoreMLV2(options)
		},
	})
}
