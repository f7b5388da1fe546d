// Package constrain holds outputs to a list of choices, a regular expression or a JSON schema: before each token it
// says which tokens may follow, so that what has been written can always be continued to an output that satisfies the
// specification, and an output that ends by a stop token does.
//
// A specification is compiled to a program, a network of rules over byte automata (program.go, dfa.go). An
// automaton runs it and finds the token masks by walking the vocabulary's trie of bytes (automaton.go,
// vocabulary.go). What a terminal does with the vocabulary is found once, when it is compiled; only tokens that go
// past the end of a terminal are looked at for each stack, which is the split of tokens of XGrammar (Dong et al.,
// 2024, arXiv:2411.15100).
package constrain

import (
	"container/list"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/mmserve/mmserve/internal/tokenizer"
)

const (
	// maxGrammars bounds the grammars a Compiler keeps, each of which holds maxMemory and its program at most.
	maxGrammars = 32

	// maxChoices bounds the bytes of a list of choices together.
	maxChoices = 32 << 10
)

// Compiler compiles specifications for one vocabulary and keeps the grammars that were used last. It is safe for
// concurrent use.
//
// Compilation takes milliseconds, for the largest specifications some 0.3 s, and belongs off the engine's goroutine.
// Every error of its methods is about their argument.
type Compiler struct {
	vocab *vocabulary

	mu     sync.Mutex
	byHash map[hash]*list.Element // of recent
	recent *list.List             // of cached; those used last first
}

type hash [sha256.Size]byte

type cached struct {
	hash    hash
	grammar *Grammar
}

// NewCompiler returns a compiler for the tokens of tok. stop are the ids that end an output; all other added tokens
// of tok are never allowed. It is an error if tok cannot write each byte as one token, as byte-level and
// byte-fallback vocabularies can.
func NewCompiler(tok *tokenizer.Tokenizer, stop []int32) (*Compiler, error) {
	vocab, err := newVocabulary(tok, stop)
	if err != nil {
		return nil, err
	}
	return &Compiler{vocab: vocab, byHash: make(map[hash]*list.Element), recent: list.New()}, nil
}

// Choice returns the grammar of exactly the given texts.
func (c *Compiler) Choice(choices []string) (*Grammar, error) {
	total := 0
	for i, choice := range choices {
		if choice == "" || strings.ToValidUTF8(choice, "") != choice {
			return nil, fmt.Errorf("choice %d: is empty or not UTF-8", i)
		}
		total += len(choice)
	}
	if len(choices) == 0 || total > maxChoices {
		return nil, fmt.Errorf("%d choices of %d bytes: at least one choice, and at most %d bytes together, are allowed", len(choices), total, maxChoices)
	}
	return c.compile("choice", strings.Join(choices, "\xFF"), func(b *budget) (*program, error) {
		return terminalProgram(b, func() (*dfa, error) { return literalDFA(choices, b) })
	})
}

// Regexp returns the grammar of the texts that match expr, in Go's syntax (that of RE2), as a whole.
func (c *Compiler) Regexp(expr string) (*Grammar, error) {
	return c.compile("regexp", expr, func(b *budget) (*program, error) {
		p, err := terminalProgram(b, func() (*dfa, error) { return patternDFA(expr, b) })
		if err != nil {
			return nil, fmt.Errorf("regular expression: %w", err)
		}
		return p, nil
	})
}

// literalDFA returns the automaton of the given texts.
func literalDFA(texts []string, b *budget) (*dfa, error) {
	n := &nfa{budget: b}
	end := n.mark(nfaAccept, none)
	start := int32(none)
	for _, text := range texts {
		start = n.union(start, n.text(text, end))
	}
	return n.determinize(start)
}

// terminalProgram is the program of one terminal alone.
func terminalProgram(b *budget, make func() (*dfa, error)) (*program, error) {
	p := newProgramBuilder(b)
	start, err := p.term("", returnPC, make)
	if err != nil {
		return nil, err
	}
	return p.build(start)
}

// compile returns the grammar of a specification, compiled by build if it is not at hand. Two goroutines that ask for
// the same one at the same time may both compile it.
func (c *Compiler) compile(kind, spec string, build func(*budget) (*program, error)) (*Grammar, error) {
	key := hash(sha256.Sum256([]byte(kind + "\x00" + spec)))
	if g := c.lookup(key); g != nil {
		return g, nil
	}
	p, err := build(&budget{compileBudget})
	if err != nil {
		return nil, err
	}
	a := newAutomaton(p, c.vocab)
	a.warm()
	g := &Grammar{automaton: a, first: a.startMask(), end: make([]uint64, c.vocab.words)}
	for _, id := range c.vocab.stop {
		set(g.end, id)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if at, ok := c.byHash[key]; ok {
		return at.Value.(cached).grammar, nil
	}
	c.byHash[key] = c.recent.PushFront(cached{key, g})
	if c.recent.Len() > maxGrammars {
		oldest := c.recent.Remove(c.recent.Back()).(cached)
		delete(c.byHash, oldest.hash)
	}
	return g, nil
}

func (c *Compiler) lookup(key hash) *Grammar {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, ok := c.byHash[key]
	if !ok {
		return nil
	}
	c.recent.MoveToFront(at)
	return at.Value.(cached).grammar
}

// Grammar is a compiled specification, for any number of sequences. It is safe for concurrent use.
type Grammar struct {
	mu        sync.Mutex
	automaton *automaton

	first []uint64 // the mask of a sequence's first token
	end   []uint64 // the stop ids alone
}

// Start returns the state of a sequence that has no tokens yet.
func (g *Grammar) Start() *State {
	return &State{grammar: g, at: g.automaton.start, first: true}
}

// State is where one sequence is in its grammar. It is used by one goroutine at a time.
type State struct {
	grammar *Grammar
	at      *state
	first   bool // no token yet
	ended   bool
}

// Mask returns the ids that may come next as a bitset, bit id%64 of word id/64; ids beyond it may not come. Stop ids
// are in it where the output may end, and they alone where it cannot go on. It belongs to the grammar: it is read only,
// and valid until the next call.
func (s *State) Mask() []uint64 {
	switch {
	case s.ended:
		return s.grammar.end
	case s.first:
		return s.grammar.first
	}
	s.grammar.mu.Lock()
	defer s.grammar.mu.Unlock()
	return s.grammar.automaton.maskOf(s.at)
}

// Accept takes note of a token that was sampled, stop ids included. After a token that the mask does not allow the
// output is over: only stop ids may come.
func (s *State) Accept(id int32) {
	v := s.grammar.automaton.vocab
	if s.ended {
		return
	}
	if slices.Contains(v.stop, id) || id < 0 || int(id) >= len(v.text) {
		s.ended = true
		return
	}
	text := v.text[id]
	if first, ok := v.first[id]; ok && s.first {
		text = first
	}
	s.grammar.mu.Lock()
	defer s.grammar.mu.Unlock()
	s.first = false
	s.at = s.grammar.automaton.accept(s.at, text)
	s.ended = text == "" || s.at == s.grammar.automaton.dead
}

// Done reports whether nothing but a stop id may come.
func (s *State) Done() bool { return s.ended || len(s.at.threads) == 0 }
