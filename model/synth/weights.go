package synth

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/x448/float16"

	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/model/families"
)

// dummySeed is that of OpenDummy's weights.
const dummySeed = 1

// OpenDummy opens a model of the shape of a config.json, named itself or by its folder, with seeded random weights: for
// load tests of a model that is not there. Where the folder has no tokenizer, one is made up (see Init); what such a
// model answers means nothing.
func OpenDummy(path string) (*model.Model, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	dir := abs
	if st, err := os.Stat(abs); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no %s: name a config.json, or the folder that holds it", path)
	} else if err != nil {
		return nil, fmt.Errorf("model folder: %w", err)
	} else if !st.IsDir() {
		dir = filepath.Dir(abs)
	}
	made, err := os.MkdirTemp("", "mmserve-dummy-")
	if err != nil {
		return nil, err
	}
	if err = Init(abs, made, InitOptions{Seed: dummySeed, toRun: true}); err == nil {
		var m *model.Model
		if m, err = model.OpenSynthetic(filepath.Base(dir), made); err == nil {
			return m, nil
		}
	}
	return nil, errors.Join(err, os.RemoveAll(made))
}

// WriteRandom writes model.safetensors into dir for the config.json that is there: bfloat16, normal with a deviation of
// 0.02 (norms' factors 1, biases 0), the same bytes for the same seed.
func WriteRandom(dir string, seed uint64) error {
	config, err := folder.JSON(folder.Dir(dir), "config.json")
	if err != nil {
		return err
	}
	_, spec, err := families.Read(config)
	if err != nil {
		return fmt.Errorf("config.json: %w", err)
	}
	return writeRandom(dir, spec, InitOptions{Seed: seed})
}

// writeRandom writes the model's tensors into one file of dir or, where they are too large for one, several and their
// index.
func writeRandom(dir string, spec families.Spec, o InitOptions) error {
	needs, err := spec.Needs()
	if err != nil {
		return err
	}
	d := newDraw(spec, o)
	var shards [][]graph.Shape
	var size, total int64
	for _, n := range needs {
		bytes := int64(elements(n)) * d.dtype.Size()
		if total += bytes; len(shards) == 0 || size > 0 && size+bytes > o.shardBytes() {
			shards, size = append(shards, nil), 0
		}
		shards[len(shards)-1] = append(shards[len(shards)-1], n)
		size += bytes
	}
	if len(shards) == 1 {
		return d.file(filepath.Join(dir, "model.safetensors"), needs)
	}
	owner := map[string]string{}
	for i, shard := range shards {
		name := fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, len(shards))
		if err := d.file(filepath.Join(dir, name), shard); err != nil {
			return err
		}
		for _, n := range shard {
			owner[n.Name] = name
		}
	}
	return writeJSON(filepath.Join(dir, "model.safetensors.index.json"),
		map[string]any{"metadata": map[string]int64{"total_size": total}, "weight_map": owner})
}

func elements(s graph.Shape) int {
	n := 1
	for _, d := range s.Dims {
		n *= d
	}
	return n
}

// draw makes tensors up, one after the other.
type draw struct {
	spec  families.Spec
	dtype safetensors.DType
	rng   *rand.Rand
	table []uint16 // values to draw from, which is many times faster than to compute each
}

func newDraw(spec families.Spec, o InitOptions) *draw {
	d := &draw{spec, o.dtype(), rand.New(rand.NewPCG(o.Seed, 0)), make([]uint16, 1<<16)}
	for i := range d.table {
		d.table[i] = d.bits(float32(d.rng.NormFloat64() * 0.02))
	}
	return d
}

// bits is a value in half precision: as float16, or as bfloat16 for both bfloat16 and float32, which so are equal.
func (d *draw) bits(v float32) uint16 {
	if d.dtype == safetensors.F16 {
		return float16.Fromfloat32(v).Bits()
	}
	return uint16(math.Float32bits(v) >> 16)
}

func (d *draw) append(dst []byte, bits uint16) []byte {
	if d.dtype == safetensors.F32 {
		return binary.LittleEndian.AppendUint32(dst, uint32(bits)<<16)
	}
	return binary.LittleEndian.AppendUint16(dst, bits)
}

// file writes a safetensors file. The header needs sizes only; the data is made tensor by tensor, so that memory stays
// small.
func (d *draw) file(path string, list []graph.Shape) error {
	head := make([]safetensors.Tensor, len(list))
	var most int
	for _, n := range list {
		most = max(most, elements(n))
	}
	zeros := make([]byte, int(d.dtype.Size())*most)
	for i, n := range list {
		head[i] = safetensors.Tensor{Name: n.Name, DType: d.dtype, Shape: n.Dims,
			Data: zeros[:int(d.dtype.Size())*elements(n)]}
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	if err := safetensors.Write(&headerOnly{w: w}, head); err != nil {
		return err
	}
	for _, n := range list {
		if err := d.tensor(w, n.Name, elements(n)); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}

// headerOnly passes the length and the header, the first two writes of safetensors.Write, and drops the data.
type headerOnly struct {
	w io.Writer
	n int
}

func (h *headerOnly) Write(p []byte) (int, error) {
	if h.n++; h.n > 2 {
		return len(p), nil
	}
	return h.w.Write(p)
}

func (d *draw) tensor(w io.Writer, name string, n int) error {
	constant := func(v float32) error {
		_, err := w.Write(bytes.Repeat(d.append(nil, d.bits(v)), n))
		return err
	}
	switch {
	case strings.HasSuffix(name, "bias"):
		return constant(0)
	case strings.Contains(name, "norm"), strings.Contains(name, ".ln_"):
		if d.spec.Decoder.UnitNorms && strings.HasPrefix(name, d.spec.CheckpointName("text.")) {
			return constant(0) // it is added to 1
		}
		return constant(1)
	}
	buf := make([]byte, 0, 1<<16)
	for n > 0 {
		buf = buf[:0]
		for ; n > 0 && len(buf) < cap(buf); n -= min(n, 4) {
			r := d.rng.Uint64()
			for range min(n, 4) {
				buf = d.append(buf, d.table[uint16(r)])
				r >>= 16
			}
		}
		if _, err := w.Write(buf); err != nil {
			return err
		}
	}
	return nil
}
