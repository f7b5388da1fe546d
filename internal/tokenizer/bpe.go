package tokenizer

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"sync"
	"unicode/utf8"
)

// metaspace is how SentencePiece writes a space.
const metaspace = "▁"

// bpe is a byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909): a word starts as
// its runes, and the adjacent pair whose merge has the lowest rank is merged until no
// pair has one. Pairs wait in a heap, so a word of n runes takes O(n log n).
type bpe struct {
	vocab        map[string]int32
	merges       map[[2]int32]merge
	prefix       string // of every rune but a word's first
	suffix       string // of a word's last rune
	bytes        [256]int32
	byteFallback bool  // runes outside the vocabulary become the tokens <0x00> to <0xFF>
	unk          int32 // for other runes outside the vocabulary; -1: they are dropped
	fuseUnk      bool
	ignoreMerges bool // a word of the vocabulary is its token, whatever the merges say
	atSpaces     bool // no token has metaspace after another rune: see boundary

	scratch sync.Pool // of *bpeScratch
}

type merge struct{ rank, id int32 }

type bpeScratch struct {
	symbols []symbol
	heap    []candidate
}

// symbol is a token of a word being merged. They form a list through indices; -1 ends
// it, and id -1 says that the symbol was merged into the one before.
type symbol struct{ id, prev, next int32 }

// candidate is a merge that was possible at pos when it was found.
type candidate struct{ rank, pos, id int32 }

func (c candidate) before(d candidate) bool {
	return c.rank < d.rank || c.rank == d.rank && c.pos < d.pos
}

type bpeFile struct {
	Dropout                 *float64         `json:"dropout"`
	UnkToken                *string          `json:"unk_token"`
	ContinuingSubwordPrefix string           `json:"continuing_subword_prefix"`
	EndOfWordSuffix         string           `json:"end_of_word_suffix"`
	FuseUnk                 bool             `json:"fuse_unk"`
	ByteFallback            bool             `json:"byte_fallback"`
	IgnoreMerges            bool             `json:"ignore_merges"`
	Vocab                   map[string]int32 `json:"vocab"`
	Merges                  json.RawMessage  `json:"merges"`
}

func newBPE(raw json.RawMessage) (*bpe, error) {
	var f bpeFile
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if f.Dropout != nil && *f.Dropout != 0 {
		return nil, fmt.Errorf("model.dropout: %v given, only null and 0 are supported", *f.Dropout)
	}
	pairs, err := mergePairs(f.Merges)
	if err != nil {
		return nil, err
	}
	m := &bpe{
		vocab:        f.Vocab,
		merges:       make(map[[2]int32]merge, len(pairs)),
		prefix:       f.ContinuingSubwordPrefix,
		suffix:       f.EndOfWordSuffix,
		byteFallback: f.ByteFallback,
		unk:          -1,
		fuseUnk:      f.FuseUnk,
		ignoreMerges: f.IgnoreMerges,
	}
	_, spaces := m.vocab[metaspace]
	m.atSpaces = spaces && !m.ignoreMerges && m.prefix == "" && m.suffix == ""
	for rank, p := range pairs {
		left, ok := m.vocab[p[0]]
		if !ok {
			return nil, fmt.Errorf("model.merges[%d]: %q is not in model.vocab", rank, p[0])
		}
		right, ok := m.vocab[p[1]]
		if !ok {
			return nil, fmt.Errorf("model.merges[%d]: %q is not in model.vocab", rank, p[1])
		}
		if len(p[1]) < len(m.prefix) {
			return nil, fmt.Errorf("model.merges[%d]: %q is shorter than model.continuing_subword_prefix %q", rank, p[1], m.prefix)
		}
		whole := p[0] + p[1][len(m.prefix):]
		id, ok := m.vocab[whole]
		if !ok {
			return nil, fmt.Errorf("model.merges[%d]: %q is not in model.vocab", rank, whole)
		}
		m.merges[[2]int32{left, right}] = merge{int32(rank), id}
		if strings.HasPrefix(p[1], metaspace) && !strings.HasSuffix(p[0], metaspace) {
			m.atSpaces = false
		}
	}
	if f.UnkToken != nil {
		if id, ok := m.vocab[*f.UnkToken]; ok {
			m.unk = id
		}
	}
	m.bytes = byteTokens(m.vocab)
	return m, nil
}

