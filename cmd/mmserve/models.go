package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/mmserve/mmserve/internal/admin"
	"github.com/mmserve/mmserve/internal/hub"
	"github.com/mmserve/mmserve/serving"
)

// modelFolder is a model on the command line: DIR, or NAME=DIR.
type modelFolder struct{ Name, Dir string }

// UnmarshalText takes what is before the first = as the name, unless there is a folder of the whole text.
func (m *modelFolder) UnmarshalText(text []byte) error {
	*m = modelFolder{Dir: string(text)}
	name, dir, ok := strings.Cut(m.Dir, "=")
	if !ok || strings.ContainsAny(name, `/\`) {
		return nil
	}
	if st, err := os.Stat(m.Dir); err == nil && st.IsDir() {
		return nil
	}
	if !serving.ValidModelName(name) {
		return fmt.Errorf("the name of %d bytes before =: %w", len(name), serving.ErrName)
	}
	*m = modelFolder{Name: name, Dir: dir}
	return nil
}

// String is what UnmarshalText reads.
func (m modelFolder) String() string {
	if m.Name == "" {
		return m.Dir
	}
	return m.Name + "=" + m.Dir
}

// modelAdmin is what the admin listener changes models by. What it opens lies under a folder that the operator named.
type modelAdmin struct {
	root string // empty: no folder can be loaded
	// fetch gives the folder of a hub's model; nil: none can be loaded.
	fetch  func(ctx context.Context, m modelFolder) (modelFolder, error)
	models atomic.Pointer[serving.Registry]
}

// servedModel is a model in the answer to GET /models.
type servedModel struct {
	Name    string `json:"name"`
	Dir     string `json:"dir"`
	Digest  string `json:"digest"`
	Context int    `json:"context"`
	Memory  int64  `json:"memory_bytes"`
	Device  int64  `json:"device_memory_bytes,omitempty"`
	Running int    `json:"running"`
	Waiting int    `json:"waiting"`
	Default bool   `json:"default,omitempty"`
}

// List is the models, the default first.
func (a *modelAdmin) List() any {
	list := []servedModel{}
	if r := a.models.Load(); r != nil {
		r.Each(func(d *serving.Deployment) {
			s := d.Engine.Stats()
			list = append(list, servedModel{
				Name: d.Model.Name, Dir: d.Dir, Digest: d.Model.Digest, Context: d.Model.MaxLen, Memory: d.Memory.Host,
				Device:  d.Memory.Device,
				Running: s.Running, Waiting: s.Waiting, Default: len(list) == 0,
			})
		})
	}
	return map[string]any{"models": list}
}

// Load opens the model in a folder under the root, or swaps the one that has the name.
func (a *modelAdmin) Load(ctx context.Context, name, dir string) error {
	r, err := a.registry()
	if err != nil {
		return err
	}
	if !serving.ValidModelName(name) {
		return &admin.Refusal{Status: http.StatusBadRequest, Err: fmt.Errorf("name: %w", serving.ErrName)}
	}
	if strings.HasPrefix(dir, hub.Scheme) {
		return a.loadFetched(ctx, r, modelFolder{name, dir})
	}
	if dir, err = below(a.root, dir); err != nil {
		return &admin.Refusal{Status: http.StatusForbidden, Err: fmt.Errorf("dir: %w", err)}
	}
	_, err = r.Load(ctx, name, dir)
	return refusal(err, http.StatusUnprocessableEntity)
}

// loadFetched loads a hub's model. A caller who leaves ends the fetching, which the next call goes on with.
func (a *modelAdmin) loadFetched(ctx context.Context, r *serving.Registry, m modelFolder) error {
	if a.fetch == nil {
		return &admin.Refusal{Status: http.StatusForbidden, Err: errors.New("models of a hub are loaded only where --models-hub allows it")}
	}
	m, err := a.fetch(ctx, m)
	if err != nil {
		return &admin.Refusal{Status: http.StatusUnprocessableEntity, Err: err}
	}
	_, err = r.Load(ctx, m.Name, m.Dir)
	return refusal(err, http.StatusUnprocessableEntity)
}

// Unload takes a model out.
func (a *modelAdmin) Unload(ctx context.Context, name string) error {
	r, err := a.registry()
	if err != nil {
		return err
	}
	return refusal(r.Unload(ctx, name), http.StatusInternalServerError)
}

func (a *modelAdmin) registry() (*serving.Registry, error) {
	if a.root == "" && a.fetch == nil {
		return nil, &admin.Refusal{Status: http.StatusForbidden, Err: errors.New("models are loaded and unloaded only where --models-dir names the folder that they lie in")}
	}
	if r := a.models.Load(); r != nil {
		return r, nil
	}
	return nil, &admin.Refusal{Status: http.StatusServiceUnavailable, Err: errors.New("the models of the command line are loading")}
}

// refusal gives an error of the registry its status; other is that of what a model's folder is at fault for.
func refusal(err error, other int) error {
	if err == nil {
		return nil
	}
	for known, status := range map[error]int{
		serving.ErrName: http.StatusBadRequest, serving.ErrUnknown: http.StatusNotFound, serving.ErrLast: http.StatusConflict,
		serving.ErrMemory: http.StatusInsufficientStorage, serving.ErrClosed: http.StatusServiceUnavailable,
	} {
		if errors.Is(err, known) {
			other = status
		}
	}
	return &admin.Refusal{Status: other, Err: err}
}

// errOutside says nothing of what lies outside.
var errOutside = errors.New("want a folder below --models-dir")

// below resolves dir, which is relative to root or lies in it, links and all. What is not a folder below root is an
// error.
func below(root, dir string) (string, error) {
	if root == "" {
		return "", errOutside
	}
	root, err := filepath.EvalSymlinks(root)
	if err == nil {
		root, err = filepath.Abs(root)
	}
	if err != nil {
		return "", fmt.Errorf("--models-dir: %w", err)
	}
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(root, dir)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return "", errOutside
	}
	rel, err := filepath.Rel(root, dir)
	if err != nil || rel == "." || !filepath.IsLocal(rel) {
		return "", errOutside
	}
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		return "", errOutside
	}
	return dir, nil
}
