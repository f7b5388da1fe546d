package constrain

import (
	"fmt"
	"slices"
	"strconv"
)

// itemsOf returns the schemas of an array's first items and that of the others, nil if there is none: draft 7 has them
// in items and additionalItems.
func itemsOf(o *jsonObject) (prefix []any, rest any) {
	if list, ok := o.values["items"].([]any); ok {
		prefix, rest = list, o.values["additionalItems"]
	} else {
		prefix, rest = listOf(o, "prefixItems"), o.values["items"]
	}
	if rest == nil && o.values["unevaluatedItems"] == false {
		rest = false
	}
	return prefix, rest
}

// arrayPlan is what an array's items are.
type arrayPlan struct {
	lo, hi  int32   // hi is negative if there is no bound
	special [][]any // schemas of the first items
	rest    []any   // of the others
}

// arrayPlan merges parts. The items that contains wants come first.
func (s *schemaCompiler) arrayPlan(parts []*jsonObject) (p arrayPlan, err error) {
	if p.lo, p.hi, err = countsOf(parts, "minItems", "maxItems"); err != nil {
		return p, err
	}
	closedAt := int32(none) // as there is nothing about further items
	special := 1
	wanted, most := int32(0), []any(nil)
	for _, o := range parts {
		prefix, rest := itemsOf(o)
		special = max(special, len(prefix))
		if len(prefix) > 0 && rest == nil && (closedAt < 0 || int(closedAt) > len(prefix)) {
			closedAt = int32(len(prefix))
		}
		if sub, ok := o.values["contains"]; ok {
			least, limit, err := counts(o, "minContains", "maxContains")
			if err != nil {
				return p, err
			}
			if !o.has("minContains") {
				least = 1
			}
			if limit >= 0 && limit < least || least > 1<<10 {
				return p, errEmpty
			}
			wanted = max(wanted, least)
			if limit >= 0 {
				most = append(most, object("not", sub))
			}
		}
	}
	if p.lo = max(p.lo, wanted); closedAt >= p.lo && (p.hi < 0 || closedAt < p.hi) {
		p.hi = closedAt
	}
	special = max(special, int(wanted))
	for i := range special + 1 {
		var schemas []any
		held := true // an item that contains counts
		for _, o := range parts {
			prefix, rest := itemsOf(o)
			if i < len(prefix) {
				schemas = append(schemas, prefix[i])
			} else if rest != nil {
				schemas = append(schemas, rest)
			}
			if sub, ok := o.values["contains"]; ok {
				least := int32(1)
				if o.has("minContains") {
					least, _ = count(o, "minContains", 1)
				}
				if int32(i) < least {
					schemas = append(schemas, sub)
				} else {
					held = false
				}
			}
		}
		if !held {
			schemas = append(schemas, most...)
		}
		if i < special {
			p.special = append(p.special, schemas)
		} else {
			p.rest = schemas
		}
	}
	return p, nil
}

// item is an item that satisfies all schemas.
func (s *schemaCompiler) item(schemas []any, next int32) (int32, error) {
	return s.call("item "+s.key(schemas), false, next, func() (int32, error) { return s.alternatives(schemas, returnPC) })
}

// arrayValue is an array, and the end of its rule.
func (s *schemaCompiler) arrayValue(parts []*jsonObject) (int32, error) {
	p, err := s.arrayPlan(parts)
	if err != nil {
		return 0, err
	}
	unique := slices.ContainsFunc(parts, func(o *jsonObject) bool { return o.values["uniqueItems"] == true })
	if unique && (p.hi < 0 || p.hi > 1) {
		return s.uniqueArray(parts, p)
	}
	end, err := s.literal("]", returnPC)
	if err != nil {
		return 0, err
	}
	special := int32(len(p.special))
	after := end
	if p.hi < 0 || p.hi > special {
		most := int32(none)
		if p.hi >= 0 {
			most = p.hi - special
		}
		after, err = s.times("items "+s.key(p.rest), max(p.lo-special, 0), most, func(next int32) (int32, error) {
			at, err := s.item(p.rest, next)
			if err != nil {
				return 0, err
			}
			return s.spaced(",", at)
		}, end)
		if err == errEmpty && p.lo <= special {
			after, err = end, nil
		}
		if err != nil {
			return 0, err
		}
	}
	for i := special - 1; i >= 0; i-- {
		if p.hi >= 0 && i >= p.hi {
			continue
		}
		at, err := s.item(p.special[i], after)
		if err == errEmpty && i >= p.lo {
			after = end
			continue
		}
		if err == nil && i > 0 {
			at, err = s.spaced(",", at)
		}
		if err != nil {
			return 0, err
		}
		if after = at; i >= p.lo {
			after = s.split(at, end)
		}
	}
	return s.literal("[", after)
}

