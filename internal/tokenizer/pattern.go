package tokenizer

import (
	"fmt"
	"regexp/syntax"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/rangetable"
)

// pattern finds the matches of a regular expression as Oniguruma does, which the
// reference uses, for the part of its syntax that tokenizers have: what Go's regexp has,
// and look-ahead. Texts come from users, so it does not backtrack without a bound: it
// remembers the branches that failed (a branch at a place fails whatever led to it) and
// takes time and memory linear in the text. Branches inside a look-ahead that succeeded are
// remembered too, as only whether they do counts.
//
// The expression is parsed and compiled by regexp/syntax, where a look-ahead is
// written as a capture group.
type pattern struct {
	prog   *syntax.Prog
	branch []int             // by instruction: number of the branch, or -1
	count  int               // of branches
	looks  map[uint32]lookAt // by the instruction that opens the group
}

// lookAt is a look-ahead group.
type lookAt struct {
	close    uint32 // the instruction that ends it
	negative bool
}

// What an expression may have. The longest of released models has some 1,000 bytes and 50
// branches; a search takes two bits of memory for each branch and byte of the text.
const (
	maxExpression   = 16 << 10 // bytes
	maxTranslated   = 1 << 20  // bytes, where \w and its like are written out
	maxInstructions = 1 << 10  // what a start without branches takes at most
	maxBranches     = 256
	maxLooks        = 32
)

const lookName = "look" // and lookNot: the names of the groups, with a number after them

func compilePattern(expr string) (*pattern, error) {
	if len(expr) > maxExpression {
		return nil, fmt.Errorf("an expression of %d bytes, at most %d are supported", len(expr), maxExpression)
	}
	translated, err := translate(expr)
	if err != nil {
		return nil, err
	}
	// Without OneLine, ^ and $ match at lines, as in Oniguruma's Ruby syntax.
	re, err := syntax.Parse(translated, syntax.ClassNL|syntax.PerlX|syntax.UnicodeGroups)
	if err != nil {
		return nil, fmt.Errorf("expression %q: %w", expr, err)
	}
	names := re.CapNames()
	prog, err := syntax.Compile(re.Simplify())
	if err != nil {
		return nil, fmt.Errorf("expression %q: %w", expr, err)
	}
	p := &pattern{prog: prog, branch: make([]int, len(prog.Inst)), looks: make(map[uint32]lookAt)}
	opens := func(inst *syntax.Inst) bool {
		return inst.Op == syntax.InstCapture && inst.Arg%2 == 0 && strings.HasPrefix(names[inst.Arg/2], lookName)
	}
	looks := 0
	for pc := range prog.Inst {
		p.branch[pc] = -1
		switch inst := &prog.Inst[pc]; {
		case inst.Op == syntax.InstAlt, inst.Op == syntax.InstAltMatch:
			p.branch[pc] = p.count
			p.count++
		case opens(inst):
			looks++
		}
	}
	if p.count > maxBranches || looks > maxLooks || len(prog.Inst) > maxInstructions {
		return nil, fmt.Errorf("expression %.100q has %d branches, %d look-aheads and %d steps, at most %d, %d and %d are supported",
			expr, p.count, looks, len(prog.Inst), maxBranches, maxLooks, maxInstructions)
	}
	for pc := range prog.Inst {
		if inst := &prog.Inst[pc]; opens(inst) {
			end, ok := p.groupEnd(inst.Out, inst.Arg+1, make(map[uint32]bool))
			if !ok {
				return nil, fmt.Errorf("expression %q: a look-ahead that cannot match", expr)
			}
			p.looks[uint32(pc)] = lookAt{end, strings.HasPrefix(names[inst.Arg/2], lookName+"Not")}
		}
	}
	return p, nil
}

// groupEnd returns the instruction that closes the group with the given argument, first
// of those that pc leads to: a repeated group is compiled more than once.
func (p *pattern) groupEnd(pc, arg uint32, seen map[uint32]bool) (uint32, bool) {
	for !seen[pc] {
		seen[pc] = true
		switch inst := &p.prog.Inst[pc]; inst.Op {
		case syntax.InstMatch, syntax.InstFail:
			return 0, false
		case syntax.InstAlt, syntax.InstAltMatch:
			if end, ok := p.groupEnd(inst.Out, arg, seen); ok {
				return end, true
			}
			pc = inst.Arg
		default:
			if inst.Op == syntax.InstCapture && inst.Arg == arg {
				return pc, true
			}
			pc = inst.Out
		}
	}
	return 0, false
}

