package constrain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

const (
	// maxSchema bounds the bytes of a schema.
	maxSchema = 256 << 10

	// maxProperties bounds the properties of one object.
	maxProperties = 1024
)

// JSONSchema returns the grammar of the JSON texts that satisfy a schema, of JSON Schema 2020-12 or draft 7 and what
// tools write beside them. A *SchemaErrors names by its place each keyword whose value is wrong, without the schema's
// words.
//
// All keywords that say something about a value are held, in any company, but for unevaluated… beside other schemas,
// and look-behind, back references, word boundaries and look-ahead within a pattern. Keywords and formats that are not
// known are annotations.
//
// Every output satisfies the schema, but not every text that satisfies it can be an output:
//
//   - Properties come in the order of the schema, then those that required alone names, then additional ones. Where
//     there are properties but no additionalProperties, there are no additional ones; likewise there are no items
//     beyond prefixItems where there is no items.
//   - Without type, it is that of the other keywords; without any, all JSON values are meant.
//   - The only white space is one space, which may follow a comma or colon. enum and const have none.
//   - Characters of strings are escaped only if they must be.
//   - Numbers have at most 15 digits before the decimal point unless a bound has more, 15 behind it and two of an
//     exponent; integers, numbers between bounds and multiples have no exponent.
//   - Arrays and objects are nested at most 64 deep.
//   - A format is held to its plain forms: no leap seconds, years of four digits from 1000, email addresses without
//     quotes and comments.
//   - A string with a pattern or a format has at most 1024 characters unless minLength asks for more.
//   - The items that contains wants come first. Items that are to be unique come in an order: values as they are
//     listed, strings by their first characters, integers by their signs and first digits, each of which comes once.
//   - not, and oneOf of schemas that do not exclude each other, are held by what visibly differs.
func (c *Compiler) JSONSchema(ctx context.Context, schema []byte, leadingSpace bool) (*Grammar, error) {
	if len(schema) > maxSchema {
		return nil, fmt.Errorf("JSON schema of %d bytes: at most %d are allowed", len(schema), maxSchema)
	}
	return c.compile(ctx, spec{"schema", string(schema), leadingSpace}, func(p *programBuilder) (int32, error) {
		root, err := parseJSON(schema)
		if err != nil {
			return 0, fmt.Errorf("JSON schema: %w", err)
		}
		s := newSchemaCompiler(p, root)
		check := &checker{schemaCompiler: s}
		check.schema(root, "#")
		check.references()
		if len(check.list) > 0 {
			return 0, &SchemaErrors{check.list}
		}
		start, err := s.value([]any{root}, returnPC)
		if errors.Is(err, errEmpty) || errors.Is(err, errTooLarge) {
			return 0, s.errorAt(s.blame, "", err)
		}
		return start, err
	})
}

// JSONObject returns the grammar of any JSON object, written as JSONSchema says.
func (c *Compiler) JSONObject(ctx context.Context, leadingSpace bool) (*Grammar, error) {
	return c.JSONSchema(ctx, []byte(`{"type":"object"}`), leadingSpace)
}

// schemaCompiler makes the program of a schema. Like the builder, its methods get the instruction that follows and
// return the one that comes first. errEmpty says that no value satisfies the schemas; the caller leaves them out.
type schemaCompiler struct {
	*programBuilder
	root    any
	places  map[*jsonObject]string
	anchors map[string]*jsonObject
	negated map[*jsonObject][]any
	numbers map[*jsonObject]int
	named   map[string]int32 // rules by what they are
	search  map[string]*dfa  // by pattern
	blame   *jsonObject      // where nothing could be written, first

	kindNumber int // the last one of terminals that have no name of their own
}

