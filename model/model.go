// Package model opens a Hugging Face model folder: a checkpoint, over which graphs are built, or ready-made graphs. It
// reads the tokenizer, the chat template and the settings beside them. What each family makes of config.json is in
// families; nothing outside compares a model's name.
package model

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/digest"
	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/model/export"
	"github.com/mmserve/mmserve/model/families"
	"github.com/mmserve/mmserve/vision"
)

// Model is a folder that was read. Its values do not change; it holds no session.
type Model struct {
	// Name is what the API calls the model: the folder's name.
	Name string
	// Type is config.json's model_type.
	Type string
	families.Spec
	// Warnings are what a newcomer should know: files that are not read, settings that are not applied.
	Warnings []string
	// Weights are the checkpoint's; nil where the graphs are ready-made.
	Weights   *graph.Weights
	source    source
	files     fs.FS
	synthetic string // OpenSynthetic's folder, which Close removes
}

// source is where a model's graphs come from: a checkpoint, over which they are built, or an export.Export.
type source interface {
	// Path says how the model is run, and why.
	Path() string
	// OpenTower opens the vision tower's session.
	OpenTower(s families.Spec, p graph.Precision, o ort.Options) (vision.Tower, error)
	// OpenDecoder opens the decoder's sessions and reserves its KV cache.
	OpenDecoder(c decoder.Config, o decoder.OpenOptions) (decoder.Runner, error)
	// LoadQuantized makes the quantised forms of the weights available, from dir or by quantising now.
	LoadQuantized(s families.Spec, dir string, tower, dec graph.Precision) (graph.Quantized, error)
	// ShortestRow is the shortest prompt that the decoder takes.
	ShortestRow(c decoder.Config) decoder.Row
	// Graphs are the files of ready-made graphs.
	Graphs() []export.Graph
	// StoredTypes counts tensors by their type in a checkpoint.
	StoredTypes() map[string]int
	// Parameters is the number of weights, tied ones once.
	Parameters() int64
	// WeightBytes is the memory that the weights take once they run.
	WeightBytes() int64
	// KV is what positions take of memory.
	KV(c decoder.Config) decoder.KVCost
	// Remember has Digest take what an earlier process left in the store.
	Remember(s digest.Store)
	// Digest is the SHA-256 of the weights.
	Digest() ([]byte, error)
	Close() error
}

var (
	_ source = (*checkpoint)(nil)
	_ source = (*export.Export)(nil)
)

// Open reads the model folder dir; "" is the embedded default model. A folder without a checkpoint but with ready-made
// ONNX graphs is an export.
func Open(dir string) (*Model, error) {
	if dir == "" {
		return openFS(defaultName, DefaultFiles())
	}
	st, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no model folder %s: name a folder that holds config.json, or a model of a hub as ORG/NAME", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("model folder: %w", err)
	}
	if !st.IsDir() {
		return nil, fmt.Errorf("model folder: %s is a file; name the folder that holds config.json", dir)
	}
	if _, err := os.Stat(filepath.Join(dir, "genai_config.json")); err == nil && len(export.Files(dir)) == 0 &&
		!hasWeights(dir) {
		return nil, fmt.Errorf("%s: genai_config.json: exports in the layout of onnxruntime-genai are not supported; supported is that of transformers.js, onnx/…", dir)
	}
	if why := runsExport(dir); why != "" {
		return openExport(dir, "", why)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	m, err := open(filepath.Base(abs), folder.Dir(abs),
		func() (*safetensors.Checkpoint, error) { return safetensors.Open(abs) })
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return m, nil
}

func openFS(name string, files fs.FS) (*Model, error) {
	return open(name, files, func() (*safetensors.Checkpoint, error) { return safetensors.OpenFS(files) })
}

func open(name string, files fs.FS, weights func() (*safetensors.Checkpoint, error)) (*Model, error) {
	raw, err := folder.JSON(files, "config.json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, noConfig(files)
	}
	if err != nil {
		return nil, err
	}
	m := &Model{Name: name, files: files}
	if m.Warnings, err = changed(files, raw); err != nil {
		return nil, err
	}
	if m.Type, m.Spec, err = families.Read(raw); err != nil {
		return nil, fmt.Errorf("config.json: %w", err)
	}
	if m.DaViT != nil {
		if err := m.sizeTower(); err != nil {
			return nil, err
		}
	}
	if from := m.CutContext(); from > 0 {
		m.warn("max_position_embeddings is %d: the context is cut to %d tokens", from, m.Decoder.MaxLen)
	}
	if err := m.openCheckpoint(weights); err != nil {
		return nil, err
	}
	return m, nil
}

// OpenExport reads a model folder with ready-made ONNX graphs; dtypes chooses among them as in export.Open.
func OpenExport(dir, dtypes string) (*Model, error) {
	return openExport(dir, dtypes, "--onnx-dtype asks for it")
}

func openExport(dir, dtypes, why string) (*Model, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	m := &Model{Name: filepath.Base(abs), files: folder.Dir(abs)}
	if err := m.readExport(abs, dtypes, why); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return m, nil
}

