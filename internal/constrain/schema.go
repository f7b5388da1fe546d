package constrain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/url"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"sync"
)

const (
	// maxSchema bounds the bytes of a schema.
	maxSchema = 256 << 10

	// maxProperties bounds the properties of one object: each that may come next is a thread.
	maxProperties = maxThreads / 2
)

// JSONSchema returns the grammar of the JSON texts that satisfy a schema of a subset of JSON Schema 2020-12. An error
// names, by its JSON pointer, the keyword that is not supported or whose value is wrong.
//
// Supported are type (also as a list), enum, const; properties, required, additionalProperties; items, prefixItems,
// minItems, maxItems; minLength, maxLength, pattern, format (date, time, date-time, uuid, ipv4, email); minimum,
// maximum, exclusiveMinimum, exclusiveMaximum; anyOf, oneOf whose branches visibly exclude each other, allOf of one
// schema; $ref within the schema, $defs; true and {}. Annotations such as title and description are without effect.
//
// Every output satisfies the schema, but not every text that satisfies it can be an output:
//
//   - Properties come in the order of the schema, then those that required alone names, then additional ones. Where
//     there are properties but no additionalProperties, there are no additional ones; likewise there are no items
//     beyond prefixItems where there is no items.
//   - Without type, it is that of the other keywords; without any, all JSON values are meant.
//   - The only white space is one space, which may follow a comma or colon. enum and const have none.
//   - Characters of strings are escaped only if they must be.
//   - Numbers have at most 15 digits before the decimal point, 15 behind it and two of an exponent; integers, and
//     numbers between bounds, have no exponent.
//   - Arrays and objects are nested at most 64 deep.
//   - A format is held to its plain forms: no leap seconds, years of four digits from 1000, email addresses without
//     quotes and comments.
//   - pattern is in Go's syntax, and is searched for as JSON Schema says; the dot matches no line terminator.
func (c *Compiler) JSONSchema(ctx context.Context, schema []byte, leadingSpace bool) (*Grammar, error) {
	if len(schema) > maxSchema {
		return nil, fmt.Errorf("JSON schema of %d bytes: at most %d are allowed", len(schema), maxSchema)
	}
	return c.compile(ctx, spec{"schema", string(schema), leadingSpace}, func(p *programBuilder) (int32, error) {
		root, err := parseJSON(schema)
		if err != nil {
			return 0, fmt.Errorf("JSON schema: %w", err)
		}
		s := &schemaCompiler{programBuilder: p, root: root, named: make(map[string]int32)}
		return s.value(root, "#", returnPC)
	})
}

// JSONObject returns the grammar of any JSON object, written as JSONSchema says.
func (c *Compiler) JSONObject(ctx context.Context, leadingSpace bool) (*Grammar, error) {
	return c.JSONSchema(ctx, []byte(`{"type":"object"}`), leadingSpace)
}

// schemaCompiler makes the program of a schema. Like the builder, its methods get the instruction that follows and
// return the one that comes first. A schema's place is its JSON pointer with a # before it.
type schemaCompiler struct {
	*programBuilder
	root  any
	named map[string]int32 // rules by place, or by what they are
}

// SchemaErrors are all the reasons for which a schema is refused.
type SchemaErrors struct{ List []error }

