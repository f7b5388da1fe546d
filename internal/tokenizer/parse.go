package tokenizer

import (
	"cmp"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"slices"
)

// maxID bounds the ids of a file, which index a table: far more than any vocabulary has.
const maxID = 1 << 22

// Parse reads a tokenizer.json. Models other than BPE, Unigram and WordPiece, and steps
// that it does not know, are an error that names them.
func Parse(tokenizerJSON []byte) (*Tokenizer, error) {
	var f struct {
		AddedTokens   []addedToken    `json:"added_tokens"`
		Normalizer    json.RawMessage `json:"normalizer"`
		PreTokenizer  json.RawMessage `json:"pre_tokenizer"`
		PostProcessor json.RawMessage `json:"post_processor"`
		Decoder       json.RawMessage `json:"decoder"`
		Model         json.RawMessage `json:"model"`
	}
	t, err := new(Tokenizer), json.Unmarshal(tokenizerJSON, &f)
	if err == nil {
		err = t.readModel(f.Model)
	}
	if err == nil {
		err = t.checkVocab()
	}
	if err == nil {
		t.normalizers, err = readNormalizer(f.Normalizer)
	}
	if err == nil {
		t.preTokenizers, err = readPreTokenizer(f.PreTokenizer)
	}
	if err == nil {
		t.decoders, err = readDecoder(f.Decoder)
	}
	if err == nil {
		err = t.addTokens(f.AddedTokens)
	}
	if err == nil {
		t.prefix, t.suffix, err = readPostProcessor(f.PostProcessor)
	}
	if err == nil {
		err = t.checkTemplate()
	}
	if err != nil {
		return nil, fmt.Errorf("tokenizer.json: %w", err)
	}
	if n := len(t.preTokenizers); n > 0 {
		if _, ok := t.preTokenizers[n-1].(byteAlphabet); ok {
			t.preTokenizers, t.byteLevel = t.preTokenizers[:n-1], true
		}
	}
	special := make(map[int32]bool)
	for _, a := range t.added {
		if a.Special {
			special[a.ID] = true
		}
	}
	t.asIs.cache = newWordCache()
	t.guarded = t.asIs
	if m := t.asIs.model.without(special); m != t.asIs.model {
		t.guarded = words{m, newWordCache()}
	}
	return t, nil
}

// typeOf returns the "type" of an element, "" for one that is null or missing.
func typeOf(raw json.RawMessage) (string, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return "", nil
	}
	var f struct{ Type string }
	if err := json.Unmarshal(raw, &f); err != nil {
		return "", err
	}
	if f.Type == "" {
		return "", fmt.Errorf(`"type" is missing`)
	}
	return f.Type, nil
}

func (t *Tokenizer) readModel(raw json.RawMessage) error {
	if len(raw) == 0 || string(raw) == "null" {
		return fmt.Errorf("model is missing")
	}
	vocab, err := t.newModel(raw)
	if err != nil {
		return err
	}
	t.ids = make(map[string]int32)
	for content, id := range vocab {
		e, err := t.entry(id, content)
		if err != nil {
			return fmt.Errorf("model.vocab: %w", err)
		}
		t.ids[content] = id
		t.vocab++
		// Of two tokens with one id the first in byte order counts, so that the order of a
		// map does not show.
		if !e.known || content < e.content {
			*e = entry{content: content, known: true}
		}
	}
	return nil
}

// newModel sets the model and returns its vocabulary.
func (t *Tokenizer) newModel(raw json.RawMessage) (vocab iter.Seq2[string, int32], err error) {
	var f struct {
		Type     string
		Merges   json.RawMessage
		Vocab    json.RawMessage
		MaxRunes *int `json:"max_input_chars_per_word"`
	}
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if f.Type == "" { // old files do not name it
		switch {
		case len(f.Merges) > 0:
			f.Type = "BPE"
		case f.MaxRunes != nil:
			f.Type = "WordPiece"
		case len(f.Vocab) > 0 && f.Vocab[0] == '[':
			f.Type = "Unigram"
		}
	}
	switch f.Type {
	case "BPE":
		m, err := newBPE(raw)
		if err != nil {
			return nil, err
		}
		t.asIs.model, vocab = m, maps.All(m.vocab)
	case "WordPiece":
		m, err := newWordPiece(raw)
		if err != nil {
			return nil, err
		}
		t.asIs.model, vocab = m, maps.All(m.ids)
	case "Unigram":
		m, tokens, err := newUnigram(raw)
		if err != nil {
			return nil, err
		}
		t.asIs.model, vocab = m, tokens
	default:
		return nil, fmt.Errorf("model.type %q is not supported; supported are BPE, Unigram, WordPiece", f.Type)
	}
	return vocab, nil
}

