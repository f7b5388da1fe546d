package ort

import (
	"errors"
	"maps"
	"path/filepath"
	"runtime"

	ort "github.com/yalue/onnxruntime_go"
)

// Any GPU, through Dawn: Vulkan on Linux, Metal on macOS, Direct3D 12 on Windows.
// Reference: onnxruntime/core/providers/webgpu/webgpu_provider_options.h.
func init() {
	cache := oneOf("disabled", "lazyRelease", "simple", "bucket")
	register(&kind{
		name: "webgpu", ep: "WebGpuExecutionProvider", memory: "WebGPU_Buf",
		can:   Capabilities{FP16: true, GraphCapture: true, DeviceTensors: true, OneRunAtATime: true},
		needs: "a GPU with a Vulkan, Metal or Direct3D 12 driver",
		auto:  2, worth: hasGPU,
		options: map[string]option{
			"dawnBackendType":              oneOf("Vulkan", "D3D12"),
			"deviceId":                     device,
			"enableGraphCapture":           unrecorded,
			"enableInt64":                  flag,
			"enableRobustness":             flag,
			"maxNumPendingDispatches":      whole(1, 4096),
			"maxStorageBufferBindingSize":  size,
			"powerPreference":              oneOf("high-performance", "low-power"),
			"preserveDevice":               flag,
			"sessionBufferPoolGenerations": whole(0, 64),
			"storageBufferCacheMode":       cache,
			"uniformBufferCacheMode":       cache,
			"queryResolveBufferCacheMode":  cache,
			"defaultBufferCacheMode":       cache,
			"validationMode":               oneOf("disabled", "wgpuOnly", "basic", "full"),
		},
		defaults: map[string]string{"powerPreference": "high-performance"},
		configure: func(so *ort.SessionOptions, _ int, options map[string]string) error {
			// With the other layout the report of where nodes run leaves most of them out.
			set := map[string]string{"preferredLayout": "NCHW"}
			maps.Copy(set, options)
			return so.AppendExecutionProvider("WebGPU", set)
		},
	})
}

// hasGPU tells whether the system knows a GPU. Without one, Vulkan may still run, on the processor and slower than the
// cpu provider.
func hasGPU() error {
	if runtime.GOOS != "linux" {
		return nil
	}
	for _, pattern := range []string{"/dev/dri/renderD*", "/dev/nvidia[0-9]*", "/dev/dxg"} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return nil
		}
	}
	return errors.New("no GPU in /dev (Vulkan in software is slower than the cpu provider)")
}
