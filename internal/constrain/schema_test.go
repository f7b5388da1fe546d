package constrain

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/mmserve/mmserve/internal/racetest"
)

// validator compiles schema with another implementation, which also checks formats.
func validator(schema string) (*jsonschema.Schema, error) {
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(schema))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	c.UseRegexpEngine(ecmaEngine)
	if err := c.AddResource("schema.json", doc); err != nil {
		return nil, err
	}
	return c.Compile("schema.json")
}

func validate(v *jsonschema.Schema, text string) error {
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		return err
	}
	return v.Validate(doc)
}

// writes reports whether text is an output of g.
func writes(g *Grammar, text string) bool {
	return g.automaton.read(g.automaton.start, text).accept
}

func TestJSONSchema(t *testing.T) {
	fix := small(t)
	deep := strings.Repeat(`{"next":`, maxDepth-1) + "null" + strings.Repeat("}", maxDepth-1)
	for _, test := range []struct {
		schema  string
		yes, no []string
	}{
		{`{}`, []string{`{}`, `[]`, `""`, `0`, `-1.5e+10`, `true`, `null`, `{"a": [1, {"b":null}], "":""}`},
			[]string{``, ` 1`, `1 `, `{ }`, `{"a" :1}`, `[1,  2]`, `01`, `1.`, `.5`, `tru`, `[1,]`, `{"a":1,}`}},
		{`true`, []string{`"x"`}, []string{`x`}},
		{`{"type":"null"}`, []string{`null`}, []string{`0`}},
		{`{"type":["boolean","null"]}`, []string{`true`, `false`, `null`}, []string{`1`}},
		{`{"type":"string"}`, []string{`""`, `"é😀"`, `"\"\\\b\f\n\r\t\u0001\u001f"`, `"/"`},
			[]string{`"`, "\"\n\"", `"\u00e9"`, `"\/"`, `"\u000a"`, "\"\xC0\xAF\"", "\"\xED\xA0\x80\"", "\"\xF4\x90\x80\x80\""}},
		{`{"type":"string","minLength":2,"maxLength":3}`, []string{`"ab"`, `"é😀\n"`}, []string{`""`, `"a"`, `"abcd"`, `"\u0001"`}},
		{`{"type":"string","minLength":2}`, []string{`"ab"`, `"abcdefgh"`}, []string{`"a"`}},
		{`{"type":"string","maxLength":0}`, []string{`""`}, []string{`"a"`}},
		{`{"type":"string","pattern":"b+"}`, []string{`"b"`, `"xbbx"`, `"\nb"`}, []string{`""`, `"x"`}},
		{`{"type":"string","pattern":"^a|b$"}`, []string{`"ax"`, `"xb"`, `"ab"`}, []string{`"xa"`, `"bx"`, `""`}},
		{`{"type":"string","pattern":"^[\"\\\\x]*$"}`, []string{`""`, `"\"x\\"`}, []string{`"y"`, `"\n"`}},
		{`{"type":"string","pattern":"^.$"}`, []string{`"é"`}, []string{`"\n"`, `"\r"`, "\"\u2028\"", `""`}},
		{`{"type":"string","pattern":"^[a-z]*$","minLength":2,"maxLength":3}`, []string{`"ab"`, `"abc"`}, []string{`"a"`, `"abcd"`, `"aB"`}},
		{`{"type":"string","format":"date"}`, []string{`"2024-02-29"`, `"2000-02-29"`, `"2023-12-31"`},
			[]string{`"2023-02-29"`, `"1900-02-29"`, `"2023-04-31"`, `"2023-1-1"`, `"0999-01-01"`}},
		{`{"type":"string","format":"date-time"}`, []string{`"2024-02-29T23:59:59.123Z"`, `"2024-02-29T00:00:00+01:30"`},
			[]string{`"2024-02-29"`, `"2024-02-29T24:00:00Z"`}},
		{`{"type":"string","format":"time"}`, []string{`"12:00:00Z"`}, []string{`"12:00:60Z"`, `"12:00"`}},
		{`{"type":"string","format":"uuid"}`, []string{`"123e4567-e89b-12d3-a456-426614174000"`}, []string{`"123e4567"`}},
		{`{"type":"string","format":"ipv4"}`, []string{`"0.10.199.255"`}, []string{`"1.2.3"`, `"256.0.0.1"`, `"01.2.3.4"`}},
		{`{"type":"string","format":"email"}`, []string{`"a.b+c@example.org"`}, []string{`"a@b"`, `"a b@c.de"`, `"@c.de"`}},
		{`{"type":"integer"}`, []string{`0`, `-1`, `999999999999999`},
			[]string{`1.0`, `1e2`, `00`, `+1`, `1000000000000000`}},
		{`{"type":"integer","minimum":-12,"maximum":105}`, []string{`-12`, `-0`, `0`, `99`, `100`, `105`},
			[]string{`-13`, `106`, `-100`, `1050`}},
		{`{"type":"integer","exclusiveMinimum":1.5,"exclusiveMaximum":4}`, []string{`2`, `3`}, []string{`1`, `4`}},
		{`{"type":"integer","minimum":1e3}`, []string{`1000`, `123456`}, []string{`999`, `-1000`}},
		{`{"type":"integer","maximum":-7}`, []string{`-7`, `-10`}, []string{`-6`, `0`, `7`}},
		{`{"type":"number","minimum":0,"maximum":1}`, []string{`0`, `0.0`, `0.25`, `1`, `1.000`, `-0`},
			[]string{`1.01`, `-0.1`, `2`, `1e-1`}},
		{`{"type":"number","exclusiveMinimum":0,"exclusiveMaximum":1}`, []string{`0.5`, `0.001`, `0.999`}, []string{`0`, `0.0`, `1`, `1.0`}},
		{`{"type":"number","minimum":-1.25,"exclusiveMaximum":10.05}`,
			[]string{`-1.25`, `-1.250`, `-0.7`, `9.99`, `10`, `10.04`, `10.0`},
			[]string{`-1.251`, `-1.3`, `-2`, `10.05`, `10.050`, `10.1`, `11`}},
		{`{"enum":["a",1,1.50,null,{"b":[true]}]}`, []string{`"a"`, `1`, `1.50`, `null`, `{"b":[true]}`},
			[]string{`1.5`, `{"b": [true]}`, `"b"`}},
		{`{"type":["integer","null"],"enum":["a",1,2.0,2.5,null]}`, []string{`1`, `2.0`, `null`}, []string{`"a"`, `2.5`}},
		{`{"const":"é\n\u0000\"/"}`, []string{`"é\n\u0000\"/"`}, []string{`"é"`}},
		{`{"type":"array","items":{"type":"integer"},"minItems":1,"maxItems":3}`, []string{`[1]`, `[1,2, 3]`}, []string{`[]`, `[1,2,3,4]`, `["a"]`, `[ 1]`}},
		{`{"type":"array","maxItems":0}`, []string{`[]`}, []string{`[1]`}},
		{`{"type":"array","minItems":2}`, []string{`[1,""]`, `[1,2,3]`}, []string{`[]`, `[1]`}},
		{`{"type":"array","prefixItems":[{"type":"string"},{"type":"null"}]}`, []string{`[]`, `["a"]`, `["a",null]`}, []string{`[null]`, `["a",null,1]`}},
		{`{"type":"array","prefixItems":[{"type":"string"}],"items":{"type":"null"},"minItems":2}`, []string{`["a",null]`, `["a",null,null]`}, []string{`["a"]`, `["a","b"]`}},
		{`{"type":"array","prefixItems":[{"const":1},{"const":2}],"items":false,"maxItems":9}`, []string{`[1,2]`}, []string{`[1,2,3]`}},
		{`{"type":"object"}`, []string{`{}`, `{"a":1, "b":[]}`}, []string{`[]`}},
		{`{"type":"object","properties":{"a":{"const":1},"b":{"const":2},"c":{"const":3}},"required":["b"]}`,
			[]string{`{"b":2}`, `{"a":1,"b":2}`, `{"a": 1, "b": 2, "c": 3}`, `{"b":2,"c":3}`},
			[]string{`{}`, `{"a":1}`, `{"b":2,"a":1}`, `{"b":2,"d":4}`, `{"b":2,}`, `{"b":2,"b":2}`}},
		{`{"properties":{"a":{"const":1}},"additionalProperties":{"type":"null"}}`,
			[]string{`{}`, `{"a":1}`, `{"a":1,"b":null,"aa":null}`, `{"b":null}`, `{"":null}`},
			[]string{`{"a":null}`, `{"b":1}`, `{"b":null,"a":1}`, `1`}},
		{`{"properties":{"a":{"const":1}},"required":["z"]}`, []string{`{"z":[]}`, `{"a":1,"z":2}`},
			[]string{`{"a":1}`, `{"z":1,"z":1}`}},
		{`{"properties":{"a":false,"b":true},"additionalProperties":true}`, []string{`{"b":1}`, `{"c":1}`, `{"b":1,"c":2}`},
			[]string{`{"a":1}`, `{"b":1,"a":1}`}},
		{`{"additionalProperties":false}`, []string{`{}`}, []string{`{"a":1}`}},
		{`{"anyOf":[{"type":"string"},{"const":12},{"const":123}]}`, []string{`"x"`, `12`, `123`}, []string{`1`, `1234`}},
		{`{"oneOf":[{"type":"object","properties":{"k":{"const":"a"}},"required":["k"]},{"type":"object","properties":{"k":{"enum":["b","c"]},"n":{"type":"null"}},"required":["k","n"]}]}`, []string{`{"k":"a"}`, `{"k":"b","n":null}`}, []string{`{"k":"b"}`, `{"k":"a","n":null}`}},
		{`{"allOf":[{"$ref":"#/$defs/a~1b/anyOf/0"}],"$defs":{"a/b":{"anyOf":[{"const":1}]}}}`, []string{`1`}, []string{`2`}},
		{`{"$ref":"#/$defs/node","$defs":{"node":{"type":"object","properties":{"next":{"anyOf":[{"$ref":"#/$defs/node"},{"type":"null"}]}},"required":["next"]}}}`,
			[]string{`{"next":null}`, `{"next":{"next":{"next":null}}}`, deep, `{"next":` + deep + `}`},
			[]string{`{}`, `{"next":{"next":` + deep + `}}`}},
		{`{"type":"array","items":{"$ref":"#"}}`, []string{`[]`, `[[],[[]]]`,
			strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth)},
			[]string{strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1)}},
		{`{"title":"t","description":"d","default":1,"examples":[2],"$schema":"https://json-schema.org/draft/2020-12/schema","$id":"x","type":"integer","minLength":3}`, []string{`1`}, []string{`"abc"`}},
	} {
		t.Run(test.schema, func(t *testing.T) {
			g, err := fix.compiler.JSONSchema(t.Context(), []byte(test.schema), false)
			if err != nil {
				t.Fatal(err)
			}
			v, err := validator(test.schema)
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range test.yes {
				if !writes(g, text) {
					t.Errorf("%s is not an output", text)
				}
				if err := validate(v, text); err != nil {
					t.Errorf("%s is expected, but does not validate: %v", text, err)
				}
			}
			for _, text := range test.no {
				if writes(g, text) {
					t.Errorf("%s is an output", text)
				}
			}
			rng := newRand(3)
			fix.checkMasks(t, g, rng, 20)
			for range 20 {
				if text, ended := fix.walk(t, g, rng, 300); ended {
					if err := validate(v, text); err != nil {
						t.Errorf("%s: %v", text, err)
					}
				}
			}
		})
	}
}

