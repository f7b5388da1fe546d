package tokenizer

import (
	"encoding/json"
	"fmt"
	"iter"
	"math"
	"sync"
	"unicode/utf8"
)

// unkPenalty is how much less than the lowest score of the vocabulary an unknown rune scores.
const unkPenalty = 10

// unigram is a unigram language model (Kudo 2018, arXiv:1804.10959): of all ways to cut
// a word into tokens it takes the one whose scores have the highest sum, by Viterbi's
// algorithm. A word of n bytes takes O(n · length of the longest token).
type unigram struct {
	ids          map[string]int32
	scores       []float64 // by id
	trie         *trie
	unk          int32
	unkScore     float64
	bytes        [256]int32 // <0x00> to <0xFF>, -1 where the vocabulary has none
	byteFallback bool       // unknown runes become those tokens
	barred       []bool     // by id: is not given; nil bars none

	scratch sync.Pool // of *[]path
}

// path is the best way to the end of some bytes of a word.
type path struct {
	score float64
	start int32 // of its last token; -1: no way was found yet
	id    int32 // of its last token
}

// reach keeps the better of two ways; of equal ones that which was found first.
func (p *path) reach(score float64, start int, id int32) {
	if p.start < 0 || score > p.score {
		*p = path{score, int32(start), id}
	}
}

// scoredToken is written ["▁the", -3.2].
type scoredToken struct {
	content string
	score   float64
}

func (s *scoredToken) UnmarshalJSON(raw []byte) error {
	var parts []json.RawMessage
	if err := json.Unmarshal(raw, &parts); err != nil {
		return err
	}
	if len(parts) != 2 {
		return fmt.Errorf("a list of %d given, a token is written [content, score]", len(parts))
	}
	if err := json.Unmarshal(parts[0], &s.content); err != nil {
		return err
	}
	return json.Unmarshal(parts[1], &s.score)
}

// newUnigram returns the model and its vocabulary.
func newUnigram(raw json.RawMessage) (*unigram, iter.Seq2[string, int32], error) {
	var f struct {
		UnkID        *int32        `json:"unk_id"`
		Vocab        []scoredToken `json:"vocab"`
		ByteFallback bool          `json:"byte_fallback"`
	}
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, nil, fmt.Errorf("model: %w", err)
	}
	if f.UnkID == nil {
		return nil, nil, fmt.Errorf("model.unk_id is missing: a Unigram model needs a token for what it does not know")
	}
	if *f.UnkID < 0 || int(*f.UnkID) >= len(f.Vocab) {
		return nil, nil, fmt.Errorf("model.unk_id is %d, model.vocab has %d tokens", *f.UnkID, len(f.Vocab))
	}
	m := &unigram{ids: make(map[string]int32, len(f.Vocab)), unk: *f.UnkID, byteFallback: f.ByteFallback}
	lowest := math.Inf(1)
	for id, t := range f.Vocab {
		m.ids[t.content] = int32(id)
		m.scores = append(m.scores, t.score)
		lowest = min(lowest, t.score)
	}
	m.unkScore = lowest - unkPenalty
	m.trie = newTrie(m.ids)
	m.bytes = byteTokens(m.ids)
	return m, func(yield func(string, int32) bool) {
		for id, t := range f.Vocab {
			if !yield(t.content, int32(id)) {
				return
			}
		}
	}, nil
}

func (m *unigram) without(ids map[int32]bool) model {
	barred, some := make([]bool, len(m.scores)), false
	for id := range ids {
		if id != m.unk && int(id) < len(barred) {
			barred[id], some = true, true
		}
	}
	if !some {
		return m
	}
	return &unigram{ids: m.ids, scores: m.scores, trie: m.trie, unk: m.unk, unkScore: m.unkScore, bytes: m.bytes,
		byteFallback: m.byteFallback, barred: barred}
}

// gives tells that id is not barred.
func (m *unigram) gives(id int32) bool { return m.barred == nil || !m.barred[id] }

// boundary is the whole word: sums of scores are rounded, so that where they are all but
// equal the cut depends on everything before.
func (m *unigram) boundary(s string) int { return len(s) }

func (m *unigram) tokenize(dst []int32, word string) []int32 {
	held, _ := m.scratch.Get().(*[]path)
	if held == nil {
		held = new([]path)
	}
	best := (*held)[:0]
	for range len(word) + 1 {
		best = append(best, path{start: -1})
	}
	for start := 0; start < len(word); {
		_, size := utf8.DecodeRuneInString(word[start:])
		from, known := best[start].score, false
		for node, n := int32(0), start; n < len(word); {
			if node = m.trie.child(node, word[n]); node < 0 {
				break
			}
			n++
			if id := m.trie.nodes[node].id; id >= 0 && m.gives(id) {
				best[n].reach(from+m.scores[id], start, id)
				known = known || n == start+size
			}
		}
		if !known {
			best[start+size].reach(from+m.unkScore, start, m.unk)
		}
		start += size
	}
	// Backwards along the best path; unknown runes in a row are one.
	from := len(dst)
	for end := len(word); end > 0; {
		last := best[end]
		start := int(last.start)
		if last.id == m.unk {
			for start > 0 && best[start].id == m.unk {
				start = int(best[start].start)
			}
			dst = m.unknown(dst, word[start:end])
		} else {
			dst = append(dst, last.id)
		}
		end = start
	}
	for i, j := from, len(dst)-1; i < j; i, j = i+1, j-1 {
		dst[i], dst[j] = dst[j], dst[i]
	}
	*held = best
	m.scratch.Put(held)
	return dst
}

// unknown appends the ids of a run of unknown runes, in reverse.
func (m *unigram) unknown(dst []int32, s string) []int32 {
	if id, ok := m.ids[s]; ok && m.gives(id) {
		return append(dst, id)
	}
	from := len(dst)
	for i := len(s) - 1; m.byteFallback && i >= 0; i-- {
		id := m.bytes[s[i]]
		if id < 0 {
			dst = dst[:from]
			break
		}
		dst = append(dst, id)
	}
	if len(dst) == from {
		dst = append(dst, m.unk)
	}
	return dst
}
