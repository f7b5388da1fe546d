package constrain

import (
	"cmp"
	"encoding/binary"
	"math"
	"slices"
)

const (
	// maxThreads bounds the ways of reading an output so far that are followed. Ways beyond it are forgotten: the
	// output is then held to fewer alternatives than the schema has, never to others.
	maxThreads = 512

	// maxMemory bounds the states and masks of one grammar, in bytes. When it is reached they are forgotten, and
	// found again as they are needed.
	maxMemory = 4 << 20

	// warmVisits is how many nodes of the vocabulary a compilation visits so that the first outputs find their
	// masks ready: some 50 ms.
	warmVisits = 20 << 20
)

// automaton runs a program over bytes. The sets of threads that outputs have come to are its states, found when
// they are first needed and kept with their transitions and token masks, as in a lazy regular-expression engine
// (Cox, "Regular Expression Matching in the Wild", 2010), but that each thread has a stack. It is used by one
// goroutine at a time.
type automaton struct {
	program
	vocab *vocabulary

	start  *state
	dead   *state
	memory int // estimate of what states, frames and inside hold
	states map[string]*state
	frames map[frameKey]*frame
	inside map[place]*inside
	frameN uint64 // the last frame's number
	meter  *meter // of the computation that runs, or nil

	// Scratch.
	key  []byte
	seen map[frameKey]bool
	path []byte
	walk []*state
	bits []uint64
}

// state is a set of threads. It is found by its threads, so there is one state for outputs that can be continued alike.
type state struct {
	threads []thread // in order
	accept  bool     // the output may end
	next    []*state // by byte class; nil where it is not known
	mask    []uint64 // or nil
}

// thread is one way of reading the output so far.
type thread struct {
	pc    int32 // of an opTerm
	at    int32 // the terminal's state
	ticks int32 // the characters of a string with length bounds so far
	stack *frame
}

// frame is a call that has not returned. Equal frames are one.
type frame struct {
	parent *frame
	ret    int32
	depth  int32 // levels of nesting up to and with this call
	id     uint64
}

type frameKey struct {
	parent *frame
	ret    int32
	nested bool
}

func (f *frame) levels() int32 {
	if f == nil {
		return 0
	}
	return f.depth
}

func newAutomaton(p *program, v *vocabulary) *automaton {
	a := &automaton{program: *p, vocab: v, dead: new(state), seen: make(map[frameKey]bool), bits: make([]uint64, v.words)}
	a.forget()
	var c collector
	a.follow(&c, p.start, nil)
	a.start = a.intern(&c)
	return a
}

// forget drops what was found. States that an output is at stay usable.
func (a *automaton) forget() {
	a.memory = 0
	a.states = make(map[string]*state)
	a.frames = make(map[frameKey]*frame)
	a.inside = make(map[place]*inside)
}

// collector gathers the threads of a state.
type collector struct {
	threads []thread
	accept  bool
}

// add notes a thread in a terminal, and goes on behind the terminal where its text may end.
func (a *automaton) add(c *collector, t thread) {
	in := &a.code[t.pc]
	d := a.terms[in.arg]
	if len(c.threads) < maxThreads {
		c.threads = append(c.threads, t)
	}
	if d.accept[t.at] {
		a.follow(c, in.next, t.stack)
	}
}

// follow notes the threads that start at pc. Ways that need too many levels of nesting are not taken; since need is
// that of the shortest way, each thread that is noted can be brought to its end.
func (a *automaton) follow(c *collector, pc int32, stack *frame) {
	if stack.levels()+a.need[pc] > maxDepth || !a.meter.spend(4) {
		return
	}
	in := &a.code[pc]
	if in.op != opTerm {
		key := frameKey{parent: stack, ret: pc}
		if a.seen[key] {
			return
		}
		a.seen[key] = true
	}
	switch in.op {
	case opReturn:
		if stack == nil {
			c.accept = true
			return
		}
		a.follow(c, stack.ret, stack.parent)
	case opTerm:
		a.add(c, thread{pc: pc, stack: stack})
	case opCall:
		a.follow(c, a.rules[in.arg], a.push(frameKey{stack, in.next, in.nested}))
	case opSplit:
		for _, alt := range in.alts {
			a.follow(c, alt, stack)
		}
	}
}

