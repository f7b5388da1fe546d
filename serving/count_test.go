package serving_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	stdimage "image"
	"image/color"
	"image/gif"
	"image/jpeg"
	"image/png"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/mmserve/mmserve/decoder/decodertest"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/model/export/exporttest"
	"github.com/mmserve/mmserve/model/families"
	"github.com/mmserve/mmserve/model/modeltest"
	"github.com/mmserve/mmserve/model/synth"
	"github.com/mmserve/mmserve/serving"
	"github.com/mmserve/mmserve/vision"
)

// turnedJPEG is a JPEG file of w×h pixels as stored, which its EXIF says to turn by a quarter.
func turnedJPEG(t testing.TB, w, h int) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := jpeg.Encode(&b, noise(w, h), &jpeg.Options{Quality: 90}); err != nil {
		t.Fatal(err)
	}
	exif := []byte("Exif\x00\x00MM\x00\x2a\x00\x00\x00\x08\x00\x01" +
		"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00")
	segment := binary.BigEndian.AppendUint16([]byte{0xff, 0xe1}, uint16(len(exif)+2))
	return slices.Concat(b.Bytes()[:2], segment, exif, b.Bytes()[2:])
}

// noise has an entropy as photographs have, so that a file of it is as large as theirs.
func noise(w, h int) stdimage.Image {
	m := stdimage.NewYCbCr(stdimage.Rect(0, 0, w, h), stdimage.YCbCrSubsampleRatio420)
	seed := uint32(1)
	for i := range m.Y {
		seed = seed*1664525 + 1013904223
		m.Y[i] = uint8(i>>6) + uint8(seed>>28)
	}
	return m
}

