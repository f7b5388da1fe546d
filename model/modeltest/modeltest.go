// Package modeltest makes model folders for tests: real shapes, seeded random weights.
package modeltest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/model"
)

// WriteRandom writes model.safetensors into dir for the config.json that is there: bfloat16, normal with a
// deviation of 0.02 (norm weights 1, biases 0), the same bytes for the same seed.
func WriteRandom(dir string, seed uint64) error {
	config, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		return err
	}
	_, spec, err := model.ReadSpec(config)
	if err != nil {
		return err
	}
	needs, err := spec.Needs()
	if err != nil {
		return err
	}
	// The header needs sizes only; the data is made tensor by tensor, so that memory stays small.
	head := make([]safetensors.Tensor, len(needs))
	for i, n := range needs {
		size := 2
		for _, d := range n.Dims {
			size *= d
		}
		head[i] = safetensors.Tensor{Name: n.Name, DType: safetensors.BF16, Shape: n.Dims, Data: zeros(size)}
	}
	f, err := os.Create(filepath.Join(dir, "model.safetensors"))
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	if err := safetensors.Write(&headerOnly{w: w}, head); err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	table := normals(rng)
	for i, n := range needs {
		if err := writeTensor(w, rng, table, n.Name, len(head[i].Data)/2); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}

var zero []byte

// zeros lends n zero bytes that must not be written.
func zeros(n int) []byte {
	if len(zero) < n {
		zero = make([]byte, n)
	}
	return zero[:n]
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

// normals is a table of bfloat16 values to draw from: drawing is many times faster than computing each.
func normals(rng *rand.Rand) []uint16 {
	table := make([]uint16, 1<<16)
	for i := range table {
		table[i] = uint16(math.Float32bits(float32(rng.NormFloat64()*0.02)) >> 16)
	}
	return table
}

func writeTensor(w io.Writer, rng *rand.Rand, table []uint16, name string, n int) error {
	constant := func(v float32) error {
		_, err := w.Write(bytes.Repeat(binary.LittleEndian.AppendUint16(nil, uint16(math.Float32bits(v)>>16)), n))
		return err
	}
	switch {
	case strings.HasSuffix(name, "bias"):
		return constant(0)
	case strings.Contains(name, "norm"):
		return constant(1)
	}
	buf := make([]byte, 0, 1<<16)
	for n > 0 {
		buf = buf[:0]
		for ; n > 0 && len(buf) < cap(buf); n -= min(n, 4) {
			r := rng.Uint64()
			for range min(n, 4) {
				buf = binary.LittleEndian.AppendUint16(buf, table[uint16(r)])
				r >>= 16
			}
		}
		if _, err := w.Write(buf); err != nil {
			return err
		}
	}
	return nil
}

// Copy copies the named files of a model folder.
func Copy(to, from string, names ...string) error {
	for _, n := range names {
		b, err := os.ReadFile(filepath.Join(from, n))
		if err != nil {
			return fmt.Errorf("copy a model folder: %w", err)
		}
		if err := os.WriteFile(filepath.Join(to, n), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}