func TestJSONSchemaRefused(t *testing.T) {
	c := small(t).compiler
	var many []string
	for i := range maxProperties + 1 {
		many = append(many, fmt.Sprintf(`"p%d":true`, i))
	}
	for _, test := range []struct{ schema, want string }{
		{`{"oneOf":[{"type":"integer"},{"type":"number"}]}`, `#: nothing satisfies it`},
		{`{"oneOf":[{"const":1},{"const":1.0}]}`, `nothing satisfies it`},
		{`{"type":"strin"}`, `#/type: is one or a list of`},
		{`{"type":[]}`, `#/type`},
		{`{"\u0000notPattern":"a"}`, `#: has a name that starts with U+0000`},
		{`{"properties":{"a":{"\u0000given":1}}}`, `#/properties/[0]: has a name`},
		{`{"type":"string","pattern":"a\\b"}`, `#/pattern`},
		{`{"type":"string","pattern":"(?<!a)b"}`, `#/pattern`},
		{`{"type":"string","pattern":"^a$","minLength":2}`, `nothing satisfies it`},
		{`{"type":"string","minLength":3,"maxLength":2}`, `nothing satisfies it`},
		{`{"type":"string","minLength":-1}`, `#/minLength`},
		{`{"type":"string","maxLength":1.5}`, `#/maxLength`},
		{`{"type":"integer","minimum":3,"maximum":2}`, `nothing satisfies it`},
		{`{"type":"integer","minimum":1.2,"maximum":1.8}`, `nothing satisfies it`},
		{`{"type":"number","minimum":"1"}`, `#/minimum`},
		{`{"type":"number","minimum":1e99999999}`, `#/minimum: is a number of too many digits`},
		{`{"const":1e-99999999}`, `#/const`},
		{`{"type":"string","enum":[1,2]}`, `nothing satisfies it`},
		{`{"enum":[]}`, `#/enum`},
		{`{"anyOf":[]}`, `#/anyOf`},
		{`{"properties":{"a":1}}`, `#/properties/[0]: a schema is`},
		{`{"properties":[]}`, `#/properties`},
		{`{"required":"a"}`, `#/required`},
		{`{"required":[1]}`, `#/required`},
		{`{"required":["a","a"]}`, `#/required`},
		{`{"required":["a"],"additionalProperties":false}`, `nothing satisfies it`},
		{`{"properties":{"a":false},"required":["a"]}`, `nothing satisfies it`},
		{`{"prefixItems":[],"type":"array"}`, `#/prefixItems`},
		{`{"$ref":"other.json"}`, `#/$ref: leads nowhere`},
		{`{"$ref":"#/$defs/none"}`, `#/$ref: leads nowhere`},
		{`{"$ref":"#"}`, `leads back to itself`},
		{`{"anyOf":[{"type":"null"},{"$ref":"#"}]}`, `leads back to itself`},
		{`{"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]}`, `nothing satisfies it`},
		{strings.Repeat(`{"type":"array","minItems":1,"items":`, maxDepth+1) + `true` + strings.Repeat(`}`, maxDepth+1),
			`levels of nesting`},
		{`{"properties":{` + strings.Join(many, ",") + `}}`, `more than 1024 names`},
		{`false`, `#: nothing satisfies it`},
		{`1`, `#: a schema is`},
		{``, `unexpected EOF`},
		{`{"type":"null"`, `unexpected EOF`},
		{`{} {}`, `more than one`},
		{`{"a":1,"b":§}`, `no JSON after its first 11 bytes`},
		{`{"type":"null","type":"string"}`, `two members of one name, the later its 2. member`},
		{"{\"title\":\"\xFF\"}", `UTF-8`},
		{strings.Repeat("[", 1000), `nested deeper`},
		{`{"title":"` + strings.Repeat("x", maxSchema) + `"}`, `at most 262144`},
	} {
		_, err := c.JSONSchema(t.Context(), []byte(test.schema), false)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%.100s: error %v, want one with %s", test.schema, err, test.want)
		}
	}
}

