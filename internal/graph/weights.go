// Package graph builds transformer layers out of a checkpoint's tensors: the vocabulary that the vision tower
// and the decoder share. A weight stays where it is on disk and is named in place as external data.
package graph

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/safetensors"
)

// Weights finds a model's parameters in a checkpoint under canonical names and keeps account of their use.
type Weights struct {
	ckpt      *safetensors.Checkpoint
	names     map[string]string       // canonical → name in the checkpoint
	used      map[string]int          // name in the checkpoint → times asked for
	quantized *safetensors.Checkpoint // quantised forms of some weights; nil when there are none
	private   string                  // a folder of this process's own that holds them; "" when they lie in a cache folder
	asked     *[]Shape                // set when this is a list of what a model needs and there is no checkpoint
}

// Shape is a parameter that a model needs.
type Shape struct {
	// Name is the canonical name.
	Name string
	Dims []int
}

// Needs lists the parameters that build asks for, in order, without a checkpoint. build must not open a session.
func Needs(build func(w *Weights) error) ([]Shape, error) {
	var list []Shape
	err := build(&Weights{names: map[string]string{}, used: map[string]int{}, asked: &list})
	return list, err
}

// Prefix renames one prefix of checkpoint names to a canonical one.
type Prefix struct {
	From, To string
	// Parts are renamed wherever they stand in what follows the prefix, one after the other.
	Parts []Part
}

// Part is a piece of a name that a checkpoint calls From.
type Part struct{ From, To string }

// Canonical renames a checkpoint's name that starts with From.
func (p Prefix) Canonical(name string) (canonical string, ok bool) {
	rest, ok := strings.CutPrefix(name, p.From)
	for _, part := range p.Parts {
		rest = strings.ReplaceAll(rest, part.From, part.To)
	}
	return p.To + rest, ok
}

// Stored is what a checkpoint calls a canonical name that starts with To.
func (p Prefix) Stored(canonical string) (name string, ok bool) {
	rest, ok := strings.CutPrefix(canonical, p.To)
	for _, part := range slices.Backward(p.Parts) {
		rest = strings.ReplaceAll(rest, part.To, part.From)
	}
	return p.From + rest, ok
}

// NewWeights indexes a checkpoint. The first prefix that fits a name renames it; a name that none fits keeps
// itself.
func NewWeights(c *safetensors.Checkpoint, prefixes ...Prefix) (*Weights, error) {
	w := &Weights{ckpt: c, names: map[string]string{}, used: map[string]int{}}
	for _, name := range c.Names() {
		canonical := name
		for _, p := range prefixes {
			if c, ok := p.Canonical(name); ok {
				canonical = c
				break
			}
		}
		if other, dup := w.names[canonical]; dup {
			return nil, fmt.Errorf("tensors %q and %q both stand for %q", other, name, canonical)
		}
		w.names[canonical] = name
	}
	return w, nil
}

// Root is the folder that external data locations are relative to: the root of the file system, because ONNX
// Runtime refuses locations that leave the folder, and the files of one graph may lie anywhere.
const Root = string(filepath.Separator)

// Has tells whether the checkpoint has a tensor of that canonical name.
func (w *Weights) Has(name string) bool { _, ok := w.names[name]; return ok }

// Stored is what the checkpoint calls the tensor of that canonical name.
func (w *Weights) Stored(name string) (stored string, ok bool) {
	stored, ok = w.names[name]
	return stored, ok
}

// Names lists the canonical names of all tensors.
func (w *Weights) Names() []string { return slices.Sorted(maps.Keys(w.names)) }

// Get returns the tensor of that canonical name after checking its shape, and counts the use.
func (w *Weights) Get(name string, shape ...int) (safetensors.Tensor, error) {
	t, err := w.Find(name, shape...)
	if err == nil && w.asked == nil {
		w.used[w.names[name]]++
	}
	return t, err
}

// Find is Get without counting.
func (w *Weights) Find(name string, shape ...int) (safetensors.Tensor, error) {
	real, ok := w.names[name]
	if !ok && w.asked != nil {
		if w.used[name]++; w.used[name] == 1 {
			*w.asked = append(*w.asked, Shape{name, shape})
		}
		return safetensors.Tensor{Name: name, DType: safetensors.F32, Shape: shape}, nil
	}
	if !ok {
		return safetensors.Tensor{}, fmt.Errorf("the checkpoint has no tensor for %q (shape %v)", name, shape)
	}
	t, _ := w.ckpt.Tensor(real)
	if extra := len(t.Shape) - len(shape); extra > 0 && !slices.ContainsFunc(t.Shape[:extra],
		func(d int) bool { return d != 1 }) {
		t.Shape = t.Shape[extra:] // ViT stores embeddings of one row as [1, 1, hidden]
	}
	if !slices.Equal(t.Shape, shape) {
		return safetensors.Tensor{}, fmt.Errorf("tensor %q has shape %v, want %v by config.json", real, t.Shape, shape)
	}
	if _, err := onnxType(t); err != nil {
		return safetensors.Tensor{}, err
	}
	return t, nil
}

// Unused lists the checkpoint's tensors that no part of the model asked for.
func (w *Weights) Unused() []string {
	var list []string
	for _, name := range w.ckpt.Names() {
		if w.used[name] == 0 {
			list = append(list, name)
		}
	}
	return list
}

// UsedTwice lists tensors that more than one part of the model asked for, as tied embeddings are.
func (w *Weights) UsedTwice() []string {
	var list []string
	for name, n := range w.used {
		if n > 1 {
			list = append(list, name)
		}
	}
	sort.Strings(list)
	return list
}

func onnxType(t safetensors.Tensor) (onnx.DType, error) {
	switch t.DType {
	case safetensors.F32:
		return onnx.F32, nil
	case safetensors.F16:
		return onnx.F16, nil
	case safetensors.BF16:
		return onnx.BF16, nil
	}
	return 0, fmt.Errorf("tensor %q is %s, want F32, F16 or BF16", t.Name, t.DType)
}
