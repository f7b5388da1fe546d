package model

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/digest"
	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/vision"
)

// export is a folder of ready-made ONNX graphs in the layout of Optimum and transformers.js: onnx/<session><suffix>.onnx.
type export struct {
	why    string
	family exportFamily
	graphs map[string]Graph
}

// Graph is a file of an export.
type Graph struct {
	// Session is what the layout calls it: vision_encoder, embed_tokens, encoder_model, decoder_model_merged.
	Session string
	// DType is the layout's name of how its weights are stored; Why says how the choice came about.
	DType, Why string
	// Bytes is the size of the file and of its external data.
	Bytes int64
	ort.File
}

// The sessions of an export.
const (
	visionGraph  = "vision_encoder"
	embedGraph   = "embed_tokens"
	encoderGraph = "encoder_model"
	decoderGraph = "decoder_model_merged"
)

// usual are the sessions of most families: the tower's, which comes first, and the decoder's, which comes last.
var usual = []string{visionGraph, embedGraph, decoderGraph}

// exportDTypes are the layout's names of how weights are stored, most faithful first, and the suffixes of their files.
// Any other name has itself as the suffix. Reference: transformers.js DEFAULT_DTYPE_SUFFIX_MAPPING.
var exportDTypes = []struct{ name, suffix string }{
	{"fp32", ""}, {"fp16", "_fp16"}, {"q8", "_quantized"}, {"int8", "_int8"}, {"uint8", "_uint8"},
	{"q4", "_q4"}, {"q4f16", "_q4f16"}, {"bnb4", "_bnb4"}, {"q2", "_q2"}, {"q2f16", "_q2f16"}, {"q1", "_q1"}, {"q1f16", "_q1f16"},
}

func suffixOf(dtype string) string {
	for _, d := range exportDTypes {
		if d.name == dtype {
			return d.suffix
		}
	}
	return "_" + dtype
}

// exportFamilies are the model types of which exports are read, with what differs from the checkpoint's Spec.
var exportFamilies = map[string]exportFamily{
	"idefics3": {}, "smolvlm": {}, "llava": {}, "llava_onevision": {adapt: separateImages},
	"paligemma":              {first: 1},
	"vision-encoder-decoder": {sessions: []string{encoderGraph, decoderGraph}},
}

type exportFamily struct {
	// read is set for model types that are run from graphs only.
	read family
	// adapt changes a Spec where exports compute something else.
	adapt func(*Spec)
	// sessions replace the usual ones.
	sessions []string
	// first is what position_ids calls the first position.
	first int
	// start is the number of ids at a prompt's end that are the decoder's, in an encoder-decoder without EncoderStates.
	start int
}

func (f exportFamily) graphs() []string {
	if f.sessions == nil {
		return usual
	}
	return f.sessions
}

// exportTypes lists the model types of exportFamilies, sorted.
func exportTypes() []string { return slices.Sorted(maps.Keys(exportFamilies)) }

// readExportSpec reads the config.json of an export.
func readExportSpec(config []byte) (modelType string, s Spec, err error) {
	if modelType, err = readModelType(config); err != nil {
		return "", Spec{}, err
	}
	f, ok := exportFamilies[modelType]
	if !ok {
		return "", Spec{}, fmt.Errorf("ONNX graphs of model_type %q are not supported; supported are %s", modelType, strings.Join(exportTypes(), ", "))
	}
	read := f.read
	if read == nil {
		read = families[modelType]
	}
	if s, err = read(config); err == nil && f.adapt != nil {
		f.adapt(&s)
	}
	return modelType, s, err
}

// OpenExport reads a model folder with ready-made ONNX graphs. dtypes chooses among their files: a name such as "q4" for
// all of them, or "decoder_model_merged=q4,vision_encoder=fp16"; what it leaves open is as config.json wants it, and else
// the most faithful file that is there.
func OpenExport(dir, dtypes string) (*Model, error) {
	return openExport(dir, dtypes, "--onnx-dtype asks for it")
}

