package ort

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/internal/onnx"
	ort "github.com/yalue/onnxruntime_go"
)

// File is a model file that somebody else wrote, and what it says of itself.
type File struct {
	Path string
	onnx.Head
	built Graph // in memory; nil for one that lies at Path
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
	return File{Path: path, Head: h}, nil
}

// OpenFile loads a model file; its external data lies beside it. Run then takes all its inputs, in order, and gives the
// outputs of the given names. A file that names mmserve's own operators, or data elsewhere, is refused before ONNX
// Runtime sees it.
func OpenFile(f File, outputs []string, o Options) (*Session, error) {
	inputs := make([]string, len(f.Inputs))
	for i, v := range f.Inputs {
		inputs[i] = v.Name
	}
	if f.built != nil {
		return newSession(f.built, inputs, outputs, o)
	}
	if f.Domains[onnx.Own] {
		return nil, fmt.Errorf("%s: operators of domain %q are for graphs that mmserve builds, not for model files", f.Path, onnx.Own)
	}
	for _, name := range f.Data {
		if err := f.checkData(name); err != nil {
			return nil, fmt.Errorf("%s: external data %q: %w", f.Path, name, err)
		}
	}
	return load(o, source{name: filepath.Base(f.Path)}, func(so *ort.SessionOptions) (*ort.DynamicAdvancedSession, error) {
		return ort.NewDynamicAdvancedSession(f.Path, inputs, outputs, so)
	})
}

// checkData judges one file of external data: a regular file below the model's folder that has all that is asked of it.
// A link may lead to where the model file itself is a link to, as in the hub's cache.
func (f File) checkData(name string) error {
	if !filepath.IsLocal(name) || strings.Contains(name, `\`) {
		return errors.New("want a path below the model's folder")
	}
	dir := filepath.Dir(f.Path)
	real, err := filepath.EvalSymlinks(filepath.Join(dir, filepath.FromSlash(name)))
	if err != nil {
		return err
	}
	folder, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	model, err := filepath.EvalSymlinks(f.Path)
	if err != nil {
		return err
	}
	below, err := filepath.Rel(folder, real)
	if (err != nil || !filepath.IsLocal(below)) && filepath.Dir(real) != filepath.Dir(model) {
		return errors.New("it is a link that leaves the model's folder")
	}
	st, err := os.Stat(real)
	switch {
	case err != nil:
		return err
	case !st.Mode().IsRegular():
		return errors.New("not a regular file")
	case st.Size() < f.DataSizes[name]:
		return fmt.Errorf("%d bytes, the graph needs %d", st.Size(), f.DataSizes[name])
	}
	return nil
}