// TestJSONSchemaNamesAll holds that everything that is wrong is told, and none of the schema's words.
func TestJSONSchemaNamesAll(t *testing.T) {
	_, err := small(t).compiler.JSONSchema(t.Context(),
		[]byte(`{"properties":{"secret":{"type":"strin"},"b":{"pattern":"(hidden"}},"required":"word","minItems":-1}`), false)
	var list *SchemaErrors
	if !errors.As(err, &list) || len(list.List) != 4 {
		t.Fatalf("error %v, want four", err)
	}
	for _, word := range []string{"secret", "strin\"", "hidden", "word"} {
		if strings.Contains(err.Error(), word) {
			t.Errorf("%v quotes %q", err, word)
		}
	}
}

// schemaGenerator makes schemas that are supported and satisfiable.
type schemaGenerator struct {
	rng  *rand.Rand
	defs int // $ref may name so many
}

func (g *schemaGenerator) pick(n int) bool { return g.rng.IntN(n) == 0 }

func (g *schemaGenerator) schema(depth int) any {
	kinds := 12
	if depth <= 0 {
		kinds = 7
	}
	switch g.rng.IntN(kinds) {
	case 0:
		return map[string]any{"type": []string{"null", "boolean"}[g.rng.IntN(2)], "description": "x"}
	case 1:
		return g.number()
	case 2, 3:
		return g.text()
	case 4:
		return map[string]any{"enum": []any{"a", "b\"\\", 1, -2.5, nil, true, []any{1, "x"},
			map[string]any{"k": 1}}[g.rng.IntN(4):]}
	case 5:
		return map[string]any{"const": g.value()}
	case 6:
		if depth > 0 {
			return []any{true, map[string]any{}}[g.rng.IntN(2)]
		}
		return map[string]any{"type": []string{"string", "null"}}
	case 7, 8:
		return g.object(depth)
	case 9:
		return g.array(depth)
	case 10:
		if g.pick(2) && g.defs > 0 {
			return map[string]any{"$ref": fmt.Sprintf("#/$defs/d%d", g.rng.IntN(g.defs))}
		}
		var list []any
		for range 1 + g.rng.IntN(3) {
			list = append(list, g.schema(depth-1))
		}
		return map[string]any{"anyOf": list}
	default:
		if g.pick(2) {
			return map[string]any{"allOf": []any{g.schema(depth - 1)}}
		}
		first, second := g.object(depth-1), g.object(depth-1)
		for i, o := range []map[string]any{first, second} {
			properties := o["properties"].(map[string]any)
			properties["kind"] = map[string]any{"const": i}
			o["required"] = []string{"kind"}
		}
		return map[string]any{"oneOf": []any{first, second, map[string]any{"type": []string{"string", "integer"}}}}
	}
}

