package ort

import ort "github.com/yalue/onnxruntime_go"

// NVIDIA GPUs, with engines that TensorRT compiles for each range of shapes. It knows none of ONNX Runtime's own
// operators: graphs that mmserve builds need --allow-cpu-fallback, ready-made graphs of plain operators do not.
// Reference: include/onnxruntime/core/providers/tensorrt/tensorrt_provider_options.h.
func init() {
	register(&kind{
		name: "tensorrt", ep: "TensorrtExecutionProvider", memory: "Cuda",
		can:     Capabilities{FP16: true, GraphCapture: true, DeviceTensors: true},
		library: "onnxruntime_providers_tensorrt",
		needs:   "ONNX Runtime " + Version + "'s archive for CUDA 13, the CUDA 13, cuDNN 9 and TensorRT 10 libraries, and a driver of version 580 or later",
		options: map[string]option{
			"device_id":                         device,
			"trt_auxiliary_streams":             whole(-1, 64),
			"trt_builder_optimization_level":    whole(0, 5),
			"trt_context_memory_sharing_enable": flag,
			"trt_cuda_graph_enable":             unrecorded,
			"trt_detailed_build_log":            flag,
			"trt_engine_cache_enable":           flag,
			"trt_engine_cache_path":             path,
			"trt_engine_cache_prefix":           path,
			"trt_engine_hw_compatible":          flag,
			"trt_force_sequential_engine_build": flag,
			"trt_force_timing_cache":            flag,
			"trt_fp16_enable":                   flag,
			"trt_layer_norm_fp32_fallback":      flag,
			"trt_max_partition_iterations":      whole(1, 1<<20),
			"trt_max_workspace_size":            size,
			"trt_min_subgraph_size":             whole(1, 1<<20),
			"trt_sparsity_enable":               flag,
			"trt_timing_cache_enable":           flag,
			"trt_timing_cache_path":             path,
		},
		configure: func(so *ort.SessionOptions, _ int, options map[string]string) error {
			o, err := ort.NewTensorRTProviderOptions()
			if err != nil {
				return err
			}
			defer o.Destroy()
			if err := o.Update(options); err != nil {
				return err
			}
			return so.AppendExecutionProviderTensorRT(o)
		},
	})
}
