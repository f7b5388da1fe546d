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
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/mmserve/mmserve/internal/tokenizer"
)

// ErrBusy says that the grammars of the requests that run take all memory there is for them. Trying again later may
// help.
var ErrBusy = errors.New("the constraints of other requests take all memory for constraints")

const (
	// maxGrammars and maxCached, in bytes, bound the grammars a Compiler keeps for later requests, each of which grows by
	// maxMemory at most while it is used. maxLive bounds the bytes of those that requests hold.
	maxGrammars = 32
	maxCached   = 64 << 20
	maxLive     = 128 << 20

	// maxChoices bounds the bytes of a list of choices together.
	maxChoices = 32 << 10
)

// Compiler compiles specifications for one vocabulary and keeps the grammars that were used last. It is safe for
// concurrent use.
//
// Its methods take milliseconds, for the largest specifications some 0.3 s, and wait while many compile; they end with
// their context. A request holds its grammar until then. With leadingSpace an output may start with a space before
// what the specification says, unless it allows that itself: see Grammar.Padded. Every error but ErrBusy, ErrWork
// and the context's is about the specification, and quotes none of its words.
type Compiler struct {
	vocab *vocabulary
	lanes *lanes

	mu     sync.Mutex
	byHash map[hash]*list.Element // of recent
	recent *list.List             // of *Grammar; those used last first
	kept   int                    // bytes of those in recent
	live   int                    // bytes of those that requests hold
}

type hash [sha256.Size]byte

// NewCompiler returns a compiler for the tokens of tok. stop are the ids that end an output; all other added tokens
// of tok are never allowed. It is an error if tok cannot write each byte as one token, as byte-level and
// byte-fallback vocabularies can.
func NewCompiler(tok *tokenizer.Tokenizer, stop []int32) (*Compiler, error) {
	vocab, err := newVocabulary(tok, stop)
	if err != nil {
		return nil, err
	}
	return &Compiler{vocab: vocab, lanes: newLanes(), byHash: make(map[hash]*list.Element), recent: list.New()}, nil
}

// Choice returns the grammar of exactly the given texts.
func (c *Compiler) Choice(ctx context.Context, choices []string, leadingSpace bool) (*Grammar, error) {
	total := 0
	for i, choice := range choices {
		if choice == "" || !utf8.ValidString(choice) {
			return nil, fmt.Errorf("choice %d: is empty or not UTF-8", i)
		}
		total += len(choice)
	}
	if len(choices) == 0 || total > maxChoices {
		return nil, fmt.Errorf("%d choices of %d bytes: at least one choice, and at most %d bytes together, are allowed", len(choices), total, maxChoices)
	}
	return c.compile(ctx, spec{"choice", strings.Join(choices, "\xFF"), leadingSpace},
		func(p *programBuilder) (int32, error) {
			return p.term("choices", returnPC, func() (*dfa, error) { return literalDFA(choices, p.budget) })
		})
}