func (a *automaton) push(key frameKey) *frame {
	f, ok := a.frames[key]
	if !ok {
		a.frameN++
		f = &frame{parent: key.parent, ret: key.ret, depth: key.parent.levels(), id: a.frameN}
		if key.nested {
			f.depth++
		}
		a.frames[key] = f
		a.memory += 128
	}
	return f
}

// intern returns the state of what c gathered.
func (a *automaton) intern(c *collector) *state {
	clear(a.seen)
	if len(c.threads) == 0 && !c.accept {
		return a.dead
	}
	if len(c.threads) > 1 {
		slices.SortFunc(c.threads, func(x, y thread) int {
			return cmp.Or(cmp.Compare(x.pc, y.pc), cmp.Compare(x.at, y.at), cmp.Compare(x.ticks, y.ticks),
				cmp.Compare(x.stack.number(), y.stack.number()))
		})
		c.threads = slices.Compact(c.threads)
	}
	a.key = a.key[:0]
	for _, t := range c.threads {
		a.key = binary.LittleEndian.AppendUint32(a.key, uint32(t.pc))
		a.key = binary.LittleEndian.AppendUint32(a.key, uint32(t.at))
		a.key = binary.LittleEndian.AppendUint32(a.key, uint32(t.ticks))
		a.key = binary.LittleEndian.AppendUint64(a.key, t.stack.number())
	}
	if c.accept {
		a.key = append(a.key, 1)
	}
	s, ok := a.states[string(a.key)]
	if !ok {
		if a.memory > maxMemory {
			a.forget()
		}
		s = &state{threads: slices.Clone(c.threads), accept: c.accept}
		a.states[string(a.key)] = s
		a.memory += 160 + 45*len(s.threads)
	}
	return s
}

func (f *frame) number() uint64 {
	if f == nil {
		return 0
	}
	return f.id
}

// step returns the state after byte b in s.
func (a *automaton) step(s *state, b byte) *state {
	class := a.class[b]
	if s.next == nil {
		if len(s.threads) == 0 {
			return a.dead
		}
		s.next = make([]*state, a.classes)
		a.memory += 8 * a.classes
	}
	if to := s.next[class]; to != nil {
		return to
	}
	if !a.meter.spend(16 + 4*len(s.threads)) {
		return a.dead
	}
	var c collector
	for _, t := range s.threads {
		d := a.terms[a.code[t.pc].arg]
		to := d.step(t.at, b)
		if to == none {
			continue
		}
		ticks, ok := d.length.tick(t.at, t.ticks, b)
		if !ok {
			continue
		}
		a.add(&c, thread{t.pc, to, ticks, t.stack})
	}
	if a.meter.failed() {
		clear(a.seen)
		return a.dead
	}
	to := a.intern(&c)
	s.next[class] = to
	return to
}

// known returns the state after the token text in s if every transition to it was found before, or nil.
func (a *automaton) known(s *state, text string) *state {
	for i := range len(text) {
		if s.next == nil {
			return nil
		}
		if s = s.next[a.class[text[i]]]; s == nil {
			return nil
		}
	}
	if s == a.dead {
		return nil
	}
	return s
}

// read returns the state after text in s.
func (a *automaton) read(s *state, text string) *state {
	for i := 0; i < len(text) && s != a.dead; i++ {
		s = a.step(s, text[i])
	}
	return s
}