func (g *schemaGenerator) value() any {
	return []any{"", "é\n\"", 0, 1e3, 0.25, false, []any{}, map[string]any{"a": []any{nil}}}[g.rng.IntN(8)]
}

func (g *schemaGenerator) number() map[string]any {
	s := map[string]any{"type": []string{"integer", "number"}[g.rng.IntN(2)]}
	at := func() float64 { return float64(g.rng.IntN(40001)-20000) / []float64{1, 10, 100, 1000}[g.rng.IntN(4)] }
	lo := at()
	if g.pick(2) {
		s[[]string{"minimum", "exclusiveMinimum"}[g.rng.IntN(2)]] = lo
	}
	if g.pick(2) {
		s[[]string{"maximum", "exclusiveMaximum"}[g.rng.IntN(2)]] = lo + 2 + float64(g.rng.IntN(500))
	}
	return s
}

func (g *schemaGenerator) text() map[string]any {
	s := map[string]any{"type": "string"}
	switch g.rng.IntN(4) {
	case 0:
		s["format"] = []string{"date", "time", "date-time", "uuid", "ipv4", "email"}[g.rng.IntN(6)]
	case 1:
		s["pattern"] = []string{"^[a-z]{2,5}$", "b+", "^(x|yy)*", `\d{3}$`, `^\w+@\w+$`, "", `^[^a]*$`, "[\"\\\\]",
			`^é?.$`}[g.rng.IntN(9)]
		if s["pattern"] == "b+" {
			s["maxLength"] = 8
		}
	case 2:
		lo := g.rng.IntN(4)
		s["minLength"] = lo
		if g.pick(2) {
			s["maxLength"] = lo + g.rng.IntN(20)
		}
	}
	return s
}

