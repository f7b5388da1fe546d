package constrain

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// What the values of keywords are. A keyword that is in none of the lists is an annotation, as JSON Schema says.
var (
	schemaKeywords = []string{"items", "additionalItems", "contains", "additionalProperties", "propertyNames", "not", "if",
		"then", "else",
		"unevaluatedItems", "unevaluatedProperties"}
	listKeywords  = []string{"allOf", "anyOf", "oneOf", "prefixItems"}
	mapKeywords   = []string{"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"}
	countKeywords = []string{"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
		"minContains", "maxContains"}
	boundKeywords = []string{"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
)

// checker looks through a whole schema before anything is made of it, so that all that is wrong is told at once. It
// gives each schema its place: a JSON pointer in which keywords stand as they are, and what the schema's author
// named by its number.
type checker struct {
	*schemaCompiler
	list []error
}

func (c *checker) add(place, format string, args ...any) {
	if len(c.list) < 32 {
		c.list = append(c.list, schemaErrorf(place, format, args...))
	}
}

// schema checks what should be a schema.
func (c *checker) schema(v any, place string) {
	o, ok := v.(*jsonObject)
	if !ok {
		if _, ok := v.(bool); !ok {
			c.add(place, "a schema is an object or a boolean")
		}
		return
	}
	if _, ok := c.places[o]; ok || !c.budget.spend(64) {
		return
	}
	c.places[o] = place
	for _, key := range o.keys {
		if strings.HasPrefix(key, ownKey) {
			c.add(place, "has a name that starts with U+0000")
			continue
		}
		c.keyword(o, key, o.values[key], place+"/"+key)
	}
	for _, key := range []string{"$id", "id", "$anchor", "$dynamicAnchor"} {
		if name, ok := o.values[key].(string); ok {
			if strings.HasSuffix(key, "nchor") {
				name = "#" + name
			}
			if _, ok := c.anchors[name]; !ok && name != "" && name != "#" {
				c.anchors[name] = o
			}
		}
	}
}

func (c *checker) keyword(o *jsonObject, key string, v any, place string) {
	switch {
	case key == "items":
		if list, ok := v.([]any); ok { // draft 7
			c.schemas(list, place)
			return
		}
		c.schema(v, place)
	case slices.Contains(schemaKeywords, key):
		c.schema(v, place)
	case slices.Contains(listKeywords, key):
		list, ok := v.([]any)
		if !ok || len(list) == 0 {
			c.add(place, "is a list of at least one schema")
			return
		}
		c.schemas(list, place)
	case slices.Contains(mapKeywords, key):
		c.schemaMap(key, v, place)
	case slices.Contains(countKeywords, key):
		if _, err := count(o, key, 0); err != nil {
			c.add(place, "%w", err)
		}
	case slices.Contains(boundKeywords, key):
		c.bound(key, v, place)
	default:
		c.other(o, key, v, place)
	}
}

func (c *checker) schemas(list []any, place string) {
	for i, sub := range list {
		c.schema(sub, place+"/"+strconv.Itoa(i))
	}
}

func (c *checker) schemaMap(key string, v any, place string) {
	m, ok := v.(*jsonObject)
	if !ok {
		c.add(place, "is an object")
		return
	}
	for i, name := range m.keys {
		at := fmt.Sprintf("%s/[%d]", place, i)
		if key == "patternProperties" {
			if _, err := parseSearch(name); err != nil {
				c.add(at, "the name's pattern %w", err)
			}
		}
		if list, ok := m.values[name].([]any); ok && key == "dependencies" {
			c.names(list, true, at)
			continue
		}
		c.schema(m.values[name], at)
	}
}

func (c *checker) bound(key string, v any, place string) {
	if _, ok := v.(bool); ok && strings.HasPrefix(key, "exclusive") {
		return // draft 4
	}
	n, ok := v.(json.Number)
	if !ok {
		c.add(place, "is a number")
		return
	}
	if r, err := decimal(n); err != nil {
		c.add(place, "%w", err)
	} else if key == "multipleOf" && r.Sign() <= 0 {
		c.add(place, "is above 0")
	}
}

func (c *checker) names(list []any, ok bool, place string) {
	seen := make(map[string]bool)
	for _, v := range list {
		name, isName := v.(string)
		ok = ok && isName && !seen[name]
		seen[name] = true
	}
	if !ok {
		c.add(place, "is a list of different names")
	}
}

func (c *checker) other(o *jsonObject, key string, v any, place string) {
	switch key {
	case "type":
		list, ok := v.([]any)
		if !ok {
			list = []any{v}
		}
		if len(list) == 0 || slices.ContainsFunc(list, func(t any) bool {
			name,
				_ := t.(string)
			return !slices.Contains(jsonTypes, name)
		}) {
			c.add(place, "is one or a list of %s", strings.Join(jsonTypes, ", "))
		}
	case "enum":
		if list, ok := v.([]any); !ok || len(list) == 0 {
			c.add(place, "is a list of at least one value")
		}
		fallthrough
	case "const":
		if err := checkNumbers(v); err != nil {
			c.add(place, "%w", err)
		}
	case "required":
		list, ok := v.([]any)
		c.names(list, ok, place)
	case "dependentRequired":
		m, ok := v.(*jsonObject)
		if !ok {
			c.add(place, "is an object")
			return
		}
		for i, name := range m.keys {
			list, ok := m.values[name].([]any)
			c.names(list, ok, fmt.Sprintf("%s/[%d]", place, i))
		}
	case "pattern":
		expr, ok := v.(string)
		if !ok {
			c.add(place, "is a string")
		} else if _, err := parseSearch(expr); err != nil {
			c.add(place, "%w", err)
		}
	case "format":
		if _, ok := v.(string); !ok {
			c.add(place, "is a string")
		}
	case "uniqueItems":
		if _, ok := v.(bool); !ok {
			c.add(place, "is true or false")
		}
	case "$recursiveRef":
		c.add(place, "is not supported: use $ref")
	}
}

// references checks the references, once all anchors are known, and that none leads back to itself without a value in
// between.
func (c *checker) references() {
	const open, done = 1, 2
	state := make(map[*jsonObject]int)
	var visit func(schema any, depth int) bool
	visit = func(schema any, depth int) bool {
		o, ok := schema.(*jsonObject)
		if !ok || state[o] == done {
			return true
		}
		if state[o] == open || depth > 1<<12 {
			return false
		}
		state[o] = open
		below := slices.Concat(listOf(o, "allOf"), listOf(o, "anyOf"), listOf(o, "oneOf"))
		for _, key := range []string{"not", "if", "then", "else"} {
			if sub, ok := o.values[key]; ok {
				below = append(below, sub)
			}
		}
		for _, key := range []string{"$ref", "$dynamicRef"} {
			ref, ok := o.values[key]
			if !ok {
				continue
			}
			target, err := c.resolve(ref)
			if err != nil {
				c.add(c.places[o]+"/"+key, "%w", err)
				continue
			}
			c.schema(target, c.places[o]+"/"+key) // it may stand where no schema is looked for
			below = append(below, target)
		}
		for _, sub := range below {
			if !visit(sub, depth+1) {
				c.add(c.places[o], "leads back to itself without a value in between")
			}
		}
		state[o] = done
		return true
	}
	for looked := 0; looked < len(c.places); {
		looked = len(c.places) // a reference may bring more
		var all []*jsonObject
		for o := range c.places {
			all = append(all, o)
		}
		slices.SortFunc(all, func(a, b *jsonObject) int { return strings.Compare(c.places[a], c.places[b]) })
		for _, o := range all {
			visit(o, 0)
		}
	}
}

var errNowhere = errors.New("leads nowhere: references are # with a JSON pointer, an $anchor or an $id of this schema")

// resolve returns the schema that a $ref means.
func (s *schemaCompiler) resolve(v any) (schema any, err error) {
	ref, ok := v.(string)
	if !ok {
		return nil, errors.New("is a string")
	}
	if o, ok := s.anchors[ref]; ok {
		return o, nil
	}
	base, pointer, _ := strings.Cut(ref, "#")
	schema = s.root
	if base != "" {
		o, ok := s.anchors[base]
		if !ok {
			return nil, errNowhere
		}
		schema = o
	}
	if pointer == "" {
		return schema, nil
	}
	if pointer, err = url.PathUnescape(pointer); err != nil || pointer[0] != '/' {
		return nil, errNowhere
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
			return nil, errNowhere
		}
	}
	return schema, nil
}
