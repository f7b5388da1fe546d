package ort

import ort "github.com/yalue/onnxruntime_go"

// AMD GPUs, with programs that MIGraphX compiles for each shape. It has no stateful attention: graphs that mmserve
// builds need --allow-cpu-fallback. Reference: onnxruntime/core/providers/migraphx/migraphx_execution_provider_info.h.
func init() {
	register(&kind{
		name: "migraphx", ep: "MIGraphXExecutionProvider", memory: "Hip",
		can:     Capabilities{FP16: true, DeviceTensors: true},
		library: "onnxruntime_providers_migraphx",
		needs:   "a build of ONNX Runtime " + Version + " with MIGraphX, and ROCm",
		options: map[string]option{
			"device_id":                      device,
			"migraphx_arena_extend_strategy": oneOf("kNextPowerOfTwo", "kSameAsRequested"),
			"migraphx_bf16_enable":           flag,
			"migraphx_exhaustive_tune":       flag,
			"migraphx_fp16_enable":           flag,
			"migraphx_max_compiled_models":   whole(1, 64),
			"migraphx_max_dynamic_batch":     whole(0, 1<<20),
			"migraphx_mem_limit":             size,
			"migraphx_model_cache_dir":       path,
		},
		configure: func(so *ort.SessionOptions, _ int, options map[string]string) error {
			return so.AppendExecutionProvider("MIGraphX", options)
		},
	})
}