// groups returns the states of the threads of s at each place. What may follow their terminals at once is not in them.
func (a *automaton) groups(s *state) []*state {
	if len(s.threads) == 1 && !s.accept {
		return []*state{s}
	}
	index := make(map[place]int)
	var groups []collector
	for _, t := range s.threads {
		at := placeOf(a.terms[a.code[t.pc].arg], t.at)
		i, ok := index[at]
		if !ok {
			i = len(groups)
			index[at] = i
			groups = append(groups, collector{})
		}
		groups[i].threads = append(groups[i].threads, t)
	}
	states := make([]*state, len(groups))
	for i := range groups {
		states[i] = a.intern(&groups[i])
	}
	return states
}

// accept returns the state after the token text, which s's mask allows, in s. It is dead only if the mask does not.
func (a *automaton) accept(s *state, text string) *state {
	to := a.read(s, text)
	if to != a.dead || text == "" {
		return to
	}
	// So many threads came up within the token that those which read it were forgotten.
	for _, group := range a.groups(s) {
		if to := a.read(group, text); to != a.dead {
			return to
		}
	}
	return a.dead
}

// place is a state of a terminal. Terminals that differ in their length bounds only share their places.
type place struct {
	table   *int32
	at      int32
	counted bool
}

func placeOf(d *dfa, at int32) place { return place{&d.next[0], at, d.length != nil} }

// inside is what the vocabulary's tokens do at a place, whatever may follow the terminal.
type inside struct {
	// The tokens that stay within the terminal, or end where it may end: as a mask, or as a list if they are few.
	bits []uint64
	ids  []int32
	// Those of them that start characters of a string with length bounds, the ones that start the most first.
	start []startedToken
	// leave are the nodes of the vocabulary at which a text leaves the terminal after it could have ended.
	leave []int32
}

type startedToken struct{ characters, id int32 }

// insideOf returns inside for a state of d.
func (a *automaton) insideOf(d *dfa, at int32) *inside {
	in, ok := a.inside[placeOf(d, at)]
	if !ok {
		in, _ = a.findInside(d, at)
	}
	return in
}

// findInside walks the vocabulary with d alone, and also returns how many nodes it visited.
func (a *automaton) findInside(d *dfa, from int32) (_ *inside, visits int) {
	t := &a.vocab.rest
	// By depth: the terminal's state before the byte there, whether its text could have ended before the byte but
	// within the token, and how many characters the token has started.
	type frontier struct {
		at      int32
		ended   bool
		started int32
	}
	path := make([]frontier, t.depth+1)
	path[0].at = from
	r := new(inside)
	for i := int32(0); int(i) < len(t.nodes)-1; visits++ {
		if !a.meter.spend(1) {
			return r, visits
		}
		node := &t.nodes[i]
		f := path[node.depth]
		to := d.step(f.at, node.b)
		if to == none {
			if f.ended {
				r.leave = append(r.leave, i)
			}
			i = node.skip
			continue
		}
		if d.length != nil && f.at == d.length.at {
			if node.b == '"' { // it depends on the count whether the string may end here
				r.leave = append(r.leave, i)
				i = node.skip
				continue
			}
			f.started++
		}
		path[node.depth+1] = frontier{to, f.ended || d.accept[to], f.started}
		for _, id := range t.here(i) {
			r.ids = append(r.ids, id)
			if f.started > 0 {
				r.start = append(r.start, startedToken{f.started, id})
			}
		}
		i++
	}
	slices.SortStableFunc(r.start, func(x, y startedToken) int { return cmp.Compare(y.characters, x.characters) })
	if len(r.ids) > 2*a.vocab.words {
		r.bits = make([]uint64, a.vocab.words)
		for _, id := range r.ids {
			set(r.bits, id)
		}
		r.ids = nil
	}
	r.ids, r.start, r.leave = slices.Clip(r.ids), slices.Clip(r.start), slices.Clip(r.leave)
	if a.memory > maxMemory {
		a.forget()
	}
	a.inside[placeOf(d, from)] = r
	a.memory += 160 + 8*len(r.bits) + 4*len(r.ids) + 8*len(r.start) + 4*len(r.leave)
	return r, visits
}

func set(bits []uint64, id int32) { bits[id>>6] |= 1 << (id & 63) }

