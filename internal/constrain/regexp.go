package constrain

import (
	"errors"
	"fmt"
	"regexp/syntax"
	"unicode"
	"unicode/utf8"
)

// maxPattern bounds the bytes of a regular expression.
const maxPattern = 16 << 10

// parsePattern parses an expression of Go's syntax (that of RE2).
func parsePattern(expr string) (*syntax.Regexp, error) {
	if len(expr) > maxPattern {
		return nil, fmt.Errorf("has %d bytes: at most %d are allowed", len(expr), maxPattern)
	}
	re, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return nil, quietError(err)
	}
	return re, regular(re)
}

// quietError says what is wrong with an expression without its words.
func quietError(err error) error {
	var wrong *syntax.Error
	if !errors.As(err, &wrong) {
		return errors.New("is no regular expression")
	}
	return errors.New(string(wrong.Code))
}

// regular reports what in re looks at the text around a place, but for the start and the end of the text.
func regular(re *syntax.Regexp) error {
	switch re.Op {
	case syntax.OpBeginLine, syntax.OpEndLine, syntax.OpWordBoundary, syntax.OpNoWordBoundary:
		return fmt.Errorf("has a word boundary \\b or the start of a line, which is not supported: of the assertions only those of the start and the end of the text are")
	}
	for _, sub := range re.Sub {
		if err := regular(sub); err != nil {
			return err
		}
	}
	return nil
}

// patternDFA returns the automaton of the texts that match expr as a whole.
func patternDFA(expr string, b *budget) (*dfa, error) {
	if err := unsupported(expr); err != nil {
		return nil, err
	}
	re, err := parsePattern(expr)
	if err != nil {
		return nil, err
	}
	n := &nfa{budget: b}
	return n.determinize(n.regexp(re, n.mark(nfaAccept, none)))
}

// regexp is what re matches.
func (n *nfa) regexp(re *syntax.Regexp, next int32) int32 {
	switch re.Op {
	case syntax.OpEmptyMatch:
		return next
	case syntax.OpLiteral:
		for i := len(re.Rune) - 1; i >= 0; i-- {
			r := re.Rune[i]
			at := n.runes(r, r, next)
			if re.Flags&syntax.FoldCase != 0 {
				for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
					at = n.union(at, n.runes(f, f, next))
				}
			}
			next = at
		}
		return next
	case syntax.OpCharClass:
		return n.class(re.Rune, next)
	case syntax.OpAnyCharNotNL:
		if n.quoted { // ECMA-262, where the schema's validator may be at home, leaves out all line terminators
			return n.class([]rune{0, '\n' - 1, '\n' + 1, '\r' - 1, '\r' + 1, '\u2027', '\u202A', utf8.MaxRune}, next)
		}
		return n.class([]rune{0, '\n' - 1, '\n' + 1, utf8.MaxRune}, next)
	case syntax.OpAnyChar:
		return n.anyRune(next)
	case syntax.OpBeginText:
		return n.mark(nfaBegin, next)
	case syntax.OpEndText:
		return n.mark(nfaEnd, next)
	case syntax.OpCapture:
		return n.regexp(re.Sub[0], next)
	case syntax.OpStar:
		return n.repeatRegexp(re.Sub[0], 0, -1, next)
	case syntax.OpPlus:
		return n.repeatRegexp(re.Sub[0], 1, -1, next)
	case syntax.OpQuest:
		return n.repeatRegexp(re.Sub[0], 0, 1, next)
	case syntax.OpRepeat:
		return n.repeatRegexp(re.Sub[0], re.Min, re.Max, next)
	case syntax.OpConcat:
		for i := len(re.Sub) - 1; i >= 0; i-- {
			next = n.regexp(re.Sub[i], next)
		}
		return next
	case syntax.OpAlternate:
		start := int32(none)
		for _, sub := range re.Sub {
			start = n.union(start, n.regexp(sub, next))
		}
		return start
	default: // OpNoMatch; regular refused the others
		return none
	}
}

func (n *nfa) repeatRegexp(re *syntax.Regexp, lo, hi int, next int32) int32 {
	return n.repeat(lo, hi, func(next int32) int32 { return n.regexp(re, next) }, next)
}

// class is one character of the ranges, which are pairs of runes.
func (n *nfa) class(ranges []rune, next int32) int32 {
	start := int32(none)
	for i := 0; i < len(ranges); i += 2 {
		start = n.union(start, n.runes(ranges[i], ranges[i+1], next))
	}
	return start
}