func (g *schemaGenerator) object(depth int) map[string]any {
	properties, required := map[string]any{}, []string{}
	for range g.rng.IntN(4) {
		name := []string{"a", "ab", "name", "é", "q\"\\", "", "kind"}[g.rng.IntN(7)]
		if properties[name] != nil {
			continue
		}
		properties[name] = g.schema(depth - 1)
		if g.pick(8) {
			properties[name] = false
		} else if g.pick(2) {
			required = append(required, name)
		}
	}
	s := map[string]any{"type": "object", "properties": properties}
	switch g.rng.IntN(3) {
	case 0:
		s["additionalProperties"] = g.schema(depth - 2)
	case 1:
		s["additionalProperties"] = false
	}
	s["required"] = required
	return s
}

func (g *schemaGenerator) array(depth int) map[string]any {
	s := map[string]any{"type": "array"}
	n := 0
	if g.pick(3) {
		var prefix []any
		for range 1 + g.rng.IntN(3) {
			prefix = append(prefix, g.schema(depth-1))
		}
		s["prefixItems"] = prefix
		n = g.rng.IntN(len(prefix) + 1)
	} else if g.pick(2) {
		n = g.rng.IntN(4)
	}
	if g.pick(2) || s["prefixItems"] == nil {
		s["items"] = g.schema(depth - 1)
	}
	if n > 0 {
		s["minItems"] = n
	}
	if g.pick(2) {
		s["maxItems"] = n + g.rng.IntN(4)
	}
	return s
}

