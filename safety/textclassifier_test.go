package safety

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// tinyWords are the vocabulary of tinyBERT's WordPiece, ids in order.
var tinyWords = []string{"[PAD]", "[UNK]", "[CLS]", "[SEP]", "i", "hate", "love", "you", "all", "the", "house", "##s",
	"is", "red", "and", "blue", "."}

const (
	tinyHidden, tinyHeads, tinyInner, tinyPositions, tinyLabels = 8, 2, 12, 16, 3
)

// tinyBERT is a BERT of one layer with random weights: as an ONNX graph, and computed by itself.
type tinyBERT struct {
	w     map[string][]float32
	dims  map[string][]int
	types bool // it takes token_type_ids
	rng   *rand.Rand
}

func newTinyBERT(types bool) *tinyBERT {
	b := &tinyBERT{w: map[string][]float32{}, dims: map[string][]int{}, types: types, rng: rand.New(rand.NewPCG(5, 8))}
	const h = tinyHidden
	for _, p := range []struct {
		name string
		dims []int
	}{
		{"word", []int{len(tinyWords), h}}, {"position", []int{tinyPositions, h}}, {"type", []int{2, h}},
		{"ln0.w", []int{h}}, {"ln0.b", []int{h}}, {"q.w", []int{h, h}}, {"q.b", []int{h}}, {"k.w", []int{h, h}},
		{"k.b", []int{h}},
		{"v.w", []int{h, h}}, {"v.b", []int{h}}, {"o.w", []int{h, h}}, {"o.b", []int{h}}, {"ln1.w", []int{h}},
		{"ln1.b", []int{h}},
		{"up.w", []int{h, tinyInner}}, {"up.b", []int{tinyInner}}, {"down.w", []int{tinyInner, h}}, {"down.b", []int{h}},
		{"ln2.w", []int{h}}, {"ln2.b", []int{h}}, {"out.w", []int{h, tinyLabels}}, {"out.b", []int{tinyLabels}},
	} {
		n := 1
		for _, d := range p.dims {
			n *= d
		}
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(b.rng.NormFloat64() * 0.6)
		}
		b.w[p.name], b.dims[p.name] = v, p.dims
	}
	return b
}

// graph is the model as torch exports it. fixed is the number of tokens; 0 for any.
func (b *tinyBERT) graph(dt onnx.DType, fixed int) []byte {
	g := onnx.New("tiny-bert")
	w := func(name string) string { return g.F32s(name, b.dims[name], b.w[name]) }
	var tokens any = "tokens"
	if fixed > 0 {
		tokens = fixed
	}
	ids, mask := g.Input("input_ids", dt, "batch", tokens), g.Input("attention_mask", dt, "batch", tokens)
	x := g.Op("Gather", nil, w("word"), ids)
	if b.types {
		x = g.Op("Add", nil, x, g.Op("Gather", nil, w("type"), g.Input("token_type_ids", dt, "batch", tokens)))
	}
	long := g.Op("Shape", onnx.Attrs{"start": 1, "end": 2}, ids)
	x = g.Op("Add", nil, x, g.Op("Slice", nil, w("position"), g.I64s(0), long, g.I64s(0)))
	norm := func(x, name string) string {
		return g.Op("LayerNormalization", onnx.Attrs{"axis": -1, "epsilon": float32(1e-12)}, x, w(name+".w"), w(name+".b"))
	}
	dense := func(x, name string) string {
		return g.Op("Add", nil, g.Op("MatMul", nil, x, w(name+".w")), w(name+".b"))
	}
	x = norm(x, "ln0")
	heads := func(name string) string {
		shaped := g.Op("Reshape", nil, dense(x, name), g.I64s(0, 0, tinyHeads, tinyHidden/tinyHeads))
		return g.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 1, 3}}, shaped)
	}
	q, k, v := heads("q"), g.Op("Transpose", onnx.Attrs{"perm": []int{0, 1, 3, 2}}, heads("k")), heads("v")
	hidden := g.Op("Sub", nil, g.F32(1), g.Op("Cast", onnx.Attrs{"to": int(onnx.F32)}, mask))
	hidden = g.Op("Mul", nil, hidden, g.F32(-1e9))
	scores := g.Op("Mul", nil, g.Op("MatMul", nil, q, k), g.F32(float32(1/math.Sqrt(tinyHidden/tinyHeads))))
	scores = g.Op("Add", nil, scores, g.Op("Unsqueeze", nil, hidden, g.I64s(1, 2)))
	seen := g.Op("MatMul", nil, g.Op("Softmax", onnx.Attrs{"axis": -1}, scores), v)
	seen = g.Op("Reshape", nil, g.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 1, 3}}, seen), g.I64s(0, 0, tinyHidden))
	x = norm(g.Op("Add", nil, x, dense(seen, "o")), "ln1")
	up := dense(x, "up")
	erf := g.Op("Add", nil, g.F32(1), g.Op("Erf", nil, g.Op("Mul", nil, up, g.F32(float32(math.Sqrt(0.5))))))
	x = norm(g.Op("Add", nil, x, dense(g.Op("Mul", nil, g.Op("Mul", nil, up, g.F32(0.5)), erf), "down")), "ln2")
	first := g.Op("Squeeze", nil, g.Op("Slice", nil, x, g.I64s(0), g.I64s(1), g.I64s(1)), g.I64s(1))
	logits := dense(first, "out")
	g.Node("", "Identity", nil, []string{logits}, []string{"logits"})
	g.Output("logits", onnx.F32, "batch", tinyLabels)
	return g.Bytes()
}

