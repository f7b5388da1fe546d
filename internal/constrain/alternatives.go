package constrain

import (
	"encoding/json"
	"slices"
	"strconv"
)

const (
	// maxAlternatives bounds the ways in which one value may satisfy its schemas, before they are merged.
	maxAlternatives = 512

	// ownKey starts the names of keywords that callers' schemas may not have.
	ownKey = "\x00"

	// Keywords of schemas that are made here: names that no property has, schemas that only concern the properties they
	// name, strings and patterns that a string is not.
	keyAbsent, keyGiven, keyNotStrings, keyNotPattern = "\x00absent", "\x00given", "\x00notStrings", "\x00notPattern"
)

// object returns a schema of pairs of keys and values.
func object(pairs ...any) *jsonObject {
	o := &jsonObject{values: make(map[string]any)}
	for i := 0; i < len(pairs); i += 2 {
		key := pairs[i].(string)
		o.keys = append(o.keys, key)
		o.values[key] = pairs[i+1]
	}
	return o
}

// expand returns the ways in which a value satisfies all schemas of todo: each is a list of schemas whose keywords for
// one type of value are to be held together, while those that combine schemas have been followed.
func (s *schemaCompiler) expand(todo []any, parts []*jsonObject, out [][]*jsonObject) ([][]*jsonObject, error) {
	for len(todo) > 0 {
		if !s.budget.spend(64) || len(out) > maxAlternatives {
			return nil, errTooLarge
		}
		schema := todo[0]
		todo = todo[1:]
		if schema == false {
			return out, nil
		}
		o, ok := schema.(*jsonObject)
		if !ok || slices.Contains(parts, o) {
			continue
		}
		parts = append(slices.Clip(parts), o)
		if len(typesOf(parts)) == 0 {
			return out, nil
		}
		all, groups, err := s.applicators(o)
		if err != nil {
			return nil, err
		}
		todo = append(slices.Clone(all), todo...)
		if len(groups) == 0 {
			continue
		}
		// The other groups of o are left for later, as a schema of their own.
		for _, way := range groups[0] {
			rest := slices.Concat(way, todo)
			for _, group := range groups[1:] {
				rest = append(rest, s.anyOf(group))
			}
			if out, err = s.expand(rest, parts, out); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	return append(out, parts), nil
}

// anyOf is a schema that is satisfied in any of the ways.
func (s *schemaCompiler) anyOf(ways [][]any) *jsonObject {
	var list []any
	for _, way := range ways {
		list = append(list, object("allOf", way))
	}
	return object("anyOf", list)
}

// applicators returns the schemas that o combines: those that all apply, and groups of ways of which one does.
func (s *schemaCompiler) applicators(o *jsonObject) (all []any, groups [][][]any, err error) {
	if ref, ok := o.values["$ref"]; ok {
		target, err := s.resolve(ref)
		if err != nil {
			return nil, nil, s.errorAt(o, "$ref", err)
		}
		all = append(all, target)
	}
	if ref, ok := o.values["$dynamicRef"]; ok {
		target, err := s.resolve(ref)
		if err != nil {
			return nil, nil, s.errorAt(o, "$dynamicRef", err)
		}
		all = append(all, target)
	}
	all = append(all, listOf(o, "allOf")...)
	if list := listOf(o, "anyOf"); list != nil {
		var ways [][]any
		for _, sub := range list {
			ways = append(ways, []any{sub})
		}
		groups = append(groups, ways)
	}
	if list := listOf(o, "oneOf"); list != nil {
		var ways [][]any
		for i, sub := range list {
			way := []any{sub}
			for j, other := range list {
				if i != j && !s.exclusive(sub, other, 0) {
					way = append(way, object("not", other))
				}
			}
			ways = append(ways, way)
		}
		groups = append(groups, ways)
	}
	if sub, ok := o.values["not"]; ok {
		var ways [][]any
		for _, way := range s.negate(sub) {
			ways = append(ways, []any{way})
		}
		groups = append(groups, ways)
	}
	if cond, ok := o.values["if"]; ok && (o.has("then") || o.has("else")) {
		yes, no := []any{cond}, []any{object("not", cond)}
		if then, ok := o.values["then"]; ok {
			yes = append(yes, then)
		}
		if other, ok := o.values["else"]; ok {
			no = append(no, other)
		}
		groups = append(groups, [][]any{yes, no})
	}
	for _, key := range []string{"dependentRequired", "dependentSchemas", "dependencies"} {
		m, _ := o.values[key].(*jsonObject)
		if m == nil {
			continue
		}
		for _, name := range m.keys {
			then := m.values[name]
			if list, ok := then.([]any); ok {
				then = object("required", list)
			}
			groups = append(groups, [][]any{{object(keyAbsent, []any{name})}, {then, object("required", []any{name})}})
		}
	}
	return all, groups, nil
}

func listOf(o *jsonObject, key string) []any {
	list, _ := o.values[key].([]any)
	return list
}

// negate returns schemas each of which no value satisfies that satisfies schema. There may be other such values.
func (s *schemaCompiler) negate(schema any) []any {
	o, ok := schema.(*jsonObject)
	if !ok {
		if schema == false {
			return []any{true}
		}
		return nil
	}
	if ways, ok := s.negated[o]; ok {
		return ways
	}
	var ways []any
	for _, key := range o.keys {
		ways = append(ways, s.negateKeyword(o, key)...)
	}
	s.negated[o] = ways
	return ways
}

// opposite are keywords of bounds: what exceeds them, and by how much.
var opposite = map[string]struct {
	typ, key string
	by       int64
}{
	"minLength": {"string", "maxLength", -1}, "maxLength": {"string", "minLength", 1},
	"minItems": {"array", "maxItems", -1}, "maxItems": {"array", "minItems", 1},
	"minProperties": {"object", "maxProperties", -1}, "maxProperties": {"object", "minProperties", 1},
	"minimum": {"number", "exclusiveMaximum", 0}, "maximum": {"number", "exclusiveMinimum", 0},
	"exclusiveMinimum": {"number", "maximum", 0}, "exclusiveMaximum": {"number", "minimum", 0},
}

func (s *schemaCompiler) negateKeyword(o *jsonObject, key string) (ways []any) {
	v := o.values[key]
	if op, ok := opposite[key]; ok {
		n, _ := v.(json.Number)
		if op.by != 0 {
			i, err := strconv.ParseInt(string(n), 10, 32)
			if err != nil || i+op.by < 0 {
				return nil
			}
			n = json.Number(strconv.FormatInt(i+op.by, 10))
		}
		return []any{object("type", op.typ, op.key, n)}
	}
	not := func(sub any) any { return object("not", sub) }
	switch key {
	case "type":
		var others []any
		for _, t := range jsonTypes {
			if t != "integer" && !allowsType(o, t) && !(t == "number" && allowsType(o, "integer")) {
				others = append(others, t)
			}
		}
		if others != nil {
			ways = append(ways, object("type", others))
		}
	case "const":
		ways = negateValues([]any{v})
	case "enum":
		ways = negateValues(listOf(o, key))
	case "pattern":
		ways = append(ways, object("type", "string", keyNotPattern, v))
	case "required":
		for _, name := range listOf(o, key) {
			ways = append(ways, object("type", "object", keyAbsent, []any{name}))
		}
	case "properties":
		if m, ok := v.(*jsonObject); ok {
			for _, name := range m.keys {
				ways = append(ways, object("type", "object", "required", []any{name}, keyGiven, object(name, not(m.values[name]))))
			}
		}
	case "$ref":
		if target, err := s.resolve(v); err == nil {
			ways = append(ways, not(target))
		}
	case "not":
		ways = append(ways, v)
	case "allOf":
		for _, sub := range listOf(o, key) {
			ways = append(ways, not(sub))
		}
	case "anyOf", "oneOf":
		var all []any
		for _, sub := range listOf(o, key) {
			all = append(all, not(sub))
		}
		ways = append(ways, object("allOf", all))
	}
	return ways
}

// negateValues returns schemas of values that are none of list.
func negateValues(list []any) (ways []any) {
	var others, strings, bools []any
	var numbers []json.Number
	for _, t := range jsonTypes {
		if t != "integer" && !slices.ContainsFunc(list, func(v any) bool { return isType(v, t) }) {
			others = append(others, t)
		}
	}
	for _, v := range list {
		switch v := v.(type) {
		case string:
			strings = append(strings, v)
		case bool:
			bools = append(bools, !v)
		case json.Number:
			numbers = append(numbers, v)
		}
	}
	if others != nil {
		ways = append(ways, object("type", others))
	}
	if strings != nil {
		ways = append(ways, object("type", "string", keyNotStrings, strings))
	}
	if len(bools) == 1 {
		ways = append(ways, object("const", bools[0]))
	}
	if len(numbers) > 0 {
		byValue := func(a, b json.Number) int {
			x, errX := decimal(a)
			y, errY := decimal(b)
			if errX != nil || errY != nil {
				return 0
			}
			return x.Cmp(y)
		}
		ways = append(ways, object("type", "number", "exclusiveMaximum", slices.MinFunc(numbers, byValue)),
			object("type", "number", "exclusiveMinimum", slices.MaxFunc(numbers, byValue)))
	}
	return ways
}

// typesOf returns the types that all parts allow: integer only where number is not.
func typesOf(parts []*jsonObject) (types []string) {
	for _, t := range []string{"object", "array", "string", "number", "boolean", "null"} {
		all := true
		for _, p := range parts {
			all = all && allowsType(p, t)
		}
		integer := t == "number" && !all
		for _, p := range parts {
			integer = integer && allowsType(p, "integer")
		}
		switch {
		case all:
			types = append(types, t)
		case integer:
			types = append(types, "integer")
		}
	}
	return types
}

// impliedTypes returns the types that the keywords of parts concern, nil if they concern none.
func impliedTypes(parts []*jsonObject) (types []string) {
	for _, p := range parts {
		for _, key := range p.keys {
			if t, ok := keywordTypes[key]; ok && !slices.Contains(types, t) {
				types = append(types, t)
			}
		}
	}
	return types
}
