package constrain

import (
	"fmt"
	"slices"
)

// maxDistinct bounds how many additional properties minProperties may ask for.
const maxDistinct = 8

// property is one of an object's members.
type property struct {
	name     string
	schemas  []any
	required bool
}

// memberSchemas returns what o says about the value of a member.
func (s *schemaCompiler) memberSchemas(o *jsonObject, name string) (schemas []any, err error) {
	if m, ok := o.values[keyGiven].(*jsonObject); ok && m.has(name) {
		schemas = append(schemas, m.values[name])
	}
	named := false
	if m, ok := o.values["properties"].(*jsonObject); ok && m.has(name) {
		schemas, named = append(schemas, m.values[name]), true
	}
	if m, ok := o.values["patternProperties"].(*jsonObject); ok {
		for _, expr := range m.keys {
			match, err := s.matches(expr, name)
			if err != nil {
				return nil, err
			}
			if match {
				schemas, named = append(schemas, m.values[expr]), true
			}
		}
	}
	if extra, ok := o.values["additionalProperties"]; ok && !named {
		schemas = append(schemas, extra)
	}
	return schemas, nil
}

// objectPlan is what an object's members are.
type objectPlan struct {
	lo, hi     int32
	properties []property
	known      []string // names that no additional property has
	extras     []extra
}

// extra are additional properties with names of one kind.
type extra struct {
	names   *dfa // of JSON strings
	key     string
	schemas []any
}

func (s *schemaCompiler) objectPlan(parts []*jsonObject) (p objectPlan, err error) {
	if p.lo, p.hi, err = countsOf(parts, "minProperties", "maxProperties"); err != nil {
		return p, err
	}
	required, absent := make(map[string]bool), make(map[string]bool)
	var names []string
	var nameSchemas []any
	for i, o := range parts {
		for _, key := range []string{"properties", keyGiven} {
			if m, ok := o.values[key].(*jsonObject); ok {
				names = append(names, m.keys...)
			}
		}
		if sub, ok := o.values["propertyNames"]; ok {
			nameSchemas = append(nameSchemas, sub)
		}
		for _, v := range listOf(o, keyAbsent) {
			absent[v.(string)] = true
		}
		if o.values["unevaluatedProperties"] == false && i > 0 {
			return p, s.unsupported(parts, "unevaluatedProperties", "within other schemas of the same value")
		}
	}
	for _, o := range parts {
		for _, v := range listOf(o, "required") {
			required[v.(string)] = true
			names = append(names, v.(string))
		}
	}
	open := s.opens(parts, p.lo)
	if values, ok := s.listed(nameSchemas, 0); ok && open {
		for _, v := range values {
			if name, ok := v.(string); ok {
				names = append(names, name)
			}
		}
		open = false
	}
	seen := make(map[string]bool)
	for _, name := range names {
		if seen[name] {
			continue
		}
		seen[name] = true
		wrong := absent[name] || slices.ContainsFunc(nameSchemas, func(schema any) bool { return !s.valid(schema, name, 0) })
		if wrong && required[name] {
			return p, errEmpty
		}
		p.known = append(p.known, name)
		if wrong {
			continue
		}
		one := property{name: name, required: required[name]}
		for _, o := range parts {
			schemas, err := s.memberSchemas(o, name)
			if err != nil {
				return p, err
			}
			one.schemas = append(one.schemas, schemas...)
		}
		p.properties = append(p.properties, one)
	}
	for name := range absent {
		if !seen[name] {
			p.known = append(p.known, name)
		}
	}
	slices.Sort(p.known)
	if len(p.properties) > maxProperties {
		return p, s.unsupported(parts, "properties", fmt.Sprintf("for more than %d names", maxProperties))
	}
	if open {
		p.extras, err = s.extras(parts, nameSchemas, p.known)
	}
	return p, err
}