func openExport(dir, dtypes, why string) (*Model, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	m := &Model{Name: filepath.Base(abs), files: folder.Dir(abs), export: &export{why: why, graphs: map[string]Graph{}}}
	if err := m.readExport(abs, dtypes); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return m, nil
}

func (m *Model) readExport(dir, dtypes string) error {
	raw, err := folder.JSON(m.files, "config.json")
	if err != nil {
		return err
	}
	if m.Warnings, err = changedGraphs(m.files, raw); err != nil {
		return err
	}
	if m.Type, m.Spec, err = readExportSpec(raw); err != nil {
		return fmt.Errorf("config.json: %w", err)
	}
	choose, err := newExportChoice(dir, dtypes, raw)
	if err != nil {
		return err
	}
	m.export.family = exportFamilies[m.Type]
	for _, session := range m.export.family.graphs() {
		g, err := choose.graph(session)
		if err != nil {
			return err
		}
		m.export.graphs[session] = g
	}
	return m.believeGraphs()
}

// believeGraphs takes the decoder's sizes from what its graph declares: config.json may be silent, or about another
// export.
func (m *Model) believeGraphs() error {
	g := m.export.graphs[decoderGraph]
	if m.export.kvBytesPerToken() == 0 {
		return fmt.Errorf("%s has no inputs past_key_values.… of a known size: mmserve runs decoders that keep keys and values", g.Path)
	}
	d := &m.Decoder
	size := func(list []onnx.Value, name string, dim int, into *int) {
		if v, ok := onnx.Find(list, name); ok && len(v.Dims) > dim && v.Dims[dim].Size > 0 {
			*into = v.Dims[dim].Size
		}
	}
	size(g.Outputs, "logits", 2, &d.Vocab)
	for _, cache := range []string{"past_key_values.0.key", "past_key_values.0.decoder.key"} {
		size(g.Inputs, cache, 1, &d.KVHeads)
		size(g.Inputs, cache, 3, &d.HeadDim)
	}
	hidden := d.Hidden
	size(g.Inputs, "inputs_embeds", 2, &hidden)
	if c, ok := m.Connector.(vision.Given); ok {
		d.Hidden, c.TextHidden = hidden, hidden
		tower := m.export.graphs[m.export.family.graphs()[0]]
		size(tower.Outputs, "image_features", 1, &c.PerTile)
		size(tower.Inputs, "pixel_values", 2, &m.Tower.ImageSize)
		if c.PerTile < 1 || c.PerTile > 1<<16 || m.Tower.ImageSize < 1 || m.Tower.ImageSize > 1<<13 {
			return fmt.Errorf("%s gives %d patches of an image of %d pixels, want at most %d of %d", tower.Path, c.PerTile, m.Tower.ImageSize, 1<<16, 1<<13)
		}
		m.given(c)
	}
	if d.Vocab > 1<<24 {
		return fmt.Errorf("%s gives %d logits, want at most %d", g.Path, d.Vocab, 1<<24)
	}
	if hidden != d.Hidden {
		return fmt.Errorf("%s takes embeddings of %d values, config.json says %d", g.Path, hidden, d.Hidden)
	}
	return nil
}

// given makes one tile of every image, and a run of placeholders of what the graph gives for it.
func (s *Spec) given(c vision.Given) {
	run := strings.Repeat(s.Layout.Placeholder, c.PerTile)
	s.Connector, s.Layout.PatchTokens = c, c.PerTile
	s.Layout.Expand = func(vision.Grid) string { return run }
}

// exportChoice picks the file of each session.
type exportChoice struct {
	dir      string
	files    []string
	asked    map[string]string // session → dtype; "" is for those not named
	declared map[string]string
}

