package constrain

import (
	"container/list"
	"testing"
)

// Costs of constrained decoding on real vocabularies: phi-2-codegen has 50k tokens, granite-docling 100k. A cold mask
// is one for a state that no sequence has been at, of a grammar that was just compiled.

const benchSchema = `{
	"type": "object",
	"properties": {
		"title": {"type": "string"},
		"caption": {"type": "string", "maxLength": 200},
		"score": {"type": "number", "minimum": 0, "maximum": 1},
		"kind": {"enum": ["photo", "drawing", "chart", "table"]},
		"date": {"type": "string", "format": "date"},
		"tags": {"type": "array", "items": {"type": "string"}, "maxItems": 10},
		"objects": {"type": "array", "items": {"$ref": "#/$defs/object"}}
	},
	"required": ["title", "caption", "kind", "tags"],
	"$defs": {"object": {
		"type": "object",
		"properties": {"label": {"type": "string"}, "count": {"type": "integer", "minimum": 0}, "parts": {"type": "array", "items": {"$ref": "#/$defs/object"}}},
		"required": ["label"]
	}}
}`

var benchmarks = []struct {
	name, regexp, schema string
	before               string // the output at whose end the mask is taken
}{
	{name: "regexp-words", regexp: `[A-Z][a-z]+( [a-z]+){0,20}\.`, before: "The quick brown"},
	{name: "regexp-letters", regexp: `\pL+( \pL+){0,8}`, before: "The quick"},
	{name: "regexp-any", regexp: `(?s).*`, before: "The quick"},
	{name: "schema-key", schema: benchSchema, before: `{"title": "x", "cap`},
	{name: "schema-string", schema: benchSchema, before: `{"title": "A view of`},
	{name: "schema-string-bounded", schema: benchSchema, before: `{"title": "x", "caption": "A view of`},
	{name: "schema-string-nested", schema: benchSchema, before: `{"title":"x","caption":"","kind":"chart","tags":[],"objects":[{"label":"a","parts":[{"label":"b`},
	{name: "schema-number", schema: benchSchema, before: `{"title":"x","caption":"","score":0.`},
	{name: "any-json-string", schema: `{}`, before: `{"a": ["b`},
	{name: "any-json-value", schema: `{}`, before: `{"a":`},
}

func (f *fixture) benchGrammar(b *testing.B, i int) *Grammar {
	b.Helper()
	bench := benchmarks[i]
	c := &Compiler{vocab: f.compiler.vocab, lanes: f.compiler.lanes, byHash: make(map[hash]*list.Element),
		recent: list.New()}
	var g *Grammar
	var err error
	if bench.regexp != "" {
		g, err = c.Regexp(b.Context(), bench.regexp, false)
	} else {
		g, err = c.JSONSchema(b.Context(), []byte(bench.schema), false)
	}
	if err != nil {
		b.Fatal(err)
	}
	return g
}

func forBenchmarks(b *testing.B, run func(b *testing.B, fix *fixture, i int)) {
	for _, name := range []string{"phi-2-codegen", "phi-3-vision", "granite-docling"} {
		for i, bench := range benchmarks {
			b.Run(name+"/"+bench.name, func(b *testing.B) { run(b, load(b, name), i) })
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	forBenchmarks(b, func(b *testing.B, fix *fixture, i int) {
		for b.Loop() {
			fix.benchGrammar(b, i)
		}
	})
}

func BenchmarkMaskCold(b *testing.B) {
	forBenchmarks(b, func(b *testing.B, fix *fixture, i int) {
		for b.Loop() {
			b.StopTimer()
			a := fix.benchGrammar(b, i).automaton
			s := a.read(a.start, benchmarks[i].before)
			if s == a.dead {
				b.Fatal("not an output")
			}
			s.mask = nil
			b.StartTimer()
			a.maskOf(s)
		}
	})
}

// BenchmarkSteps is 8 sequences that each take the mask and accept a token, per step; their grammar has seen such
// outputs before.
func BenchmarkSteps(b *testing.B) {
	fix := load(b, "phi-2-codegen")
	g, err := fix.compiler.JSONSchema(b.Context(), []byte(benchSchema), false)
	if err != nil {
		b.Fatal(err)
	}
	text := `{"title": "A view of the harbour", "caption": "Three boats lie at the pier, and a man mends his nets in the sun.", "kind": "photo", "tags": ["sea", "boats"]}`
	ids := append(fix.tok.Encode(text, false), fix.stop)
	rows := make([]*State, 8)
	for b.Loop() {
		for i := range rows {
			rows[i] = g.Start(b.Context())
		}
		for _, id := range ids {
			for _, s := range rows {
				if !has(s.Mask(), id) {
					b.Fatal("not an output")
				}
				s.Accept(id)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(ids)), "ns/step")
}

func BenchmarkVocabulary(b *testing.B) {
	for _, name := range []string{"phi-2-codegen", "phi-3-vision", "granite-docling"} {
		b.Run(name, func(b *testing.B) {
			fix := load(b, name)
			for b.Loop() {
				if _, err := NewCompiler(fix.tok, []int32{fix.stop}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
