package constrain

import "slices"

// maxExclusive bounds the recursion of exclusive and the references it follows.
const maxExclusive = 16

// exclusive reports whether it is plain that no value satisfies both a and b: by their types, by the values they list,
// or by a property that both require. It looks at what the schemas say, not at what would be written for them.
func (s *schemaCompiler) exclusive(a, b any, depth int) bool {
	if depth > maxExclusive || !s.budget.spend(64) {
		return false
	}
	a, b = s.follow(a), s.follow(b)
	if a == false || b == false {
		return true
	}
	x, okX := a.(*jsonObject)
	y, okY := b.(*jsonObject)
	if !okX || !okY {
		return false
	}
	for _, side := range []struct{ branches, other *jsonObject }{{x, y}, {y, x}} {
		for _, key := range []string{"anyOf", "oneOf"} {
			if list, ok := side.branches.values[key].([]any); ok && !slices.ContainsFunc(list, func(branch any) bool {
				return !s.exclusive(branch, side.other, depth+1)
			}) {
				return true
			}
		}
	}
	valuesX, valuesY := listed(x), listed(y)
	switch {
	case valuesX != nil && valuesY != nil:
		return s.budget.spend(4*len(valuesX)*len(valuesY)) && !slices.ContainsFunc(valuesX, func(v any) bool {
			return slices.ContainsFunc(valuesY, func(w any) bool { return equalJSON(v, w) })
		})
	case valuesX != nil:
		return !slices.ContainsFunc(valuesX, func(v any) bool { return ofTypes(v, y) })
	case valuesY != nil:
		return !slices.ContainsFunc(valuesY, func(v any) bool { return ofTypes(v, x) })
	}
	both := false // both allow a type other than objects
	for _, typ := range jsonTypes {
		if typ != "object" && allowsType(x, typ) && allowsType(y, typ) {
			both = true
		}
	}
	if both {
		return false
	}
	return !allowsType(x, "object") || !allowsType(y, "object") || s.exclusiveObjects(x, y, depth)
}

// follow returns the schema that $ref and allOf of one lead to.
func (s *schemaCompiler) follow(schema any) any {
	for range maxExclusive {
		o, ok := schema.(*jsonObject)
		if !ok {
			return schema
		}
		if list, ok := o.values["allOf"].([]any); ok && len(list) == 1 {
			schema = list[0]
		} else if ref, ok := o.values["$ref"]; ok {
			target, err := s.resolve(ref)
			if err != nil {
				return schema
			}
			schema = target
		} else {
			return schema
		}
	}
	return schema
}

// listed returns the values that schema lists, or nil.
func listed(schema *jsonObject) []any {
	if v, ok := schema.values["const"]; ok {
		return []any{v}
	}
	list, _ := schema.values["enum"].([]any)
	return list
}

// typeNames returns the types that schema names, or nil.
func typeNames(schema *jsonObject) []any {
	if t, ok := schema.values["type"].(string); ok {
		return []any{t}
	}
	list, _ := schema.values["type"].([]any)
	return list
}

// allowsType reports whether a value of a type may satisfy schema.
func allowsType(schema *jsonObject, typ string) bool {
	names := typeNames(schema)
	return names == nil || slices.Contains(names, any(typ)) || typ == "integer" && slices.Contains(names, any("number"))
}

// ofTypes reports whether v is of a type that schema allows.
func ofTypes(v any, schema *jsonObject) bool {
	return slices.ContainsFunc(jsonTypes, func(typ string) bool { return isType(v, typ) && allowsType(schema, typ) })
}

// exclusiveObjects reports whether no object satisfies both x and y.
func (s *schemaCompiler) exclusiveObjects(x, y *jsonObject, depth int) bool {
	requiredX, _ := x.values["required"].([]any)
	requiredY, _ := y.values["required"].([]any)
	propertiesX, okX := x.values["properties"].(*jsonObject)
	propertiesY, okY := y.values["properties"].(*jsonObject)
	if !okX || !okY {
		return false
	}
	for _, v := range requiredX {
		name, ok := v.(string)
		if !ok || !slices.Contains(requiredY, v) {
			continue
		}
		p, okX := propertiesX.values[name]
		q, okY := propertiesY.values[name]
		if okX && okY && s.exclusive(p, q, depth+1) {
			return true
		}
	}
	forbids := func(required []any, other, properties *jsonObject) bool {
		return other.values["additionalProperties"] == false && slices.ContainsFunc(required, func(v any) bool {
			name, ok := v.(string)
			return ok && !properties.has(name)
		})
	}
	return forbids(requiredX, y, propertiesY) || forbids(requiredY, x, propertiesX)
}
