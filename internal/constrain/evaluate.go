package constrain

import (
	"encoding/json"
	"math/big"
	"slices"
	"unicode/utf8"
)

// valid reports whether v satisfies schema. It is used for values that a schema lists. Where the answer would take too
// much work, or a format is at stake that is not known, it is false: such a value is left out.
func (s *schemaCompiler) valid(schema, v any, depth int) bool {
	if depth > maxNesting || !s.budget.spend(32) {
		return false
	}
	o, ok := schema.(*jsonObject)
	if !ok {
		return schema == true
	}
	for _, key := range o.keys {
		if !s.validKeyword(o, key, v, depth+1) {
			return false
		}
	}
	return true
}

func (s *schemaCompiler) validKeyword(o *jsonObject, key string, v any, depth int) bool {
	arg := o.values[key]
	count := func() (n int) {
		for _, sub := range listOf(o, key) {
			if s.valid(sub, v, depth) {
				n++
			}
		}
		return n
	}
	switch key {
	case "type":
		return ofTypes(v, o)
	case "const":
		return equalJSON(arg, v)
	case "enum":
		return slices.ContainsFunc(listOf(o, key), func(w any) bool { return equalJSON(v, w) })
	case "$ref", "$dynamicRef":
		target, err := s.resolve(arg)
		return err == nil && s.valid(target, v, depth)
	case "allOf":
		return count() == len(listOf(o, key))
	case "anyOf":
		return count() > 0
	case "oneOf":
		return count() == 1
	case "not":
		return s.budget.left >= 0 && !s.valid(arg, v, depth)
	case "if":
		branch := "else"
		if s.valid(arg, v, depth) {
			branch = "then"
		}
		sub, ok := o.values[branch]
		return !ok || s.valid(sub, v, depth)
	}
	switch v := v.(type) {
	case string:
		return s.validString(key, arg, v)
	case json.Number:
		return validNumber(key, arg, v)
	case []any:
		return s.validArray(o, key, v, depth)
	case *jsonObject:
		return s.validObject(o, key, v, depth)
	}
	return true
}

func (s *schemaCompiler) validString(key string, arg any, v string) bool {
	switch key {
	case "minLength", "maxLength":
		return within(key, "minLength", arg, utf8.RuneCountInString(v))
	case keyNotStrings:
		return !slices.Contains(arg.([]any), any(v))
	case "pattern", keyNotPattern:
		match, err := s.matches(arg.(string), v)
		return err == nil && match == (key == "pattern")
	case "format":
		name, _ := arg.(string)
		if _, ok := formats[name]; !ok {
			return true
		}
		d, err := s.formatDFA(name)
		return err == nil && d.matches(string(appendQuoted(nil, v)))
	}
	return true
}

// within compares n with a bound, which is a lower one if key is least.
func within(key, least string, arg any, n int) bool {
	number, _ := arg.(json.Number)
	b, err := decimal(number)
	if err != nil {
		return false
	}
	c := big.NewRat(int64(n), 1).Cmp(b)
	return c == 0 || (c > 0) == (key == least)
}

func validNumber(key string, arg any, v json.Number) bool {
	number, ok := arg.(json.Number)
	if !ok {
		return true
	}
	b, errB := decimal(number)
	x, errX := decimal(v)
	if errB != nil || errX != nil {
		return false
	}
	switch c := x.Cmp(b); key {
	case "minimum":
		return c >= 0
	case "maximum":
		return c <= 0
	case "exclusiveMinimum":
		return c > 0
	case "exclusiveMaximum":
		return c < 0
	case "multipleOf":
		return b.Sign() > 0 && new(big.Rat).Quo(x, b).IsInt()
	}
	return true
}

func (s *schemaCompiler) validArray(o *jsonObject, key string, v []any, depth int) bool {
	switch key {
	case "minItems", "maxItems":
		return within(key, "minItems", o.values[key], len(v))
	case "uniqueItems":
		return o.values[key] == false || !slices.ContainsFunc(v, func(a any) bool {
			n := 0
			for _, b := range v {
				if equalJSON(a, b) {
					n++
				}
			}
			return n > 1
		})
	case "contains":
		n := 0
		for _, item := range v {
			if s.valid(o.values[key], item, depth) {
				n++
			}
		}
		least, most, err := counts(o, "minContains", "maxContains")
		if !o.has("minContains") {
			least = 1
		}
		return err == nil && n >= int(least) && (most < 0 || n <= int(most))
	case "prefixItems", "items", "additionalItems":
		prefix, rest := itemsOf(o)
		for i, item := range v {
			if i < len(prefix) && !s.valid(prefix[i], item, depth) ||
				i >= len(prefix) && rest != nil && !s.valid(rest, item, depth) {
				return false
			}
		}
	case "unevaluatedItems":
		return false // the value is left out
	}
	return true
}

func (s *schemaCompiler) validObject(o *jsonObject, key string, v *jsonObject, depth int) bool {
	all := func(f func(name string) bool) bool {
		return !slices.ContainsFunc(v.keys, func(name string) bool { return !f(name) })
	}
	switch key {
	case "minProperties", "maxProperties":
		return within(key, "minProperties", o.values[key], len(v.keys))
	case "required", keyAbsent:
		return !slices.ContainsFunc(listOf(o, key),
			func(name any) bool { return v.has(name.(string)) != (key == "required") })
	case "properties", keyGiven, "patternProperties", "additionalProperties":
		return all(func(name string) bool {
			subs, err := s.memberSchemas(o, name)
			return err == nil && !slices.ContainsFunc(subs, func(sub any) bool { return !s.valid(sub, v.values[name], depth) })
		})
	case "propertyNames":
		return all(func(name string) bool { return s.valid(o.values[key], name, depth) })
	case "dependentRequired", "dependentSchemas", "dependencies":
		m := o.values[key].(*jsonObject)
		return all(func(name string) bool {
			then := m.values[name]
			if list, ok := then.([]any); ok {
				then = object("required", list)
			}
			return then == nil || s.valid(then, v, depth)
		})
	case "unevaluatedProperties":
		return false // the value is left out
	}
	return true
}
