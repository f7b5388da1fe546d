package model

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/model/modeltest"
	"github.com/mmserve/mmserve/vision"
)

// florence2Folder is the tiny checkpoint with an image processor of its size.
func florence2Folder(t *testing.T, config func([]byte) []byte) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"config.json", "model.safetensors"} {
		raw, err := os.ReadFile(filepath.Join(modeltest.TinyDir("florence2"), name))
		if err != nil {
			t.Fatal(err)
		}
		if name == "config.json" && config != nil {
			raw = config(raw)
		}
		modeltest.WriteFile(t, filepath.Join(dir, name), raw)
	}
	modeltest.WriteFile(t, filepath.Join(dir, "preprocessor_config.json"), []byte(`{"do_center_crop": false,
		"size": {"height": 48, "width": 48}, "image_processor_type": "CLIPImageProcessor"}`))
	return dir
}

// reference is what transformers computed of the tiny checkpoint.
type reference struct {
	*testing.T
	*safetensors.Checkpoint
}

func (r reference) floats(name string) []float32 {
	r.Helper()
	tensor, _ := r.Tensor(name)
	values, err := tensor.Floats()
	if err != nil {
		r.Fatal(err)
	}
	return values
}

func (r reference) ids(name string) (list []int32) {
	r.Helper()
	tensor, _ := r.Tensor(name)
	values, err := tensor.Ints()
	if err != nil {
		r.Fatal(err)
	}
	for _, v := range values {
		list = append(list, int32(v))
	}
	return list
}

// near holds values against the reference's, to 1e-4 of the largest.
func (r reference) near(name string, got []float32) {
	r.Helper()
	want := r.floats(name)
	largest, worst := 0.0, 0.0
	if len(got) != len(want) {
		r.Fatalf("%s: %d values, want %d", name, len(got), len(want))
	}
	for i, w := range want {
		largest = max(largest, math.Abs(float64(w)))
		worst = max(worst, math.Abs(float64(w-got[i])))
	}
	if !(worst <= 1e-4*largest) {
		r.Errorf("%s: %g off, the largest is %g", name, worst, largest)
	}
	r.Logf("%s: %.1e of %.1f", name, worst, largest)
}

