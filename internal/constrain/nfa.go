package constrain

import (
	"errors"
	"unicode/utf8"
)

// errTooLarge says that a specification needs more automaton states than one request may have.
var errTooLarge = errors.New("needs too many states: use fewer or shorter repetitions and alternatives")

// compileBudget is the work one specification may cause, in the units of budget.spend. It takes some 0.3 s to
// use up and bounds a grammar's tables to 8 MiB.
const compileBudget = 1 << 24

// budget bounds the time and memory of one compilation.
type budget struct {
	left  int
	meter *meter // or nil
}

// spend takes n units, about n visits of an automaton node, and reports whether they were there. Once it fails it goes
// on failing.
func (b *budget) spend(n int) bool {
	b.left -= n
	if !b.meter.spend(n) {
		b.left = min(b.left, -1)
	}
	return b.left >= 0
}

// nfa is a nondeterministic automaton over bytes, made by Thompson's construction. It is built from its end to
// its start: each method takes the node that follows and returns the node that comes first. Runes become their
// UTF-8 bytes, so a path never spells bytes that are no UTF-8.
type nfa struct {
	nodes  []nfaNode
	quoted bool // runes are written as inside a JSON string
	budget *budget
	same   map[nfaNode]int32 // byte nodes: equal ones are one, so that characters share their last bytes
}

type nfaKind uint8

const (
	nfaBytes  nfaKind = iota // a byte from lo to hi, then out
	nfaSplit                 // out or alt, each of which may be none
	nfaBegin                 // out, at the start of the text only
	nfaEnd                   // out, at the end of the text only
	nfaAccept                // the text ends here
	nfaReject                // no text ends here, whatever else accepts it
)

type nfaNode struct {
	kind     nfaKind
	lo, hi   byte
	out, alt int32
}

const none = -1

// add appends a node. When the budget is used up it returns none; the caller of the construction finds out from
// the budget.
func (n *nfa) add(node nfaNode) int32 {
	if !n.budget.spend(16) {
		return none
	}
	n.nodes = append(n.nodes, node)
	return int32(len(n.nodes) - 1)
}

func (n *nfa) bytes(lo, hi byte, next int32) int32 {
	node := nfaNode{kind: nfaBytes, lo: lo, hi: hi, out: next, alt: none}
	at, ok := n.same[node]
	if !ok {
		at = n.add(node)
		if n.same == nil {
			n.same = make(map[nfaNode]int32)
		}
		n.same[node] = at
	}
	return at
}

func (n *nfa) mark(kind nfaKind, next int32) int32 {
	return n.add(nfaNode{kind: kind, out: next, alt: none})
}

// union returns a node before both a and b; none is nothing at all.
func (n *nfa) union(a, b int32) int32 {
	if a == none {
		return b
	}
	if b == none {
		return a
	}
	return n.add(nfaNode{kind: nfaSplit, out: a, alt: b})
}

// text spells s byte by byte, unquoted.
func (n *nfa) text(s string, next int32) int32 {
	for i := len(s) - 1; i >= 0; i-- {
		next = n.bytes(s[i], s[i], next)
	}
	return next
}

// repeat is lo to hi times what one builds, or lo and more times if hi is negative.
func (n *nfa) repeat(lo, hi int, one func(next int32) int32, next int32) int32 {
	if hi < 0 {
		loop := n.add(nfaNode{kind: nfaSplit, out: none, alt: next})
		if loop == none {
			return none
		}
		body := one(loop)
		n.nodes[loop].out = body
		next = loop
		hi = lo
	}
	end := next
	for i := hi; i > 0 && n.budget.left >= 0; i-- {
		next = one(next)
		if i > lo {
			next = n.union(next, end)
		}
	}
	return next
}

// anyRune is one character of any kind.
func (n *nfa) anyRune(next int32) int32 { return n.runes(0, utf8.MaxRune, next) }

// runes is one character from lo to hi. Surrogates are left out. Inside a JSON string each character is written
// in one way only, so that two texts are equal exactly if they are written alike: as itself but for the quotation
// mark, the backslash and the control characters, which RFC 8259 (section 7) wants escaped.
func (n *nfa) runes(lo, hi rune, next int32) int32 {
	if !n.quoted {
		return n.utf8(lo, hi, next)
	}
	start := int32(none)
	for r := lo; r <= hi && r < ' '; r++ {
		start = n.union(start, n.text(string(appendEscaped(nil, r)), next))
	}
	for _, r := range []rune{'"', '\\'} {
		if lo <= r && r <= hi {
			start = n.union(start, n.text(string(appendEscaped(nil, r)), next))
		}
	}
	for _, plain := range [][2]rune{{' ', '"' - 1}, {'"' + 1, '\\' - 1}, {'\\' + 1, utf8.MaxRune}} {
		start = n.union(start, n.utf8(max(lo, plain[0]), min(hi, plain[1]), next))
	}
	return start
}

// utf8 is the UTF-8 of one rune from lo to hi. The range is cut until all its encodings are one sequence of byte
// ranges (the method of RE2, re2/compile.cc, AddRuneRangeUTF8).
func (n *nfa) utf8(lo, hi rune, next int32) int32 {
	if lo > hi || n.budget.left < 0 {
		return none
	}
	cut := func(at rune) int32 { return n.union(n.utf8(lo, at-1, next), n.utf8(at, hi, next)) }
	const surrogateMin, surrogateMax = 0xD800, 0xDFFF
	if lo <= surrogateMax && hi >= surrogateMin {
		return n.union(n.utf8(lo, surrogateMin-1, next), n.utf8(surrogateMax+1, hi, next))
	}
	for _, at := range []rune{0x80, 0x800, 0x10000} {
		if lo < at && at <= hi {
			return cut(at)
		}
	}
	for tail := rune(1)<<6 - 1; tail < 1<<18 && lo >= 0x80; tail = tail<<6 | 0x3F {
		if lo&^tail == hi&^tail {
			break
		}
		if lo&tail != 0 {
			return cut((lo | tail) + 1)
		}
		if hi&tail != tail {
			return cut(hi &^ tail)
		}
	}
	var first, last [utf8.UTFMax]byte
	utf8.EncodeRune(last[:], hi)
	for i := utf8.EncodeRune(first[:], lo) - 1; i >= 0; i-- {
		next = n.bytes(first[i], last[i], next)
	}
	return next
}
