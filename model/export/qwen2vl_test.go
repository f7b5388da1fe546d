package export_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/model/export/exporttest"
	"github.com/mmserve/mmserve/model/modeltest"
	"github.com/mmserve/mmserve/vision"
)

// drawnImage is one prepared for a tower of patches of 4 pixels in blocks of 2.
func drawnImage(rng *rand.Rand, rows, cols int) *vision.Image {
	img := &vision.Image{Size: 4, Grid: vision.Grid{Width: 8 * cols, Height: 8 * rows},
		Pixels: make([]uint8, 3*64*rows*cols)}
	for i := range img.Pixels {
		img.Pixels[i] = uint8(rng.UintN(256))
	}
	return img
}

// twice makes pixel values of bytes as Qwen2-VL has them: each patch in two frames.
func twice(dst []float32, src []uint8) {
	for i := range dst {
		channel, at := i/32, i%16
		dst[i] = float32(src[channel*16+at])/128 - 1
	}
}

// Images of any size, positions in three axes: prompts give the same ids alone, together and in chunks.
func TestExportedQwen2VL(t *testing.T) {
	modeltest.StartLibrary(t)
	m, err := model.Open(modeltest.TinyDir("llava"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	d := m.Decoder
	dir := t.TempDir()
	config := fmt.Sprintf(`{"model_type": "qwen2_vl", "image_token_id": 90, "hidden_size": %d, "num_attention_heads": %d, "vocab_size": %d,
		"max_position_embeddings": 512, "vision_config": {"patch_size": 4}}`, d.Hidden, d.Heads, d.Vocab)
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	s := exporttest.Source{Decoder: d, Weights: m.Weights,
		NativeResolution: &vision.NativeResolution{PatchSize: 4, MergeSize: 2, Width: d.Hidden}}
	if err := exporttest.Write(dir, s, exporttest.Options{Sections: []int{2, 3, 3}}); err != nil {
		t.Fatal(err)
	}
	e, err := model.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	tower, err := e.OpenTower(graph.FP32, ort.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer tower.Close()
	rng := rand.New(rand.NewPCG(1, 9))
	encoder := vision.NewEncoder(tower, twice, 1<<20)
	defer encoder.Close()
	prompts := make([]fusion.Input, 5)
	for i := range prompts {
		ids := []int32{3, 4}
		var images []*vision.Image
		for j := range i % 3 {
			img := drawnImage(rng, 1+i, 2+3*j)
			img.Digest[0], img.Digest[1] = byte(i), byte(j)
			images = append(images, img)
			ids = append(ids, slices.Repeat([]int32{90}, e.Layout.ImageTokens(img.Grid))...)
			ids = append(ids, int32(10+i))
		}
		if prompts[i], err = e.Layout.Locate(append(ids, 5, 6), images); err != nil {
			t.Fatal(err)
		}
		for j, img := range images {
			patches, _, err := encoder.Encode(t.Context(), img)
			if err == nil {
				err = prompts[i].Attach(j, patches, d.Hidden)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	pre, err := vision.ParsePreprocessor([]byte(`{"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 4, "merge_size": 2, "temporal_patch_size": 2,
		"min_pixels": 64, "max_pixels": 4096, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}`), "")
	if err != nil {
		t.Fatal(err)
	}
	img, err := pre.Prepare(context.Background(), modeltest.Sample(t, "sample0.png"), vision.DefaultLimits(), true)
	if err != nil {
		t.Fatal(err)
	}
	prepared := vision.NewEncoder(tower, pre.Normalize, 1<<20)
	defer prepared.Close()
	if patches, _, err := prepared.Encode(t.Context(), img); err != nil ||
		len(patches) != e.Layout.ImageTokens(img.Grid)*d.Hidden {
		t.Errorf("an image of %d×%d gives %d values: %v", img.Grid.Width, img.Grid.Height, len(patches), err)
	}
	if _, _, err := encoder.Encode(t.Context(),
		&vision.Image{Size: 4, Grid: vision.Grid{Width: 9, Height: 8}, Digest: [32]byte{9}}); err == nil {
		t.Error("an image that is no whole blocks was taken")
	}
	r, err := e.OpenDecoder(decoder.OpenOptions{Slots: 5, Session: ort.Options{Threads: 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	alone, together := modeltest.Continuations(t, r, prompts, 8)
	for i := range prompts {
		if err := modeltest.SamePicks(together[i], alone[i], 1e-4); err != nil {
			t.Errorf("prompt %d together: %v", i, err)
		}
		var tok []modeltest.Picked
		for at := 0; at < len(prompts[i].IDs); at += 5 {
			row := modeltest.LoggedRow(1, at, prompts[i].IDs[at:min(at+5, len(prompts[i].IDs))])
			row.Spans = prompts[i].Spans
			tok = modeltest.Run(t, r, row)
		}
		if err := modeltest.SamePicks(tok, alone[i][:1], 1e-4); err != nil {
			t.Errorf("prompt %d in chunks: %v", i, err)
		}
	}
}
