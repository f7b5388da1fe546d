package ort

import (
	"fmt"

	ort "github.com/yalue/onnxruntime_go"
)

func init() { register(cpu{}) }

// cpu is ONNX Runtime's default provider; it is always there and takes no options. mmserve's own operators run on it.
type cpu struct{}

var _ provider = cpu{}

func (cpu) name() string { return "cpu" }

func (cpu) configure(so *ort.SessionOptions, threads int, options map[string]string) error {
	for k := range options {
		return fmt.Errorf("unknown option %q; it takes none", k)
	}
	return configureCustomOps(so, threads)
}