func pngOf(t testing.TB, w, h int) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := png.Encode(&b, stdimage.NewGray(stdimage.Rect(0, 0, w, h))); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gifOf(t testing.TB, w, h int) []byte {
	t.Helper()
	var b bytes.Buffer
	palette := color.Palette{color.Black, color.White}
	if err := gif.Encode(&b, stdimage.NewPaletted(stdimage.Rect(0, 0, w, h), palette), nil); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// openStandIn runs a family's tiny checkpoint, with a vocabulary that has room for its special tokens.
func openStandIn(t testing.TB, family string) *serving.Service {
	t.Helper()
	return service(openFamily(t, family), serving.ServiceOptions{})
}

func openFamily(t testing.TB, family string) *serving.Deployment {
	t.Helper()
	return openDeployment(t, serving.Config{
		Dir: standIn(t, family), Threads: 1, Slots: 2, EncoderCacheBytes: 1 << 20,
	})
}

// standIn is the folder of what openStandIn runs.
func standIn(t testing.TB, family string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(modeltest.TinyDir(family), "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	config, dir := filepath.Join(t.TempDir(), "config.json"), filepath.Join(t.TempDir(), family)
	modeltest.WriteFile(t, config, []byte(strings.Replace(string(raw), `"vocab_size": 100`, `"vocab_size": 1500`, 1)))
	if err := synth.Init(config, dir, synth.InitOptions{}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func service(d *serving.Deployment, o serving.ServiceOptions) *serving.Service {
	o.Logger = slog.New(slog.DiscardHandler)
	return serving.NewService(serving.Single(d), o)
}

func openService(t testing.TB, c serving.Config) *serving.Service {
	t.Helper()
	return service(openDeployment(t, c), serving.ServiceOptions{})
}

func openDeployment(t testing.TB, c serving.Config) *serving.Deployment {
	t.Helper()
	c.Logger = slog.New(slog.DiscardHandler)
	d, err := serving.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = d.Close(ctx)
	})
	return d
}

// What Count says is what Generate reports, for every family and any image.
func TestCountEqualsGenerate(t *testing.T) {
	modeltest.StartLibrary(t)
	images := map[string][]byte{
		"turned": turnedJPEG(t, 300, 40), "small": pngOf(t, 3, 5), "wide": gifOf(t, 200, 20), "square": pngOf(t, 64, 64),
	}
	check := func(t *testing.T, s *serving.Service) {
		checked := 0
		for name, data := range images {
			for _, detail := range []vision.Detail{vision.DetailAuto, vision.DetailLow, vision.DetailHigh} {
				one := serving.Part{Image: &serving.Image{Data: data, Detail: detail}}
				two := serving.Part{Image: &serving.Image{Data: images["square"]}}
				for i, parts := range [][]serving.Part{
					{one}, {one, {Text: "What is this?"}}, {{Text: "a"}, one, two, {Text: "b"}},
				} {
					checked += sameCount(t, s, fmt.Sprint(name, detail, i), parts)
				}
			}
		}
		if checked < 2*len(images) {
			t.Errorf("only %d requests were taken", checked)
		}
	}
	for family := range modeltest.TinyCheckpoints {
		t.Run(family, func(t *testing.T) { check(t, openStandIn(t, family)) })
	}
	for _, family := range []string{"florence2", "moondream1"} {
		t.Run(family, func(t *testing.T) { check(t, openGraphs(t, family)) })
	}
}

// openGraphs runs ready-made graphs of a family that has no checkpoint here: those of another's of the same kind, with
// the family's config.json.
func openGraphs(t *testing.T, family string) *serving.Service {
	t.Helper()
	like, format, o := "vitgpt2", `{"model_type": "florence2", "text_config": {"d_model": %d, "decoder_layers": %d,
		"decoder_attention_heads": %d, "vocab_size": %d, "max_position_embeddings": %d}}`,
		exporttest.Options{CrossCaches: true}
	if family == "moondream1" {
		like, format, o = "llava", `{"model_type": "moondream1", "phi_config": {"hidden_size": %d, "num_hidden_layers": %d,
			"num_attention_heads": %d, "vocab_size": %d, "max_position_embeddings": %d}}`, exporttest.Options{}
	}
	from := standIn(t, like)
	m, err := model.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	source := exporttest.Source{Tower: m.Tower, Connector: m.Connector, Decoder: m.Decoder, Weights: m.Weights}
	dir, d := exporttest.Folder(t, os.DirFS(from), family, source, o), m.Decoder
	// Special tokens by the names that the family has for them; that of images has an id outside of the vocabulary.
	names := []string{"<unk>", "</s>", "<|endoftext|>", "<s>"}
	if family == "moondream1" {
		names = []string{"<|im_start|>", "<|endoftext|>", "<image>", "<img>"}
	}
	for i := range names {
		quoted, _ := json.Marshal(names[i]) // a string can be marshalled
		names[i] = string(quoted)
	}
	for _, name := range []string{"tokenizer.json", "tokenizer_config.json"} {
		raw, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		modeltest.WriteFile(t, filepath.Join(dir, name), []byte(strings.NewReplacer(names...).Replace(string(raw))))
	}
	config := fmt.Sprintf(format, d.Hidden, d.Layers, d.Heads, d.Vocab, d.MaxLen)
	modeltest.WriteFile(t, filepath.Join(dir, "config.json"), []byte(config))
	return openService(t, serving.Config{Dir: dir, Threads: 1, Slots: 2, EncoderCacheBytes: 1 << 20})
}

// The same holds of a model that takes images at their own resolution, of which only ready-made graphs are run: all
// but its graphs is here.
func TestCountEqualsGenerateAtOwnResolution(t *testing.T) {
	s := ownResolution(t, serving.ServiceOptions{})
	taken := 0
	for name, data := range map[string][]byte{
		"turned": turnedJPEG(t, 600, 80), "small": pngOf(t, 10, 20), "large": pngOf(t, 900, 700),
	} {
		one := serving.Part{Image: &serving.Image{Data: data}}
		taken += sameCount(t, s, name, []serving.Part{{Text: "a"}, one, {Text: "b"}})
		taken += sameCount(t, s, name+" twice", []serving.Part{one, one})
	}
	if taken != 6 {
		t.Errorf("%d requests were taken, want the prompts", taken)
	}
}

// ownResolution is a service of a model that takes images at their own resolution, all but its graphs.
func ownResolution(t *testing.T, o serving.ServiceOptions) *serving.Service {
	t.Helper()
	_, spec, _, err := families.ReadGraphs([]byte(`{"model_type": "qwen2_vl", "vocab_size": 151936, "hidden_size": 4}`))
	if err != nil {
		t.Fatal(err)
	}
	p, err := vision.ParsePreprocessor([]byte(`{"image_processor_type": "Qwen2VLImageProcessor",
		"min_pixels": 3136, "max_pixels": 200704}`), "")
	if err != nil {
		t.Fatal(err)
	}
	const maxLen = 4096
	m := tinyModel(t)
	layout, expand := spec.Layout, spec.Layout.Expand
	layout.Placeholder, layout.ImageTokenID = "<image>", 7
	layout.Expand = func(g vision.Grid) string {
		return strings.ReplaceAll(expand(g), spec.Layout.Placeholder, "<image>")
	}
	m.MaxLen, m.Prompter.Layout, m.Prompter.Preprocessor = maxLen, layout, p
	m.Encode = func(_ context.Context, img *vision.Image) ([]float32, bool, error) {
		return make([]float32, layout.Patches(img.Grid)*hidden), false, nil
	}
	s, _ := run(t, m, decodertest.NewHash(1, maxLen, vocab), o)
	return s
}

// sameCount compares what Count and Generate say of parts, as a prompt and as a chat, and gives how many of these are
// taken.
func sameCount(t *testing.T, s *serving.Service, name string, parts []serving.Part) (taken int) {
	t.Helper()
	one := uint32(1)
	for _, in := range []serving.Request{
		{Prompt: &serving.Prompt{Parts: parts}},
		{Chat: &serving.Chat{Messages: []serving.Message{{Role: "user", Parts: parts}}}},
	} {
		in.MaxTokens = &one
		asked, counted := in, in
		var got serving.Collector
		errGenerate := s.Generate(t.Context(), &asked, got.Sink())
		count, errCount := s.Count(t.Context(), &counted)
		if (errGenerate == nil) != (errCount == nil && count.Fits) {
			t.Errorf("%s: Generate says %v, Count %+v, %v", name, errGenerate, count, errCount)
		}
		if errGenerate != nil || errCount != nil {
			continue
		}
		taken++
		images := 0
		for _, l := range count.Images {
			images += l.Tokens
		}
		if u := got.Usage; count.Prompt != u.Prompt || count.Text != u.Text || count.Image != u.Image || images != u.Image {
			t.Errorf("%s: %+v, Generate reports %+v", name, count, u)
		}
	}
	return taken
}

// What is said of an image is known from its size, after orientation.
func TestCountLayout(t *testing.T) {
	s := openService(t, serving.Config{Pace: "0s,0s"})
	for name, c := range map[string]struct {
		data                           []byte
		format                         string
		width, height, sWidth, sHeight int
		tiles                          int
	}{
		"turned": {turnedJPEG(t, 640, 64), "jpeg", 64, 640, 64, 64, 1},
		"square": {pngOf(t, 100, 100), "png", 100, 100, 64, 64, 1},
	} {
		parts := []serving.Part{{Image: &serving.Image{Data: c.data}}, {Text: "What is this?"}}
		got, err := s.Count(t.Context(), &serving.Request{Prompt: &serving.Prompt{Parts: parts}})
		if err != nil {
			t.Fatal(err)
		}
		l := got.Images[0]
		if l.Format != c.format || l.Width != c.width || l.Height != c.height || l.ScaledWidth != c.sWidth ||
			l.ScaledHeight != c.sHeight || l.Grid.Tiles() != c.tiles || l.Tokens != got.Image {
			t.Errorf("%s: %+v", name, l)
		}
	}
}

// The header of a photograph is read without its pixels: memory says so here, BenchmarkCount how fast.
func TestCountDecodesNothing(t *testing.T) {
	s, in := openService(t, serving.Config{Pace: "0s,0s"}), photograph(t)
	before := modeltest.Allocated()
	if _, err := s.Count(t.Context(), in()); err != nil {
		t.Fatal(err)
	}
	if took := modeltest.Allocated() - before; took > 1<<20 {
		t.Errorf("counting the tokens of an image of 12 megapixels allocates %d bytes", took)
	}
}

// BenchmarkCount counts the tokens of a JPEG of 12 megapixels.
func BenchmarkCount(b *testing.B) {
	s, in := openService(b, serving.Config{Pace: "0s,0s"}), photograph(b)
	var before, after syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before)
	for b.Loop() {
		if _, err := s.Count(b.Context(), in()); err != nil {
			b.Fatal(err)
		}
	}
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
	took := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(took)/float64(b.N), "cpu-ns/op") // where the machine has other work
}

