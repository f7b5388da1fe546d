// Package model opens a Hugging Face model folder: it reads config.json, the tokenizer, the chat template and the
// index of the weights, and turns them into the values that vision, fusion and decoder work with. One file per
// family; nothing below this package compares a model's name.
package model

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/chat"
	"github.com/mmserve/mmserve/internal/digest"
	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/internal/tokenizer"
	"github.com/mmserve/mmserve/vision"
)

// Spec is what a family makes of config.json: values only.
type Spec struct {
	Tower     vision.ViT
	Connector vision.Connector
	Decoder   decoder.Config
	Layout    fusion.Layout
	// Processor is the image processor of a checkpoint whose files name none.
	Processor string
	// Prefixes rename the checkpoint's tensors to the names the graphs use.
	Prefixes []graph.Prefix
	// Images is set for a tower that takes images of any size, which Tower and Connector then do not describe.
	NativeResolution *vision.NativeResolution
	// WholeImages makes one tile of every image, whatever the image processor says.
	WholeImages bool
	// TowerLayers is the number of layers in the checkpoint's tower, of which Tower may run fewer; 0 if it runs all.
	TowerLayers int
	// untied is set where the files say that the head is not the embedding table.
	untied bool
}

// validate refuses a tower or connector that no graph can be built from; the decoder was checked where it was read.
func (s Spec) validate() error {
	if err := s.Tower.Validate(); err != nil {
		return err
	}
	return s.Connector.Validate(s.Tower)
}

// family reads config.json of the model types it registered for.
type family func(config []byte) (Spec, error)

var families = map[string]family{}

// Families lists the supported values of config.json's model_type, sorted.
func Families() []string { return slices.Sorted(maps.Keys(families)) }

// ReadSpec reads a config.json without the rest of its folder.
func ReadSpec(config []byte) (modelType string, s Spec, err error) {
	if modelType, err = readModelType(config); err != nil {
		return "", Spec{}, err
	}
	read, ok := families[modelType]
	switch {
	case exportFamilies[modelType].read != nil:
		return "", Spec{}, fmt.Errorf("model_type %q is not supported from a checkpoint, only from ready-made ONNX graphs", modelType)
	case !ok:
		return "", Spec{}, fmt.Errorf("model_type %q is not supported; supported are %s", modelType, strings.Join(Families(), ", "))
	}
	if s, err = read(config); err != nil {
		return modelType, Spec{}, err
	}
	return modelType, s, s.within()
}

func readModelType(config []byte) (string, error) {
	var head struct {
		ModelType string `json:"model_type"`
	}
	err := json.Unmarshal(config, &head)
	return head.ModelType, err
}

// Model is a folder that was read. Its values do not change; it holds no session.
type Model struct {
	// Name is what the API calls the model: the folder's name.
	Name string
	// Type is config.json's model_type.
	Type string
	Spec
	// Warnings are what a newcomer should know: files that are not read, settings that are not applied.
	Warnings []string
	Weights  *graph.Weights // nil where the graphs are ready-made
	ckpt     *safetensors.Checkpoint
	export   *export // nil where they are built from a checkpoint
	files    fs.FS
	made     string // OpenDummy's folder, which Close removes
	digests  digest.Store
}

// Text is the part of a model that turns messages into ids and images into tiles.
type Text struct {
	Tokenizer *tokenizer.Tokenizer
	// Template is nil for a model without a chat template: it completes raw prompts only.
	Template *chat.Template
	// Guarded are the texts that a user's words must never form: special tokens and the image placeholder.
	Guarded []string
	// AddSpecial tells whether encoding adds the tokens of the tokenizer's post-processor. A prompt that its template
	// starts with BOS, where that is not empty, has got them. (transformers, ProcessorMixin.apply_chat_template)
	AddSpecial   bool
	BOS          string
	Preprocessor vision.Preprocessor
	// EOS are the ids that end an answer.
	EOS []int32
	// Defaults is how generation_config.json wants tokens picked; its Seed is not used.
	Defaults decoder.Sampling
	// Ignored names settings of generation_config.json that would change answers and are not applied.
	Ignored []string
	// Warnings are as a Model's, of the tokenizer's and the image processor's files.
	Warnings []string
}