func newSchemaCompiler(p *programBuilder, root any) *schemaCompiler {
	return &schemaCompiler{
		programBuilder: p, root: root, places: make(map[*jsonObject]string), anchors: make(map[string]*jsonObject),
		negated: make(map[*jsonObject][]any), numbers: make(map[*jsonObject]int), named: make(map[string]int32),
		search: make(map[string]*dfa),
	}
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

// errorAt is an error in a keyword of o, or in o if key is empty.
func (s *schemaCompiler) errorAt(o *jsonObject, key string, err error) error {
	place, ok := s.places[o]
	if !ok {
		place = "#"
	}
	if key != "" {
		place += "/" + key
	}
	return schemaError(place, err)
}

// jsonTypes are the values of type, in the order in which they are tried.
var jsonTypes = []string{"object", "array", "string", "integer", "number", "boolean", "null"}

// keywordTypes are the keywords that concern one type of value.
var keywordTypes = map[string]string{
	"properties": "object", "required": "object", "additionalProperties": "object", "patternProperties": "object",
	"propertyNames": "object",
	"minProperties": "object", "maxProperties": "object", "unevaluatedProperties": "object",
	"items": "array", "prefixItems": "array", "additionalItems": "array", "minItems": "array", "maxItems": "array",
	"uniqueItems": "array",
	"contains":    "array", "unevaluatedItems": "array",
	"minLength": "string", "maxLength": "string", "pattern": "string", "format": "string",
	"minimum": "number", "maximum": "number", "exclusiveMinimum": "number", "exclusiveMaximum": "number",
	"multipleOf": "number",
}

// value is a value that satisfies all schemas.
func (s *schemaCompiler) value(schemas []any, next int32) (int32, error) {
	if o := first(schemas); o != nil && o.has("$ref") {
		return s.call("value "+s.key(schemas), false, next, func() (int32,
			error) {
			return s.alternatives(schemas, returnPC)
		})
	}
	return s.alternatives(schemas, next)
}

func first(schemas []any) *jsonObject {
	for _, v := range schemas {
		if o, ok := v.(*jsonObject); ok {
			return o
		}
	}
	return nil
}

// key tells lists of schemas apart.
func (s *schemaCompiler) key(schemas []any) string {
	var key strings.Builder
	for _, v := range schemas {
		o, ok := v.(*jsonObject)
		if !ok {
			fmt.Fprintf(&key, "%v ", v)
			continue
		}
		n, ok := s.numbers[o]
		if !ok {
			n = len(s.numbers)
			s.numbers[o] = n
		}
		fmt.Fprintf(&key, "%d ", n)
	}
	return key.String()
}

// alternatives is any of the ways to satisfy all schemas.
func (s *schemaCompiler) alternatives(schemas []any, next int32) (int32, error) {
	if values, ok := s.listed(schemas, 0); ok {
		values = slices.DeleteFunc(slices.Clone(values), func(v any) bool {
			return slices.ContainsFunc(schemas, func(schema any) bool { return !s.valid(schema, v, 0) })
		})
		if len(values) == 0 {
			return 0, s.empty(first(schemas))
		}
		return s.literals(values, next)
	}
	ways, err := s.expand(schemas, nil, nil)
	if err != nil {
		return 0, err
	}
	var alts []int32
	for _, parts := range ways {
		at, err := s.way(parts, next)
		if errors.Is(err, errEmpty) {
			continue
		}
		if err != nil {
			return 0, err
		}
		alts = append(alts, at...)
	}
	if len(alts) == 0 {
		return 0, s.empty(first(schemas))
	}
	return s.split(alts...), nil
}

// empty notes where nothing could be written.
func (s *schemaCompiler) empty(o *jsonObject) error {
	if s.blame == nil {
		s.blame = o
	}
	return errEmpty
}

// listed returns the values that one of schemas lists, if any does.
func (s *schemaCompiler) listed(schemas []any, depth int) ([]any, bool) {
	for _, schema := range schemas {
		o, ok := schema.(*jsonObject)
		if !ok || depth > maxNesting || !s.budget.spend(8) {
			continue
		}
		if values := listed(o); values != nil {
			return values, true
		}
		all := slices.Clone(listOf(o, "allOf"))
		if ref, ok := o.values["$ref"]; ok {
			if target, err := s.resolve(ref); err == nil {
				all = append(all, target)
			}
		}
		if values, ok := s.listed(all, depth+1); ok {
			return values, true
		}
	}
	return nil, false
}

// way is a value that satisfies the keywords of all parts, by its type.
func (s *schemaCompiler) way(parts []*jsonObject, next int32) (alts []int32, err error) {
	var schemas []any
	for _, p := range parts {
		schemas = append(schemas, p)
	}
	if values, ok := s.listed(schemas, 0); ok {
		values = slices.DeleteFunc(slices.Clone(values), func(v any) bool {
			return slices.ContainsFunc(schemas, func(schema any) bool { return !s.valid(schema, v, 0) })
		})
		if len(values) == 0 {
			return nil, errEmpty
		}
		at, err := s.literals(values, next)
		return []int32{at}, err
	}
	types := typesOf(parts)
	if implied := impliedTypes(parts); implied != nil && !slices.ContainsFunc(parts,
		func(p *jsonObject) bool { return p.has("type") }) {
		types = slices.DeleteFunc(types, func(t string) bool { return !slices.Contains(implied, t) })
	}
	for _, typ := range types {
		at, err := s.typed(typ, parts, next)
		if errors.Is(err, errEmpty) {
			continue
		}
		if err != nil {
			return nil, err
		}
		alts = append(alts, at)
	}
	if len(alts) == 0 {
		return nil, errEmpty
	}
	return alts, nil
}

// typed is a value of a type that satisfies the keywords for the type. Arrays and objects are rules by their keywords,
// so that a schema may hold itself.
func (s *schemaCompiler) typed(typ string, parts []*jsonObject, next int32) (int32, error) {
	switch typ {
	case "null":
		return s.literal("null", next)
	case "boolean":
		return s.term("boolean", next, func() (*dfa, error) { return literalDFA([]string{"true", "false"}, s.budget) })
	case "string":
		return s.stringValue(parts, next)
	case "integer", "number":
		return s.number(typ == "integer", parts, next)
	}
	var schemas []any
	for _, p := range parts {
		for _, key := range p.keys {
			if keywordTypes[key] == typ || strings.HasPrefix(key, ownKey) && typ == "object" {
				schemas = append(schemas, p)
				break
			}
		}
	}
	return s.call(typ+" "+s.key(schemas), true, next, func() (int32, error) {
		parts := make([]*jsonObject, len(schemas))
		for i, schema := range schemas {
			parts[i] = schema.(*jsonObject)
		}
		if typ == "array" {
			return s.arrayValue(parts)
		}
		return s.objectValue(parts)
	})
}

// failed is the rule of what nothing satisfies.
const failed = -2

// call calls the rule of a name, which compile makes if it is new.
func (s *schemaCompiler) call(name string, nested bool, next int32, compile func() (int32, error)) (int32, error) {
	rule, ok := s.named[name]
	if !ok {
		rule = s.newRule()
		s.named[name] = rule // before compile, which may come here again
		start, err := compile()
		if errors.Is(err, errEmpty) { // calls that were made meanwhile never come to an end
			start = s.add(instr{op: opSplit})
			s.named[name] = failed
		} else if err != nil {
			return 0, err
		}
		s.rules[rule] = start
		if err != nil {
			return 0, err
		}
	}
	if rule == failed {
		return 0, errEmpty
	}
	return s.add(instr{op: opCall, nested: nested, arg: rule, next: next}), nil
}

// literal is text.
func (s *schemaCompiler) literal(text string, next int32) (int32, error) {
	return s.term("literal "+text, next, func() (*dfa, error) { return literalDFA([]string{text}, s.budget) })
}

// spaced is text, and then a space or not.
func (s *schemaCompiler) spaced(text string, next int32) (int32, error) {
	return s.term("spaced "+text, next, func() (*dfa, error) { return literalDFA([]string{text, text + " "}, s.budget) })
}

// literals is one of values.
func (s *schemaCompiler) literals(values []any, next int32) (int32, error) {
	var texts []string
	for _, v := range values {
		texts = append(texts, string(appendJSON(nil, v)))
	}
	return s.term("literals "+strings.Join(texts, "\n"), next, func() (*dfa, error) { return literalDFA(texts, s.budget) })
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
func count(schema *jsonObject, key string, absent int32) (int32, error) {
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
	return 0, errors.New("is a whole number of at least 0")
}

// counts returns a pair of counting keywords. hi is negative where there is no bound.
func counts(schema *jsonObject, least, most string) (lo, hi int32, err error) {
	if lo, err = count(schema, least, 0); err != nil {
		return 0, 0, err
	}
	hi, err = count(schema, most, none)
	return lo, hi, err
}

// countsOf returns the tightest bounds of parts.
func countsOf(parts []*jsonObject, least, most string) (lo, hi int32, err error) {
	hi = none
	for _, p := range parts {
		l, h, err := counts(p, least, most)
		if err != nil {
			return 0, 0, err
		}
		lo = max(lo, l)
		if h >= 0 && (hi < 0 || h < hi) {
			hi = h
		}
	}
	if hi >= 0 && lo > hi {
		return 0, 0, errEmpty
	}
	return lo, hi, nil
}
