package ort

import ort "github.com/yalue/onnxruntime_go"

// cpuName is what ONNX Runtime calls its default provider, which runs what no other takes.
const cpuName = "CPUExecutionProvider"

// ONNX Runtime's default provider; it is always there and takes no options. mmserve's own operators run on it; see
// load.
func init() {
	register(&kind{
		name: "cpu", ep: cpuName, auto: 1, can: Capabilities{Integers: true},
		configure: func(*ort.SessionOptions, int, map[string]string) error { return nil },
	})
}