// photograph gives requests about one of 12 megapixels.
func photograph(t testing.TB) func() *serving.Request {
	data := turnedJPEG(t, 4000, 3000)
	return func() *serving.Request {
		parts := []serving.Part{{Image: &serving.Image{Data: data}}, {Text: "What is this?"}}
		return &serving.Request{Chat: &serving.Chat{Messages: []serving.Message{{Role: "user", Parts: parts}}}}
	}
}

// Counting and embedding count against a tenant's quotas: both as requests, and what is encoded as an image and its
// tokens.
func TestCountAndEmbedQuotas(t *testing.T) {
	number := func(n serving.Count) *serving.Count { return &n }
	data := pngOf(t, 8, 8)
	part := serving.Part{Image: &serving.Image{Data: data}}
	count := func(s *serving.Service) error {
		_, err := s.Count(t.Context(), &serving.Request{Tenant: "a", Prompt: &serving.Prompt{Parts: []serving.Part{part}}})
		return err
	}
	embed := func(s *serving.Service) error {
		in := &serving.EmbedRequest{Tenant: "a", Image: &serving.Image{Data: data}}
		return s.Embed(t.Context(), in, func(e *serving.Embedding) error { return nil })
	}
	for name, c := range map[string]struct {
		quota          serving.Quota
		counts, embeds int // of 4 each, the counts first
	}{
		"requests": {serving.Quota{RequestsPerSecond: pointer(0.001), Burst: number(5)}, 4, 1},
		"images":   {serving.Quota{ImagesPerMinute: number(2)}, 4, 2},
		"tokens":   {serving.Quota{TokensPerMinute: number(3 * imageTokens)}, 4, 3},
	} {
		q, err := serving.NewQuotas(serving.QuotaConfig{Default: c.quota})
		if err != nil {
			t.Fatal(err)
		}
		s, _ := tinyWith(t, q)
		counts, embeds := 0, 0
		for i := range 8 {
			do, taken := count, &counts
			if i >= 4 {
				do, taken = embed, &embeds
			}
			if err := do(s); err == nil {
				*taken++
			} else if serving.KindOf(err) != serving.Exhausted {
				t.Errorf("%s: %v", name, err)
			}
		}
		if counts != c.counts || embeds != c.embeds {
			t.Errorf("%s: %d counts and %d embeddings were taken, want %d and %d", name, counts, embeds, c.counts, c.embeds)
		}
	}
}

func pointer[T any](v T) *T { return &v }
