package ort

import (
	"github.com/mmserve/mmserve/internal/kernels"
	ort "github.com/yalue/onnxruntime_go"
)

// configureOperators lets a session use mmserve's own operators.
func configureOperators(so *ort.SessionOptions, threads int) error {
	options, err := pointer(so, "o")
	if err != nil {
		return err
	}
	_, library := Loaded()
	return kernels.Register(library, options, threads)
}