// Open reads the model folder dir; "" is the embedded default model. A folder without a checkpoint but with ready-made
// ONNX graphs is an export.
func Open(dir string) (*Model, error) {
	if dir == "" {
		return openFS(defaultName, defaultFiles())
	}
	st, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("model folder: %w", err)
	}
	if !st.IsDir() {
		return nil, fmt.Errorf("model folder: %s is a file; name the folder that holds config.json", dir)
	}
	if _, err := os.Stat(filepath.Join(dir, "genai_config.json")); err == nil && len(exportFiles(dir)) == 0 && !hasWeights(dir) {
		return nil, fmt.Errorf("%s: genai_config.json: exports in the layout of onnxruntime-genai are not supported; supported is that of transformers.js, onnx/…", dir)
	}
	if why := runsExport(dir); why != "" {
		return openExport(dir, "", why)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	m, err := open(filepath.Base(abs), folder.Dir(abs), func() (*safetensors.Checkpoint, error) { return safetensors.Open(abs) })
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
	if m.Type, m.Spec, err = ReadSpec(raw); err != nil {
		return nil, fmt.Errorf("config.json: %w", err)
	}
	m.cutContext()
	if m.ckpt, err = weights(); err != nil {
		if errors.Is(err, safetensors.ErrNone) {
			err = noWeights(files)
		}
		return nil, err
	}
	if m.Weights, err = graph.NewWeights(m.ckpt, m.Prefixes...); err == nil {
		if err = m.tie(); err == nil {
			err = m.reconcile()
		}
	}
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// OpenTower opens the vision tower's session.
func (m *Model) OpenTower(p graph.Precision, o ort.Options) (vision.Tower, error) {
	if m.export != nil {
		return m.export.openTower(m.Spec, o)
	}
	t, err := vision.OpenTower(m.Weights, m.Tower, m.Connector, p, o)
	if err != nil {
		return nil, err
	}
	return t, nil
}

// OpenDecoder opens the decoder's sessions and reserves its KV cache.
func (m *Model) OpenDecoder(o decoder.OpenOptions) (decoder.Runner, error) {
	if m.export != nil {
		r, err := m.export.openDecoder(m.Decoder, o)
		if err != nil {
			return nil, err
		}
		return r, nil
	}
	if o.Session.Provider.Can().DeviceTensors {
		r, err := decoder.OpenDevice(m.Decoder, m.Weights, o)
		if err != nil {
			return nil, err
		}
		return r, nil
	}
	r, err := decoder.OpenHost(m.Decoder, m.Weights, o)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// ShortestRow is the shortest prompt that the decoder takes, of no meaning.
func (m *Model) ShortestRow() decoder.Row {
	n := m.Decoder.ShortestPrompt()
	if m.export != nil && m.export.family.start > 0 {
		n = m.export.family.start + 1
	}
	row := decoder.Row{IDs: make([]int32, n)}
	if m.export != nil && n > 1 { // patches are what an encoder reads
		row.Spans = []fusion.Span{{Len: n - max(m.export.family.start, 1)}}
		row.Spans[0].Patches = make([]float32, row.Spans[0].Len*m.Decoder.Hidden)
	}
	return row
}

// Parameters is the number of weights in the checkpoint, tied ones once, or in the graphs.
func (m *Model) Parameters() int64 {
	var n int64
	for _, g := range m.Graphs() {
		n += g.Parameters
	}
	if m.export != nil {
		return n
	}
	for _, name := range m.ckpt.Names() {
		t, _ := m.ckpt.Tensor(name)
		n += int64(t.Elems())
	}
	return n
}

// Tensors is the number of tensors in the checkpoint.
func (m *Model) Tensors() int { return len(m.ckpt.Names()) }

// Remember has Digest and LoadQuantized take the weights' digest that an earlier process left in the store, as long as the
// files did not change. It must come before them.
func (m *Model) Remember(s digest.Store) {
	m.digests = s
	if m.ckpt != nil {
		m.ckpt.Remember(s)
	}
}

// Digest identifies the model: the SHA-256 of its config.json, tokenizer.json and weights. It reads them all.
func (m *Model) Digest() ([]byte, error) {
	h := sha256.New()
	for _, name := range []string{"config.json", "tokenizer.json"} {
		raw, _ := folder.Read(m.files, name) // a file that is not there counts as empty
		fmt.Fprintln(h, name, len(raw))
		h.Write(raw)
	}
	if m.export != nil {
		sum, err := m.export.digest(m.digests)
		if err != nil {
			return nil, err
		}
		h.Write(sum)
		return h.Sum(nil), nil
	}
	h.Write(m.ckpt.Digest())
	return h.Sum(nil), nil
}

// WeightBytes is the memory that the weights take once they run: as float32, or what the files of an export have.
func (m *Model) WeightBytes() int64 {
	if m.export == nil {
		return 4 * m.Parameters()
	}
	var n int64
	for _, g := range m.Graphs() {
		n += g.Bytes
	}
	return n
}

// KVBytesPerToken is the memory that one position takes over all layers.
func (m *Model) KVBytesPerToken() int64 {
	if m.export != nil {
		return m.export.kvBytesPerToken()
	}
	return m.Decoder.KVBytesPerToken()
}

// KVBytes is the most memory that n positions of so many sequences take.
func (m *Model) KVBytes(n, sequences int) int64 {
	if m.export != nil {
		return int64(n) * m.KVBytesPerToken()
	}
	return m.Decoder.KVBytes(n, sequences)
}

// KVTokens is the number of positions, of so many sequences together, that bytes hold; 0 if there is no room.
func (m *Model) KVTokens(bytes int64, sequences int) int {
	if m.export != nil {
		return int(bytes / m.KVBytesPerToken())
	}
	return m.Decoder.KVTokens(bytes, sequences)
}

// StoredTypes counts tensors by their type in the checkpoint.
func (m *Model) StoredTypes() map[string]int {
	types := map[string]int{}
	for _, name := range m.ckpt.Names() {
		t, _ := m.ckpt.Tensor(name)
		types[string(t.DType)]++
	}
	return types
}

// Close unmaps the checkpoint. Sessions over it must be closed before.
func (m *Model) Close() error {
	if m.export != nil {
		return nil
	}
	err := m.ckpt.Close()
	if m.Weights != nil {
		err = errors.Join(err, m.Weights.Close())
	}
	if m.made != "" {
		err = errors.Join(err, os.RemoveAll(m.made))
	}
	return err
}

// LoadQuantized makes the quantised forms of the linear weights available that the tower and the decoder have in these
// precisions, from dir or by quantising now and keeping them there; see graph.Weights.LoadQuantized.
func (m *Model) LoadQuantized(dir string, tower, dec graph.Precision) (graph.Quantized, error) {
	if !tower.Quantized() && !dec.Quantized() {
		return graph.Quantized{}, nil
	}
	if m.export != nil {
		return graph.Quantized{}, errors.New("--precision: ready-made ONNX graphs have the precision they were made with; choose among them with --onnx-dtype")
	}
	return m.Weights.LoadQuantized(dir, func(w *graph.Weights) error {
		if _, err := vision.TowerGraph(w, m.Tower, m.Connector, tower); err != nil {
			return err
		}
		_, err := short(m.Decoder).Graph(w, dec)
		return err
	})
}