func newExportChoice(dir, dtypes string, config []byte) (c exportChoice, err error) {
	c = exportChoice{filepath.Join(dir, "onnx"), exportFiles(dir), map[string]string{}, map[string]string{}}
	for _, item := range strings.Split(dtypes, ",") {
		session, dtype, named := strings.Cut(item, "=")
		if !named {
			session, dtype = "", item
		}
		if dtype = strings.TrimSpace(dtype); dtype != "" {
			c.asked[strings.TrimSpace(session)] = dtype
		}
	}
	var file struct {
		JS struct {
			DType json.RawMessage `json:"dtype"`
		} `json:"transformers.js_config"`
	}
	if err := json.Unmarshal(config, &file); err != nil {
		return c, fmt.Errorf("config.json: transformers.js_config: %w", err)
	}
	if len(file.JS.DType) == 0 || string(file.JS.DType) == "null" {
		return c, nil
	}
	var all string
	if json.Unmarshal(file.JS.DType, &all) == nil {
		c.declared[""] = all
	} else if err := json.Unmarshal(file.JS.DType, &c.declared); err != nil {
		return c, fmt.Errorf("config.json: transformers.js_config.dtype: %w", err)
	}
	return c, nil
}

func (c exportChoice) graph(session string) (g Graph, err error) {
	g.Session = session
	if g.DType, g.Why, err = c.pick(session); err != nil {
		return g, err
	}
	if g.File, err = ort.ReadFile(filepath.Join(c.dir, session+suffixOf(g.DType)+".onnx")); err != nil {
		return g, err
	}
	for _, name := range append([]string{filepath.Base(g.Path)}, g.Data...) {
		if !filepath.IsLocal(name) {
			return g, fmt.Errorf("%s: external data at %q, want a file beside it", g.Path, name)
		}
		st, err := os.Stat(filepath.Join(c.dir, filepath.FromSlash(name)))
		if err != nil {
			return g, fmt.Errorf("%s: %w", g.Path, err)
		}
		g.Bytes += st.Size()
	}
	return g, nil
}

// pick chooses a session's dtype and says why.
func (c exportChoice) pick(session string) (dtype, why string, err error) {
	there := c.there(session)
	if len(there) == 0 {
		return "", "", fmt.Errorf("onnx/ has no %s*.onnx", session)
	}
	if dtype, ok := find(c.asked, session); ok {
		if !slices.Contains(there, dtype) {
			return "", "", fmt.Errorf("--onnx-dtype: onnx/ has no %s as %s; it has %s", session, dtype, strings.Join(there, ", "))
		}
		return dtype, "asked for", nil
	}
	if dtype, ok := find(c.declared, session); ok && slices.Contains(there, dtype) {
		return dtype, "as config.json's transformers.js_config wants it", nil
	}
	if len(there) == 1 {
		return there[0], "the only one there", nil
	}
	return there[0], "the most faithful of " + strings.Join(there, ", "), nil
}

func find(list map[string]string, session string) (string, bool) {
	if dtype, ok := list[session]; ok {
		return dtype, true
	}
	dtype, ok := list[""]
	return dtype, ok
}

// there lists the dtypes of a session's files, most faithful first.
func (c exportChoice) there(session string) []string {
	var list, others []string
	for _, d := range exportDTypes {
		if slices.Contains(c.files, session+d.suffix+".onnx") {
			list = append(list, d.name)
		}
	}
	for _, f := range c.files {
		dtype, ok := strings.CutPrefix(strings.TrimSuffix(f, ".onnx"), session+"_")
		if ok && suffixOf(dtype) == "_"+dtype && !slices.Contains(list, dtype) {
			others = append(others, dtype)
		}
	}
	return append(list, others...)
}

// exportFiles lists the graphs of a folder in the layout.
func exportFiles(dir string) []string {
	entries, _ := os.ReadDir(filepath.Join(dir, "onnx"))
	var list []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".onnx") {
			list = append(list, e.Name())
		}
	}
	return list
}

// runsExport tells why Open runs a folder's graphs; it is empty where Open does not.
func runsExport(dir string) string {
	if len(exportFiles(dir)) == 0 {
		return ""
	}
	if !hasWeights(dir) {
		return "the folder has no safetensors"
	}
	raw, _ := folder.JSON(folder.Dir(dir), "config.json")
	if t, err := readModelType(raw); err == nil && families[t] == nil && exportFamilies[t].read != nil {
		return fmt.Sprintf("model_type %q is run from such graphs only", t)
	}
	return ""
}