// translate rewrites an expression of Oniguruma's for regexp/syntax: \s, \d and \w are
// Unicode's, look-aheads are groups. What means something else there is refused.
func translate(expr string) (string, error) {
	refuse := func(what string) (string, error) {
		return "", fmt.Errorf("expression %q: %s is not supported", expr, what)
	}
	var b strings.Builder
	looks, class := 0, false
	for i := 0; i < len(expr); i++ {
		if b.Len() > maxTranslated {
			return "", fmt.Errorf("expression %.100q has too many classes", expr)
		}
		rest := expr[i:]
		switch c := expr[i]; {
		case c == '\\' && len(rest) > 1:
			i++
			if ranges, ok := classRanges(expr[i]); ok {
				if !class {
					ranges = "[" + ranges + "]"
				}
				b.WriteString(ranges)
			} else if expr[i] == 'u' && len(rest) >= 6 {
				b.WriteString(`\x{` + rest[2:6] + "}")
				i += 4
			} else {
				b.WriteString(rest[:2])
			}
		case class:
			if c == '[' {
				return refuse("a class within a class")
			}
			if strings.HasPrefix(rest, "&&") {
				return refuse("an intersection of classes")
			}
			class = c != ']'
			b.WriteByte(c)
		case c == '[':
			class = true
			b.WriteByte(c)
			if strings.HasPrefix(rest[1:], "^") {
				b.WriteByte('^')
				i++
			}
			if strings.HasPrefix(expr[i+1:], "]") {
				return refuse("an empty class")
			}
		case strings.HasPrefix(rest, "(?!"), strings.HasPrefix(rest, "(?="):
			name := lookName
			if rest[2] == '!' {
				name += "Not"
			}
			fmt.Fprintf(&b, "(?P<%s%d>", name, looks)
			looks++
			i += len("(?!") - 1
		case strings.HasPrefix(rest, "(?"):
			switch {
			case strings.HasPrefix(rest, "(?:"), strings.HasPrefix(rest, "(?i:"), strings.HasPrefix(rest, "(?i)"),
				strings.HasPrefix(rest, "(?-i:"), strings.HasPrefix(rest, "(?-i)"):
				b.WriteByte(c)
			default:
				return refuse("the group " + rest[:min(len(rest), 4)])
			}
		case strings.HasPrefix(rest, "{,"):
			return refuse("a repetition without a lower bound")
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), nil
}

// classRanges returns, as it is written inside a class, what \s, \d and \w mean in Oniguruma
// (regexp/syntax restricts them to ASCII), or for an upper-case letter what it negates.
func classRanges(letter byte) (string, bool) {
	var table *unicode.RangeTable
	switch letter {
	case 's', 'S':
		table = unicode.White_Space
	case 'd', 'D':
		table = unicode.Nd
	case 'w', 'W':
		table = onigWordTable()
	default:
		return "", false
	}
	var in, out strings.Builder
	low, high := rune(0), rune(-1) // the run of runes in the table that is being visited
	end := func() {
		if low <= high {
			fmt.Fprintf(&in, `\x{%x}-\x{%x}`, low, high)
		}
	}
	rangetable.Visit(table, func(r rune) {
		if r > high+1 {
			end()
			fmt.Fprintf(&out, `\x{%x}-\x{%x}`, high+1, r-1)
			low = r
		}
		high = r
	})
	end()
	fmt.Fprintf(&out, `\x{%x}-\x{%x}`, high+1, unicode.MaxRune)
	if unicode.IsUpper(rune(letter)) {
		return out.String(), true
	}
	return in.String(), true
}

// onigWordTable is Oniguruma's \w, which has the superscripts and fractions of Latin-1 too
// and not the join controls.
var onigWordTable = sync.OnceValue(func() *unicode.RangeTable {
	return rangetable.Merge(append(wordTables, rangetable.New('²', '³', '¹', '¼', '½', '¾'))...)
})

// findAll finds the matches; one that is empty is not found at the end of the one before.
func (p *pattern) findAll(s string, match func(start, end int)) {
	bits := (p.count*(len(s)+1) + 63) / 64
	r := matchRun{pattern: p, text: s, failed: make([]uint64, bits)}
	if len(p.looks) > 0 {
		r.held = make([]uint64, bits)
	}
	last := -1
	for start := 0; start <= len(s); {
		end, ok := r.match(uint32(p.prog.Start), start, noInst)
		if ok && (end > start || end != last) {
			match(start, end)
			last = end
			if start < end {
				start = end
				continue
			}
		}
		_, size := utf8.DecodeRuneInString(s[start:])
		start += max(size, 1)
	}
}

const noInst = ^uint32(0)

// matchRun is the search of one text.
type matchRun struct {
	*pattern
	text   string
	failed []uint64 // bits by place and branch: it was tried, and failed or is on the path
	held   []uint64 // bits by place and branch inside a look-ahead: it leads to the look-ahead's end
	path   []int    // the bits set on the way to where the search is
	jobs   []job    // branches still to try, the next one last
}

type job struct {
	pc   uint32
	pos  int
	path int // length of the path when it was put aside
}

// match returns where the match from pc at pos ends: at the instruction until, or at the
// end of the program. Where a look-ahead's ends does not count, and may be too early.
func (r *matchRun) match(pc uint32, pos int, until uint32) (int, bool) {
	jobs, path := len(r.jobs), len(r.path)
	for {
		if pc == until || r.prog.Inst[pc].Op == syntax.InstMatch || until != noInst && r.holds(pc, pos) {
			for _, bit := range r.path[path:] { // the path did not fail
				r.failed[bit/64] &^= 1 << (bit % 64)
				if until != noInst {
					r.held[bit/64] |= 1 << (bit % 64)
				}
			}
			r.path, r.jobs = r.path[:path], r.jobs[:jobs]
			return pos, true
		}
		next, size, ok := r.step(pc, pos)
		if ok {
			pc, pos = next, pos+size
			continue
		}
		if len(r.jobs) == jobs {
			r.path = r.path[:path]
			return 0, false
		}
		j := r.jobs[len(r.jobs)-1]
		r.jobs = r.jobs[:len(r.jobs)-1]
		r.path = r.path[:j.path]
		pc, pos = j.pc, j.pos
	}
}

// holds tells whether pc is a branch that led to its look-ahead's end from pos before.
func (r *matchRun) holds(pc uint32, pos int) bool {
	if r.branch[pc] < 0 {
		return false
	}
	bit := pos*r.count + r.branch[pc]
	return r.held[bit/64]&(1<<(bit%64)) != 0
}

// step returns the instruction after pc and the bytes that pc takes.
func (r *matchRun) step(pc uint32, pos int) (next uint32, size int, ok bool) {
	switch inst := &r.prog.Inst[pc]; inst.Op {
	case syntax.InstNop:
		return inst.Out, 0, true
	case syntax.InstAlt, syntax.InstAltMatch:
		bit := pos*r.count + r.branch[pc]
		if r.failed[bit/64]&(1<<(bit%64)) != 0 {
			return 0, 0, false
		}
		r.failed[bit/64] |= 1 << (bit % 64)
		r.path = append(r.path, bit)
		r.jobs = append(r.jobs, job{inst.Arg, pos, len(r.path)})
		return inst.Out, 0, true
	case syntax.InstCapture:
		look, ok := r.looks[pc]
		if !ok {
			return inst.Out, 0, true
		}
		_, found := r.match(inst.Out, pos, look.close)
		return r.prog.Inst[look.close].Out, 0, found != look.negative
	case syntax.InstEmptyWidth:
		return inst.Out, 0, r.emptyWidth(pos)&syntax.EmptyOp(inst.Arg) == syntax.EmptyOp(inst.Arg)
	case syntax.InstRune, syntax.InstRune1, syntax.InstRuneAny, syntax.InstRuneAnyNotNL:
		c, size := utf8.DecodeRuneInString(r.text[pos:])
		return inst.Out, size, size > 0 && inst.MatchRune(c)
	}
	return 0, 0, false
}

// emptyWidth returns what is true at pos.
func (r *matchRun) emptyWidth(pos int) syntax.EmptyOp {
	before, after := r.text[:pos], r.text[pos:]
	var op syntax.EmptyOp
	if before == "" {
		op |= syntax.EmptyBeginText | syntax.EmptyBeginLine
	} else if strings.HasSuffix(before, "\n") {
		op |= syntax.EmptyBeginLine
	}
	if after == "" {
		op |= syntax.EmptyEndText | syntax.EmptyEndLine
	} else if strings.HasPrefix(after, "\n") {
		op |= syntax.EmptyEndLine
	}
	if endsWithWord(before) != startsWithWord(after) {
		return op | syntax.EmptyWordBoundary
	}
	return op | syntax.EmptyNoWordBoundary
}
