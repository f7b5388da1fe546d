package model

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

	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/safetensors"
)

// dummySeed is that of OpenDummy's weights.
const dummySeed = 1

// OpenDummy opens a model of the shape of a config.json, named itself or by its folder, with seeded random weights: for
// load tests of a model that is not there. Where the folder has no tokenizer, those of the default model are used, with
// its prompt format and a preprocessor for the tower's pictures; what such a model answers means nothing.
func OpenDummy(path string) (*Model, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	dir, config := abs, "config.json"
	if st, err := os.Stat(abs); err != nil {
		return nil, fmt.Errorf("model folder: %w", err)
	} else if !st.IsDir() {
		dir, config = filepath.Split(abs)
	}
	raw, err := os.ReadFile(filepath.Join(dir, config))
	if err != nil {
		return nil, err
	}
	_, spec, err := ReadSpec(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", config, err)
	}
	made, err := os.MkdirTemp("", "mmserve-dummy-")
	if err != nil {
		return nil, err
	}
	files := layered{os.DirFS(made), os.DirFS(dir)}
	_, err = fs.Stat(files, "tokenizer.json")
	bare := errors.Is(err, fs.ErrNotExist)
	if bare {
		files[1] = defaultFiles()
	}
	m, err := openRandom(filepath.Base(filepath.Clean(dir)), made, files, raw, spec, bare)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(made))
	}
	m.made = made
	return m, nil
}

// openRandom writes what is made up into the folder made and opens it with what files has besides.
func openRandom(name, made string, files fs.FS, config []byte, spec Spec, bare bool) (*Model, error) {
	if err := os.WriteFile(filepath.Join(made, "config.json"), config, 0o600); err != nil {
		return nil, err
	}
	if bare {
		if err := os.WriteFile(filepath.Join(made, "preprocessor_config.json"), spec.preprocessorConfig(), 0o600); err != nil {
			return nil, err
		}
	}
	if err := writeRandom(filepath.Join(made, "model.safetensors"), spec, dummySeed); err != nil {
		return nil, err
	}
	m, err := open(name, files, func() (*safetensors.Checkpoint, error) { return safetensors.Open(made) })
	if err != nil || !bare {
		return m, err
	}
	if err := m.speakDefault(); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// preprocessorConfig is a preprocessor_config.json that makes tiles of the tower's size with any image processor.
func (s Spec) preprocessorConfig() []byte {
	return fmt.Appendf(nil, `{"size": {"height": %[1]d, "width": %[1]d, "longest_edge": %[2]d}, "max_image_size": {"longest_edge": %[1]d},
		"crop_size": {"height": %[1]d, "width": %[1]d}}`, s.Tower.ImageSize, min(4*s.Tower.ImageSize, 4096))
}

// speakDefault makes the model read prompts of the default model's tokenizer.
func (m *Model) speakDefault() error {
	d, err := Open("")
	if err != nil {
		return err
	}
	defer d.Close()
	if m.Decoder.Vocab < d.Decoder.Vocab {
		return fmt.Errorf("the model has %d token ids, the default model's tokenizer, which stands in, %d", m.Decoder.Vocab, d.Decoder.Vocab)
	}
	m.Layout.ImageTokenID = d.Layout.ImageTokenID
	if f := m.Layout.Frame; f != nil && !f.OnePicture { // whose start the default model's tokenizer has, too
		m.Layout.Frame = &fusion.Frame{End: f.End}
	}
	return nil
}

// layered looks a file up in each of its file systems in turn.
type layered []fs.FS

// Open implements fs.FS.
func (l layered) Open(name string) (f fs.File, err error) {
	for _, files := range l {
		if f, err = files.Open(name); !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
	}
	return nil, err
}

// WriteRandom writes model.safetensors into dir for the config.json that is there: bfloat16, normal with a deviation of
// 0.02 (norms' factors 1, biases 0), the same bytes for the same seed.
func WriteRandom(dir string, seed uint64) error {
	config, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		return err
	}
	_, spec, err := ReadSpec(config)
	if err != nil {
		return fmt.Errorf("config.json: %w", err)
	}
	return writeRandom(filepath.Join(dir, "model.safetensors"), spec, seed)
}

func writeRandom(path string, spec Spec, seed uint64) error {
	needs, err := spec.Needs()
	if err != nil {
		return err
	}
	// The header needs sizes only; the data is made tensor by tensor, so that memory stays small.
	head := make([]safetensors.Tensor, len(needs))
	var most int
	sizes := make([]int, len(needs))
	for i, n := range needs {
		sizes[i] = 1
		for _, d := range n.Dims {
			sizes[i] *= d
		}
		most = max(most, sizes[i])
	}
	zeros := make([]byte, 2*most)
	for i, n := range needs {
		head[i] = safetensors.Tensor{Name: n.Name, DType: safetensors.BF16, Shape: n.Dims, Data: zeros[:2*sizes[i]]}
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
	rng := rand.New(rand.NewPCG(seed, 0))
	table := normals(rng)
	for i, n := range needs {
		norm := float32(1)
		if spec.Decoder.UnitNorms && strings.HasPrefix(n.Name, spec.checkpointName("text.")) {
			norm = 0 // it is added to 1
		}
		if err := writeTensor(w, rng, table, n.Name, sizes[i], norm); err != nil {
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

// normals is a table of bfloat16 values to draw from: drawing is many times faster than computing each.
func normals(rng *rand.Rand) []uint16 {
	table := make([]uint16, 1<<16)
	for i := range table {
		table[i] = uint16(math.Float32bits(float32(rng.NormFloat64()*0.02)) >> 16)
	}
	return table
}

func writeTensor(w io.Writer, rng *rand.Rand, table []uint16, name string, n int, norm float32) error {
	constant := func(v float32) error {
		_, err := w.Write(bytes.Repeat(binary.LittleEndian.AppendUint16(nil, uint16(math.Float32bits(v)>>16)), n))
		return err
	}
	switch {
	case strings.HasSuffix(name, "bias"):
		return constant(0)
	case strings.Contains(name, "norm"), strings.Contains(name, ".ln_"):
		return constant(norm)
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