// byteTokens returns the ids of <0x00> to <0xFF>, -1 for those that ids has not.
func byteTokens(ids map[string]int32) (bytes [256]int32) {
	for b := range bytes {
		id, ok := ids[fmt.Sprintf("<0x%02X>", b)]
		if !ok {
			id = -1
		}
		bytes[b] = id
	}
	return bytes
}

// mergePairs reads merges written as "a b" or as ["a","b"].
func mergePairs(raw json.RawMessage) ([][2]string, error) {
	if len(raw) == 0 {
		return nil, fmt.Errorf("model.merges is missing")
	}
	var lists [][]string
	if json.Unmarshal(raw, &lists) == nil {
		pairs := make([][2]string, len(lists))
		for i, l := range lists {
			if len(l) != 2 {
				return nil, fmt.Errorf("model.merges[%d]: a list of %d strings given, a merge has 2", i, len(l))
			}
			pairs[i] = [2]string(l)
		}
		return pairs, nil
	}
	var lines []string
	if err := json.Unmarshal(raw, &lines); err != nil {
		return nil, fmt.Errorf("model.merges is neither a list of strings nor a list of pairs: %w", err)
	}
	pairs := make([][2]string, 0, len(lines))
	for i, line := range lines {
		if strings.HasPrefix(line, "#version") {
			continue
		}
		left, right, ok := strings.Cut(line, " ")
		if !ok || strings.Contains(right, " ") {
			return nil, fmt.Errorf("model.merges[%d]: %q given, a merge is two tokens with one space between", i, line)
		}
		pairs = append(pairs, [2]string{left, right})
	}
	return pairs, nil
}

func (m *bpe) without(ids map[int32]bool) model {
	isWord := func(_ string, id int32) bool { return ids[id] && id != m.unk }
	isMerged := func(_ [2]int32, mg merge) bool { return ids[mg.id] }
	if !(m.ignoreMerges && some(m.vocab, isWord)) && !some(m.merges, isMerged) {
		return m
	}
	vocab, merges := maps.Clone(m.vocab), maps.Clone(m.merges)
	maps.DeleteFunc(vocab, isWord)
	maps.DeleteFunc(merges, isMerged)
	return &bpe{vocab: vocab, merges: merges, prefix: m.prefix, suffix: m.suffix, bytes: m.bytes,
		byteFallback: m.byteFallback,
		unk:          m.unk, fuseUnk: m.fuseUnk, ignoreMerges: m.ignoreMerges, atSpaces: m.atSpaces}
}

func some[K comparable, V any](m map[K]V, is func(K, V) bool) bool {
	for k, v := range m {
		if is(k, v) {
			return true
		}
	}
	return false
}

// boundary cuts SentencePiece text, which has no pre-tokenizer, before its spaces. No
// merge reaches over such a place, so the tokens stay the same, and words can be cached.
func (m *bpe) boundary(s string) int {
	if !m.atSpaces {
		return len(s)
	}
	i := 0
	for strings.HasPrefix(s[i:], metaspace) {
		i += len(metaspace)
	}
	if n := strings.Index(s[i:], metaspace); n >= 0 {
		return i + n
	}
	return len(s)
}

