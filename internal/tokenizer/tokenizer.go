// Package tokenizer turns text into token ids and back as a Hugging Face
// tokenizer.json says.
//
// A text goes through five steps: added tokens are cut out of it, the rest is
// normalized, cut into words (pre-tokens), and each word is split into tokens by the
// model; a template may then add tokens at both ends. The reference is the Rust crate
// huggingface/tokenizers; ids are the same as its ids, which the tests hold. A file's
// truncation and padding are not applied: lengths are the caller's business.
package tokenizer

import (
	"strings"
	"sync"
	"unicode/utf8"
)

// Tokenizer is one parsed tokenizer.json. It is safe for concurrent use.
type Tokenizer struct {
	ids     map[string]int32 // the model's vocabulary and the added tokens
	entries []entry          // by id
	vocab   int32            // how many tokens the model's vocabulary has
	added   []AddedToken     // ascending by ID

	raw        matcher // added tokens found in the text as it is
	normalized matcher // added tokens found in the normalized text
	verbatim   bool    // some of those are special

	normalizers   []normalizer
	preTokenizers []preTokenizer
	byteLevel     bool // the words are mapped to the byte-level alphabet before the model sees them
	asIs          words
	guarded       words // where the model gives no special token, whatever a word says
	decoders      []decoder

	prefix, suffix []int32 // the template's tokens around a text

	scratch sync.Pool // of *scratch
}

// model splits one word into token ids, which it appends to dst. An implementation is
// safe for concurrent use.
type model interface {
	tokenize(dst []int32, word string) []int32
	// without returns a model that gives none of ids, but for what stands for unknown text.
	without(ids map[int32]bool) model
	// boundary returns how many bytes of s, at least one of a non-empty s, can be
	// tokenized by themselves without changing the tokens of s.
	boundary(s string) int
}

// words is a model and what it made of words.
type words struct {
	model model
	cache *wordCache
}

// entry is what an id stands for.
type entry struct {
	content string
	known   bool
	special bool
}

// AddedToken is a token that is found in a text as a whole, before the model sees it.
type AddedToken struct {
	ID      int32
	Content string
	Special bool // a control token, which decoding can leave out
}

type scratch struct {
	words, next []piece
}

// Encode returns the ids of text. Added tokens in text, special ones too, become their
// ids: text that a user typed belongs in EncodeGuarded. With addSpecial the ids of the
// file's template (such as a beginning-of-sequence token) are put around them. A byte
// run that is not UTF-8 counts as one U+FFFD.
// It is nil for a text that EncodeGuarded refuses.
func (t *Tokenizer) Encode(text string, addSpecial bool) []int32 {
	ids, _ := t.encode(text, nil, addSpecial, false)
	return ids
}

// EncodeGuarded is Encode of text without the rune guard, where no added token is found
// across a place at which a guard stood, and where special tokens are found as they are
// written only: what becomes one by normalization is text, and a model that has them in
// its vocabulary does not make them of a word. White space that a token strips from its
// sides is not part of it and may be on the other side of a guard. Normalizers and
// pre-tokenizers see the text without guards. Guard 0 means that there are none. A text that
// the file's steps make far longer is ErrGrows.
func (t *Tokenizer) EncodeGuarded(text string, guard rune, addSpecial bool) ([]int32, error) {
	var marks []mark
	if guard != 0 {
		text, marks = takeMarks(strings.ToValidUTF8(text, string(utf8.RuneError)), guard)
	}
	return t.encode(text, marks, addSpecial, true)
}

