package constrain

import (
	"encoding/binary"
	"errors"
	"slices"
)

// errEmpty says that an automaton accepts nothing.
var errEmpty = errors.New("nothing satisfies it")

// dfa is a deterministic automaton over bytes, in which every state can still come to an accepting one. State 0
// is the start.
type dfa struct {
	class   [256]uint8 // by byte: the column of next
	classes int
	next    []int32 // [state, class], or none
	accept  []bool  // by state

	length *lengthBounds // of a JSON string, or nil
}

// lengthBounds counts the characters of a JSON string beside the automaton, which is that of any string: states
// for each number of characters would be many. In the state at, all bytes but the quotation mark start a character.
type lengthBounds struct {
	at       int32
	min, max int32 // characters; max is negative if there is no bound
}

func (d *dfa) states() int { return len(d.accept) }

func (d *dfa) step(state int32, b byte) int32 {
	return d.next[int(state)*d.classes+int(d.class[b])]
}

// tick returns the number of characters after byte b in state, when it was ticks before. ok is false where the
// bounds forbid b. Above min the characters of an unbounded string are not counted.
func (l *lengthBounds) tick(state, ticks int32, b byte) (after int32, ok bool) {
	if l == nil || state != l.at {
		return ticks, true
	}
	if b == '"' {
		return 0, ticks >= l.min
	}
	if l.max >= 0 {
		return ticks + 1, ticks < l.max
	}
	return min(ticks+1, l.min), true
}

// determinize is the subset construction from the node start.
func (n *nfa) determinize(start int32) (*dfa, error) {
	if n.budget.left < 0 {
		return nil, errTooLarge
	}
	d := new(dfa)
	d.class, d.classes = n.byteClasses()
	seen := make([]bool, len(n.nodes))
	sets := [][]int32{n.reach([]int32{start}, true, false, seen)}
	d.accept = []bool{n.accepts(sets[0], true, seen)}
	index := make(map[string]int32)   // states by their sets
	reached := make(map[string]int32) // states by the nodes that lead to their sets
	var key []byte
	keyOf := func(ids []int32) []byte {
		key = key[:0]
		for _, id := range ids {
			key = binary.LittleEndian.AppendUint32(key, uint32(id))
		}
		return key
	}
	targets := make([][]int32, d.classes)
	for at := 0; at < len(sets); at++ {
		for c := range targets {
			targets[c] = targets[c][:0]
		}
		for _, id := range sets[at] {
			node := &n.nodes[id]
			if node.kind != nfaBytes {
				continue
			}
			for c := d.class[node.lo]; ; c++ { // classes ascend with the bytes
				targets[c] = append(targets[c], node.out)
				if c == d.class[node.hi] {
					break
				}
			}
			if !n.budget.spend(int(d.class[node.hi]-d.class[node.lo]) + 1) {
				return nil, errTooLarge
			}
		}
		for c := range targets {
			if len(targets[c]) == 0 {
				d.next = append(d.next, none)
				continue
			}
			to, ok := reached[string(keyOf(targets[c]))]
			if !ok {
				set := n.reach(targets[c], false, false, seen)
				to, ok = index[string(keyOf(set))]
				if !ok {
					to = int32(len(sets))
					index[string(key)] = to
					sets = append(sets, set)
					d.accept = append(d.accept, n.accepts(set, false, seen))
				}
				reached[string(keyOf(targets[c]))] = to
				if !n.budget.spend(8 * (len(set) + len(targets[c]))) {
					return nil, errTooLarge
				}
			}
			d.next = append(d.next, to)
		}
		if !n.budget.spend(8 * d.classes) {
			return nil, errTooLarge
		}
	}
	return d.trim()
}

// byteClasses numbers the classes of bytes that no node tells apart, in the order of the bytes.
func (n *nfa) byteClasses() (class [256]uint8, classes int) {
	var starts [257]bool
	for i := range n.nodes {
		if node := &n.nodes[i]; node.kind == nfaBytes {
			starts[node.lo] = true
			starts[int(node.hi)+1] = true
		}
	}
	for b := 1; b < 256; b++ {
		if starts[b] {
			classes++
		}
		class[b] = uint8(classes)
	}
	return class, classes + 1
}