func (m *bpe) tokenize(dst []int32, word string) []int32 {
	if m.ignoreMerges {
		if id, ok := m.vocab[word]; ok {
			return append(dst, id)
		}
	}
	sc, _ := m.scratch.Get().(*bpeScratch)
	if sc == nil {
		sc = new(bpeScratch)
	}
	sc.symbols = m.runes(sc.symbols[:0], word)
	m.mergeAll(sc)
	for _, s := range sc.symbols {
		if s.id >= 0 {
			dst = append(dst, s.id)
		}
	}
	m.scratch.Put(sc)
	return dst
}

// runes appends the tokens that word has before any merge.
func (m *bpe) runes(list []symbol, word string) []symbol {
	add := func(id int32) {
		n := int32(len(list))
		if n > 0 {
			list[n-1].next = n
		}
		list = append(list, symbol{id, n - 1, -1})
	}
	unknown := false // an unknown token is waiting: the next rune may fuse with it
	for i := 0; i < len(word); {
		_, size := utf8.DecodeRuneInString(word[i:])
		s := word[i : i+size]
		if m.prefix != "" && i > 0 {
			s = m.prefix + s
		}
		i += size
		if m.suffix != "" && i == len(word) {
			s += m.suffix
		}
		if id, ok := m.vocab[s]; ok {
			if unknown {
				add(m.unk)
				unknown = false
			}
			add(id)
			continue
		}
		if m.byteFallback && m.hasBytes(s) {
			for k := range len(s) {
				add(m.bytes[s[k]])
			}
			continue
		}
		if m.unk >= 0 {
			if unknown && !m.fuseUnk {
				add(m.unk)
			}
			unknown = true
		}
	}
	if unknown {
		add(m.unk)
	}
	return list
}

func (m *bpe) hasBytes(s string) bool {
	for i := range len(s) {
		if m.bytes[s[i]] < 0 {
			return false
		}
	}
	return true
}

func (m *bpe) mergeAll(sc *bpeScratch) {
	list := sc.symbols
	heap := sc.heap[:0]
	for i := range len(list) - 1 {
		if mg, ok := m.merges[[2]int32{list[i].id, list[i+1].id}]; ok {
			heap = push(heap, candidate{mg.rank, int32(i), mg.id})
		}
	}
	for len(heap) > 0 {
		var c candidate
		c, heap = pop(heap)
		left := &list[c.pos]
		if left.id < 0 || left.next < 0 {
			continue
		}
		right := &list[left.next]
		// Either symbol may have been merged since the candidate was found.
		if mg, ok := m.merges[[2]int32{left.id, right.id}]; !ok || mg.id != c.id {
			continue
		}
		left.id, right.id = c.id, -1
		left.next = right.next
		if left.next >= 0 {
			list[left.next].prev = c.pos
			if mg, ok := m.merges[[2]int32{left.id, list[left.next].id}]; ok {
				heap = push(heap, candidate{mg.rank, c.pos, mg.id})
			}
		}
		if left.prev >= 0 {
			if mg, ok := m.merges[[2]int32{list[left.prev].id, left.id}]; ok {
				heap = push(heap, candidate{mg.rank, left.prev, mg.id})
			}
		}
	}
	sc.heap = heap
}

// push and pop are container/heap without its interface calls, which are half the time
// of a long word.
func push(h []candidate, c candidate) []candidate {
	h = append(h, c)
	i := len(h) - 1
	for i > 0 {
		parent := (i - 1) / 2
		if !c.before(h[parent]) {
			break
		}
		h[i] = h[parent]
		i = parent
	}
	h[i] = c
	return h
}

func pop(h []candidate) (candidate, []candidate) {
	top, last := h[0], h[len(h)-1]
	h = h[:len(h)-1]
	if len(h) == 0 {
		return top, h
	}
	i := 0
	for {
		child := 2*i + 1
		if child >= len(h) {
			break
		}
		if child+1 < len(h) && h[child+1].before(h[child]) {
			child++
		}
		if !h[child].before(last) {
			break
		}
		h[i] = h[child]
		i = child
	}
	h[i] = last
	return top, h
}
