package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/host"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/model/synth"
	"github.com/mmserve/mmserve/model/verify"
	"github.com/mmserve/mmserve/serving"
)

type modelCmd struct {
	Pull    pullCmd    `cmd:"" help:"Fetch models from a hub into the cache that its own clients share."`
	List    listCmd    `cmd:"" help:"Show the models of that cache."`
	Remove  removeCmd  `cmd:"" help:"Remove models from that cache."`
	Inspect inspectCmd `cmd:"" help:"Family, parameters, tokens per image, memory needed."`
	Verify  verifyCmd  `cmd:"" help:"Check that every tensor is used, and compare with reference values."`
	Eval    evalCmd    `cmd:"" help:"Ask questions whose answers are known, and count the right ones by kind."`
	Init    initCmd    `cmd:"" help:"Write a checkpoint with random weights in the shape of a config.json, to size a machine."`
}

type initCmd struct {
	hubFlags
	Config string `required:"" placeholder:"FILE" help:"config.json of a supported family, or its folder, whose tokenizer and preprocessor are then taken, or ORG/NAME of a hub, of whose model all but the weights is then fetched."`
	Out    string `required:"" placeholder:"DIR" help:"New or empty folder to write to."`
	Seed   uint64 `default:"1" help:"The same seed gives the same weights."`
	DType  string `name:"dtype" enum:"f32,bf16,f16" default:"bf16" help:"Type of the weights: f32, bf16 or f16."`
}

func (i initCmd) Run(ctx context.Context, log *slog.Logger, out io.Writer) error {
	from, err := i.find(ctx, modelFolder{Dir: i.Config}, model.WantedOptions{NoWeights: true}, log)
	if err != nil {
		return err
	}
	end := waiting("writing " + i.Out)
	err = synth.Init(from.Dir, i.Out, synth.InitOptions{Seed: i.Seed, DType: i.DType})
	if end(); err != nil {
		return err
	}
	m, err := model.Open(i.Out)
	if err != nil {
		return err
	}
	defer m.Close()
	_, err = fmt.Fprintf(out, "%s: %s, %s parameters, stored as %s\n", i.Out, m.Type, count(m.Parameters()), storedText(m.StoredTypes()))
	return err
}

type inspectCmd struct {
	hubFlags
	Dir       string `arg:"" optional:"" help:"Model folder, or ORG/NAME of a hub (default: the embedded model)."`
	ONNXDType string `name:"onnx-dtype" placeholder:"NAME" help:"Look at the folder's ready-made graphs, and which; as for serve."`
}

func (i inspectCmd) Run(ctx context.Context, log *slog.Logger, out io.Writer) error {
	named, err := i.find(ctx, modelFolder{Dir: i.Dir}, model.WantedOptions{ONNXDType: i.ONNXDType}, log)
	if err != nil {
		return err
	}
	m, err := openModel(named, i.ONNXDType)
	if err != nil {
		return err
	}
	defer m.Close()
	text, err := m.OpenProcessor()
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
			line("graph", "%s, %s: %s (%s)", filepath.Base(g.Path), host.FormatBytes(g.Bytes), g.DType, g.Why)
		}
	} else {
		line("parameters", "%s, stored as %s", count(m.Parameters()), storedText(m.StoredTypes()))
		line("precision", "fp32")
	}
	if p := m.NativeResolution; p != nil {
		line("vision tower", "images of any size in patches of %d, %d×%d of them a token", p.PatchSize, p.MergeSize, p.MergeSize)
	} else {
		line("vision tower", "%s", towerText(m))
	}
	line("decoder", "%d layers of %d, %d heads over %d key-value heads of %d", d.Layers, d.Hidden, d.Heads, d.KVHeads, d.HeadDim)
	line("vocabulary", "%d rows, %d tokens in the tokenizer", d.Vocab, text.Tokenizer.Size())
	line("context", "%d tokens", d.MaxLen)
	if m.NativeResolution == nil {
		line("tokens per tile", "%d", m.Layout.PatchTokens)
	}
	for _, size := range [][2]int{{512, 512}, {1300, 876}, {4032, 3024}} {
		g := text.Preprocessor.Grid(size[0], size[1])
		expanded := m.Layout.Expand(g)
		line("tokens per image", "%d for %d×%d pixels (%d tiles)", len(text.Tokenizer.Encode(expanded, false)), size[0],
			size[1], g.Tiles())
	}
	line("chat template", "%s", map[bool]string{true: "yes", false: "none: raw prompts only"}[text.Template != nil])
	if len(text.Ignored) > 0 {
		line("not applied", "%s (generation_config.json)", strings.Join(text.Ignored, ", "))
	}
	for _, w := range slices.Concat(m.Warnings, text.Warnings) {
		line("warning", "%s", w)
	}
	line("weights", "%s", weightsText(m))
	line("KV cache", "%s a slot of %d tokens (%s a token)", host.FormatBytes(m.KVBytesPerToken()*int64(d.MaxLen)),
		d.MaxLen, host.FormatBytes(m.KVBytesPerToken()))
	return nil
}