// entry returns the place of id in the table, which it makes as large as it takes.
func (t *Tokenizer) entry(id int32, content string) (*entry, error) {
	if id < 0 || id >= maxID {
		return nil, fmt.Errorf("token %q has id %d, an id is 0 to %d", content, id, maxID-1)
	}
	if n := int(id) + 1 - len(t.entries); n > 0 {
		t.entries = append(t.entries, make([]entry, n)...)
	}
	return &t.entries[id], nil
}

// addTokens gives the added tokens their ids as the reference does: that of the model's
// vocabulary or, whatever the file says, the next one after all others.
func (t *Tokenizer) addTokens(tokens []addedToken) error {
	next := t.vocab
	last := map[string]int{} // by content: a later one replaces an earlier one
	special := map[string]bool{}
	for i, tok := range tokens {
		last[tok.Content] = i
		special[tok.Content] = special[tok.Content] || tok.Special
	}
	assigned := map[string]bool{}
	for i := range tokens {
		content := tokens[i].Content
		if content == "" || assigned[content] {
			continue
		}
		if err := checkLen("added_tokens: a token", content, maxAddedToken); err != nil {
			return err
		}
		assigned[content] = true
		tok := tokens[last[content]]
		id, ok := t.ids[content]
		if !ok {
			id = next
		}
		tok.ID, tok.Special = id, special[content]
		next = max(next, id+1)
		t.ids[content] = id
		t.added = append(t.added, AddedToken{id, content, tok.Special})
		e, err := t.entry(id, content)
		if err != nil {
			return fmt.Errorf("added_tokens: %w", err)
		}
		*e = entry{content, true, tok.Special}
		if tok.Normalized { // it decodes to what was found
			if e.content, err = t.normalizeToken(content); err != nil {
				return err
			}
		}
		tokens[last[content]] = tok
	}
	// Of tokens that normalize to the same text the first is found, special ones first.
	for _, wantSpecial := range []bool{true, false} {
		for i, tok := range tokens {
			if tok.Special != wantSpecial || last[tok.Content] != i {
				continue
			}
			if tok.Normalized {
				content, err := t.normalizeToken(tok.Content)
				if err != nil {
					return err
				}
				t.normalized.add(content, tok)
				t.verbatim = t.verbatim || tok.Special
			} else {
				t.raw.add(tok.Content, tok)
			}
		}
	}
	slices.SortFunc(t.added, func(a, b AddedToken) int { return cmp.Compare(a.ID, b.ID) })
	return nil
}

// normalizeToken is what an added token is looked for as in normalized text.
func (t *Tokenizer) normalizeToken(content string) (string, error) {
	room := growth(len(content))
	sec, err := normalize(t.normalizers, section{text: content, first: true}, &room, nil)
	if err == nil {
		err = checkLen("a normalized token", sec.text, maxAddedToken)
	}
	if err != nil {
		return "", fmt.Errorf("added_tokens: %w", err)
	}
	return sec.text, nil
}

// sequence flattens an element: a Sequence is its elements, listed under key.
func sequence(raw json.RawMessage, key string) ([]json.RawMessage, error) {
	return flatten(raw, key, 0)
}

// patternFile is {"String": …} or {"Regex": …}.
type patternFile struct{ String, Regex *string }

func (f patternFile) finder() (finder, error) {
	switch {
	case f.String != nil && f.Regex != nil, f.String == nil && f.Regex == nil:
		return nil, fmt.Errorf("pattern: one of String and Regex must be given")
	case f.String != nil && *f.String == "":
		return nil, fmt.Errorf("pattern: an empty String matches nothing")
	case f.String != nil:
		return literal(*f.String), nil
	}
	return compilePattern(*f.Regex)
}