func (m *Model) readExport(dir, dtypes, why string) error {
	raw, err := folder.JSON(m.files, "config.json")
	if err != nil {
		return err
	}
	if m.Warnings, err = changedGraphs(m.files, raw); err != nil {
		return err
	}
	var e *export.Export
	if e, m.Type, m.Spec, err = export.Open(dir, raw, dtypes, why); err != nil {
		return err
	}
	m.source = e
	return nil
}

// runsExport tells why Open runs a folder's graphs; it is empty where Open does not.
func runsExport(dir string) string {
	if len(export.Files(dir)) == 0 {
		return ""
	}
	if !hasWeights(dir) {
		return "the folder has no safetensors"
	}
	raw, _ := folder.JSON(folder.Dir(dir), "config.json")
	if t, err := families.ModelType(raw); err == nil {
		if f := families.Lookup(t); f.Checkpoint == nil && f.Graphs != nil {
			return fmt.Sprintf("model_type %q is run from such graphs only", t)
		}
	}
	return ""
}

// OpenSynthetic opens a folder of random weights, which Close removes.
func OpenSynthetic(name, dir string) (*Model, error) {
	m, err := Open(dir)
	if err != nil {
		return nil, err
	}
	m.Name, m.synthetic = name, dir
	return m, nil
}

// Synthetic tells that the weights are random: what the model answers means nothing.
func (m *Model) Synthetic() bool { return m.synthetic != "" }

// Files are the model's folder.
func (m *Model) Files() fs.FS { return m.files }

// OpenTower opens the vision tower's session.
func (m *Model) OpenTower(p graph.Precision, o ort.Options) (vision.Tower, error) {
	return m.source.OpenTower(m.Spec, p, o)
}

// OpenDecoder opens the decoder's sessions and reserves its KV cache.
func (m *Model) OpenDecoder(o decoder.OpenOptions) (decoder.Runner, error) {
	return m.source.OpenDecoder(m.Decoder, o)
}

// LoadQuantized makes the quantised forms of the linear weights available that the tower and the decoder have in these
// precisions, from dir or by quantising now and keeping them there; see graph.Weights.LoadQuantized.
func (m *Model) LoadQuantized(dir string, tower, dec graph.Precision) (graph.Quantized, error) {
	if !tower.Quantized() && !dec.Quantized() {
		return graph.Quantized{}, nil
	}
	return m.source.LoadQuantized(m.Spec, dir, tower, dec)
}

// ShortestRow is the shortest prompt that the decoder takes, of no meaning.
func (m *Model) ShortestRow() decoder.Row { return m.source.ShortestRow(m.Decoder) }

// Path says how the model is run, and why.
func (m *Model) Path() string { return m.source.Path() }

// Graphs are the files of a model that is run from ready-made graphs, nil for one that is not.
func (m *Model) Graphs() []export.Graph { return m.source.Graphs() }

// Parameters is the number of weights in the checkpoint, tied ones once, or in the graphs.
func (m *Model) Parameters() int64 { return m.source.Parameters() }

// StoredTypes counts tensors by their type in the checkpoint.
func (m *Model) StoredTypes() map[string]int { return m.source.StoredTypes() }

// Tensors is the number of tensors in the checkpoint.
func (m *Model) Tensors() (n int) {
	for _, k := range m.StoredTypes() {
		n += k
	}
	return n
}

// Remember has Digest and LoadQuantized take the weights' digest that an earlier process left in the store, as long as
// the files did not change. It must come before them.
func (m *Model) Remember(s digest.Store) { m.source.Remember(s) }

// Digest identifies the model: the SHA-256 of its config.json, tokenizer.json and weights. It reads them all.
func (m *Model) Digest() ([]byte, error) {
	h := sha256.New()
	for _, name := range []string{"config.json", "tokenizer.json"} {
		raw, _ := folder.Read(m.files, name) // a file that is not there counts as empty
		fmt.Fprintln(h, name, len(raw))
		h.Write(raw)
	}
	sum, err := m.source.Digest()
	if err != nil {
		return nil, err
	}
	h.Write(sum)
	return h.Sum(nil), nil
}

// WeightBytes is the memory that the weights take once they run: as float32, or what the files of an export have.
func (m *Model) WeightBytes() int64 { return m.source.WeightBytes() }

// KVBytesPerToken is the memory that one position takes over all layers.
func (m *Model) KVBytesPerToken() int64 { return m.source.KV(m.Decoder).KVBytesPerToken() }

// KVBytes is the most memory that n positions of so many sequences take.
func (m *Model) KVBytes(n, sequences int) int64 { return m.source.KV(m.Decoder).KVBytes(n, sequences) }

// KVTokens is the number of positions, of so many sequences together, that bytes hold; 0 if there is no room.
func (m *Model) KVTokens(bytes int64, sequences int) int {
	return m.source.KV(m.Decoder).KVTokens(bytes, sequences)
}

// Close unmaps the checkpoint. Sessions over it must be closed before.
func (m *Model) Close() error {
	err := m.source.Close()
	if m.synthetic != "" {
		err = errors.Join(err, os.RemoveAll(m.synthetic))
	}
	return err
}
