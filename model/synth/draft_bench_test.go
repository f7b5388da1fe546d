package synth

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/model/modeltest"
)

// A pair of models that agree as often as wanted: the draft is the first layers of the model, whose others add little.
const (
	pairLayers, pairDraftLayers = 20, 2
	// pairFaint is what the model's later layers are multiplied by, so that both agree on some 70 % of the tokens.
	pairFaint = 0.055
)

// writePair makes the folders of a model and its draft.
func writePair(b *testing.B, faint float32) (target, draft string) {
	b.Helper()
	raw, err := os.ReadFile(filepath.Join(modeltest.TinyDir("smolvlm"), "config.json"))
	if err != nil {
		b.Fatal(err)
	}
	shape := func(layers int) []byte {
		var c map[string]any
		if err := json.Unmarshal(raw, &c); err != nil {
			b.Fatal(err)
		}
		text := c["text_config"].(map[string]any)
		for name, n := range map[string]int{
			"hidden_size": 768, "intermediate_size": 2304, "num_attention_heads": 12, "num_key_value_heads": 4,
			"head_dim": 64, "num_hidden_layers": layers, "vocab_size": 12288,
		} {
			text[name] = n
		}
		out, err := json.Marshal(c)
		if err != nil {
			b.Fatal(err)
		}
		return out
	}
	dir := b.TempDir()
	config := filepath.Join(dir, "shape.json")
	target, draft = filepath.Join(dir, "model"), filepath.Join(dir, "draft")
	if err := os.WriteFile(config, shape(pairLayers), 0o644); err != nil {
		b.Fatal(err)
	}
	if err := Init(config, target, InitOptions{Seed: 11}); err != nil {
		b.Fatal(err)
	}
	weights := filepath.Join(target, "model.safetensors")
	if err := fade(weights, faint); err != nil {
		b.Fatal(err)
	}
	if err := os.CopyFS(draft, os.DirFS(target)); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(draft, "config.json"), shape(pairDraftLayers), 0o644); err != nil {
		b.Fatal(err)
	}
	return target, draft
}

// fade multiplies what the later layers add to the hidden states; weights are bfloat16.
func fade(file string, by float32) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	n := binary.LittleEndian.Uint64(raw)
	var head map[string]json.RawMessage
	if err := json.Unmarshal(raw[8:8+n], &head); err != nil {
		return err
	}
	adds := regexp.MustCompile(`text.*layers\.(\d+)\.(self_attn\.o_proj|mlp\.down_proj)\.weight$`)
	for name, entry := range head {
		m := adds.FindStringSubmatch(name)
		if m == nil {
			continue
		}
		if layer, _ := strconv.Atoi(m[1]); layer < pairDraftLayers {
			continue
		}
		var t struct {
			At [2]uint64 `json:"data_offsets"`
		}
		if err := json.Unmarshal(entry, &t); err != nil {
			return err
		}
		data := raw[8+n:][t.At[0]:t.At[1]]
		for i := 0; i < len(data); i += 2 {
			x := math.Float32frombits(uint32(binary.LittleEndian.Uint16(data[i:])) << 16)
			binary.LittleEndian.PutUint16(data[i:], uint16(math.Float32bits(x*by)>>16))
		}
	}
	return os.WriteFile(file, raw, 0o644)
}

// openPair opens both decoders of a pair.
func openPair(b *testing.B) (target, draft decoder.Runner, vocab int) {
	b.Helper()
	modeltest.StartLibrary(b)
	faint := float64(pairFaint)
	if s := os.Getenv("MMSERVE_BENCH_FAINT"); s != "" {
		var err error
		if faint, err = strconv.ParseFloat(s, 32); err != nil {
			b.Fatal(err)
		}
	}
	dirs := [2]string{}
	dirs[0], dirs[1] = writePair(b, float32(faint))
	var runners [2]decoder.Runner
	for i, p := range []graph.Precision{graph.INT8, graph.INT4} {
		m, err := model.Open(dirs[i])
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { m.Close() })
		if _, err := m.LoadQuantized("", p, p); err != nil {
			b.Skip(err)
		}
		if runners[i], err = m.OpenDecoder(decoder.OpenOptions{Slots: 1, MaxLen: 1024, Precision: p}); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { runners[i].Close() })
		vocab = m.Decoder.Vocab
	}
	return runners[0], runners[1], vocab
}

