package main

import (
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/model"
)

type modelCmd struct {
	Inspect inspectCmd `cmd:"" help:"Family, parameters, tokens per image, memory needed."`
	Verify  verifyCmd  `cmd:"" help:"Check that every tensor is used, and compare with gold values."`
}

type inspectCmd struct {
	Dir       string `arg:"" optional:"" help:"Model folder (default: the embedded model)."`
	ONNXDType string `name:"onnx-dtype" placeholder:"NAME" help:"Look at the folder's ready-made graphs, and which; as for serve."`
}

func (i inspectCmd) Run(out io.Writer) error {
	m, err := openModel(i.Dir, i.ONNXDType)
	if err != nil {
		return err
	}
	defer m.Close()
	text, err := m.OpenText()
	if err != nil {
		return err
	}
	d := m.Decoder
	line := func(label, format string, args ...any) {
		fmt.Fprintf(out, "%-18s "+format+"\n", append([]any{label}, args...)...)
	}
	line("name", "%s", m.Name)
	line("family", "%s", m.Type)
	line("path", "%s", m.Path())
	if graphs := m.Graphs(); graphs != nil {
		line("parameters", "%s", count(m.Parameters()))
		for _, g := range graphs {
			line("graph", "%s, %s: %s (%s)", filepath.Base(g.Path), bytesText(g.Bytes), g.DType, g.Why)
		}
	} else {
		line("parameters", "%s, stored as %s", count(m.Parameters()), storedText(m.StoredTypes()))
		line("precision", "fp32")
	}
	if p := m.Pictures; p != nil {
		line("vision tower", "pictures of any size in patches of %d, %d×%d of them a token", p.PatchSize, p.MergeSize, p.MergeSize)
	} else {
		line("vision tower", "%d layers of %d, %d×%d pixels in patches of %d", m.Tower.Layers, m.Tower.Hidden, m.Tower.ImageSize, m.Tower.ImageSize, m.Tower.PatchSize)
	}
	line("decoder", "%d layers of %d, %d heads over %d key-value heads of %d", d.Layers, d.Hidden, d.Heads, d.KVHeads, d.HeadDim)
	line("vocabulary", "%d rows, %d tokens in the tokenizer", d.Vocab, text.Tokenizer.Size())
	line("context", "%d tokens", d.MaxLen)
	if m.Pictures == nil {
		line("tokens per tile", "%d", m.Layout.PatchTokens)
	}
	for _, size := range [][2]int{{512, 512}, {1300, 876}, {4032, 3024}} {
		g := text.Preprocessor.Grid(size[0], size[1])
		expanded := m.Layout.Expand(g)
		line("tokens per image", "%d for %d×%d pixels (%d tiles)", len(text.Tokenizer.Encode(expanded, false)), size[0], size[1], g.Tiles())
	}
	line("chat template", "%s", map[bool]string{true: "yes", false: "none: raw prompts only"}[text.Template != nil])
	line("weights", "%s in memory", bytesText(m.WeightBytes()))
	line("KV cache", "%s a slot of %d tokens (%s a token)", bytesText(m.KVBytesPerToken()*int64(d.MaxLen)), d.MaxLen, bytesText(m.KVBytesPerToken()))
	return nil
}

func storedText(types map[string]int) string {
	var list []string
	for _, k := range slices.Sorted(maps.Keys(types)) {
		list = append(list, fmt.Sprintf("%s (%d tensors)", k, types[k]))
	}
	return strings.Join(list, ", ")
}

type verifyCmd struct {
	Dir       string  `arg:"" help:"Model folder."`
	Gold      string  `placeholder:"FILE" help:"gold.safetensors or gold.jsonl with what the reference implementation gave."`
	Precision string  `enum:"fp32,int8" default:"fp32" help:"Precision of the linear layers: fp32 or int8."`
	CacheDir  string  `env:"MMSERVE_CACHE_DIR" placeholder:"DIR" help:"Where int8 weights are kept (default: the user's cache folder)."`
	ONNXDType string  `name:"onnx-dtype" placeholder:"NAME" help:"Verify the folder's ready-made graphs, and which; as for serve."`
	Tolerance float64 `default:"2e-4" help:"Largest absolute difference of image features and logits that passes."`
}

// Run prints a line a case and fails when one missed.
func (v verifyCmd) Run(c *cli, out io.Writer) error {
	if err := startRuntime(c.OrtLib); err != nil {
		return err
	}
	m, err := openModel(v.Dir, v.ONNXDType)
	if err != nil {
		return err
	}
	defer m.Close()
	p := graph.Precision(v.Precision)
	if p == graph.INT8 {
		if _, err := m.LoadInt8(cacheDir(v.CacheDir)); err != nil {
			return err
		}
	}
	ver, err := model.NewVerifier(m, v.Tolerance, p, ort.Options{})
	if err != nil {
		return err
	}
	defer ver.Close()
	for _, g := range m.Graphs() {
		fmt.Fprintf(out, "graph: %s\n", filepath.Base(g.Path))
	}
	if m.Weights != nil {
		unused, twice := m.Weights.Unused(), m.Weights.UsedTwice()
		fmt.Fprintf(out, "tensors: %d used, %d of them twice (tied), %d unused\n", m.Tensors()-len(unused), len(twice), len(unused))
		for _, name := range unused {
			fmt.Fprintf(out, "  unused: %s\n", name)
		}
	}
	if v.Gold == "" {
		return nil
	}
	cases, missed := 0, 0
	err = ver.File(v.Gold, func(k model.Case) {
		cases++
		if !k.OK() {
			missed++
		}
		fmt.Fprintln(out, caseText(k))
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%d cases, %d missed (tolerance %g)\n", cases, missed, v.Tolerance)
	if missed > 0 || cases == 0 {
		return exitError(1)
	}
	return nil
}

func caseText(k model.Case) string {
	if k.Err != nil {
		return fmt.Sprintf("MISS %s: %v", k.ID, k.Err)
	}
	parts := []string{"ok  ", k.ID}
	if !k.OK() {
		parts[0] = "MISS"
	}
	for _, c := range k.Checks {
		switch {
		case c.Exact && c.OK:
			parts = append(parts, c.Name+" equal")
		case c.Exact:
			parts = append(parts, fmt.Sprintf("%s %.1f%% AGREE", c.Name, 100*c.Value))
		case c.OK:
			parts = append(parts, fmt.Sprintf("%s ≤%.1e", c.Name, c.Value))
		default:
			parts = append(parts, fmt.Sprintf("%s OFF BY %.1e", c.Name, c.Value))
		}
	}
	return strings.Join(parts, "  ")
}
