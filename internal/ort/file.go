package ort

import (
	"fmt"
	"path/filepath"

	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/internal/onnx"
	ort "github.com/yalue/onnxruntime_go"
)

// File is a model file that somebody else wrote, and what it says of itself.
type File struct {
	Path string
	onnx.Head
}

// ReadFile reads a model file's head. It needs no library.
func ReadFile(path string) (File, error) {
	f, err := folder.Open(path)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return File{}, err
	}
	h, err := onnx.ReadHead(f, st.Size())
	if err != nil {
		return File{}, fmt.Errorf("%s: %w", path, err)
	}
	return File{path, h}, nil
}

// OpenFile loads a model file; its external data lies beside it. Run then takes all its inputs, in order, and gives the
// outputs of the given names.
func OpenFile(f File, outputs []string, o Options) (*Session, error) {
	inputs := make([]string, len(f.Inputs))
	for i, v := range f.Inputs {
		inputs[i] = v.Name
	}
	return load(o, filepath.Base(f.Path), nil, func(so *ort.SessionOptions) (*ort.DynamicAdvancedSession, error) {
		return ort.NewDynamicAdvancedSession(f.Path, inputs, outputs, so)
	})
}
