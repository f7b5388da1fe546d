package export_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/decoder/runnertest"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/model/export/exporttest"
	"github.com/mmserve/mmserve/model/families"
	"github.com/mmserve/mmserve/model/modeltest"
	"github.com/mmserve/mmserve/model/verify"
)

// exportVariants are the exports that the tests make, by what sets them apart.
var exportVariants = map[string]exporttest.Options{
	"plain":           {},
	"caches of half":  {Half: true, KeepLogits: true},
	"cache branch":    {CacheBranch: true},
	"kept logits":     {KeepLogits: true, External: true},
	"shape positions": {ShapePositions: true},
	"group query":     {GroupQuery: true, KeepLogits: true},
	"three axes":      {Sections: []int{2, 3, 3}, KeepLogits: true},
}

// openExported writes an export of a model and opens it.
func openExported(t testing.TB, m *model.Model, o exporttest.Options) *model.Model {
	t.Helper()
	e, err := model.Open(exportFolder(t, m, o))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// exportFolder writes a folder with an export of a model.
func exportFolder(t testing.TB, m *model.Model, o exporttest.Options) string {
	t.Helper()
	return exporttest.Folder(t, m.Files(), m.Type,
		exporttest.Source{Tower: m.Tower, Connector: m.Connector, Decoder: m.Decoder, Weights: m.Weights}, o)
}

// An export gives what transformers computed, whichever way it was made.
func TestExportGold(t *testing.T) {
	modeltest.StartLibrary(t)
	for _, name := range []string{"idefics3", "smolvlm", "llava"} {
		for variant, o := range exportVariants {
			t.Run(name+"/"+variant, func(t *testing.T) {
				m, err := model.Open(modeltest.TinyDir(name))
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				e := openExported(t, m, o)
				tolerance := 2e-4
				if o.Half {
					tolerance = 2e-2
				}
				v, err := verify.New(e, tolerance, graph.FP32, ort.Options{})
				if err != nil {
					t.Fatal(err)
				}
				defer v.Close()
				cases := 0
				err = v.File(modeltest.References(name), func(c verify.Case) {
					cases++
					t.Logf("%+v", c.Checks)
					if !c.OK() {
						t.Errorf("%s: %+v %v", c.ID, c.Checks, c.Err)
					}
				})
				if err != nil || cases != 1 {
					t.Errorf("%d cases, %v", cases, err)
				}
			})
		}
	}
}

// An encoder-decoder's export gives what transformers computed: one whose decoder reads the encoder's states in every
// step, and one that keeps what they project to.
func TestExportOfEncoderDecoder(t *testing.T) {
	modeltest.StartLibrary(t)
	m, err := model.Open(modeltest.TinyDir("vitgpt2"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	const other = "vit-gpt2-with-caches"
	families.Register(families.Family{Graphs: &families.Graphs{
		Read: families.Lookup(m.Type).Checkpoint, Sessions: []string{families.VisionGraph, families.EmbedGraph,
			families.EncoderGraph, families.DecoderGraph},
	}}, other)
	for modelType, o := range map[string]exporttest.Options{m.Type: {}, other: {CrossCaches: true}} {
		t.Run(modelType, func(t *testing.T) {
			dir := exportFolder(t, m, o)
			raw, err := os.ReadFile(filepath.Join(dir, "config.json"))
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, "config.json"), bytes.ReplaceAll(raw, []byte(m.Type), []byte(modelType)),
					0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			e, err := model.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			v, err := verify.New(e, 2e-4, graph.FP32, ort.Options{Threads: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			err = v.File(modeltest.References("vitgpt2"), func(c verify.Case) {
				t.Logf("%+v", c.Checks)
				if !c.OK() {
					t.Errorf("%s: %+v %v", c.ID, c.Checks, c.Err)
				}
			})
			if err != nil {
				t.Error(err)
			}
			movedEncoderDecoder(t, e)
		})
	}
}

// movedEncoderDecoder has sequences change places between steps; each must go on as if it had not.
func movedEncoderDecoder(t *testing.T, e *model.Model) {
	r, err := e.OpenDecoder(decoder.OpenOptions{Slots: 3, Session: ort.Options{Threads: 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	rng := rand.New(rand.NewPCG(4, 4))
	rows := make([]decoder.Row, 2)
	var want [2][]modeltest.Picked
	for i := range rows {
		n := e.Decoder.EncoderStates
		states := make([]float32, n*e.Decoder.Hidden)
		for j := range states {
			states[j] = float32(rng.NormFloat64())
		}
		rows[i] = modeltest.LoggedRow(2, 0, append(slices.Repeat([]int32{1}, n), 3))
		rows[i].Spans = []fusion.Span{{Len: n, Patches: states}}
		row := rows[i]
		for range 4 {
			tok := modeltest.Run(t, r, row)[0]
			want[i] = append(want[i], tok)
			row.Past, row.IDs = row.Past+len(row.IDs), []int32{tok.ID}
		}
	}
	for i := range rows {
		rows[i].Slot = i
		tok := modeltest.Run(t, r, rows[i])[0]
		rows[i].Past, rows[i].IDs = len(rows[i].IDs), []int32{tok.ID}
	}
	swap := []decoder.Move{{From: 1, To: 0, Len: rows[1].Past, Back: rows[0].Past}}
	for step := 1; step < 4; step++ {
		rows[0], rows[1] = rows[1], rows[0]
		want[0], want[1] = want[1], want[0]
		rows[0].Slot, rows[1].Slot = 0, 1
		swap[0].Len, swap[0].Back = rows[0].Past, rows[1].Past
		out, err := r.Run(t.Context(), &decoder.Batch{Moves: swap, Rows: rows})
		if err != nil {
			t.Fatal(err)
		}
		for i, tok := range modeltest.Picks(out) {
			if err := modeltest.SamePicks([]modeltest.Picked{tok}, want[i][step:step+1], 1e-5); err != nil {
				t.Errorf("after %d exchanges, row %d: %v", step, i, err)
			}
			rows[i].Past, rows[i].IDs = rows[i].Past+1, []int32{tok.ID}
		}
	}
	if _, err := r.Run(t.Context(), &decoder.Batch{Rows: []decoder.Row{modeltest.LoggedRow(0, 0,
		[]int32{1, 2})}}); err == nil {
		t.Error("a prompt without its image was taken")
	}
}

// exportPrompts are prompts of other lengths, four of them with an image.
func exportPrompts(m *model.Model) []fusion.Input {
	rng := rand.New(rand.NewPCG(5, 5))
	list := make([]fusion.Input, 5)
	for i := range list {
		in := &list[i]
		text := func(n int) {
			for range n {
				in.IDs = append(in.IDs, int32(3+rng.IntN(80)))
			}
		}
		text(1 + 3*i)
		if i != 2 {
			patches := make([]float32, m.Layout.PatchTokens*m.Decoder.Hidden)
			for j := range patches {
				patches[j] = float32(rng.NormFloat64())
			}
			in.Spans = []fusion.Span{{Start: len(in.IDs), Len: m.Layout.PatchTokens, Patches: patches}}
			in.IDs = append(in.IDs, slices.Repeat([]int32{m.Layout.ImageTokenID}, m.Layout.PatchTokens)...)
		}
		text(2 + 5*((i*3)%5))
	}
	return list
}

// The export of a checkpoint gives the greedy ids of the checkpoint itself, alone and in a ragged batch of 5.
func TestExportEqualsCheckpoint(t *testing.T) {
	modeltest.StartLibrary(t)
	const steps = 12
	for _, name := range []string{"idefics3", "llava", "smolvlm"} {
		m, err := model.Open(modeltest.TinyDir(name))
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		prompts := exportPrompts(m)
		open := func(t *testing.T, m *model.Model) decoder.Runner {
			r, err := m.OpenDecoder(decoder.OpenOptions{Slots: len(prompts), Session: ort.Options{Threads: 1}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { r.Close() })
			return r
		}
		want, _ := modeltest.Continuations(t, open(t, m), prompts, steps)
		for variant, o := range exportVariants {
			t.Run(name+"/"+variant, func(t *testing.T) {
				r := open(t, openExported(t, m, o))
				ragged := !o.ShapePositions
				if got := r.(*decoder.ExportRunner).Together(); got != ragged {
					t.Errorf("rows share a run: %t, want %t", got, ragged)
				}
				alone, together := modeltest.Continuations(t, r, prompts, steps)
				tolerance := 1e-4
				if o.Half {
					tolerance = 2e-2
				}
				for i := range prompts {
					for how, got := range map[string][]modeltest.Picked{"alone": alone[i], "together": together[i]} {
						if err := modeltest.SamePicks(got, want[i], tolerance); err != nil {
							t.Errorf("prompt %d %s: %v", i, how, err)
						}
					}
				}
			})
		}
	}
}

// A graph that quantises all rows of a run with one scale runs each row alone: answers are the same bits whatever else
// runs.
func TestExportOfDynamicInt8(t *testing.T) {
	modeltest.StartLibrary(t)
	m, err := model.Open(modeltest.TinyDir("llava"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	prompts := exportPrompts(m)
	r, err := openExported(t, m, exporttest.Options{Dynamic: true}).OpenDecoder(decoder.OpenOptions{Slots: len(prompts),
		Session: ort.Options{Threads: 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.(*decoder.ExportRunner).Together() {
		t.Error("rows share a run")
	}
	alone, together := modeltest.Continuations(t, r, prompts, 6)
	for i := range prompts {
		if err := modeltest.SamePicks(together[i], alone[i], 0); err != nil {
			t.Errorf("prompt %d: %v", i, err)
		}
	}
}

// The embedded model's export answers as transformers does with the checkpoint, from messages and images to ids.
func TestExportDefaultModel(t *testing.T) {
	modeltest.StartLibrary(t)
	m, err := model.Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	v, err := verify.New(openExported(t, m, exporttest.Options{KeepLogits: true}), 2e-4, graph.FP32, ort.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	cases := 0
	err = v.File(modeltest.Path("testdata", "tiny-vlm-gold", "gold.jsonl"), func(c verify.Case) {
		if cases++; !c.OK() {
			t.Errorf("%s: %+v %v", c.ID, c.Checks, c.Err)
		}
	})
	if err != nil || cases != 87 {
		t.Errorf("%d cases, %v", cases, err)
	}
}

// The decoder of a ready-made graph keeps the contract that the engine relies on.
func TestExportRunnerConforms(t *testing.T) {
	modeltest.StartLibrary(t)
	m, err := model.Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	r, err := openExported(t, m, exporttest.Options{}).OpenDecoder(decoder.OpenOptions{Slots: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	runnertest.Conform(t, r, 8, 708)
}

// A folder of the hub's cache has links to files elsewhere, of other names.
func TestExportOfLinks(t *testing.T) {
	modeltest.StartLibrary(t)
	m, err := model.Open(modeltest.TinyDir("llava"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	root := t.TempDir()
	snapshot, blobs := filepath.Join(root, "snapshots", "1"), filepath.Join(root, "blobs")
	for _, d := range []string{filepath.Join(snapshot, "onnx"), blobs} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	from := exportFolder(t, m, exporttest.Options{External: true})
	err = filepath.WalkDir(from, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(from, p)
		blob := filepath.Join(blobs, "blob-"+filepath.Base(p))
		if err := os.Rename(p, blob); err != nil {
			return err
		}
		return os.Symlink(blob, filepath.Join(snapshot, rel))
	})
	if err != nil {
		t.Fatal(err)
	}
	e, err := model.Open(snapshot)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	r, err := e.OpenDecoder(decoder.OpenOptions{Slots: 1, Session: ort.Options{Threads: 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	modeltest.Run(t, r, modeltest.LoggedRow(0, 0, []int32{3, 4, 5}))
}

// Folders that are refused say what is missing, or what they are.
func TestRefusedExports(t *testing.T) {
	for _, c := range []struct {
		files map[string]string
		want  string
	}{
		{map[string]string{"genai_config.json": "{}"}, "layout of onnxruntime-genai"},
		{map[string]string{"onnx/vision_encoder.onnx": "", "config.json": `{"model_type": "gemma3"}`}, `ONNX graphs of model_type "gemma3" are not supported; supported are florence2, idefics3`},
		{map[string]string{"onnx/decoder_model_merged.onnx": "", "config.json": `{"model_type": "moondream1"}`}, "onnx/ has no vision_encoder"},
		{map[string]string{"onnx/vision_encoder.onnx": "", "config.json": `{"model_type": "moondream1"}`,
			"adapter_config.json": `{"peft_type": "LORA"}`}, `adapter_config.json: an adapter (peft_type "LORA"`},
		{map[string]string{"onnx/vision_encoder.onnx": "", "config.json": `{"model_type": "moondream1"}`, "onnx/adapter_config.json": `{}`},
			"onnx/adapter_config.json: an adapter"},
		{map[string]string{"onnx/vision_encoder.onnx": "", "config.json": `{"model_type": "moondream1"}`, "onnx/style.onnx_adapter": "x"},
			"onnx/style.onnx_adapter: an adapter"},
		{map[string]string{"onnx/vision_encoder.onnx": "version https://git-lfs.github.com/spec/v1", "config.json": `{"model_type": "moondream1"}`},
			"not an ONNX model"},
	} {
		dir := t.TempDir()
		for name, text := range c.files {
			p := filepath.Join(dir, filepath.FromSlash(name))
			if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := model.Open(dir); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %q", c.files, err, c.want)
		}
	}
}
