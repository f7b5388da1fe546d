package model

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/model/export"
	"github.com/mmserve/mmserve/model/families"
	"github.com/mmserve/mmserve/vision"
)

// checkpoint is a folder's safetensors, over which graphs are built.
type checkpoint struct {
	*safetensors.Checkpoint
	weights *graph.Weights
	files   fs.FS
}

// openCheckpoint opens the weights and settles what of config.json they bear out.
func (m *Model) openCheckpoint(open func() (*safetensors.Checkpoint, error)) error {
	ckpt, err := open()
	if err != nil {
		if errors.Is(err, safetensors.ErrNone) {
			err = noWeights(m.files)
		}
		return err
	}
	c := &checkpoint{Checkpoint: ckpt, files: m.files}
	if c.weights, err = graph.NewWeights(ckpt, m.Prefixes...); err == nil {
		m.source, m.Weights = c, c.weights
		if err = m.tie(ckpt); err == nil {
			err = m.reconcile()
		}
	}
	if err != nil {
		return errors.Join(err, c.Close())
	}
	return nil
}

// hasWeights tells whether a folder has a checkpoint.
func hasWeights(dir string) bool {
	entries, _ := os.ReadDir(dir)
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool { return strings.HasSuffix(e.Name(), ".safetensors") })
}

func (c *checkpoint) Path() string {
	if list, _ := fs.Glob(c.files, "onnx/*.onnx"); len(list) > 0 {
		return "straight from safetensors, which goes before the graphs in onnx/ unless --onnx-dtype asks for them"
	}
	return "straight from safetensors"
}

func (c *checkpoint) OpenTower(s families.Spec, p graph.Precision, o ort.Options) (vision.Tower, error) {
	if s.AnySize != nil {
		t, err := vision.OpenAnySize(c.weights, *s.AnySize, p, o)
		if err != nil {
			return nil, err
		}
		return t, nil
	}
	if s.DaViT != nil {
		t, err := vision.OpenDaViT(c.weights, *s.DaViT, p, o)
		if err != nil {
			return nil, err
		}
		return t, nil
	}
	t, err := vision.OpenTower(c.weights, s.Tower, s.Connector, p, o)
	if err != nil {
		return nil, err
	}
	return t, nil
}

// OpenDecoder keeps the cache in a device's memory where the provider has such.
func (c *checkpoint) OpenDecoder(d decoder.Config, o decoder.OpenOptions) (decoder.Runner, error) {
	if d.Bart != nil {
		r, err := decoder.OpenBart(d, c.weights, o)
		if err != nil {
			return nil, err
		}
		return r, nil
	}
	if o.Session.Provider.Can().DeviceTensors {
		r, err := decoder.OpenDevice(d, c.weights, o)
		if err != nil {
			return nil, err
		}
		return r, nil
	}
	r, err := decoder.OpenHost(d, c.weights, o)
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (c *checkpoint) LoadQuantized(s families.Spec, dir string, tower, dec graph.Precision) (graph.Quantized, error) {
	return c.weights.LoadQuantized(dir, func(w *graph.Weights) error {
		if _, err := s.TowerGraph(w, tower); err != nil {
			return err
		}
		_, err := s.ShortDecoder().Graph(w, dec)
		return err
	})
}

func (c *checkpoint) ShortestRow(d decoder.Config) decoder.Row {
	return decoder.Row{IDs: make([]int32, d.ShortestPrompt())}
}

func (c *checkpoint) Graphs() []export.Graph { return nil }

func (c *checkpoint) StoredTypes() map[string]int {
	types := map[string]int{}
	for _, name := range c.Names() {
		t, _ := c.Tensor(name)
		types[string(t.DType)]++
	}
	return types
}

func (c *checkpoint) Parameters() (n int64) {
	for _, name := range c.Names() {
		t, _ := c.Tensor(name)
		n += int64(t.Elems())
	}
	return n
}

// WeightBytes is of float32.
func (c *checkpoint) WeightBytes() int64 { return 4 * c.Parameters() }

// KV is the decoder's: it writes its caches in place.
func (c *checkpoint) KV(d decoder.Config) decoder.KVCost { return d }

func (c *checkpoint) Digest() ([]byte, error) { return c.Checkpoint.Digest(), nil }

// Close unmaps the files. Sessions over them must be closed before.
func (c *checkpoint) Close() error {
	err := c.Checkpoint.Close()
	if c.weights != nil {
		err = errors.Join(err, c.weights.Close())
	}
	return err
}
