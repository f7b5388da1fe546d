package ort

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	ort "github.com/yalue/onnxruntime_go"
)

func init() { register(webgpu{}) }

// webgpu runs graphs on any GPU that Dawn can drive: through Vulkan, Metal or Direct3D 12.
type webgpu struct{}

var _ provider = webgpu{}

func (webgpu) name() string { return "webgpu" }

// webgpuOptions are the settings that ONNX Runtime reads; it ignores unknown ones without a word.
var webgpuOptions = map[string][]string{
	"preferredLayout":        {"NCHW", "NHWC"},
	"enableInt64":            {"0", "1"},
	"validationMode":         {"disabled", "wgpuOnly", "basic", "full"},
	"dawnBackendType":        {"Vulkan", "D3D12"},
	"powerPreference":        {"high-performance", "low-power"},
	"storageBufferCacheMode": {"disabled", "lazyRelease", "simple", "bucket"},
	"enableGraphCapture":     {"0", "1"},
}

func (webgpu) configure(so *ort.SessionOptions, _ int, options map[string]string) error {
	set := map[string]string{"preferredLayout": "NCHW"} // with the other layout ONNX Runtime reports no placement
	for k, v := range options {
		allowed, ok := webgpuOptions[k]
		if !ok {
			return fmt.Errorf("unknown option %q; known are %s", k, strings.Join(slices.Sorted(maps.Keys(webgpuOptions)), ", "))
		}
		if !slices.Contains(allowed, v) {
			return fmt.Errorf("option %s is %q; it takes %s", k, v, strings.Join(allowed, ", "))
		}
		set[k] = v
	}
	return so.AppendExecutionProvider("WebGPU", set)
}

func (webgpu) memory() string { return "WebGPU_Buf" }