// Florence-2 from its checkpoint: the tower with its projector, the encoder, the logits of a whole answer, and greedy
// ids, alone and among others.
func TestFlorence2AsTransformers(t *testing.T) {
	modeltest.StartLibrary(t)
	m, err := Open(florence2Folder(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if len(m.Warnings) > 0 || m.Parameters() < 1 {
		t.Errorf("warnings %q", m.Warnings)
	}
	ckpt, err := safetensors.OpenFile(modeltest.References("florence2"))
	if err != nil {
		t.Fatal(err)
	}
	defer ckpt.Close()
	ref := reference{t, ckpt}
	session := ort.Options{Threads: 1}
	tower, err := m.OpenTower(graph.FP32, session)
	if err != nil {
		t.Fatal(err)
	}
	defer tower.Close()
	img := &vision.Image{Pixels: make([]uint8, 3*48*48)}
	pixels := ref.floats("pixel_values")
	features, err := vision.Encode(tower, img, func(dst []float32, _ []uint8) { copy(dst, pixels) })
	if err != nil {
		t.Fatal(err)
	}
	ref.near("image_features", features)

	// The reference's answers do not begin with a token that they are made to begin with.
	prompt, answer := ref.ids("input_ids"), ref.ids("generated")
	starts := ref.ids("decoder_input_ids")
	input := func(start []int32) fusion.Input {
		in, err := m.Layout.Locate(slices.Concat(prompt, start), []*vision.Image{img})
		if err == nil {
			err = in.Attach(0, features, m.Decoder.Hidden)
		}
		if err != nil {
			t.Fatal(err)
		}
		return in
	}
	open := func(start, slots int) decoder.Runner {
		c, b := m.Decoder, *m.Decoder.Bart
		b.Start, c.Bart = start, &b
		r, err := decoder.OpenBart(c, m.Weights, decoder.OpenOptions{Slots: slots, Session: session})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	whole := open(len(starts), 1)
	defer whole.Close()
	logits, err := whole.(interface {
		Logits(fusion.Input) ([]float32, error)
	}).Logits(input(starts))
	if err != nil {
		t.Fatal(err)
	}
	ref.near("logits", logits[len(prompt)*m.Decoder.Vocab:])

	r := open(1, 3)
	defer r.Close()
	one, other := input(starts[:1]), input(starts[:1])
	other.IDs = append(slices.Clone(other.IDs[:len(other.IDs)-1]), 5, 6, starts[0]) // two more words
	alone, together := modeltest.Continuations(t, r, []fusion.Input{one, other, one}, len(answer))
	for how, picks := range map[string][]modeltest.Picked{
		"alone": alone[0], "together": together[0], "third": together[2],
	} {
		var ids []int32
		for _, p := range picks {
			ids = append(ids, p.ID)
		}
		if !slices.Equal(ids, answer) {
			t.Errorf("%s: ids %v, want %v", how, ids, answer)
		}
	}
	if err := modeltest.SamePicks(together[1], alone[1], 0); err != nil {
		t.Errorf("with others: %v", err)
	}
}

// The encoder's states by themselves.
func TestFlorence2Encoder(t *testing.T) {
	modeltest.StartLibrary(t)
	m, err := Open(florence2Folder(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	ckpt, err := safetensors.OpenFile(modeltest.References("florence2"))
	if err != nil {
		t.Fatal(err)
	}
	defer ckpt.Close()
	ref := reference{t, ckpt}
	graphs, err := m.Decoder.BartGraphs(m.Weights, graph.FP32)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ort.NewSession(graphs[1], ort.Options{Threads: 1, ExternalDir: graph.Root})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	// Features, then words: the ids that are no image's have the table's rows.
	ids, hidden := ref.ids("input_ids"), m.Decoder.Hidden
	table, err := m.Weights.Get("text.embed_tokens.weight", m.Decoder.Vocab, hidden)
	if err != nil {
		t.Fatal(err)
	}
	features := ref.floats("image_features")
	in, _ := ort.Alloc[float32](len(ids) * hidden)
	defer in.Free()
	mask, _ := ort.Alloc[int64](len(ids))
	defer mask.Free()
	out, _ := ort.Alloc[float32](len(ids) * hidden)
	defer out.Free()
	for i, id := range ids {
		row := in.Slice()[i*hidden:][:hidden]
		if id == m.Layout.ImageTokenID {
			features = features[copy(row, features):]
		} else if err := table.FloatsInto(row, int(id)*hidden); err != nil {
			t.Fatal(err)
		}
	}
	shape := []int{1, len(ids), hidden}
	x, err := ort.View(in.Slice(), shape...)
	y, err2 := ort.View(out.Slice(), shape...)
	k, err3 := ort.View(mask.Slice(), shape[:2]...)
	if err := errors.Join(err, err2, err3); err != nil {
		t.Fatal(err)
	}
	if err := s.Run([]ort.Tensor{k, x}, []ort.Tensor{y}); err != nil {
		t.Fatal(err)
	}
	ref.near("encoder_hidden_states", out.Slice())
}

// In every precision that the processor runs, the tower and the decoder are near those of float32.
func TestFlorence2Precisions(t *testing.T) {
	modeltest.StartLibrary(t)
	m, err := Open(florence2Folder(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	img := &vision.Image{Pixels: make([]uint8, 3*48*48)}
	for i := range img.Pixels {
		img.Pixels[i] = uint8(i * i)
	}
	normalize := vision.Normalization{DoRescale: true, DoNormalize: true, Rescale: 1. / 255,
		Mean: [3]float32{0.5, 0.5, 0.5}, Std: [3]float32{0.3, 0.3, 0.3}}.Normalize
	var exact []float32
	for _, p := range []graph.Precision{graph.FP32, graph.INT8, graph.INT4} {
		if _, err := m.LoadQuantized(t.TempDir(), p, p); err != nil {
			t.Fatal(err)
		}
		tower, err := m.OpenTower(p, ort.Options{Threads: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer tower.Close()
		features, err := vision.Encode(tower, img, normalize)
		if err != nil {
			t.Fatal(err)
		}
		r, err := m.OpenDecoder(decoder.OpenOptions{Slots: 2, Precision: p, Session: ort.Options{Threads: 1}})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		modeltest.Run(t, r, m.ShortestRow())
		if p == graph.FP32 {
			exact = features
			continue
		}
		off, size := 0.0, 0.0
		for i, f := range features {
			off, size = off+math.Abs(float64(f-exact[i])), size+math.Abs(float64(exact[i]))
		}
		if off == 0 || off > 0.3*size {
			t.Errorf("%s: features are off by %.3f of their size", p, off/size)
		}
		t.Logf("%s: features are off by %.3f of their size", p, off/size)
	}
}