// agreement is the part of an answer's tokens that are the likeliest to the draft model, too.
func agreement(b *testing.B, draft decoder.Runner, prompt, ids []int32) float64 {
	b.Helper()
	logits, err := draft.Logits(fusion.Input{IDs: slices.Concat(prompt, ids[:len(ids)-1])})
	if err != nil {
		b.Fatal(err)
	}
	vocab := len(logits) / (len(prompt) + len(ids) - 1)
	right := 0
	for i, id := range ids {
		at := logits[(len(prompt)-1+i)*vocab:][:vocab]
		if at[id] == slices.Max(at) {
			right++
		}
	}
	return float64(right) / float64(len(ids))
}

// generated is what a greedy answer took, prompt and first token left out.
type generated struct {
	ids   []int32
	took  time.Duration
	steps int
}

// generate answers with up to so many drafts a step.
func generate(b *testing.B, r decoder.Stepper, prompt []int32, n, drafts int) (g generated) {
	b.Helper()
	sampler := decoder.NewSampler(decoder.Sampling{})
	all := slices.Clone(prompt)
	row := decoder.Row{IDs: prompt, Sampler: sampler}
	var began time.Time
	for len(all) < len(prompt)+n {
		tokens, err := r.Run(b.Context(), &decoder.Batch{Rows: []decoder.Row{row}})
		if err != nil {
			b.Fatal(err)
		}
		for _, t := range tokens {
			all = append(all, t.ID)
		}
		if g.steps++; g.steps == 1 {
			began = time.Now()
		}
		past := len(all) - 1
		row = decoder.Row{Past: past, IDs: all[past:], Sampler: sampler}
		if drafts > 0 {
			row.Propose = &decoder.Proposal{Most: drafts, Known: all[:past]}
		}
	}
	g.ids, g.took = all[len(prompt):][:n], time.Since(began)
	return g
}

// BenchmarkDraftModel generates 160 tokens at one stream with a draft model of 2 layers in int4 for a model of 20 in
// int8, and without, in turns: how many times as fast it is, and on which part of the tokens both agree. Nothing is
// looked up in what was said before. Tokens are the same.
func BenchmarkDraftModel(b *testing.B) {
	target, draft, vocab := openPair(b)
	speculator, err := decoder.NewSpeculator(target, draft, vocab, true)
	if err != nil {
		b.Fatal(err)
	}
	prompt := make([]int32, 32)
	for i := range prompt {
		prompt[i] = int32(1000 + i*37)
	}
	const tokens = 160
	for _, drafts := range []int{3, 4, 6} {
		b.Run(fmt.Sprintf("drafts=%d", drafts), func(b *testing.B) {
			var ratios []float64
			var with generated
			for b.Loop() {
				without := generate(b, target, prompt, tokens, 0)
				if with = generate(b, speculator, prompt, tokens, drafts); !slices.Equal(with.ids, without.ids) {
					b.Fatal("tokens differ with a draft model")
				}
				ratios = append(ratios, without.took.Seconds()/with.took.Seconds())
			}
			slices.Sort(ratios)
			b.ReportMetric(ratios[len(ratios)/2], "times-as-fast")
			b.ReportMetric(float64(tokens-1)/float64(with.steps-1), "tokens/step")
			b.ReportMetric(with.took.Seconds()*1e3/(tokens-1), "ms/token")
			b.ReportMetric(agreement(b, draft, prompt, with.ids), "agree")
			b.ReportMetric(0, "ns/op")
		})
	}
}
