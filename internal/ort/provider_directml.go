package ort

import (
	"strconv"

	ort "github.com/yalue/onnxruntime_go"
)

// Any GPU on Windows, through Direct3D 12.
// Reference: include/onnxruntime/core/providers/dml/dml_provider_factory.h.
func init() {
	register(&kind{
		name: "directml", ep: "DmlExecutionProvider",
		can:     Capabilities{FP16: true, OneRunAtATime: true},
		needs:   "Windows and upstream's library for DirectML",
		auto:    3,
		options: map[string]option{"device_id": device},
		configure: func(so *ort.SessionOptions, _ int, options map[string]string) error {
			// It allocates by itself, and refuses sessions whose memory is planned.
			if err := so.SetMemPattern(false); err != nil {
				return err
			}
			id, _ := strconv.Atoi(options["device_id"]) // "" is 0
			return so.AppendExecutionProviderDirectML(id)
		},
	})
}
