package constrain

import (
	"regexp"
	"runtime/metrics"
	"testing"
	"time"
)

const (
	// fuzzCPU and fuzzBytes are what a compilation, or an answer, may take of the processor and allocate: several times
	// what compileWork and requestWork stand for, as fuzzing slows the code down.
	fuzzCPU   = 8 * time.Second
	fuzzBytes = 512 << 20
)

// budgeted runs f and holds it to the budgets.
func budgeted(t *testing.T, what string, f func()) {
	t.Helper()
	cpu, bytes := cpuTime(), allocated()
	f()
	if took, made := cpuTime()-cpu, allocated()-bytes; took > fuzzCPU || made > fuzzBytes {
		t.Errorf("%s took %v of the processor and allocated %d bytes, want at most %v and %d", what, took, made, fuzzCPU, fuzzBytes)
	}
}

// allocated is how many bytes the process has allocated so far.
func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// fuzzTexts are tokens that span what the grammars tell apart.
var fuzzTexts = []string{`{"`, `":`, `",`, `"}`, `, "`, `": "`, `[]`, `{}`, `]}`, "true", "null", "12", "0.5", "ab",
	"aé", "  ", "\\\"", "é\"", "a\xC3"}

func FuzzRegexp(f *testing.F) {
	for _, expr := range []string{`a|b*`, `^(x{2,3}|[^\d\pL])$`, `(?i)é\z`, `(?s).{0,9}\x{10FFFF}?`, `a{1000}`, `(|a)+`,
		`[[:alpha:]]\Qa.b\E`} {
		f.Add(expr)
	}
	fix := small(f, fuzzTexts...)
	f.Fuzz(func(t *testing.T, expr string) {
		var g *Grammar
		var err error
		budgeted(t, "compilation", func() { g, err = fix.compiler.Regexp(t.Context(), expr, false) })
		if err != nil {
			return
		}
		re, err := regexp.Compile(`\A(?:` + expr + `)\z`)
		if err != nil {
			t.Skip("not an expression in brackets")
		}
		rng := newRand(1)
		fix.checkMasks(t, g, rng, 3)
		for range 3 {
			var text string
			var ended bool
			budgeted(t, "an answer", func() { text, ended = fix.walk(t, g, rng, 100) })
			if ended && !re.MatchString(text) {
				t.Errorf("%q ends with %q", expr, text)
			}
		}
	})
}

func FuzzJSONSchema(f *testing.F) {
	f.Add(benchSchema)
	for _, schema := range []string{
		`{}`, `{"type":["integer","string"],"minimum":-1.5,"maxLength":3,"pattern":"^a?b$"}`,
		`{"oneOf":[{"const":1},{"type":"array","prefixItems":[true],"items":{"$ref":"#"},"minItems":2}]}`,
		`{"properties":{"a":{"format":"date"},"b":false},"additionalProperties":{"enum":[1.0,"x",{"y":[]}]},"required":["c"]}`,
		`{"type":"number","exclusiveMinimum":1e-3,"maximum":12.5}`, `{"allOf":[{"anyOf":[{"$ref":"#/$defs/a~0"},true]}],"$defs":{"a~":{"type":"null"}}}`,
	} {
		f.Add(schema)
	}
	fix := small(f, fuzzTexts...)
	f.Fuzz(func(t *testing.T, schema string) {
		var g *Grammar
		var err error
		budgeted(t, "compilation", func() { g, err = fix.compiler.JSONSchema(t.Context(), []byte(schema), false) })
		if err != nil {
			return
		}
		v, err := validator(schema)
		if err != nil {
			t.Skip("not a schema to the other implementation")
		}
		rng := newRand(1)
		fix.checkMasks(t, g, rng, 3)
		for range 3 {
			var text string
			var ended bool
			budgeted(t, "an answer", func() { text, ended = fix.walk(t, g, rng, 200) })
			if ended {
				if err := validate(v, text); err != nil {
					t.Errorf("%s ends with %s: %v", schema, text, err)
				}
			}
		}
	})
}