// opens reports whether properties that no part names may come: where a part is about them, where no part names any, or
// where there would be too few.
func (s *schemaCompiler) opens(parts []*jsonObject, lo int32) bool {
	named, about := 0, false
	for _, o := range parts {
		if o.values["unevaluatedProperties"] == false {
			return false
		}
		if m, ok := o.values["properties"].(*jsonObject); ok {
			named += len(m.keys)
		}
		if m, ok := o.values["patternProperties"].(*jsonObject); ok && len(m.keys) > 0 {
			about = true
		}
		extra, ok := o.values["additionalProperties"]
		about = about || ok && extra != false
	}
	closed := slices.ContainsFunc(parts, func(o *jsonObject) bool { return o.has("properties") })
	return about || !closed || int(lo) > named
}

// extras returns the kinds of additional properties: those that one of the patterns is about, and those that none is.
func (s *schemaCompiler) extras(parts []*jsonObject, nameSchemas []any, known []string) (list []extra, err error) {
	var patterns []string
	for _, o := range parts {
		if m, ok := o.values["patternProperties"].(*jsonObject); ok {
			for _, expr := range m.keys {
				if !slices.Contains(patterns, expr) {
					patterns = append(patterns, expr)
				}
			}
		}
	}
	free := len(patterns) == 0 || slices.ContainsFunc(parts, func(o *jsonObject) bool {
		_,
			ok := o.values["additionalProperties"]
		return ok
	})
	ways, err := s.expand(nameSchemas, nil, nil)
	if err != nil {
		return nil, err
	}
	for at := range len(patterns) + 1 {
		if at == len(patterns) && !free {
			break
		}
		var schemas []any
		for _, o := range parts {
			m, _ := o.values["patternProperties"].(*jsonObject)
			if at < len(patterns) && m != nil && m.has(patterns[at]) {
				schemas = append(schemas, m.values[patterns[at]])
			} else if extra, ok := o.values["additionalProperties"]; ok {
				schemas = append(schemas, extra)
			}
		}
		if slices.Contains(schemas, any(false)) {
			continue
		}
		for _, way := range ways {
			if !slices.Contains(typesOf(way), "string") {
				continue
			}
			names, err := s.nameDFA(way, patterns, at, known)
			if err == errEmpty {
				continue
			}
			if err != nil {
				return nil, err
			}
			s.kindNumber++
			list = append(list, extra{names, fmt.Sprintf("names %d", s.kindNumber), schemas})
		}
	}
	return list, nil
}

// nameDFA returns the automaton of the names that satisfy way, that match the pattern at and no other, and are not
// known.
func (s *schemaCompiler) nameDFA(way []*jsonObject, patterns []string, at int, known []string) (*dfa, error) {
	d, err := s.textDFA(way)
	for i, expr := range patterns {
		if err != nil {
			return nil, err
		}
		var search *dfa
		search, err = s.searchDFA(expr)
		switch {
		case err == errEmpty && i != at:
			err = nil
		case err != nil:
		case i == at:
			d, err = intersect(d, search, s.budget)
		default:
			d, err = difference(d, search, s.budget)
		}
	}
	if err != nil || len(known) == 0 {
		return d, err
	}
	var texts []string
	for _, name := range known {
		texts = append(texts, string(appendQuoted(nil, name)))
	}
	not, err := literalDFA(texts, s.budget)
	if err != nil {
		return nil, err
	}
	return difference(d, not, s.budget)
}

// objectValue is an object, and the end of its rule.
func (s *schemaCompiler) objectValue(parts []*jsonObject) (int32, error) {
	p, err := s.objectPlan(parts)
	if err != nil {
		return 0, err
	}
	end, err := s.literal("}", returnPC)
	if err != nil {
		return 0, err
	}
	named, must := int32(len(p.properties)), int32(0)
	for _, one := range p.properties {
		if one.required {
			must++
		}
	}
	if len(p.extras) == 0 {
		if p.lo > named {
			return 0, errEmpty
		}
		if p.hi >= named {
			p.hi = none
		}
	} else if most := max(p.lo, named+maxProperties); p.hi > most {
		p.hi = most
	}
	if p.hi >= 0 && must > p.hi {
		return 0, errEmpty
	}
	if p.lo <= must && p.lo <= 1 || p.lo <= must && len(p.extras) == 0 {
		p.lo = 0
	}
	// after[c] is what comes when c members, or as many as are told apart, have been written.
	after, err := s.extraMembers(p, max(p.lo, p.hi, 1), end)
	if err != nil {
		return 0, err
	}
	for _, one := range slices.Backward(p.properties) {
		if after, err = s.member(one, p.hi, after); err != nil {
			return 0, err
		}
	}
	if after[0] == none {
		return 0, errEmpty
	}
	return s.literal("{", after[0])
}