// fewTimes is up to how many repetitions are written out one by one.
const fewTimes = 24

// times is lo to hi times what one builds, which is not empty, then next; hi is negative if there is no bound. Many
// repetitions are made of rules for 1, 2, 4, … of them.
func (s *schemaCompiler) times(name string, lo, hi int32, one func(next int32) (int32, error), next int32) (int32,
	error) {
	var power func(n int, next int32) (int32, error)
	power = func(n int, next int32) (int32, error) {
		return s.call(name+" ^"+strconv.Itoa(n), false, next, func() (int32, error) {
			if n == 0 {
				return one(returnPC)
			}
			second, err := power(n-1, returnPC)
			if err != nil {
				return 0, err
			}
			return power(n-1, second)
		})
	}
	at := next
	optional := func(n int) error {
		more, err := power(n, at)
		if err == nil {
			at = s.split(more, at)
		}
		return err
	}
	switch free := hi - lo; {
	case hi < 0:
		loop := s.add(instr{op: opSplit})
		more, err := power(0, loop)
		if err != nil {
			return 0, err
		}
		s.code[loop].alts = []int32{more, next}
		at = loop
	case free <= fewTimes:
		for range free {
			more, err := power(0, at)
			if err != nil {
				return 0, err
			}
			at = s.split(more, next)
		}
	default: // any number up to free is a sum of some of these
		n := 0
		for ; 1<<(n+1) <= free; n++ {
			free -= 1 << n
			if err := optional(n); err != nil {
				return 0, err
			}
		}
		for ; n >= 0; n-- {
			for ; free >= 1<<n; free -= 1 << n {
				if err := optional(n); err != nil {
					return 0, err
				}
			}
		}
	}
	for n := 0; lo>>n > 0; n++ {
		if lo>>n&1 == 1 {
			var err error
			if at, err = power(n, at); err != nil {
				return 0, err
			}
		}
	}
	return at, nil
}

// uniqueArray is an array whose items come from kinds that have no value in common, each of which comes once, in order.
func (s *schemaCompiler) uniqueArray(parts []*jsonObject, p arrayPlan) (int32, error) {
	for _, schemas := range p.special {
		if s.key(schemas) != s.key(p.rest) {
			return 0, s.unsupported(parts, "uniqueItems", "beside items of several schemas")
		}
	}
	kinds, err := s.kinds(parts, p.rest)
	if err != nil && err != errEmpty {
		return 0, err
	}
	end, err := s.literal("]", returnPC)
	if err != nil {
		return 0, err
	}
	n := int32(len(kinds))
	if p.lo > n {
		return 0, errEmpty
	}
	if p.hi < 0 || p.hi > n {
		p.hi = n
	}
	most := max(p.lo, 1)
	if p.hi < n {
		most = max(most, p.hi)
	}
	// after[c] is what comes when c items, or more, have been written.
	after := make([]int32, most+1)
	for c := range after {
		after[c] = none
		if int32(c) >= p.lo {
			after[c] = end
		}
	}
	for _, kind := range slices.Backward(kinds) {
		before := slices.Clone(after)
		for c := range after {
			if to := min(int32(c)+1, most); after[to] != none && (int32(c) < p.hi || p.hi == n) {
				at, err := kind(after[to])
				if err == nil && c > 0 {
					at, err = s.spaced(",", at)
				}
				if err != nil {
					return 0, err
				}
				before[c] = at
				if after[c] != none {
					before[c] = s.split(at, after[c])
				}
			}
		}
		if s.budget.left < 0 {
			return 0, errTooLarge
		}
		after = before
	}
	if after[0] == none {
		return 0, errEmpty
	}
	return s.literal("[", after[0])
}