func (e *SchemaErrors) Error() string {
	texts := make([]string, len(e.List))
	for i, err := range e.List {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

// schemaError is an error in the schema at place.
func schemaError(place string, err error) error {
	return fmt.Errorf("JSON schema %s: %w", place, err)
}

func schemaErrorf(place, format string, args ...any) error {
	return schemaError(place, fmt.Errorf(format, args...))
}

// member returns the place of a member of what is at place.
func member(place, key string) string {
	return place + "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(key)
}

// jsonTypes are the values of type, in the order in which they are tried.
var jsonTypes = []string{"object", "array", "string", "integer", "number", "boolean", "null"}

// keywordTypes are the keywords that concern one type of value.
var keywordTypes = map[string]string{
	"properties": "object", "required": "object", "additionalProperties": "object",
	"items": "array", "prefixItems": "array", "minItems": "array", "maxItems": "array", "uniqueItems": "array",
	"minLength": "string", "maxLength": "string", "pattern": "string", "format": "string",
	"minimum": "number", "maximum": "number", "exclusiveMinimum": "number", "exclusiveMaximum": "number",
}

// annotations are keywords without effect.
var annotations = []string{
	"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$schema", "$defs", "definitions",
}

// complete are the keywords that say all about a value, and those that may stand beside them.
var complete = map[string][]string{
	"$ref": nil, "allOf": nil, "anyOf": nil, "oneOf": nil, "const": {"type"}, "enum": {"type"},
}

// value is a value that satisfies schema.
func (s *schemaCompiler) value(schema any, place string, next int32) (int32, error) {
	switch schema := schema.(type) {
	case bool:
		if !schema {
			return 0, schemaErrorf(place, "false allows no value")
		}
		return s.anyValue(next)
	case *jsonObject:
		return s.object(schema, place, next)
	default:
		return 0, schemaErrorf(place, "a schema is an object or a boolean")
	}
}

// object is a value that satisfies a schema that is an object.
func (s *schemaCompiler) object(schema *jsonObject, place string, next int32) (int32, error) {
	about, types, err := s.keywords(schema, place)
	if err != nil {
		return 0, err
	}
	switch at := member(place, about); about {
	case "$ref":
		return s.ref(schema.values["$ref"], at, next)
	case "allOf":
		list, err := schemaList(schema.values["allOf"], at)
		if err != nil {
			return 0, err
		}
		if len(list) > 1 {
			return 0, schemaErrorf(at, "of %d schemas is not supported: one is", len(list))
		}
		return s.value(list[0], at+"/0", next)
	case "oneOf", "anyOf":
		list, err := schemaList(schema.values[about], at)
		if err != nil {
			return 0, err
		}
		if about == "oneOf" {
			for i := range list {
				for j := range i {
					if !s.exclusive(list[j], list[i], 0) {
						return 0, schemaErrorf(at, "the schemas %d and %d do not visibly exclude each other (by type, const or enum, of their own or of a required property): use anyOf", j, i)
					}
				}
			}
		}
		var alts []int32
		for i, sub := range list {
			alt, err := s.value(sub, at+"/"+strconv.Itoa(i), next)
			if err != nil {
				return 0, err
			}
			alts = append(alts, alt)
		}
		return s.split(alts...), nil
	case "const":
		return s.literals([]any{schema.values["const"]}, types, at, next)
	case "enum":
		list, ok := schema.values["enum"].([]any)
		if !ok || len(list) == 0 {
			return 0, schemaErrorf(at, "is a list of at least one value")
		}
		return s.literals(list, types, at, next)
	}
	if types == nil {
		return s.anyValue(next)
	}
	var alts []int32
	for _, typ := range types {
		alt, err := s.typed(typ, schema, place, next)
		if err != nil {
			return 0, err
		}
		alts = append(alts, alt)
	}
	return s.split(alts...), nil
}

// keywords checks the keywords of schema. about is the one that says all about the value, if there is one. types is
// nil if any type will do.
func (s *schemaCompiler) keywords(schema *jsonObject, place string) (about string, types []string, err error) {
	for _, key := range schema.keys {
		if _, ok := complete[key]; ok && about == "" {
			about = key
		}
	}
	var implied []string
	for _, key := range schema.keys {
		typ, concerns := keywordTypes[key]
		_, all := complete[key]
		switch {
		case key == about, slices.Contains(annotations, key), key == "$id" && place == "#":
			continue
		case !concerns && !all && key != "type":
			return "", nil, schemaErrorf(member(place, key), "the keyword %q is not supported", key)
		case about != "" && !slices.Contains(complete[about], key):
			return "", nil, schemaErrorf(member(place, key), "the keyword %q beside %q is not supported", key, about)
		case concerns && !slices.Contains(implied, typ):
			implied = append(implied, typ)
		}
	}
	t, ok := schema.values["type"]
	if !ok {
		return about, implied, nil
	}
	list, ok := t.([]any)
	if !ok {
		list = []any{t}
	}
	for _, t := range list {
		name, ok := t.(string)
		if !ok || !slices.Contains(jsonTypes, name) {
			return "", nil, schemaErrorf(member(place, "type"), "is one or a list of %s", strings.Join(jsonTypes, ", "))
		}
		types = append(types, name)
	}
	if len(types) == 0 {
		return "", nil, schemaErrorf(member(place, "type"), "is an empty list")
	}
	return about, types, nil
}

// schemaList returns the schemas of a keyword such as anyOf.
func schemaList(v any, place string) ([]any, error) {
	list, ok := v.([]any)
	if !ok || len(list) == 0 {
		return nil, schemaErrorf(place, "is a list of at least one schema")
	}
	return list, nil
}

// call calls the rule of a name, which compile makes if it is new.
func (s *schemaCompiler) call(name string, nested bool, next int32, compile func() (int32, error)) (int32, error) {
	rule, ok := s.named[name]
	if !ok {
		rule = s.newRule()
		s.named[name] = rule // before compile, which may come here again
		start, err := compile()
		if err != nil {
			return 0, err
		}
		s.rules[rule] = start
	}
	return s.add(instr{op: opCall, nested: nested, arg: rule, next: next}), nil
}

// ref is a value that satisfies the schema at a place within the root.
func (s *schemaCompiler) ref(v any, place string, next int32) (int32, error) {
	target, to, err := s.resolve(v)
	if err != nil {
		return 0, schemaError(place, err)
	}
	return s.call(to, false, next, func() (int32, error) { return s.value(target, to, returnPC) })
}

// resolve returns the schema that a $ref means, and its place.
func (s *schemaCompiler) resolve(v any) (schema any, place string, err error) {
	ref, ok := v.(string)
	pointer, local := strings.CutPrefix(ref, "#")
	if !ok || !local || pointer != "" && pointer[0] != '/' {
		return nil, "", errors.New("is # with a JSON pointer into this schema; other references are not supported")
	}
	if pointer, err = url.PathUnescape(pointer); err != nil {
		return nil, "", errors.New("is not a JSON pointer")
	}
	schema, place = s.root, "#"
	if pointer == "" {
		return schema, place, nil
	}
	for _, key := range strings.Split(pointer[1:], "/") {
		key = strings.NewReplacer("~1", "/", "~0", "~").Replace(key)
		found := false
		switch at := schema.(type) {
		case *jsonObject:
			schema, found = at.values[key]
		case []any:
			if i, err := strconv.Atoi(key); err == nil && 0 <= i && i < len(at) && strconv.Itoa(i) == key {
				schema, found = at[i], true
			}
		}
		if !found {
			return nil, "", errors.New("leads nowhere")
		}
		place = member(place, key)
	}
	return schema, place, nil
}

// anyValue is any JSON value.
func (s *schemaCompiler) anyValue(next int32) (int32, error) {
	return s.call("any", false, next, func() (int32, error) {
		var alts []int32
		for _, typ := range []string{"object", "array", "string", "number", "boolean", "null"} {
			alt, err := s.typed(typ, new(jsonObject), "any", returnPC)
			if err != nil {
				return 0, err
			}
			alts = append(alts, alt)
		}
		return s.split(alts...), nil
	})
}

// typed is a value of a type that satisfies the schema's keywords for the type.
func (s *schemaCompiler) typed(typ string, schema *jsonObject, place string, next int32) (int32, error) {
	switch typ {
	case "null":
		return s.literal("null", next)
	case "boolean":
		return s.term("boolean", next, func() (*dfa, error) { return literalDFA([]string{"true", "false"}, s.budget) })
	case "string":
		return s.stringValue(schema, place, next)
	case "integer", "number":
		return s.number(typ == "integer", schema, place, next)
	case "array":
		return s.call(place+" array", true, next, func() (int32, error) { return s.arrayValue(schema, place) })
	default:
		return s.call(place+" object", true, next, func() (int32, error) { return s.objectValue(schema, place) })
	}
}

// literal is text.
func (s *schemaCompiler) literal(text string, next int32) (int32, error) {
	return s.term("literal "+text, next, func() (*dfa, error) { return literalDFA([]string{text}, s.budget) })
}

// spaced is text, and then a space or not.
func (s *schemaCompiler) spaced(text string, next int32) (int32, error) {
	return s.term("spaced "+text, next, func() (*dfa, error) { return literalDFA([]string{text, text + " "}, s.budget) })
}

// literals is one of values, of those that are of one of types if it is not nil.
func (s *schemaCompiler) literals(values []any, types []string, place string, next int32) (int32, error) {
	var texts []string
	for i, v := range values {
		if err := checkNumbers(v); err != nil {
			return 0, schemaErrorf(place, "value %d: %w", i, err)
		}
		if types == nil || slices.ContainsFunc(types, func(typ string) bool { return isType(v, typ) }) {
			texts = append(texts, string(appendJSON(nil, v)))
		}
	}
	if len(texts) == 0 {
		return 0, schemaErrorf(place, "no value is of the type")
	}
	at, err := s.term("literals "+strings.Join(texts, "\n"), next, func() (*dfa, error) { return literalDFA(texts, s.budget) })
	if err != nil {
		return 0, schemaError(place, err)
	}
	return at, nil
}

// checkNumbers reports numbers in v that decimal does not take.
func checkNumbers(v any) error {
	switch v := v.(type) {
	case json.Number:
		_, err := decimal(v)
		return err
	case []any:
		for _, e := range v {
			if err := checkNumbers(e); err != nil {
				return err
			}
		}
	case *jsonObject:
		for _, key := range v.keys {
			if err := checkNumbers(v.values[key]); err != nil {
				return err
			}
		}
	}
	return nil
}

// isType reports whether v is of a type that a schema names.
func isType(v any, typ string) bool {
	switch v := v.(type) {
	case nil:
		return typ == "null"
	case bool:
		return typ == "boolean"
	case string:
		return typ == "string"
	case []any:
		return typ == "array"
	case json.Number:
		if typ == "integer" {
			r, err := decimal(v)
			return err == nil && r.IsInt()
		}
		return typ == "number"
	default:
		return typ == "object"
	}
}

// count returns the value of a keyword that counts something, or absent if it is not there. What is too much to be
// reached is math.MaxInt32.
func count(schema *jsonObject, place, key string, absent int32) (int32, error) {
	v, ok := schema.values[key]
	if !ok {
		return absent, nil
	}
	n, ok := v.(json.Number)
	if ok {
		if r, err := decimal(n); err == nil && r.IsInt() && r.Sign() >= 0 {
			if !r.Num().IsInt64() || r.Num().Int64() > math.MaxInt32 {
				return math.MaxInt32, nil
			}
			return int32(r.Num().Int64()), nil
		}
	}
	return 0, schemaErrorf(member(place, key), "is a whole number of at least 0")
}

// counts returns a pair of counting keywords. hi is negative where there is no bound.
func counts(schema *jsonObject, place, least, most string) (lo, hi int32, err error) {
	if lo, err = count(schema, place, least, 0); err != nil {
		return 0, 0, err
	}
	if hi, err = count(schema, place, most, none); err != nil {
		return 0, 0, err
	}
	if hi >= 0 && lo > hi {
		return 0, 0, schemaErrorf(member(place, least), "is above %s", most)
	}
	return lo, hi, nil
}

// anyString is any JSON string. Its state 1 is that between characters.
var anyString = sync.OnceValues(func() (*dfa, error) {
	n := &nfa{quoted: true, budget: &budget{left: compileBudget}}
	end := n.mark(nfaAccept, none)
	return n.determinize(n.text(`"`, n.repeat(0, -1, n.anyRune, n.text(`"`, end))))
})

func (s *schemaCompiler) stringValue(schema *jsonObject, place string, next int32) (int32, error) {
	lo, hi, err := counts(schema, place, "minLength", "maxLength")
	if err != nil {
		return 0, err
	}
	if !schema.has("pattern") && !schema.has("format") {
		return s.term(fmt.Sprintf("string of %d to %d", lo, hi), next, func() (*dfa, error) {
			d, err := anyString()
			if err != nil || lo == 0 && hi < 0 {
				return d, err
			}
			bounded := *d
			bounded.length = &lengthBounds{at: bounded.step(0, '"'), min: lo, max: hi}
			return &bounded, nil
		})
	}
	if next, err = s.literal(`"`, next); err != nil {
		return 0, err
	}
	next, err = s.term(place+" text", next, func() (*dfa, error) { return s.textDFA(schema, place, int(lo), int(hi)) })
	if err != nil {
		return 0, err
	}
	return s.literal(`"`, next)
}

// textDFA returns the automaton of the insides of the strings that satisfy pattern, format and the bounds of length.
func (s *schemaCompiler) textDFA(schema *jsonObject, place string, lo, hi int) (*dfa, error) {
	var d *dfa
	also := func(place string, build func(n *nfa, end int32) int32) error {
		n := &nfa{quoted: true, budget: s.budget}
		more, err := n.determinize(build(n, n.mark(nfaAccept, none)))
		if err == nil && d != nil {
			more, err = intersect(d, more, s.budget)
		}
		d = more
		if err != nil {
			return schemaError(place, err)
		}
		return nil
	}
	if v, ok := schema.values["pattern"]; ok {
		at := member(place, "pattern")
		expr, ok := v.(string)
		if !ok {
			return nil, schemaErrorf(at, "is a string")
		}
		re, err := parsePattern(expr)
		if err != nil {
			return nil, schemaError(at, err)
		}
		if err := also(at, func(n *nfa, end int32) int32 {
			anyText := func(next int32) int32 { return n.repeat(0, -1, n.anyRune, next) }
			return anyText(n.regexp(re, anyText(end)))
		}); err != nil {
			return nil, err
		}
	}
	if v, ok := schema.values["format"]; ok {
		at := member(place, "format")
		name, _ := v.(string)
		expr, ok := formats[name]
		if !ok {
			return nil, schemaErrorf(at, "is not supported: date, time, date-time, uuid, ipv4 and email are")
		}
		re, err := syntax.Parse(expr, syntax.Perl)
		if err != nil {
			return nil, schemaError(at, err)
		}
		if err := also(at, func(n *nfa, end int32) int32 { return n.regexp(re, end) }); err != nil {
			return nil, err
		}
	}
	if lo > 0 || hi >= 0 {
		if err := also(place, func(n *nfa, end int32) int32 { return n.repeat(lo, hi, n.anyRune, end) }); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// formats are texts that every reader of a format takes.
var formats = map[string]string{
	"date":      formatDate,
	"time":      formatTime,
	"date-time": "(?:" + formatDate + ")T" + formatTime,
	"uuid":      `[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}`,
	"ipv4":      formatByte + `(?:\.` + formatByte + `){3}`,
	"email": `[a-zA-Z0-9_+-]{1,20}(?:\.[a-zA-Z0-9_+-]{1,20}){0,2}@` +
		`(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,30}[a-zA-Z0-9])?\.){1,3}[a-zA-Z]{2,12}`,
}

const (
	formatDate = `[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))` +
		`|(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)-02-29`
	formatTime = `(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])`
	formatByte = `(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])`
)

func (s *schemaCompiler) number(integer bool, schema *jsonObject, place string, next int32) (int32, error) {
	var lo, hi *bound
	for _, key := range []string{"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"} {
		v, ok := schema.values[key]
		if !ok {
			continue
		}
		n, ok := v.(json.Number)
		if !ok {
			return 0, schemaErrorf(member(place, key), "is a number")
		}
		value, err := decimal(n)
		if err != nil {
			return 0, schemaError(member(place, key), err)
		}
		b := &bound{value, strings.HasPrefix(key, "exclusive")}
		if strings.HasSuffix(key, "inimum") {
			if lo == nil || value.Cmp(lo.value) >= 0 {
				lo = b
			}
		} else if hi == nil || value.Cmp(hi.value) <= 0 {
			hi = b
		}
	}
	patterns, err := numberPatterns(integer, lo, hi)
	if err != nil {
		return 0, schemaErrorf(place, "a bound of the number: %w", err)
	}
	at, err := s.term("number "+strings.Join(patterns, " & "), next, func() (*dfa, error) {
		d, err := patternDFA(patterns[0], s.budget)
		if err != nil || len(patterns) == 1 {
			return d, err
		}
		also, err := patternDFA(patterns[1], s.budget)
		if err != nil {
			return nil, err
		}
		return intersect(d, also, s.budget)
	})
	if errors.Is(err, errEmpty) {
		return 0, schemaErrorf(place, "no number of at most %d digits is between the bounds", maxDigits)
	} else if err != nil {
		return 0, schemaError(place, err)
	}
	return at, nil
}

// arrayValue is an array, and the end of its rule.
func (s *schemaCompiler) arrayValue(schema *jsonObject, place string) (int32, error) {
	lo, hi, err := counts(schema, place, "minItems", "maxItems")
	if err != nil {
		return 0, err
	}
	if unique, ok := schema.values["uniqueItems"]; ok && unique != false {
		return 0, schemaErrorf(member(place, "uniqueItems"), "the keyword \"uniqueItems\" is not supported")
	}
	var prefix []any
	if v, ok := schema.values["prefixItems"]; ok {
		if prefix, err = schemaList(v, member(place, "prefixItems")); err != nil {
			return 0, err
		}
	}
	items, open := schema.values["items"]
	if !open {
		items = true
	}
	if fixed := int32(len(prefix)); items == false || !open && prefix != nil {
		if lo > fixed {
			return 0, schemaErrorf(member(place, "minItems"), "is above the number of prefixItems, and items allows no others")
		}
		if hi < 0 || hi > fixed {
			hi = fixed
		}
	}
	item := func(i, next int32) (int32, error) {
		schema, at := items, member(place, "items")
		if int(i) < len(prefix) {
			schema, at = prefix[i], member(place, "prefixItems")+"/"+strconv.Itoa(int(i))
		}
		return s.call(at, false, next, func() (int32, error) { return s.value(schema, at, returnPC) })
	}
	end, err := s.literal("]", returnPC)
	if err != nil {
		return 0, err
	}
	// after is what comes after n items, first the most that are told apart.
	n, after := hi, end
	if hi < 0 {
		n = max(lo, int32(len(prefix)), 1)
		after = s.add(instr{op: opSplit})
		loop, err := item(n, after)
		if err != nil {
			return 0, err
		}
		if loop, err = s.spaced(",", loop); err != nil {
			return 0, err
		}
		s.code[after].alts = []int32{loop, end}
	}
	for ; n > 0; n-- {
		more, err := item(n-1, after)
		if err != nil {
			return 0, err
		}
		if n > 1 {
			if more, err = s.spaced(",", more); err != nil {
				return 0, err
			}
		}
		after = more
		if n-1 >= lo {
			after = s.split(more, end)
		}
		if s.budget.left < 0 {
			return 0, schemaError(place, errTooLarge)
		}
	}
	return s.literal("[", after)
}

// property is one of an object's members.
type property struct {
	name     string
	place    string
	schema   any
	required bool
}

// objectValue is an object, and the end of its rule.
func (s *schemaCompiler) objectValue(schema *jsonObject, place string) (int32, error) {
	properties, extra, err := objectProperties(schema, place)
	if err != nil {
		return 0, err
	}
	end, err := s.literal("}", returnPC)
	if err != nil {
		return 0, err
	}
	// members is a member and all that follows it, after what follows a member; each is none if there is no such thing.
	members, after := int32(none), end
	if extra != false {
		after = s.add(instr{op: opSplit})
		if members, err = s.extraMember(extra, properties, member(place, "additionalProperties"), after); err != nil {
			return 0, err
		}
		more, err := s.spaced(",", members)
		if err != nil {
			return 0, err
		}
		s.code[after].alts = []int32{more, end}
	}
	mayEnd := true
	for _, p := range slices.Backward(properties) {
		if p.schema == false && !p.required {
			continue // it may not be there
		}
		at, err := s.value(p.schema, p.place, after)
		if err != nil {
			return 0, err
		}
		if at, err = s.spaced(string(appendQuoted(nil, p.name))+":", at); err != nil {
			return 0, err
		}
		if p.required || members == none {
			members = at
		} else {
			members = s.split(at, members)
		}
		mayEnd = mayEnd && !p.required
		if after, err = s.spaced(",", members); err != nil {
			return 0, err
		}
		if mayEnd {
			after = s.split(after, end)
		}
	}
	switch {
	case members == none:
		members = end
	case mayEnd:
		members = s.split(members, end)
	}
	return s.literal("{", members)
}

// objectProperties returns the properties that schema names, in their order, and the schema of others, which is false
// if there are none.
func objectProperties(schema *jsonObject, place string) (properties []property, extra any, err error) {
	named := new(jsonObject)
	v, closed := schema.values["properties"]
	if closed {
		var ok bool
		if named, ok = v.(*jsonObject); !ok {
			return nil, nil, schemaErrorf(member(place, "properties"), "is an object")
		}
	}
	var required []any
	if v, ok := schema.values["required"]; ok {
		if required, ok = v.([]any); !ok {
			return nil, nil, schemaErrorf(member(place, "required"), "is a list of different names")
		}
	}
	extra, ok := schema.values["additionalProperties"]
	if !ok {
		extra = !closed
	}
	isRequired := make(map[string]bool)
	for _, v := range required {
		name, ok := v.(string)
		if !ok || isRequired[name] {
			return nil, nil, schemaErrorf(member(place, "required"), "is a list of different names")
		}
		isRequired[name] = true
	}
	for _, name := range named.keys {
		properties = append(properties, property{name, member(member(place, "properties"), name), named.values[name], isRequired[name]})
	}
	for _, v := range required {
		name := v.(string)
		if named.has(name) {
			continue
		}
		other := property{name, member(place, "additionalProperties"), extra, true}
		if !schema.has("additionalProperties") {
			other.schema = true
		}
		if other.schema == false {
			return nil, nil, schemaErrorf(member(place, "required"), "names %q, which properties does not and additionalProperties forbids", name)
		}
		properties = append(properties, other)
	}
	if len(properties) > maxProperties {
		return nil, nil, schemaErrorf(member(place, "properties"), "%d properties: at most %d are allowed", len(properties), maxProperties)
	}
	return properties, extra, nil
}

// extraMember is a member with a name other than those of properties.
func (s *schemaCompiler) extraMember(schema any, properties []property, place string, next int32) (int32, error) {
	at, err := s.value(schema, place, next)
	if err != nil {
		return 0, err
	}
	if at, err = s.spaced(":", at); err != nil {
		return 0, err
	}
	if len(properties) == 0 {
		return s.term(fmt.Sprintf("string of %d to %d", 0, none), at, anyString)
	}
	return s.term(place+" name", at, func() (*dfa, error) {
		n := &nfa{quoted: true, budget: s.budget}
		start := n.text(`"`, n.repeat(0, -1, n.anyRune, n.text(`"`, n.mark(nfaAccept, none))))
		end := n.mark(nfaReject, none)
		for _, p := range properties {
			start = n.union(start, n.text(string(appendQuoted(nil, p.name)), end))
		}
		return n.determinize(start)
	})
}