// member returns what comes at each count where a property may come.
func (s *schemaCompiler) member(one property, hi int32, after []int32) ([]int32, error) {
	before, most := make([]int32, len(after)), len(after)-1
	for c := range before {
		before[c] = none
		if !one.required {
			before[c] = after[c]
		}
		to := after[min(c+1, most)]
		if to == none || hi >= 0 && int32(c) >= hi {
			continue
		}
		at, err := s.item(one.schemas, to)
		if err == errEmpty && !one.required {
			continue
		}
		if err != nil {
			return nil, err
		}
		if at, err = s.spaced(string(appendQuoted(nil, one.name))+":", at); err != nil {
			return nil, err
		}
		if c > 0 {
			if at, err = s.spaced(",", at); err != nil {
				return nil, err
			}
		}
		if before[c] != none {
			at = s.split(at, before[c])
		}
		before[c] = at
	}
	if s.budget.left < 0 {
		return nil, errTooLarge
	}
	return before, nil
}

// extraMembers returns what comes at each count up to most behind the named properties. Names that are to differ for lo
// differ in their lengths modulo their number.
func (s *schemaCompiler) extraMembers(p objectPlan, most, end int32) ([]int32, error) {
	after := make([]int32, most+1)
	for c := most; c >= 0; c-- {
		after[c] = none
		if c >= p.lo {
			after[c] = end
		}
		if p.hi >= 0 && c >= p.hi || len(p.extras) == 0 {
			continue
		}
		need := p.lo - c // this one included
		if need > maxDistinct {
			continue
		}
		to := int32(none)
		if c < most {
			to = after[c+1]
		} else {
			to = s.add(instr{op: opSplit})
		}
		if to == none {
			continue
		}
		at, err := s.extraMember(p.extras, max(need, 0), to)
		if err == errEmpty {
			if c == most {
				s.code[to].alts = []int32{end}
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		if c > 0 {
			if at, err = s.spaced(",", at); err != nil {
				return nil, err
			}
		}
		if c == most {
			s.code[to].alts = []int32{at, end}
			after[c] = to
			continue
		}
		if after[c] != none {
			at = s.split(at, after[c])
		}
		after[c] = at
	}
	return after, nil
}

// extraMember is a member of one of the kinds. need is how many members with different names have to come from here on.
func (s *schemaCompiler) extraMember(extras []extra, need, next int32) (int32, error) {
	var alts []int32
	for _, x := range extras {
		at, err := s.item(x.schemas, next)
		if err == errEmpty {
			continue
		}
		if err == nil {
			at, err = s.spaced(":", at)
		}
		if err != nil {
			return 0, err
		}
		key := x.key
		if need > 0 {
			key = fmt.Sprintf("%s %d", key, need)
		}
		at, err = s.term(key, at, func() (*dfa, error) {
			if need == 0 {
				return x.names, nil
			}
			return s.modulo(x.names, int(need))
		})
		if err == errEmpty {
			continue
		}
		if err != nil {
			return 0, err
		}
		alts = append(alts, at)
	}
	if len(alts) == 0 {
		return 0, errEmpty
	}
	return s.split(alts...), nil
}

// modulo returns the automaton of the strings of d whose length is n - 1 modulo maxDistinct: different for each n.
func (s *schemaCompiler) modulo(d *dfa, n int) (*dfa, error) {
	all := &nfa{quoted: true, budget: s.budget}
	end := all.text(`"`, all.mark(nfaAccept, none))
	round := func(next int32) int32 { return all.repeat(maxDistinct, maxDistinct, all.anyRune, next) }
	start := all.text(`"`, all.repeat(n-1, n-1, all.anyRune, all.repeat(0, -1, round, end)))
	also, err := all.determinize(start)
	if err != nil {
		return nil, err
	}
	return intersect(d, also, s.budget)
}