// maskOf returns the token mask of s, which nobody may change.
func (a *automaton) maskOf(s *state) []uint64 {
	if s.mask != nil {
		return s.mask
	}
	bits := make([]uint64, a.vocab.words)
	for _, group := range a.groups(s) {
		a.allow(bits, group)
	}
	if a.meter.failed() {
		return nil
	}
	if s.accept || len(s.threads) == 0 {
		for _, id := range a.vocab.stop {
			set(bits, id)
		}
	}
	s.mask = bits
	a.memory += 8 * len(bits)
	return bits
}

// allow sets the tokens that the threads of s, which are at one place, can read.
func (a *automaton) allow(bits []uint64, s *state) {
	first := s.threads[0]
	in := a.insideOf(a.terms[a.code[first.pc].arg], first.at)
	if !a.meter.spend(len(in.ids) + 2*len(bits)) {
		return
	}
	characters := int32(0) // at most so many may be started
	for _, t := range s.threads {
		if length := a.terms[a.code[t.pc].arg].length; length == nil || length.max < 0 {
			characters = math.MaxInt32
		} else {
			characters = max(characters, length.max-t.ticks)
		}
	}
	in.addStarting(bits, characters, a.bits)
	for _, node := range in.leave {
		a.path = a.vocab.rest.path(a.path[:0], node)
		at := s
		for _, b := range a.path {
			at = a.step(at, b)
		}
		a.allowBelow(bits, &a.vocab.rest, node, a.vocab.rest.nodes[node].skip, at)
	}
}

func (in *inside) addTo(bits []uint64) {
	for i, word := range in.bits {
		bits[i] |= word
	}
	for _, id := range in.ids {
		set(bits, id)
	}
}

// addStarting adds the tokens that start at most n characters. scratch is as long as bits.
func (in *inside) addStarting(bits []uint64, n int32, scratch []uint64) {
	if len(in.start) == 0 || in.start[0].characters <= n {
		in.addTo(bits)
		return
	}
	clear(scratch)
	in.addTo(scratch)
	for _, s := range in.start {
		if s.characters <= n {
			break
		}
		scratch[s.id>>6] &^= 1 << (s.id & 63)
	}
	for i, word := range scratch {
		bits[i] |= word
	}
}

// allowBelow sets the tokens of the nodes [from, to) of t that can be read in s, which is the state before from's
// byte. The nodes are whole subtrees of one depth.
func (a *automaton) allowBelow(bits []uint64, t *trie, from, to int32, s *state) {
	path := append(a.walk[:0], s) // by depth: the state before the byte there
	base := t.nodes[from].depth
	for i := from; i < to && a.meter.spend(2); {
		node := &t.nodes[i]
		depth := int(node.depth - base)
		next := a.step(path[depth], node.b)
		if next == a.dead {
			i = node.skip
			continue
		}
		path = append(path[:depth+1], next)
		for _, id := range t.here(i) {
			set(bits, id)
		}
		i++
	}
	a.walk = path
}

// startMask returns the mask of a sequence's first token.
func (a *automaton) startMask() []uint64 {
	if len(a.vocab.first) == 0 {
		return a.maskOf(a.start)
	}
	bits := make([]uint64, a.vocab.words)
	t := &a.vocab.start
	a.allowBelow(bits, t, 0, int32(len(t.nodes)-1), a.start)
	if a.start.accept {
		for _, id := range a.vocab.stop {
			set(bits, id)
		}
	}
	return bits
}

// warm finds what the vocabulary's tokens do within the terminals, the states nearest to their starts first.
func (a *automaton) warm() {
	visits := 0
	for at := int32(0); ; at++ {
		more := false
		for _, d := range a.terms {
			if int(at) >= d.states() {
				continue
			}
			more = true
			if _, ok := a.inside[placeOf(d, at)]; ok {
				continue
			}
			if visits > warmVisits || a.memory > maxMemory/2 {
				return
			}
			_, n := a.findInside(d, at)
			visits += n
		}
		if !more {
			return
		}
	}
}