// towerText says what a tower of tiles is; Florence-2's has stages of its own instead of layers.
func towerText(m *model.Model) string {
	t := m.Tower
	if t.Layers == 0 {
		return fmt.Sprintf("%d×%d pixels", t.ImageSize, t.ImageSize)
	}
	return fmt.Sprintf("%d layers of %d, %d×%d pixels in patches of %d", t.Layers, t.Hidden, t.ImageSize, t.ImageSize, t.PatchSize)
}

// weightsText is what the weights take in each precision of the processor.
func weightsText(m *model.Model) string {
	if m.Graphs() != nil {
		return host.FormatBytes(m.WeightBytes()) + " in memory"
	}
	var list []string
	for _, p := range []graph.Precision{graph.FP32, graph.INT8, graph.INT4} {
		list = append(list, fmt.Sprintf("%s in %s", host.FormatBytes(serving.WeightBytes(m, p)), p))
	}
	return "in memory about " + strings.Join(list, ", ")
}

func storedText(types map[string]int) string {
	var list []string
	for _, k := range slices.Sorted(maps.Keys(types)) {
		list = append(list, fmt.Sprintf("%s (%d tensors)", k, types[k]))
	}
	return strings.Join(list, ", ")
}

// openModel opens a folder under the name that was given.
func openModel(named modelFolder, onnxDType string) (*model.Model, error) {
	m, err := serving.OpenModel(named.Dir, onnxDType)
	if err == nil && named.Name != "" {
		m.Name = named.Name
	}
	return m, err
}

type verifyCmd struct {
	hubFlags
	cacheFlags
	providerFlags
	Dir             string   `arg:"" help:"Model folder, or ORG/NAME of a hub."`
	References      string   `name:"references" aliases:"gold" placeholder:"FILE" help:"What the reference implementation gave: .safetensors or .jsonl (default: the folder's own mmserve-gold.jsonl)."`
	Precision       string   `enum:"${precisions}" default:"fp32" help:"Precision of the linear layers: ${precision}; the tower is int8 where that is int4."`
	ONNXDType       string   `name:"onnx-dtype" placeholder:"NAME" help:"Verify the folder's ready-made graphs, and which; as for serve."`
	Tolerance       float64  `default:"2e-4" range:"0..1e6" help:"Largest absolute difference of image features and logits to --references that passes; in a file of tensors half of it, 1e-4 at most, times the largest value does, too."`
	WriteReferences bool     `name:"write-references" aliases:"write-gold" help:"Record what the model answers now in the folder's mmserve-gold.jsonl, which serve then checks before it is ready."`
	Image           []string `placeholder:"FILE" help:"Images to record with --write-references (default: two drawn samples)."`
	Prompt          string   `default:"Describe the image." help:"What to ask about them."`
}