// unsupported is an error in a keyword of one of parts.
func (s *schemaCompiler) unsupported(parts []*jsonObject, key, why string) error {
	for _, o := range parts {
		if o.has(key) {
			return &SchemaErrors{[]error{s.errorAt(o, key, fmt.Errorf("is not supported %s", why))}}
		}
	}
	return errEmpty
}

// kinds returns kinds of values that satisfy schemas and have none in common.
func (s *schemaCompiler) kinds(parts []*jsonObject, schemas []any) (kinds []func(next int32) (int32, error),
	err error) {
	if values, ok := s.listed(schemas, 0); ok {
		for i, v := range values {
			if !slices.ContainsFunc(values[:i], func(w any) bool { return equalJSON(v, w) }) &&
				!slices.ContainsFunc(schemas, func(schema any) bool { return !s.valid(schema, v, 0) }) {
				kinds = append(kinds, func(next int32) (int32, error) { return s.literals([]any{v}, next) })
			}
		}
		return kinds, nil
	}
	ways, err := s.expand(schemas, nil, nil)
	if err != nil {
		return nil, err
	}
	seen := make(map[string]bool) // types: only the first way of each
	for _, way := range ways {
		types := typesOf(way)
		if implied := impliedTypes(way); implied != nil && !slices.ContainsFunc(way,
			func(p *jsonObject) bool { return p.has("type") }) {
			types = slices.DeleteFunc(types, func(t string) bool { return !slices.Contains(implied, t) })
		}
		for _, typ := range types {
			name := typ
			if typ == "integer" {
				name = "number"
			}
			if seen[name] {
				continue
			}
			seen[name] = true
			var more []func(next int32) (int32, error)
			switch typ {
			case "null":
				more = append(more, func(next int32) (int32, error) { return s.literal("null", next) })
			case "boolean":
				for _, text := range []string{"false", "true"} {
					more = append(more, func(next int32) (int32, error) { return s.literal(text, next) })
				}
			case "integer", "number":
				for _, start := range []string{"-9", "-8", "-7", "-6", "-5", "-4", "-3", "-2", "-1", "0", "1", "2", "3", "4", "5",
					"6", "7", "8", "9"} {
					more = s.kind(more, typ, start, start+`[0-9.]*`, way)
				}
			case "string":
				more = s.kind(more, typ, "empty", `""`, way)
				for c := rune(' '); c < 0x7F; c++ {
					if c == '"' || c == '\\' {
						continue
					}
					more = s.kind(more, typ, string(c), fmt.Sprintf(`(?s)"\x{%x}.*`, c), way)
				}
				more = s.kind(more, typ, "other", `(?s)"[^ -~].*`, way)
			default:
				if len(types) == 1 {
					return nil, s.unsupported(parts, "uniqueItems", "of arrays and objects: strings, numbers and listed values are")
				}
			}
			kinds = append(kinds, more...)
		}
	}
	return kinds, nil
}

// kind appends the values of a type that match a pattern as they are written, if there are any.
func (s *schemaCompiler) kind(kinds []func(next int32) (int32, error), typ, name, pattern string,
	way []*jsonObject) []func(next int32) (int32, error) {
	var d *dfa
	n := int32(len(s.code))
	if at, err := s.typed(typ, way, returnPC); err != nil || at < n {
		return kinds
	} else {
		d = s.terms[s.code[at].arg]
	}
	if d.length != nil {
		bounded, err := s.lengths(d, int(d.length.min), int(min(d.length.max, max(d.length.min, maxPatternText))))
		if err != nil {
			return kinds
		}
		d = bounded
	}
	also, err := patternDFA(pattern, s.budget)
	if err != nil {
		return kinds
	}
	if d, err = intersect(d, also, s.budget); err != nil {
		return kinds
	}
	s.kindNumber++
	key := fmt.Sprintf("kind %d", s.kindNumber)
	return append(kinds, func(next int32) (int32, error) {
		return s.term(key, next,
			func() (*dfa, error) { return d, nil })
	})
}