func (t *Tokenizer) encode(text string, marks []mark, addSpecial, guarded bool) ([]int32, error) {
	w := t.asIs
	if guarded {
		w = t.guarded
	}
	text = strings.ToValidUTF8(text, string(utf8.RuneError))
	ids := make([]int32, 0, len(text)/4+len(t.prefix)+len(t.suffix))
	if addSpecial {
		ids = append(ids, t.prefix...)
	}
	sc, _ := t.scratch.Get().(*scratch)
	if sc == nil {
		sc = new(scratch)
	}
	room := growth(len(text))
	var failed error
	t.raw.split(text, marks, nil, func(start, end int, id int32) {
		if failed != nil {
			return
		}
		if id >= 0 {
			ids = append(ids, id)
			return
		}
		var edits *trace
		var allow func(int, int, *addedToken) bool
		if raw := text[start:end]; guarded && t.verbatim {
			edits = new(trace)
			allow = func(start, end int, token *addedToken) bool {
				if !token.Special {
					return true
				}
				start, end = edits.source(start, end)
				return strings.TrimSpace(raw[start:end]) == strings.TrimSpace(token.Content)
			}
		}
		sec, err := normalize(t.normalizers, section{text[start:end], within(marks, start, end), start == 0}, &room, edits)
		if failed = err; err != nil {
			return
		}
		t.normalized.split(sec.text, sec.marks, allow, func(start, end int, id int32) {
			if id >= 0 {
				ids = append(ids, id)
			} else if failed == nil {
				ids, failed = t.encodeWords(ids, piece{sec.text[start:end], sec.first && start == 0}, sc, encoding{w, &room})
			}
		})
	})
	clear(sc.words[:cap(sc.words)]) // drop what refers to the caller's text
	clear(sc.next[:cap(sc.next)])
	t.scratch.Put(sc)
	if failed != nil {
		return nil, failed
	}
	if addSpecial {
		ids = append(ids, t.suffix...)
	}
	return ids, nil
}

// encoding is what the sections of one text share: room is the bytes that its steps may still write.
type encoding struct {
	words
	room *int
}

// encodeWords appends the ids of p, in which no added token is.
func (t *Tokenizer) encodeWords(ids []int32, p piece, sc *scratch, e encoding) ([]int32, error) {
	pieces, next := append(sc.words[:0], p), sc.next
	for _, pre := range t.preTokenizers {
		next = next[:0]
		from := 0
		for _, p := range pieces {
			if p.text != "" {
				next = pre.split(next, p)
			}
			for ; from < len(next); from++ {
				*e.room -= len(next[from].text)
			}
			if *e.room < 0 {
				sc.words, sc.next = pieces, next
				return nil, ErrGrows
			}
		}
		pieces, next = next, pieces
	}
	for _, p := range pieces {
		for rest := p.text; rest != ""; {
			n := e.model.boundary(rest)
			ids = t.encodeWord(ids, rest[:n], e.words)
			rest = rest[n:]
		}
	}
	sc.words, sc.next = pieces, next
	return ids, nil
}

func (t *Tokenizer) encodeWord(ids []int32, word string, w words) []int32 {
	if hit, ok := w.cache.get(word); ok {
		return append(ids, hit...)
	}
	from := len(ids)
	if t.byteLevel {
		ids = w.model.tokenize(ids, toByteLevel(word))
	} else {
		ids = w.model.tokenize(ids, word)
	}
	w.cache.put(word, ids[from:])
	return ids
}

// TokenID returns the id of a token of the vocabulary or an added token.
func (t *Tokenizer) TokenID(content string) (int32, bool) {
	id, ok := t.ids[content]
	return id, ok
}

// Token returns what id stands for, as the file writes it (a byte-level token in the
// byte-level alphabet; an added token that is looked for in normalized text, normalized),
// and whether it is special. ok is false for an id without a token.
func (t *Tokenizer) Token(id int32) (content string, special, ok bool) {
	if id < 0 || int(id) >= len(t.entries) {
		return "", false, false
	}
	e := t.entries[id]
	return e.content, e.special, e.known
}

// AddedTokens returns the added tokens in ascending order of their ids.
func (t *Tokenizer) AddedTokens() []AddedToken {
	return append([]AddedToken(nil), t.added...)
}

// Size returns the highest id plus one. There may be ids below it without a token.
func (t *Tokenizer) Size() int { return len(t.entries) }