// logits computes them in float64, token by token.
func (b *tinyBERT) logits(ids []int32) []float64 {
	at := func(name string, row, i int) float64 {
		return float64(b.w[name][row*b.dims[name][len(b.dims[name])-1]+i])
	}
	dense := func(x []float64, name string) []float64 {
		out := make([]float64, b.dims[name+".w"][1])
		for j := range out {
			out[j] = at(name+".b", 0, j)
			for i, v := range x {
				out[j] += v * at(name+".w", i, j)
			}
		}
		return out
	}
	norm := func(x []float64, name string) []float64 {
		mean, square := 0.0, 0.0
		for _, v := range x {
			mean += v / float64(len(x))
		}
		for _, v := range x {
			square += (v - mean) * (v - mean) / float64(len(x))
		}
		out := make([]float64, len(x))
		for i, v := range x {
			out[i] = (v-mean)/math.Sqrt(square+1e-12)*at(name+".w", 0, i) + at(name+".b", 0, i)
		}
		return out
	}
	var x, k, v [][]float64
	for p, id := range ids {
		row := make([]float64, tinyHidden)
		for i := range row {
			if row[i] = at("word", int(id), i) + at("position", p, i); b.types {
				row[i] += at("type", 0, i)
			}
		}
		row = norm(row, "ln0")
		x, k, v = append(x, row), append(k, dense(row, "k")), append(v, dense(row, "v"))
	}
	const size = tinyHidden / tinyHeads
	q, seen := dense(x[0], "q"), make([]float64, tinyHidden)
	for h := range tinyHeads {
		weights, sum := make([]float64, len(ids)), 0.0
		for p := range ids {
			for i := range size {
				weights[p] += q[h*size+i] * k[p][h*size+i] / math.Sqrt(size)
			}
			weights[p] = math.Exp(weights[p])
			sum += weights[p]
		}
		for p := range ids {
			for i := range size {
				seen[h*size+i] += weights[p] / sum * v[p][h*size+i]
			}
		}
	}
	add := func(a, b []float64) []float64 {
		out := make([]float64, len(a))
		for i := range a {
			out[i] = a[i] + b[i]
		}
		return out
	}
	y := norm(add(x[0], dense(seen, "o")), "ln1")
	up := dense(y, "up")
	for i, u := range up {
		up[i] = u / 2 * (1 + math.Erf(u*math.Sqrt(0.5)))
	}
	return dense(norm(add(y, dense(up, "down")), "ln2"), "out")
}

