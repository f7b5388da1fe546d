package ort

import (
	"regexp"

	ort "github.com/yalue/onnxruntime_go"
)

// openvinoDevice is a device of OpenVINO's, in one of its modes or without. Lists of devices hold commas, which end an
// option here: AUTO stands for all.
var openvinoDevice = regexp.MustCompile(`^(AUTO|((AUTO|HETERO|MULTI):)?(CPU|GPU|NPU)(\.[0-9]+)?)$`)

// Intel's processors, GPUs and NPUs, in builds of ONNX Runtime that have OpenVINO.
// Reference: onnxruntime/core/providers/openvino/openvino_provider_factory.cc.
func init() {
	boolean := oneOf("true", "false")
	register(&kind{
		name: "openvino", ep: "OpenVINOExecutionProvider",
		can:     Capabilities{FP16: true},
		library: "onnxruntime_providers_openvino",
		needs:   "a build of ONNX Runtime " + Version + " with OpenVINO",
		options: map[string]option{
			"cache_dir":                path,
			"device_type":              {"CPU, GPU, NPU, GPU.0 or AUTO, or AUTO:GPU", openvinoDevice.MatchString},
			"disable_dynamic_shapes":   boolean,
			"enable_opencl_throttling": boolean,
			"enable_qdq_optimizer":     boolean,
			"model_priority":           oneOf("LOW", "MEDIUM", "HIGH", "DEFAULT"),
			"num_of_threads":           whole(1, 4096),
			"num_streams":              whole(1, 8),
			"precision":                oneOf("FP32", "FP16", "ACCURACY"),
		},
		configure: func(so *ort.SessionOptions, _ int, options map[string]string) error {
			return so.AppendExecutionProviderOpenVINO(options)
		},
	})
}
