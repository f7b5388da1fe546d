package ort

import ort "github.com/yalue/onnxruntime_go"

// NVIDIA GPUs. ONNX Runtime keeps the provider in a library of its own, which upstream's archives for CUDA bring.
// Reference: include/onnxruntime/core/providers/cuda/cuda_provider_options.h.
func init() {
	register(&kind{
		name: "cuda", ep: "CUDAExecutionProvider", memory: "Cuda",
		can:     Capabilities{FP16: true, GraphCapture: true, DeviceTensors: true},
		library: "onnxruntime_providers_cuda",
		needs:   "ONNX Runtime " + Version + "'s archive for CUDA 13, the CUDA 13 and cuDNN 9 libraries, and a driver of version 580 or later",
		auto:    4,
		options: map[string]option{
			"arena_extend_strategy":              oneOf("kNextPowerOfTwo", "kSameAsRequested"),
			"cudnn_conv1d_pad_to_nc1d":           flag,
			"cudnn_conv_algo_search":             oneOf("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
			"cudnn_conv_use_max_workspace":       flag,
			"device_id":                          device,
			"do_copy_in_default_stream":          flag,
			"enable_cuda_graph":                  unrecorded,
			"enable_skip_layer_norm_strict_mode": flag,
			"fuse_conv_bias":                     flag,
			"gpu_mem_limit":                      size,
			"prefer_nhwc":                        flag,
			"sdpa_kernel":                        whole(0, 127), // a sum of 1, 2, 4, … for the kernels allowed
			"tunable_op_enable":                  flag,
			"tunable_op_max_tuning_duration_ms":  whole(0, 1<<31-1),
			"tunable_op_tuning_enable":           flag,
			"use_ep_level_unified_stream":        flag,
			"use_tf32":                           flag,
		},
		// The arena holds nothing that was not asked for, so that the KV cache can be sized by what is free; a search over
		// all convolutions would be paid for at each new number of tiles; and float32 means float32.
		defaults: map[string]string{
			"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0",
		},
		configure: func(so *ort.SessionOptions, _ int, options map[string]string) error {
			o, err := ort.NewCUDAProviderOptions()
			if err != nil {
				return err
			}
			defer o.Destroy()
			if err := o.Update(options); err != nil {
				return err
			}
			return so.AppendExecutionProviderCUDA(o)
		},
	})
}
