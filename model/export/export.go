// Package export reads ready-made ONNX graphs in the layout of Optimum and transformers.js: onnx/<session><suffix>.onnx
// beside a config.json, each graph in several precisions.
package export

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/digest"
	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/model/families"
	"github.com/mmserve/mmserve/vision"
)

// Export is a folder of ready-made graphs that was read. It holds no session.
type Export struct {
	why     string
	family  families.Graphs
	graphs  map[string]Graph // by session
	digests digest.Store
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

// Open reads the ready-made graphs of a model folder and its config.json. dtypes chooses among the files: a name such
// as "q4" for all of them, or "decoder_model_merged=q4,vision_encoder=fp16"; what it leaves open is as config.json
// wants it, and else the most faithful file that is there. why is told in Path.
func Open(dir string, config []byte, dtypes, why string) (e *Export, modelType string, s families.Spec, err error) {
	e = &Export{why: why, graphs: map[string]Graph{}}
	if modelType, s, e.family, err = families.ReadGraphs(config); err != nil {
		return nil, "", s, fmt.Errorf("config.json: %w", err)
	}
	choose, err := newChoice(dir, dtypes, config)
	if err != nil {
		return nil, "", s, err
	}
	for _, session := range e.family.Sessions {
		if e.graphs[session], err = choose.graph(session); err != nil {
			return nil, "", s, err
		}
	}
	return e, modelType, s, e.inferConfigFromGraph(&s)
}

// inferConfigFromGraph takes the decoder's sizes from what its graph declares: config.json may be silent, or about
// another export.
func (e *Export) inferConfigFromGraph(s *families.Spec) error {
	g := e.graphs[families.DecoderGraph]
	if e.KVBytesPerToken() == 0 {
		return fmt.Errorf("%s has no inputs past_key_values.… of a known size: mmserve runs decoders that keep keys and values", g.Path)
	}
	d := &s.Decoder
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
	if e.family.InferSizes {
		d.Hidden = hidden
		c := vision.InGraph{PerTile: s.Layout.PatchTokens, TextHidden: hidden}
		tower := e.graphs[e.family.Sessions[0]]
		size(tower.Outputs, "image_features", 1, &c.PerTile)
		size(tower.Inputs, "pixel_values", 2, &s.Tower.ImageSize)
		if c.PerTile < 1 || c.PerTile > 1<<16 || s.Tower.ImageSize < 1 || s.Tower.ImageSize > 1<<13 {
			return fmt.Errorf("%s gives %d patches of an image of %d pixels, want at most %d of %d", tower.Path, c.PerTile, s.Tower.ImageSize, 1<<16, 1<<13)
		}
		s.SingleTile(c)
	}
	if d.Vocab > 1<<24 {
		return fmt.Errorf("%s gives %d logits, want at most %d", g.Path, d.Vocab, 1<<24)
	}
	if hidden != d.Hidden {
		return fmt.Errorf("%s takes embeddings of %d values, config.json says %d", g.Path, hidden, d.Hidden)
	}
	return nil
}

// OpenTower opens the session of the tower with its connector. The graph has its precision.
func (e *Export) OpenTower(s families.Spec, _ graph.Precision, o ort.Options) (vision.Tower, error) {
	f := e.graphs[e.family.Sessions[0]].File
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

// OpenDecoder opens the decoder's sessions and reserves its caches.
func (e *Export) OpenDecoder(c decoder.Config, o decoder.OpenOptions) (decoder.Runner, error) {
	f := decoder.ExportFiles{Embed: e.graphs[families.EmbedGraph].File, Decoder: e.graphs[families.DecoderGraph].File}
	if e.family.Sessions[0] != families.EncoderGraph {
		f.Encoder = e.graphs[families.EncoderGraph].File
	}
	r, err := decoder.OpenExport(decoder.ExportConfig{
		Vocab: c.Vocab, MaxLen: c.MaxLen, FirstPosition: e.family.FirstPosition, EncoderStates: c.EncoderStates,
		Start: e.family.Start,
	}, f, o)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// LoadQuantized refuses: graphs have the precision that they were made with.
func (e *Export) LoadQuantized(families.Spec, string, graph.Precision, graph.Precision) (graph.Quantized, error) {
	return graph.Quantized{}, errors.New("--precision: ready-made ONNX graphs have the precision they were made with; choose among them with --onnx-dtype")
}

// ShortestRow is the shortest prompt that the decoder takes, of no meaning.
func (e *Export) ShortestRow(c decoder.Config) decoder.Row {
	n := c.ShortestPrompt()
	if e.family.Start > 0 {
		n = e.family.Start + 1
	}
	row := decoder.Row{IDs: make([]int32, n)}
	if n > 1 { // patches are what an encoder reads
		row.Spans = []fusion.Span{{Len: n - max(e.family.Start, 1)}}
		row.Spans[0].Patches = make([]float32, row.Spans[0].Len*c.Hidden)
	}
	return row
}

// Graphs are the files that are run, by their sessions' names.
func (e *Export) Graphs() []Graph {
	var list []Graph
	for _, session := range slices.Sorted(maps.Keys(e.graphs)) {
		list = append(list, e.graphs[session])
	}
	return list
}

// Path says how the model is run, and why.
func (e *Export) Path() string { return "ready-made ONNX graphs: " + e.why }

// Parameters is the number of weights in the graphs.
func (e *Export) Parameters() (n int64) {
	for _, g := range e.graphs {
		n += g.Parameters
	}
	return n
}

// WeightBytes is what the files have.
func (e *Export) WeightBytes() (n int64) {
	for _, g := range e.graphs {
		n += g.Bytes
	}
	return n
}

// StoredTypes is empty: the weights are the graphs' own.
func (e *Export) StoredTypes() map[string]int { return nil }

// Remember has Digest take what an earlier process left in the store.
func (e *Export) Remember(s digest.Store) { e.digests = s }

// KV is what positions take, by the graph's caches.
func (e *Export) KV(decoder.Config) decoder.KVCost { return e }

// Close does nothing: sessions hold what they opened.
func (e *Export) Close() error { return nil }

// Digest is the SHA-256 of the graphs and their data.
func (e *Export) Digest() ([]byte, error) {
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
	return e.digests.Digest("onnx", stamps, func() ([]byte, error) {
		h := sha256.New()
		for _, f := range files {
			if _, err := io.Copy(h, f); err != nil {
				return nil, err
			}
		}
		return h.Sum(nil), nil
	})
}

// KVBytesPerToken counts a position three times: where it is kept, and in the past and the present of a step.
func (e *Export) KVBytesPerToken() (n int64) {
	for _, in := range e.graphs[families.DecoderGraph].Inputs {
		if strings.HasPrefix(in.Name, "past_key_values.") && len(in.Dims) == 4 {
			n += 3 * int64(max(in.Dims[1].Size, 0)) * int64(max(in.Dims[3].Size, 0)) * int64(in.Type.Size())
		}
	}
	return n
}

// KVBytes is the most memory that n positions take, of however many sequences.
func (e *Export) KVBytes(n, _ int) int64 { return int64(n) * e.KVBytesPerToken() }

// KVTokens is the number of positions that bytes hold.
func (e *Export) KVTokens(bytes int64, _ int) int { return int(bytes / e.KVBytesPerToken()) }