// Run prints a line a case and fails when one missed.
func (v verifyCmd) Run(ctx context.Context, c *cli, log *slog.Logger, out io.Writer) error {
	if v.WriteReferences && v.References != "" {
		return errors.New("--write-references records the folder's own cases and --references checks others: give one of them")
	}
	if len(v.Image) > 0 && !v.WriteReferences {
		return errors.New("--image names images to record: give --write-references, too")
	}
	if err := serving.StartRuntime(c.OrtLib); err != nil {
		return err
	}
	named, err := v.find(ctx, modelFolder{Dir: v.Dir}, model.WantedOptions{ONNXDType: v.ONNXDType}, log)
	if err != nil {
		return err
	}
	if v.WriteReferences && named.Dir != v.Dir {
		return errors.New("--write-references writes into the folder, and a hub's cache is shared: copy the folder")
	}
	m, err := openModel(named, v.ONNXDType)
	if err != nil {
		return err
	}
	defer m.Close()
	end := waiting("preparing " + m.Name)
	ver, err := v.verifier(m, out)
	end()
	if err != nil {
		return err
	}
	defer ver.Close()
	writeFindings(out, m)
	if v.WriteReferences {
		samples, err := v.samples()
		if err != nil {
			return err
		}
		end := waiting("recording")
		n, err := ver.WriteReferences(v.Dir, samples, v.Prompt)
		if end(); err != nil {
			return err
		}
		fmt.Fprintf(out, "recorded %d cases\n", n)
	}
	return v.compare(ver, out)
}

// tolerance is the largest difference that passes.
func (v verifyCmd) tolerance() float64 {
	if v.References == "" {
		return verify.DriftTolerance(graph.Precision(v.Precision))
	}
	return v.Tolerance
}

// verifier opens the model's sessions.
func (v verifyCmd) verifier(m *model.Model, out io.Writer) (*verify.Verifier, error) {
	p := graph.Precision(v.Precision)
	from, err := m.LoadQuantized(v.dir(), p.Vision(), p)
	if err != nil {
		return nil, err
	}
	if from.Why != "" {
		fmt.Fprintf(out, "warning: quantised weights: %s\n", from.Why)
	}
	where, err := serving.Config{
		Provider: v.Provider, VisionProvider: v.VisionProvider, AllowCPUFallback: v.AllowCPUFallback,
	}.SessionOptions()
	if err != nil {
		return nil, err
	}
	return verify.New(m, v.tolerance(), p, where)
}

// writeFindings tells what the folder's files hold.
func writeFindings(out io.Writer, m *model.Model) {
	for _, g := range m.Graphs() {
		fmt.Fprintf(out, "graph: %s\n", harmless(filepath.Base(g.Path)))
	}
	for _, w := range m.Warnings {
		fmt.Fprintf(out, "warning: %s\n", harmless(w))
	}
	if m.Weights == nil {
		return
	}
	unused, twice := m.Weights.Unused(), m.Weights.UsedTwice()
	fmt.Fprintf(out, "tensors: %d used, %d of them twice (tied), %d unused\n", m.Tensors()-len(unused), len(twice), len(unused))
	for _, name := range unused {
		fmt.Fprintf(out, "  unused: %s\n", harmless(name))
	}
}

// compare prints the cases and counts those that missed.
func (v verifyCmd) compare(ver *verify.Verifier, out io.Writer) (err error) {
	cases, missed := 0, 0
	report := func(k verify.Case) {
		cases++
		if !k.OK() {
			missed++
		}
		fmt.Fprintln(out, serving.CaseText(k))
	}
	found := true
	if v.References != "" {
		err = ver.File(v.References, report)
	} else {
		found, err = ver.Own(report)
	}
	if err != nil {
		return err
	}
	if !found {
		fmt.Fprintln(out, "no reference values: name some with --references, or record what the model answers now with --write-references")
		return exitError(exitNoReference)
	}
	fmt.Fprintf(out, "%d cases, %d missed (tolerance %g)\n", cases, missed, v.tolerance())
	if missed > 0 || cases == 0 {
		return exitError(1)
	}
	return nil
}

// images are those to record cases with.
func (v verifyCmd) samples() (list []verify.SampleImage, err error) {
	for _, name := range v.Image {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		list = append(list, verify.SampleImage{Name: name, Data: data})
	}
	if len(list) > 0 {
		return list, nil
	}
	for _, name := range []string{"sample0.png", "sample5.png"} {
		data, err := fs.ReadFile(model.Samples(), name)
		if err != nil {
			return nil, err
		}
		list = append(list, verify.SampleImage{Data: data})
	}
	return list, nil
}