// folder writes the model as transformers and optimum do.
func (b *tinyBERT) folder(t *testing.T, graph []byte, config string) string {
	t.Helper()
	dir, vocab := t.TempDir(), map[string]int{}
	var added []map[string]any
	for i, word := range tinyWords {
		if vocab[word] = i; word[0] == '[' {
			added = append(added, map[string]any{"id": i, "content": word, "special": true, "single_word": false,
				"lstrip": false,
				"rstrip": false, "normalized": false})
		}
	}
	special := func(word string) map[string]any {
		return map[string]any{"id": word, "ids": []int{vocab[word]}, "tokens": []string{word}}
	}
	tokens, err := json.Marshal(map[string]any{
		"version": "1.0", "added_tokens": added,
		"normalizer": map[string]any{"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
			"strip_accents": nil, "lowercase": true},
		"pre_tokenizer": map[string]any{"type": "BertPreTokenizer"},
		"post_processor": map[string]any{"type": "TemplateProcessing",
			"single": []any{map[string]any{"SpecialToken": map[string]any{"id": "[CLS]", "type_id": 0}},
				map[string]any{"Sequence": map[string]any{"id": "A", "type_id": 0}},
				map[string]any{"SpecialToken": map[string]any{"id": "[SEP]", "type_id": 0}}},
			"pair":           []any{},
			"special_tokens": map[string]any{"[CLS]": special("[CLS]"), "[SEP]": special("[SEP]")}},
		"decoder": map[string]any{"type": "WordPiece", "prefix": "##", "cleanup": true},
		"model": map[string]any{"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
			"max_input_chars_per_word": 100, "vocab": vocab},
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"model.onnx": graph, "tokenizer.json": tokens, "config.json": []byte(config),
		"tokenizer_config.json": []byte(`{"model_max_length": 1000000000000000019884624838656}`)} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const tinyConfig = `{"model_type": "bert", "max_position_embeddings": 16, "pad_token_id": 0, "problem_type": "%s",
	"id2label": {"0": "neutral", "1": "toxic", "2": "threat"}}`

var tinyKinds = map[string]Category{"toxic": Hate, "threat": Violence}

// library starts ONNX Runtime.
func library(t testing.TB) {
	t.Helper()
	lib, err := ort.FindLibrary("")
	if err == nil {
		err = ort.Start(lib)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A text classifier's scores are those of a computation of its own, for logits of one label and of each, with and
// without token_type_ids, for any number of tokens and for one that texts are padded to.
func TestTextClassifier(t *testing.T) {
	library(t)
	for _, c := range []struct {
		name, problem string
		types         bool
		dt            onnx.DType
		fixed         int
	}{
		{"bert", "single_label_classification", true, onnx.I64, 0},
		{"distilbert", "multi_label_classification", false, onnx.I64, 0},
		{"fixed", "", true, onnx.I32, 12},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newTinyBERT(c.types)
			dir := b.folder(t, b.graph(c.dt, c.fixed), fmt.Sprintf(tinyConfig, c.problem))
			got, err := openTextClassifier(ClassifierConfig{Kind: "text", Folder: dir, Labels: tinyKinds}, 1)
			if err != nil {
				t.Fatal(err)
			}
			defer got.close()
			for _, text := range []string{"I hate you all.", "", "The houses is red and blue", "Löve zebras"} {
				list, err := got.classify(t.Context(), text)
				if err != nil {
					t.Fatal(err)
				}
				want := shares(b.logits(tinyIDs(text)), c.problem == "multi_label_classification")
				for i, category := range []Category{Hate, Violence} {
					k := slices.IndexFunc(list, func(f Finding) bool { return f.Category == category })
					if k < 0 || math.Abs(list[k].Score-want[1+i]) > 1e-5 || list[k].End != len(text) {
						t.Errorf("%q: %v gets %+v, want %v", text, category, list, want[1+i])
					}
				}
			}
		})
	}
}

// tinyIDs are a text's tokens, as its words are known here.
func tinyIDs(text string) []int32 {
	ids := []int32{2}
	for _, word := range strings.Fields(strings.ReplaceAll(strings.ToLower(text), ".", " .")) {
		switch i := slices.Index(tinyWords, strings.ReplaceAll(word, "ö", "o")); {
		case i >= 0:
			ids = append(ids, int32(i))
		case word == "houses":
			ids = append(ids, 10, 11)
		default:
			ids = append(ids, 1)
		}
	}
	return append(ids, 3)
}

// shares are what logits say, of one label or of each.
func shares(logits []float64, each bool) []float64 {
	sum := 0.0
	for _, v := range logits {
		sum += math.Exp(v)
	}
	out := make([]float64, len(logits))
	for i, v := range logits {
		if out[i] = math.Exp(v) / sum; each {
			out[i] = 1 / (1 + math.Exp(-v))
		}
	}
	return out
}

// A text longer than a model takes at once is looked at in windows, the highest of which counts; one beyond the most
// that is looked at is refused.
func TestTextClassifierWindows(t *testing.T) {
	library(t)
	b := newTinyBERT(true)
	dir := b.folder(t, b.graph(onnx.I64, 0), fmt.Sprintf(tinyConfig, "multi_label_classification"))
	c, err := openTextClassifier(ClassifierConfig{Name: "tiny", Kind: "text", Folder: dir, Labels: tinyKinds}, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	text := strings.Repeat("the house is red and blue. ", 6) + "i hate you all " + strings.Repeat("love the blue houses ", 4)
	ids, best := tinyIDs(text), 0.0
	ids = ids[1 : len(ids)-1]
	for at := 0; ; at += 13 { // 14 of 16 are the text's, an eighth of which twice
		window := ids[at:min(len(ids), at+14)]
		best = max(best, shares(b.logits(slices.Concat([]int32{2}, window, []int32{3})), true)[1])
		if at+14 >= len(ids) {
			break
		}
	}
	list, err := c.classify(t.Context(), text)
	if err != nil || len(list) != 2 || math.Abs(list[0].Score-best) > 1e-5 {
		t.Errorf("got %+v, %v, want %v", list, err, best)
	}
	if _, err := c.classify(t.Context(), strings.Repeat("red ", 14+13*40)); err != nil {
		t.Errorf("a text of 41 windows: %v", err)
	}
	if _, err := c.classify(t.Context(), strings.Repeat("red ", 14+13*256)); !errors.Is(err, ErrLongText) {
		t.Errorf("a text of 257 windows: %v", err)
	}
}

// A policy has classifiers of texts act on what it has rules for, from its thresholds on; what a folder lacks is said
// at the start.
func TestInspectText(t *testing.T) {
	library(t)
	b := newTinyBERT(true)
	config := fmt.Sprintf(tinyConfig, "multi_label_classification")
	dir := b.folder(t, b.graph(onnx.I64, 0), config)
	const text = "I hate you all."
	score := shares(b.logits(tinyIDs(text)), true)[1]
	file := func(dir string, threshold float64, rules string) *Policy {
		p, err := Parse([]byte(fmt.Sprintf("default: %s\nclassifiers:\n- {name: tiny, kind: text, folder: %q, "+
			"threshold: %v, labels: {toxic: hate}}", rules, dir, threshold)))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, c := range []struct {
		own   float64
		rules string
		want  Action
	}{
		{0, fmt.Sprintf("{hate: {input: block, threshold: %v}}", score-0.01), Block},
		{0, fmt.Sprintf("{hate: {input: flag, threshold: %v}}", score+0.01), Allow},
		{score + 0.01, "{hate: {input: block, threshold: 0}}", Allow},
		{0, "{hate: {output: block, threshold: 0}}", Allow}, {0, "{violence: {input: block, threshold: 0}}", Allow},
	} {
		p := file(dir, c.own, c.rules)
		in, err := OpenInspector(p, InspectorOptions{Threads: 1})
		if err != nil {
			t.Fatal(err)
		}
		list, err := in.InspectText(t.Context(), p.Of(""), Input, text)
		if err != nil || (len(list) == 1) != (c.want != Allow) || len(list) > 0 && list[0].Action != c.want {
			t.Errorf("%s: %+v, %v", c.rules, list, err)
		}
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	}
	other := onnx.New("other")
	other.Output("y", onnx.F32, "batch", 3)
	other.Node("", "Identity", nil, []string{other.Input("pixel_values", onnx.F32, "batch", 3)}, []string{"y"})
	for want, dir := range map[string]string{
		"pixel_values":   b.folder(t, other.Bytes(), config),
		"id2label":       b.folder(t, b.graph(onnx.I64, 0), "{}"),
		"has 2 labels":   b.folder(t, b.graph(onnx.I64, 0), `{"id2label": {"0": "toxic", "1": "x"}}`),
		"regression":     b.folder(t, b.graph(onnx.I64, 0), fmt.Sprintf(tinyConfig, "regression")),
		"pad_token_id":   b.folder(t, b.graph(onnx.I64, 0), strings.Replace(config, `_id": 0`, `_id": 99`, 1)),
		"none of the":    b.folder(t, b.graph(onnx.I64, 0), strings.Replace(config, "toxic", "other", 1)),
		"takes 12":       b.folder(t, b.graph(onnx.I64, 12), strings.Replace(config, `ings": 16`, `ings": 8`, 1)),
		"tokenizer.json": strip(t, b.folder(t, b.graph(onnx.I64, 0), config)),
	} {
		if _, err := OpenInspector(file(dir, 0, "{}"), InspectorOptions{Threads: 1}); err == nil ||
			!strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "classifiers[0]") {
			t.Errorf("opens with %v, want %q", err, want)
		}
	}
}

func strip(t *testing.T, dir string) string {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, "tokenizer.json")); err != nil {
		t.Fatal(err)
	}
	return dir
}