// reach returns, sorted, the nodes that are no splits and come after from without a byte. begin and end say
// whether this is where the text begins and ends. seen is scratch: one entry per node, all false.
func (n *nfa) reach(from []int32, begin, end bool, seen []bool) []int32 {
	var stops, visited []int32
	stack := slices.Clone(from)
	for len(stack) > 0 {
		id := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if id == none || seen[id] {
			continue
		}
		seen[id] = true
		visited = append(visited, id)
		switch node := &n.nodes[id]; node.kind {
		case nfaSplit:
			stack = append(stack, node.alt, node.out)
		case nfaBegin:
			if begin {
				stack = append(stack, node.out)
			}
		case nfaEnd:
			stops = append(stops, id)
			if end {
				stack = append(stack, node.out)
			}
		default:
			stops = append(stops, id)
		}
	}
	for _, id := range visited {
		seen[id] = false
	}
	n.budget.spend(len(visited))
	slices.Sort(stops)
	return stops
}

// accepts reports whether the text may end at set.
func (n *nfa) accepts(set []int32, begin bool, seen []bool) bool {
	accept := false
	if slices.ContainsFunc(set, func(id int32) bool { return n.nodes[id].kind == nfaEnd }) {
		set = n.reach(set, begin, true, seen)
	}
	for _, id := range set {
		switch n.nodes[id].kind {
		case nfaAccept:
			accept = true
		case nfaReject:
			return false
		}
	}
	return accept
}

// intersect returns the automaton of the texts that both a and b accept.
func intersect(a, b *dfa, budget *budget) (*dfa, error) { return product(a, b, true, budget) }

// difference returns the automaton of the texts that a accepts and b does not.
func difference(a, b *dfa, budget *budget) (*dfa, error) { return product(a, b, false, budget) }

// product returns the automaton of the texts that a accepts, and that b accepts or does not.
func product(a, b *dfa, accepts bool, budget *budget) (*dfa, error) {
	d := new(dfa)
	pairs := make(map[[2]uint8]uint8)
	var bytes []byte // by class: one byte of it
	for i := range 256 {
		pair := [2]uint8{a.class[i], b.class[i]}
		c, ok := pairs[pair]
		if !ok {
			c = uint8(len(pairs))
			pairs[pair] = c
			bytes = append(bytes, byte(i))
		}
		d.class[i] = c
	}
	d.classes = len(pairs)
	index := map[[2]int32]int32{{0, 0}: 0}
	states := [][2]int32{{0, 0}}
	for at := 0; at < len(states); at++ {
		s := states[at]
		d.accept = append(d.accept, a.accept[s[0]] && (s[1] != none && b.accept[s[1]]) == accepts)
		for _, by := range bytes {
			to := [2]int32{a.step(s[0], by), none}
			if s[1] != none {
				to[1] = b.step(s[1], by)
			}
			if to[0] == none || accepts && to[1] == none {
				d.next = append(d.next, none)
				continue
			}
			id, ok := index[to]
			if !ok {
				id = int32(len(states))
				index[to] = id
				states = append(states, to)
			}
			d.next = append(d.next, id)
		}
		if !budget.spend(8*d.classes + 16) {
			return nil, errTooLarge
		}
	}
	return d.trim()
}

// trim drops the states from which no accepting state can be reached. The order of the others, by distance from the
// start, is kept.
func (d *dfa) trim() (*dfa, error) {
	before := make([][]int32, d.states())
	for s := range d.states() {
		for _, to := range d.next[s*d.classes : (s+1)*d.classes] {
			if to != none && (len(before[to]) == 0 || before[to][len(before[to])-1] != int32(s)) {
				before[to] = append(before[to], int32(s))
			}
		}
	}
	live := slices.Clone(d.accept)
	var queue []int32
	for s, accept := range d.accept {
		if accept {
			queue = append(queue, int32(s))
		}
	}
	for len(queue) > 0 {
		s := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		for _, from := range before[s] {
			if !live[from] {
				live[from] = true
				queue = append(queue, from)
			}
		}
	}
	if !live[0] {
		return nil, errEmpty
	}
	number := make([]int32, d.states())
	kept := int32(0)
	for s := range live {
		number[s] = none
		if live[s] {
			number[s] = kept
			kept++
		}
	}
	t := &dfa{class: d.class, classes: d.classes, next: make([]int32, 0, int(kept)*d.classes),
		accept: make([]bool, 0, kept)}
	for s := range live {
		if !live[s] {
			continue
		}
		t.accept = append(t.accept, d.accept[s])
		for _, to := range d.next[s*d.classes : (s+1)*d.classes] {
			if to != none {
				to = number[to]
			}
			t.next = append(t.next, to)
		}
	}
	return t, nil
}