// hasWeights tells whether a folder has a checkpoint.
func hasWeights(dir string) bool {
	entries, _ := os.ReadDir(dir)
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool { return strings.HasSuffix(e.Name(), ".safetensors") })
}

// whole makes one tile of every image.
type whole struct{ vision.Preprocessor }

func (whole) Grid(int, int) vision.Grid { return vision.Grid{} }

func (p whole) Measure(w, h int, _ bool) (vision.Grid, int64, error) {
	return p.Preprocessor.Measure(w, h, false)
}

func (p whole) Prepare(ctx context.Context, data []byte, l vision.Limits, _ bool) (*vision.Image, error) {
	return p.Preprocessor.Prepare(ctx, data, l, false)
}

// Path says how the model is run, and why.
func (m *Model) Path() string {
	if m.export != nil {
		return "ready-made ONNX graphs: " + m.export.why
	}
	if list, _ := fs.Glob(m.files, "onnx/*.onnx"); len(list) > 0 {
		return "straight from safetensors, which goes before the graphs in onnx/ unless --onnx-dtype asks for them"
	}
	return "straight from safetensors"
}

// Graphs are the files of a model that is run from ready-made graphs, nil for one that is not.
func (m *Model) Graphs() []Graph {
	if m.export == nil {
		return nil
	}
	var list []Graph
	for _, session := range slices.Sorted(maps.Keys(m.export.graphs)) {
		list = append(list, m.export.graphs[session])
	}
	return list
}

func (e *export) openTower(s Spec, o ort.Options) (vision.Tower, error) {
	f := e.graphs[e.family.graphs()[0]].File
	if s.NativeResolution != nil {
		t, err := vision.OpenNativeExport(f, *s.NativeResolution, o)
		if err != nil {
			return nil, err
		}
		return t, nil
	}
	t, err := vision.OpenExport(f, s.Tower, s.Connector, o)
	if err != nil {
		return nil, err
	}
	return t, nil
}

func (e *export) openDecoder(d decoder.Config, o decoder.OpenOptions) (*decoder.ExportRunner, error) {
	f := decoder.ExportFiles{Embed: e.graphs[embedGraph].File, Decoder: e.graphs[decoderGraph].File}
	if sessions := e.family.graphs(); sessions[0] != encoderGraph {
		f.Encoder = e.graphs[encoderGraph].File
	}
	return decoder.OpenExport(decoder.ExportConfig{
		Vocab: d.Vocab, MaxLen: d.MaxLen, FirstPosition: e.family.first, EncoderStates: d.EncoderStates, Start: e.family.start,
	}, f, o)
}

// digest is the SHA-256 of the graphs and their data.
func (e *export) digest(store digest.Store) ([]byte, error) {
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	var stamps []digest.Stamp
	for _, session := range slices.Sorted(maps.Keys(e.graphs)) {
		g := e.graphs[session]
		for _, name := range append([]string{filepath.Base(g.Path)}, g.Data...) {
			f, err := folder.Open(filepath.Join(filepath.Dir(g.Path), filepath.FromSlash(name)))
			if err != nil {
				return nil, err
			}
			files, stamps = append(files, f), append(stamps, digest.Of(f))
		}
	}
	return store.Digest("onnx", stamps, func() ([]byte, error) {
		h := sha256.New()
		for _, f := range files {
			if _, err := io.Copy(h, f); err != nil {
				return nil, err
			}
		}
		return h.Sum(nil), nil
	})
}

// kvBytesPerToken counts a position three times: where it is kept, and in the past and the present of a step.
func (e *export) kvBytesPerToken() (n int64) {
	for _, in := range e.graphs[decoderGraph].Inputs {
		if strings.HasPrefix(in.Name, "past_key_values.") && len(in.Dims) == 4 {
			n += 3 * int64(max(in.Dims[1].Size, 0)) * int64(max(in.Dims[3].Size, 0)) * int64(in.Type.Size())
		}
	}
	return n
}
