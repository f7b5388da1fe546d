package tokenizer

import (
	"encoding/json"
	"fmt"
	"maps"
	"unicode/utf8"
)

// wordPiece takes the longest token that a word starts with, again and again (Schuster
// and Nakajima 2012). A word that cannot be cut so to its end is unknown as a whole.
type wordPiece struct {
	ids      map[string]int32
	prefix   string
	first    *trie // of the tokens at a word's start
	rest     *trie // of those after it, without their prefix
	unk      int32
	maxRunes int // longer words are unknown
}

// newWordPiece returns the model, whose ids are its vocabulary.
func newWordPiece(raw json.RawMessage) (*wordPiece, error) {
	f := struct {
		UnkToken string           `json:"unk_token"`
		Prefix   string           `json:"continuing_subword_prefix"`
		MaxRunes int              `json:"max_input_chars_per_word"`
		Vocab    map[string]int32 `json:"vocab"`
	}{"[UNK]", "##", 100, nil}
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	unk, ok := f.Vocab[f.UnkToken]
	if !ok {
		return nil, fmt.Errorf("model.unk_token: %q is not in model.vocab", f.UnkToken)
	}
	if f.MaxRunes < 0 {
		return nil, fmt.Errorf("model.max_input_chars_per_word: %d given, 0 or more is allowed", f.MaxRunes)
	}
	return &wordPiece{f.Vocab, f.Prefix, newTrie(f.Vocab), newTrie(withoutPrefix(f.Vocab, f.Prefix)), unk, f.MaxRunes}, nil
}

func (m *wordPiece) without(ids map[int32]bool) model {
	kept := maps.Clone(m.ids)
	maps.DeleteFunc(kept, func(_ string, id int32) bool { return ids[id] && id != m.unk })
	if len(kept) == len(m.ids) {
		return m
	}
	return &wordPiece{kept, m.prefix, newTrie(kept), newTrie(withoutPrefix(kept, m.prefix)), m.unk, m.maxRunes}
}

func (m *wordPiece) boundary(s string) int { return len(s) }

func (m *wordPiece) tokenize(dst []int32, word string) []int32 {
	if utf8.RuneCountInString(word) > m.maxRunes {
		return append(dst, m.unk)
	}
	from, tokens := len(dst), m.first
	for word != "" {
		end, id := tokens.longest(word)
		if end == 0 {
			return append(dst[:from], m.unk)
		}
		dst = append(dst, id)
		word, tokens = word[end:], m.rest
	}
	return dst
}
