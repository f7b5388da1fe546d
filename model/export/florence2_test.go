package export_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/model/export/exporttest"
	"github.com/mmserve/mmserve/model/modeltest"
)

// What Florence-2's encoder reads is patches and a prompt of any length. With an encoder that changes nothing this is a
// ViT-GPT2 that has so many states.
func TestExportedFlorence2(t *testing.T) {
	modeltest.StartLibrary(t)
	m, err := model.Open(modeltest.TinyDir("vitgpt2"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	d := m.Decoder
	dir := t.TempDir()
	config := fmt.Sprintf(`{"model_type": "florence2", "text_config": {"d_model": %d, "decoder_layers": %d, "decoder_attention_heads": %d, "vocab_size": %d,
		"max_position_embeddings": %d}}`, d.Hidden, d.Layers, d.Heads, d.Vocab, d.MaxLen)
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	s := exporttest.Source{Tower: m.Tower, Connector: m.Connector, Decoder: d, Weights: m.Weights}
	if err := exporttest.Write(dir, s, exporttest.Options{CrossCaches: true}); err != nil {
		t.Fatal(err)
	}
	e, err := model.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	states := d.EncoderStates
	if e.Layout.PatchTokens != states || e.Tower.ImageSize != m.Tower.ImageSize || e.Decoder.Hidden != d.Hidden {
		t.Errorf("%d patches of images of %d pixels, width %d: not the graphs' %d, %d, %d", e.Layout.PatchTokens, e.Tower.ImageSize, e.Decoder.Hidden, states, m.Tower.ImageSize,
			d.Hidden)
	}
	r, err := e.OpenDecoder(decoder.OpenOptions{Slots: 3, Session: ort.Options{Threads: 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	table, err := m.Weights.Get("text.embed_tokens.weight", d.Vocab, d.Hidden)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(6, 6))
	prompts, want := make([]fusion.Input, 3), make([][]modeltest.Picked, 3)
	for i := range prompts {
		patches := make([]float32, states*d.Hidden)
		for j := range patches {
			patches[j] = float32(rng.NormFloat64())
		}
		text := make([]int32, 1+4*i)
		whole := slices.Clone(patches)
		for j := range text {
			text[j] = int32(rng.IntN(80))
			row := make([]float32, d.Hidden)
			if err := table.FloatsInto(row, int(text[j])*d.Hidden); err != nil {
				t.Fatal(err)
			}
			whole = append(whole, row...)
		}
		prompts[i].IDs = slices.Concat(slices.Repeat([]int32{e.Layout.ImageTokenID}, states), text, []int32{2, 0})
		prompts[i].Spans = []fusion.Span{{Len: states, Patches: patches}}

		c := d
		c.EncoderStates = states + len(text)
		c.MaxLen += len(text)
		own, err := decoder.OpenHost(c, m.Weights, decoder.OpenOptions{Slots: 3, Session: ort.Options{Threads: 1}})
		if err != nil {
			t.Fatal(err)
		}
		ids := slices.Concat(make([]int32, c.EncoderStates), []int32{2, 0})
		alone, _ := modeltest.Continuations(t, own,
			[]fusion.Input{{IDs: ids, Spans: []fusion.Span{{Len: c.EncoderStates, Patches: whole}}}}, 6)
		want[i] = alone[0]
		own.Close()
	}
	alone, together := modeltest.Continuations(t, r, prompts, 6)
	for i := range prompts {
		for how, got := range map[string][]modeltest.Picked{"alone": alone[i], "together": together[i]} {
			if err := modeltest.SamePicks(got, want[i], 1e-5); err != nil {
				t.Errorf("prompt %d %s: %v", i, how, err)
			}
		}
	}
	row := e.ShortestRow()
	row.Sampler = decoder.NewSampler(decoder.Sampling{Logprobs: true})
	modeltest.Run(t, r, row)
}
