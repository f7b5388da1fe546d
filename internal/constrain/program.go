package constrain

import "fmt"

// program is a recursive transition network: rules that consume text by automata (terminals) and call one another.
// It does not change once it is built.
type program struct {
	code  []instr
	terms []*dfa
	rules []int32 // by rule: where it starts
	start int32
	need  []int32 // by instruction: how many nested calls the shortest way to the end of its rule takes

	class   [256]uint8 // of bytes that no terminal tells apart
	classes int
}

type op uint8

const (
	opReturn op = iota // the rule ends
	opTerm             // text of the terminal arg, then next
	opCall             // the rule arg, then next
	opSplit            // any of alts
)

type instr struct {
	op        op
	nested    bool // of a call: it counts as a level of nesting
	arg, next int32
	alts      []int32
}

const (
	// maxDepth bounds how deep arrays and objects are nested in an output.
	maxDepth = 64
	endless  = 1 << 30 // the need of an instruction that cannot come to an end

	returnPC = 0 // every program's instruction 0 returns
)

// programBuilder makes a program from its end to its start, as nfa does. Instructions beyond the budget are not
// added; build tells.
type programBuilder struct {
	program
	budget *budget
	named  map[string]int32 // terminals by what they stand for
	padded bool
}

func newProgramBuilder(b *budget) *programBuilder {
	p := &programBuilder{budget: b, named: make(map[string]int32)}
	p.add(instr{op: opReturn})
	return p
}

func (p *programBuilder) add(in instr) int32 {
	if !p.budget.spend(64) {
		return returnPC
	}
	p.code = append(p.code, in)
	return int32(len(p.code) - 1)
}

// term consumes a text of d. name is what it stands for; terminals of one name are equal.
func (p *programBuilder) term(name string, next int32, make func() (*dfa, error)) (int32, error) {
	at, ok := p.named[name]
	if !ok {
		d, err := make()
		if err != nil {
			return 0, err
		}
		at = int32(len(p.terms))
		p.terms = append(p.terms, d)
		p.named[name] = at
	}
	return p.add(instr{op: opTerm, arg: at, next: next}), nil
}

func (p *programBuilder) split(alts ...int32) int32 {
	if len(alts) == 1 {
		return alts[0]
	}
	return p.add(instr{op: opSplit, alts: alts})
}

// pad returns a start before which a space may stand, if wanted and if no text starts with a space as it is.
func (p *programBuilder) pad(start int32, wanted bool) (int32, error) {
	if !wanted || p.startsWith(start, ' ', make(map[int32]bool)) {
		return start, nil
	}
	space, err := p.term("literal  ", start, func() (*dfa, error) { return literalDFA([]string{" "}, p.budget) })
	if err != nil {
		return 0, err
	}
	p.padded = true
	return p.split(start, space), nil
}

// startsWith reports whether a text at pc may start with b.
func (p *programBuilder) startsWith(pc int32, b byte, seen map[int32]bool) bool {
	if seen[pc] {
		return false
	}
	seen[pc] = true
	switch in := &p.code[pc]; in.op {
	case opTerm:
		d := p.terms[in.arg]
		return d.step(0, b) != none || d.accept[0] && p.startsWith(in.next, b, seen)
	case opCall:
		return p.startsWith(p.rules[in.arg], b, seen)
	case opSplit:
		for _, alt := range in.alts {
			if p.startsWith(alt, b, seen) {
				return true
			}
		}
	}
	return false
}

// size is about what the program takes, in bytes.
func (p *program) size() int {
	size := 52*len(p.code) + 4*len(p.rules)
	for _, d := range p.terms {
		size += 400 + 4*len(d.next) + len(d.accept)
	}
	for i := range p.code {
		size += 4 * len(p.code[i].alts)
	}
	return size
}

// newRule returns a rule whose start is to be set.
func (p *programBuilder) newRule() int32 {
	p.rules = append(p.rules, none)
	return int32(len(p.rules) - 1)
}

// build completes the program that starts at start.
func (p *programBuilder) build(start int32) (*program, error) {
	if p.budget.left < 0 {
		return nil, errTooLarge
	}
	p.start = start
	if err := p.checkLeftRecursion(); err != nil {
		return nil, err
	}
	p.computeNeed()
	if n := p.need[start]; n >= endless {
		return nil, errEmpty
	} else if n > maxDepth {
		return nil, fmt.Errorf("needs %d levels of nesting: at most %d are allowed", n, maxDepth)
	}
	p.mergeClasses()
	return &p.program, nil
}

// checkLeftRecursion refuses rules that call themselves before any text.
func (p *program) checkLeftRecursion() error {
	const open, done = 1, 2
	state := make([]uint8, len(p.code))
	var visit func(pc int32) error
	visit = func(pc int32) error {
		switch state[pc] {
		case open:
			return fmt.Errorf("a $ref leads back to itself without a value in between")
		case done:
			return nil
		}
		state[pc] = open
		in := &p.code[pc]
		switch in.op {
		case opSplit:
			for _, alt := range in.alts {
				if err := visit(alt); err != nil {
					return err
				}
			}
		case opCall: // no rule is empty, so what follows a call is not at its start
			if err := visit(p.rules[in.arg]); err != nil {
				return err
			}
		}
		state[pc] = done
		return nil
	}
	for pc := range p.code {
		if err := visit(int32(pc)); err != nil {
			return err
		}
	}
	return nil
}

// computeNeed is a shortest-path search by relaxation. Rules are built from their end, so ascending order settles
// what is not recursive at once.
func (p *program) computeNeed() {
	p.need = make([]int32, len(p.code))
	for pc := range p.need {
		p.need[pc] = endless
	}
	for changed := true; changed; {
		changed = false
		for pc := range p.code {
			in := &p.code[pc]
			need := int32(endless)
			switch in.op {
			case opReturn:
				need = 0
			case opTerm:
				need = p.need[in.next]
			case opSplit:
				for _, alt := range in.alts {
					need = min(need, p.need[alt])
				}
			case opCall:
				need = max(p.need[p.rules[in.arg]]+in.levels(), p.need[in.next])
			}
			if need < p.need[pc] {
				p.need[pc] = need
				changed = true
			}
		}
	}
}

// levels is how many levels of nesting a call adds.
func (in *instr) levels() int32 {
	if in.nested {
		return 1
	}
	return 0
}

func (p *program) mergeClasses() {
	p.classes = 1
	for _, d := range p.terms {
		pairs := make(map[[2]uint8]uint8, p.classes)
		for b := range 256 {
			pair := [2]uint8{p.class[b], d.class[b]}
			c, ok := pairs[pair]
			if !ok {
				c = uint8(len(pairs))
				pairs[pair] = c
			}
			p.class[b] = c
		}
		p.classes = len(pairs)
	}
}