// TestRandomSchemas holds that outputs which end by stop validate, and that there are such.
func TestRandomSchemas(t *testing.T) {
	var fixtures []*fixture
	for i, name := range []string{"tiny-vlm", "phi-3-vision", "phi-2-codegen"} {
		if racetest.Enabled && i > 0 {
			break // larger vocabularies take the detector minutes
		}
		fixtures = append(fixtures, load(t, name))
	}
	compiled, ends, bytes, n := 0, 0, 0, racetest.Part(1000)
	for seed := range uint64(n) {
		g := &schemaGenerator{rng: newRand(seed), defs: 2}
		root := g.object(3)
		root["$defs"] = map[string]any{"d0": g.object(2), "d1": g.schema(1)}
		text, err := json.Marshal(root)
		if err != nil {
			t.Fatal(err)
		}
		fix := fixtures[0]
		if seed%50 == 0 && len(fixtures) > 1 {
			fix = fixtures[1+seed/50%2]
		}
		grammar, err := fix.compiler.JSONSchema(t.Context(), text, false)
		if err != nil {
			if strings.Contains(err.Error(), "nothing satisfies it") || strings.Contains(err.Error(), "leads back") {
				continue // $ref is blind to what it closes
			}
			t.Fatalf("%s: %v", text, err)
		}
		compiled++
		v, err := validator(string(text))
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		rng := newRand(seed)
		if seed%100 == 0 {
			fix.checkMasks(t, grammar, rng, 10)
		}
		for range 3 {
			out, ended := fix.walk(t, grammar, rng, 200)
			if !ended {
				continue
			}
			ends++
			bytes += len(out)
			if err := validate(v, out); err != nil {
				t.Fatalf("schema %s\noutput %s\n%v", text, out, err)
			}
		}
	}
	if compiled < 9*n/10 || ends < 2*n {
		t.Errorf("%d schemas were satisfiable, %d outputs ended: too few to say much", compiled, ends)
	}
	t.Logf("%d schemas, %d outputs, %d bytes", compiled, ends, bytes)
}
