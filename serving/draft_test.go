package serving

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/model"
)

// tinyFolder is the embedded model's.
var tinyFolder = filepath.Join("..", "model", "tiny-vlm")

// With a draft model answers are the same, over an image and longer ones, and it drafts some of them; its memory is
// planned and its metrics counted.
func TestDraftModel(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(tinyFolder, "samples", "sample0.png"))
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Slots: 2, MaxLen: 400, NoSelfTest: true, Threads: 1, Batching: batching.Options{Drafts: 4}}
	ask := func(c Config) (text string, d *Deployment, log *lines) {
		t.Helper()
		d, log = opened(t, c)
		s := NewService(Single(d), ServiceOptions{Logger: quietly()})
		for _, temperature := range []float32{0, 1} {
			in := shownImage("r", string(data))
			in.Sampling.Temperature, in.MaxTokens = &temperature, ptr(uint32(24))
			var got Collector
			if err := s.Generate(t.Context(), in, got.Sink()); err != nil {
				t.Fatal(err)
			}
			text += got.Choices[0].Text + "\n"
		}
		return text, d, log
	}
	want, plain, _ := ask(c)
	c.DraftDir, c.DraftPrecision = tinyFolder, "int8"
	got, d, log := ask(c)
	if got != want {
		t.Errorf("with a draft model %q, without %q", got, want)
	}
	if s := d.Engine.Stats(); s.RightModelDrafts == 0 {
		t.Errorf("the draft model drafted nothing right: %+v", s)
	}
	if w := d.plan.DraftWeights; w == 0 || d.Memory.Host != plain.Memory.Host+w+plain.plan.KV.Bytes {
		t.Errorf("the plan has %d bytes with a draft model, %d without", d.Memory.Host, plain.Memory.Host)
	}
	line := log.logged("draft model")
	if !strings.Contains(line, "precision=int8") || !strings.Contains(line, "sees_images=true") {
		t.Errorf("the log says %q", line)
	}
	if d.Model.Fingerprint != plain.Model.Fingerprint {
		t.Error("a draft model changes the fingerprint, and no answer")
	}
}

// A draft model that cannot draft is refused by name, before anything is served.
func TestDraftModelIsRefused(t *testing.T) {
	if err := StartRuntime(""); err != nil {
		t.Skip(err)
	}
	other := t.TempDir()
	if err := os.CopyFS(other, os.DirFS(tinyFolder)); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(other, "tokenizer.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, swap := range [][2]string{{`"A": `, `"?A": `}, {`"B": `, `"A": `}, {`"?A": `, `"B": `}} {
		raw = bytes.Replace(raw, []byte(swap[0]), []byte(swap[1]), 1)
	}
	if err := os.WriteFile(filepath.Join(other, "tokenizer.json"), raw, 0o644); err != nil {
		t.Fatal(err)
	}
	for want, c := range map[string]Config{
		"is \"A\" in one and \"B\" in the other": {DraftDir: other},
		"there is no model folder":               {DraftDir: filepath.Join(t.TempDir(), "none")},
		"--draft-precision":                      {DraftDir: tinyFolder, DraftPrecision: "int3"},
	} {
		c.Slots, c.NoSelfTest, c.Logger = 1, true, quietly()
		d, err := Open(t.Context(), c)
		if err == nil {
			_ = d.Close(t.Context())
		}
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--draft-") {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// A budget holds the positions of both caches, and no more.
func TestPlanOfTwoCaches(t *testing.T) {
	m, err := model.Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	both := bothCosts{m, m}
	if got, want := both.KVBytesPerToken(), 2*m.KVBytesPerToken(); got != want {
		t.Errorf("%d bytes a position, want %d", got, want)
	}
	for _, budget := range []int64{0, 1, 1 << 16, 1 << 20, 1<<24 + 7} {
		n := both.KVTokens(budget, 3)
		if n > 0 && both.KVBytes(n, 3) > budget || both.KVBytes(n+1, 3) <= budget {
			t.Errorf("%d bytes hold %d positions, which take %d", budget, n, both.KVBytes(n, 3))
		}
	}
}

// Patch embeddings outlive a deployment where a folder is named, in another precision they are others.
func TestEncoderCacheDir(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(tinyFolder, "samples", "sample0.png"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	text := ""
	for i, c := range []struct {
		precision string
		runs      int64
	}{{"fp32", 1}, {"fp32", 0}, {"int8", 1}, {"fp32", 0}} {
		if err := StartRuntime(""); err != nil {
			t.Skip(err)
		}
		r := NewRegistry(RegistryOptions{Config: Config{
			Slots: 1, NoSelfTest: true, Precision: c.precision, EncoderCacheDir: dir, EncoderCacheDisk: 1 << 20,
			Logger: quietly(),
		}})
		d, err := r.Load(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		s := NewService(r, ServiceOptions{Logger: quietly()})
		var got Collector
		if err := s.Generate(t.Context(), shownImage("r", string(data)), got.Sink()); err != nil {
			t.Fatal(err)
		}
		text += got.Choices[0].Text + "\n"
		if stats := d.Model.EncoderStats(); stats.Runs != c.runs || stats.DiskHits != 1-c.runs {
			t.Errorf("%d: %+v", i, stats)
		}
		if err := r.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if lines := strings.Split(text, "\n"); lines[0] != lines[1] || lines[0] != lines[3] {
		t.Errorf("answers %q", lines)
	}
}
