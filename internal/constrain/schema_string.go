package constrain

import (
	"fmt"
	"regexp/syntax"
	"slices"
	"strings"
	"sync"
)

// maxPatternText is the most characters of a string with a pattern or a format, unless minLength asks for more.
const maxPatternText = 1024

// anyString is any JSON string. Its state 1 is that between characters.
var anyString = sync.OnceValues(func() (*dfa, error) {
	n := &nfa{quoted: true, budget: &budget{left: compileBudget}}
	end := n.mark(nfaAccept, none)
	return n.determinize(n.text(`"`, n.repeat(0, -1, n.anyRune, n.text(`"`, end))))
})

// textKeywords are those for which a string needs an automaton of its own.
var textKeywords = []string{"pattern", "format", keyNotPattern, keyNotStrings}

func (s *schemaCompiler) stringValue(parts []*jsonObject, next int32) (int32, error) {
	lo, hi, err := countsOf(parts, "minLength", "maxLength")
	if err != nil {
		return 0, err
	}
	if !s.hasText(parts) {
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
	return s.term("text "+s.textKey(parts), next, func() (*dfa, error) { return s.textDFA(parts) })
}

// hasText reports whether more than the length of a string is restricted.
func (s *schemaCompiler) hasText(parts []*jsonObject) bool {
	return slices.ContainsFunc(parts, func(p *jsonObject) bool {
		return slices.ContainsFunc(textKeywords, func(key string) bool {
			name, _ := p.values["format"].(string)
			_, known := formats[name]
			return p.has(key) && (key != "format" || known)
		})
	})
}

// textKey tells strings apart by what restricts them.
func (s *schemaCompiler) textKey(parts []*jsonObject) string {
	var key strings.Builder
	for _, p := range parts {
		for _, k := range append([]string{"minLength", "maxLength"}, textKeywords...) {
			if v, ok := p.values[k]; ok {
				fmt.Fprintf(&key, "%s %q ", k, appendJSON(nil, v))
			}
		}
	}
	return key.String()
}

// textDFA returns the automaton of the JSON strings that satisfy all parts.
func (s *schemaCompiler) textDFA(parts []*jsonObject) (*dfa, error) {
	d, err := anyString()
	if err != nil {
		return nil, err
	}
	narrow := func(more *dfa, err error, negative bool) error {
		if err == nil && negative {
			d, err = difference(d, more, s.budget)
		} else if err == nil {
			d, err = intersect(d, more, s.budget)
		}
		return err
	}
	for _, p := range parts {
		for _, key := range []string{"pattern", keyNotPattern} {
			if expr, ok := p.values[key].(string); ok {
				search, err := s.searchDFA(expr)
				if err == errEmpty && key == keyNotPattern {
					continue
				}
				if err := narrow(search, err, key == keyNotPattern); err != nil {
					return nil, err
				}
			}
		}
		if name, ok := p.values["format"].(string); ok && formats[name] != "" {
			f, err := s.formatDFA(name)
			if err := narrow(f, err, false); err != nil {
				return nil, err
			}
		}
		if list := listOf(p, keyNotStrings); list != nil {
			var texts []string
			for _, v := range list {
				texts = append(texts, string(appendJSON(nil, v)))
			}
			not, err := literalDFA(texts, s.budget)
			if err := narrow(not, err, true); err != nil {
				return nil, err
			}
		}
	}
	lo, hi, err := countsOf(parts, "minLength", "maxLength")
	if err != nil {
		return nil, err
	}
	if most := max(lo, maxPatternText); hi > most {
		hi = most
	}
	if lo == 0 && hi < 0 {
		return d, nil
	}
	return s.lengths(d, int(lo), int(hi))
}

// lengths returns the automaton of the strings of d that have so many characters.
func (s *schemaCompiler) lengths(d *dfa, lo, hi int) (*dfa, error) {
	n := &nfa{quoted: true, budget: s.budget}
	end := n.text(`"`, n.mark(nfaAccept, none))
	counted, err := n.determinize(n.text(`"`, n.repeat(lo, hi, n.anyRune, end)))
	if err != nil {
		return nil, err
	}
	return intersect(d, counted, s.budget)
}

// quotedDFA returns the automaton of the JSON strings whose insides build makes.
func (s *schemaCompiler) quotedDFA(build func(n *nfa, end int32) int32) (*dfa, error) {
	n := &nfa{quoted: true, budget: s.budget}
	close := &nfa{quoted: true, budget: s.budget}
	inside, err := n.determinize(build(n, n.mark(nfaAccept, none)))
	if err != nil {
		return nil, err
	}
	// The quotation marks come around the automaton of the inside, whose assertions see the start and end of the text.
	open := int32(none)
	nodes := make([]int32, inside.states())
	for i := range nodes {
		nodes[i] = close.add(nfaNode{kind: nfaSplit, out: none, alt: none})
	}
	if close.budget.left < 0 {
		return nil, errTooLarge
	}
	end := close.mark(nfaAccept, none)
	for i := range nodes {
		at := int32(none)
		if inside.accept[i] {
			at = close.text(`"`, end)
		}
		for lo := 0; lo < 256; {
			hi := lo
			to := inside.step(int32(i), byte(lo))
			for hi < 255 && inside.step(int32(i), byte(hi+1)) == to {
				hi++
			}
			if to != none {
				at = close.union(at, close.bytes(byte(lo), byte(hi), nodes[to]))
			}
			lo = hi + 1
		}
		if close.budget.left < 0 {
			return nil, errTooLarge
		}
		close.nodes[nodes[i]].out = at
	}
	open = close.text(`"`, nodes[0])
	return close.determinize(open)
}

// searchDFA returns the automaton of the JSON strings in which a pattern matches somewhere.
func (s *schemaCompiler) searchDFA(expr string) (*dfa, error) {
	if d, ok := s.search[expr]; ok {
		return d, nil
	}
	p, err := parseSearch(expr)
	if err != nil {
		return nil, err
	}
	search := func(re *syntax.Regexp) (*dfa, error) {
		return s.quotedDFA(func(n *nfa, end int32) int32 {
			anyText := func(next int32) int32 { return n.repeat(0, -1, n.anyRune, next) }
			return anyText(n.regexp(re, anyText(end)))
		})
	}
	d, err := search(p.re)
	for _, look := range p.ahead {
		if err != nil {
			return nil, err
		}
		var also *dfa
		also, err = search(look.re)
		switch {
		case err == errEmpty && look.negative:
			err = nil
		case err != nil:
		case look.negative:
			d, err = difference(d, also, s.budget)
		default:
			d, err = intersect(d, also, s.budget)
		}
	}
	if err == nil {
		s.search[expr] = d
	}
	return d, err
}

// formatDFA returns the automaton of the JSON strings of a format that is known.
func (s *schemaCompiler) formatDFA(name string) (*dfa, error) {
	key := "\xFFformat " + name // no pattern, which is UTF-8
	if d, ok := s.search[key]; ok {
		return d, nil
	}
	re, err := syntax.Parse(formats[name], syntax.Perl)
	if err != nil {
		return nil, err
	}
	d, err := s.quotedDFA(func(n *nfa, end int32) int32 { return n.regexp(re, end) })
	if err == nil {
		s.search[key] = d
	}
	return d, err
}

// matches reports whether a pattern matches somewhere in text.
func (s *schemaCompiler) matches(expr, text string) (bool, error) {
	d, err := s.searchDFA(expr)
	if err == errEmpty {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return d.matches(string(appendQuoted(nil, text))), nil
}

// matches reports whether text is one of d's.
func (d *dfa) matches(text string) bool {
	at := int32(0)
	for i := range len(text) {
		if at = d.step(at, text[i]); at == none {
			return false
		}
	}
	return d.accept[at]
}

// formats are texts that every reader of a format takes.
var formats = map[string]string{
	"date":      formatDate,
	"time":      formatTime,
	"date-time": "(?:" + formatDate + ")T" + formatTime,
	"duration":  `P(?:[0-9]{1,4}W|(?:[0-9]{1,4}Y(?:[0-9]{1,3}M(?:[0-9]{1,3}D)?)?|[0-9]{1,3}M(?:[0-9]{1,3}D)?|[0-9]{1,4}D)(?:` + formatClock + `)?|` + formatClock + `)`,
	"uuid":      `[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}`,
	"ipv4":      formatByte + `(?:\.` + formatByte + `){3}`,
	"ipv6": `(?:` + formatHex + `:){7}` + formatHex + `|(?:` + formatHex + `(?::` + formatHex +
		`){0,2})?::(?:` + formatHex + `(?::` + formatHex + `){0,2})?`,
	"hostname":              formatHost,
	"idn-hostname":          formatHost,
	"email":                 formatEmail,
	"idn-email":             formatEmail,
	"uri":                   formatURI,
	"iri":                   formatURI,
	"uri-reference":         formatURI + `|/` + formatPath,
	"iri-reference":         formatURI + `|/` + formatPath,
	"uri-template":          formatURI,
	"json-pointer":          `(?:/[a-zA-Z0-9_.-]{0,64}){0,16}`,
	"relative-json-pointer": `(?:0|[1-9][0-9]{0,3})(?:#|(?:/[a-zA-Z0-9_.-]{0,64}){0,16})`,
	"regex":                 `\^?(?:[a-zA-Z0-9 _@:,;/-]|\\[dws.]|\[[a-z0-9]{1,8}\]|\.)(?:(?:[a-zA-Z0-9 _@:,;/-]|\\[dws.]|\[[a-z0-9]{1,8}\]|\.)[*+?]?){0,64}\$?`,
}

const (
	formatClock = `T(?:[0-9]{1,3}H(?:[0-9]{1,3}M(?:[0-9]{1,3}S)?)?|[0-9]{1,3}M(?:[0-9]{1,3}S)?|[0-9]{1,4}S)`
	formatHex   = `[0-9a-fA-F]{1,4}`
	formatLabel = `[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,20}[a-zA-Z0-9])?`
	formatHost  = `(?:[a-zA-Z0-9]{1,20}(?:-[a-zA-Z0-9]{1,20})?\.){0,3}[a-zA-Z]{2,12}`
	formatPath  = `[a-zA-Z0-9_.~/-]{0,256}(?:\?[a-zA-Z0-9_.=&-]{0,256})?(?:#[a-zA-Z0-9_.-]{0,64})?`
	formatURI   = `(?:https?|ftp)://(?:[a-zA-Z0-9]{1,20}(?:-[a-zA-Z0-9]{1,20})?\.){0,3}[a-zA-Z]{2,12}(?::[1-9][0-9]{0,3})?(?:/` + formatPath + `)?`
	formatEmail = `[a-zA-Z0-9_+-]{1,20}(?:\.[a-zA-Z0-9_+-]{1,20}){0,2}@` +
		`(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,30}[a-zA-Z0-9])?\.){1,3}[a-zA-Z]{2,12}`
	formatDate = `[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))` +
		`|(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)-02-29`
	formatTime = `(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])`
	formatByte = `(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])`
)