// Regexp returns the grammar of the texts that match expr, in Go's syntax (that of RE2), as a whole.
func (c *Compiler) Regexp(ctx context.Context, expr string, leadingSpace bool) (*Grammar, error) {
	return c.compile(ctx, spec{"regexp", expr, leadingSpace}, func(p *programBuilder) (int32, error) {
		start, err := p.term("regexp", returnPC, func() (*dfa, error) { return patternDFA(expr, p.budget) })
		if err != nil {
			return 0, fmt.Errorf("regular expression: %w", err)
		}
		return start, nil
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

// spec is what a grammar is compiled from.
type spec struct {
	kind, text   string
	leadingSpace bool
}

func (s spec) hash() hash {
	return sha256.Sum256(fmt.Appendf(nil, "%s\x00%t\x00%s", s.kind, s.leadingSpace, s.text))
}

// compile returns the grammar of a specification, compiled by build, which returns where its program starts, if it is
// not at hand. Two goroutines that ask for the same one at the same time may both compile it.
func (c *Compiler) compile(ctx context.Context, s spec, build func(*programBuilder) (int32, error)) (*Grammar, error) {
	key := s.hash()
	if g := c.lookup(key); g != nil {
		return g, c.hold(ctx, g)
	}
	m, err := c.lanes.start(ctx, newAllowance(compileWork))
	if err != nil {
		return nil, err
	}
	defer m.end()
	b := newProgramBuilder(&budget{left: compileBudget, meter: m})
	start, err := build(b)
	if err == nil && m.err == nil {
		start, err = b.pad(start, s.leadingSpace)
	}
	var p *program
	if err == nil && m.err == nil {
		p, err = b.build(start)
	}
	if m.err != nil {
		return nil, m.err
	}
	if err != nil {
		return nil, err
	}
	a := newAutomaton(p, c.vocab)
	a.meter = m
	a.warm()
	g := &Grammar{hash: key, lanes: c.lanes, automaton: a, padded: b.padded, first: a.startMask(),
		end: make([]uint64, c.vocab.words)}
	a.meter = nil
	if m.err != nil {
		return nil, m.err
	}
	for _, id := range c.vocab.stop {
		set(g.end, id)
	}
	g.size = p.size() + a.memory + 16*c.vocab.words
	g = c.keep(g)
	return g, c.hold(ctx, g)
}

// compileWork bounds a compilation with its first masks in a meter's units.
const compileWork = 1 << 27

// keep puts g among the grammars that were used last, if an equal one is not there, which it returns then.
func (c *Compiler) keep(g *Grammar) *Grammar {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at, ok := c.byHash[g.hash]; ok {
		return at.Value.(*Grammar)
	}
	c.byHash[g.hash] = c.recent.PushFront(g)
	c.kept += g.size
	for c.recent.Len() > maxGrammars || c.kept > maxCached && c.recent.Len() > 1 {
		oldest := c.recent.Remove(c.recent.Back()).(*Grammar)
		delete(c.byHash, oldest.hash)
		c.kept -= oldest.size
	}
	return g
}

// hold counts g as in use until ctx ends.
func (c *Compiler) hold(ctx context.Context, g *Grammar) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if g.holders == 0 {
		if c.live+g.size > maxLive {
			return ErrBusy
		}
		c.live += g.size
	}
	g.holders++
	context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if g.holders--; g.holders == 0 {
			c.live -= g.size
		}
	})
	return nil
}

func (c *Compiler) lookup(key hash) *Grammar {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, ok := c.byHash[key]
	if !ok {
		return nil
	}
	c.recent.MoveToFront(at)
	return at.Value.(*Grammar)
}

// Grammar is a compiled specification, for any number of sequences. It is safe for concurrent use.
type Grammar struct {
	hash    hash
	size    int // bytes, once compiled
	holders int // guarded by Compiler.mu
	lanes   *lanes
	padded  bool

	mu        sync.Mutex // held while a mask is found, which may take long
	automaton *automaton

	first []uint64 // the mask of a sequence's first token
	end   []uint64 // the stop ids alone
}

// Padded reports whether an output may start with a space that does not belong to what the specification says.
func (g *Grammar) Padded() bool { return g.padded }

// Start returns the state of a sequence that has no tokens yet. Its mask is ready. Work for it ends with ctx.
func (g *Grammar) Start(ctx context.Context) *State { return g.Starts(ctx, 1)[0] }

// Starts returns the states of n sequences that are answers to one request, and share what it may use.
func (g *Grammar) Starts(ctx context.Context, n int) []*State {
	states, allow := make([]*State, n), newAllowance(requestWork)
	for i := range states {
		states[i] = &State{cursor: g.cursor(), ctx: ctx, allow: allow, mask: g.first}
	}
	return states
}

func (g *Grammar) cursor() cursor { return cursor{grammar: g, at: g.automaton.start, first: true} }
