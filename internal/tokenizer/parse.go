package tokenizer

import (
	"cmp"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
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

func readNormalizer(raw json.RawMessage) ([]normalizer, error) {
	elements, err := sequence(raw, "normalizers")
	if err != nil {
		return nil, fmt.Errorf("normalizer: %w", err)
	}
	var steps []normalizer
	for _, e := range elements {
		var f struct {
			Type       string
			Prepend    string
			Pattern    patternFile
			Content    string
			StripLeft  bool `json:"strip_left"`
			StripRight bool `json:"strip_right"`
		}
		if err := json.Unmarshal(e, &f); err != nil {
			return nil, fmt.Errorf("normalizer: %w", err)
		}
		var step normalizer
		switch f.Type {
		case "NFC":
			step = unicodeNormalizer{norm.NFC}
		case "NFD":
			step = unicodeNormalizer{norm.NFD}
		case "NFKC":
			step = unicodeNormalizer{norm.NFKC}
		case "NFKD":
			step = unicodeNormalizer{norm.NFKD}
		case "Lowercase":
			step = lowercaseNormalizer{}
		case "StripAccents":
			step = stripAccentsNormalizer{unicode.M}
		case "Strip":
			step = stripNormalizer{f.StripLeft, f.StripRight}
		case "Prepend":
			step, err = prependNormalizer(f.Prepend), checkLen("normalizer Prepend", f.Prepend, maxReplacement)
			if err != nil {
				return nil, err
			}
		case "Replace":
			find, err := readReplace(f.Pattern, f.Content)
			if err != nil {
				return nil, fmt.Errorf("normalizer Replace: %w", err)
			}
			step = replaceNormalizer{find, f.Content}
		case "BertNormalizer":
			bert, err := readBert(e)
			if err != nil {
				return nil, fmt.Errorf("normalizer BertNormalizer: %w", err)
			}
			steps = append(steps, bert...)
			continue
		case "Precompiled":
			if step, err = readPrecompiled(e); err != nil {
				return nil, fmt.Errorf("normalizer Precompiled: %w", err)
			}
		default:
			return nil, fmt.Errorf("normalizer.type %q is not supported", f.Type)
		}
		steps = append(steps, step)
	}
	return steps, nil
}

func readReplace(p patternFile, content string) (finder, error) {
	if p.Regex != nil && strings.Contains(content, "$") {
		return nil, fmt.Errorf("content %q refers to groups, which is not supported", content)
	}
	if err := checkLen("content", content, maxReplacement); err != nil {
		return nil, err
	}
	return p.finder()
}

func readPreTokenizer(raw json.RawMessage) ([]preTokenizer, error) {
	elements, err := sequence(raw, "pretokenizers")
	if err != nil {
		return nil, fmt.Errorf("pre_tokenizer: %w", err)
	}
	var steps []preTokenizer
	for _, e := range elements {
		typ, err := typeOf(e)
		if err != nil {
			return nil, fmt.Errorf("pre_tokenizer: %w", err)
		}
		read, ok := preTokenizerTypes[typ]
		if !ok {
			return nil, fmt.Errorf("pre_tokenizer.type %q is not supported", typ)
		}
		step, err := read(e)
		if err != nil {
			return nil, fmt.Errorf("pre_tokenizer %s: %w", typ, err)
		}
		steps = append(steps, step...)
	}
	return steps, nil
}

var preTokenizerTypes = map[string]func(json.RawMessage) ([]preTokenizer, error){
	"ByteLevel": func(raw json.RawMessage) ([]preTokenizer, error) {
		f := struct {
			AddPrefixSpace bool `json:"add_prefix_space"`
			UseRegex       bool `json:"use_regex"`
		}{UseRegex: true}
		err := json.Unmarshal(raw, &f)
		var steps []preTokenizer
		if f.AddPrefixSpace {
			steps = append(steps, prefixSpace{})
		}
		if f.UseRegex {
			steps = append(steps, scanners[gpt2Pattern])
		}
		return append(steps, byteAlphabet{}), err
	},
	"Split": func(raw json.RawMessage) ([]preTokenizer, error) {
		var f struct {
			Pattern  patternFile
			Behavior behavior
			Invert   bool
		}
		if err := json.Unmarshal(raw, &f); err != nil {
			return nil, err
		}
		if err := f.Behavior.check(); err != nil {
			return nil, err
		}
		// A scanner's matches cover the text, so that to keep them is all there is to do.
		keeps := f.Behavior == isolated || f.Behavior == removed && f.Invert
		if keeps && f.Pattern.Regex != nil && f.Pattern.String == nil {
			if s, ok := scanners[*f.Pattern.Regex]; ok {
				return []preTokenizer{s}, nil
			}
		}
		find, err := f.Pattern.finder()
		return []preTokenizer{splitter{find, f.Behavior, f.Invert}}, err
	},
	"Digits": func(raw json.RawMessage) ([]preTokenizer, error) {
		var f struct {
			IndividualDigits bool `json:"individual_digits"`
		}
		err := json.Unmarshal(raw, &f)
		if f.IndividualDigits {
			return []preTokenizer{splitter{find: runeSet(isNumber), behavior: isolated}}, err
		}
		return []preTokenizer{splitter{find: runeSet(isNumber), behavior: contiguous}}, err
	},
	"Metaspace": func(raw json.RawMessage) ([]preTokenizer, error) {
		f, err := readMetaspace(raw)
		if err != nil {
			return nil, err
		}
		cut := splitter{find: literal(f.Replacement), behavior: mergedWithNext}
		return []preTokenizer{metaspacePreTokenizer{f.Replacement, f.PrependScheme, cut, !f.Split}}, nil
	},
	"Whitespace": func(json.RawMessage) ([]preTokenizer, error) {
		return []preTokenizer{splitter{find: runs(wordRuns), behavior: removed, invert: true}}, nil
	},
	"WhitespaceSplit": func(json.RawMessage) ([]preTokenizer, error) {
		return []preTokenizer{splitter{find: runeSet(isSpace), behavior: removed}}, nil
	},
	"Punctuation": func(raw json.RawMessage) ([]preTokenizer, error) {
		f := struct{ Behavior behavior }{isolated}
		if err := json.Unmarshal(raw, &f); err != nil {
			return nil, err
		}
		return []preTokenizer{splitter{find: runeSet(isPunctuation), behavior: f.Behavior}}, f.Behavior.check()
	},
	"BertPreTokenizer": func(json.RawMessage) ([]preTokenizer, error) {
		return []preTokenizer{splitter{find: runeSet(isSpace), behavior: removed},
			splitter{find: runeSet(isPunctuation), behavior: isolated}}, nil
	},
	"CharDelimiterSplit": func(raw json.RawMessage) ([]preTokenizer, error) {
		var f struct{ Delimiter string }
		err := json.Unmarshal(raw, &f)
		if err == nil && utf8.RuneCountInString(f.Delimiter) != 1 {
			err = fmt.Errorf("delimiter %q is not one character", f.Delimiter)
		}
		return []preTokenizer{splitter{find: literal(f.Delimiter), behavior: removed}}, err
	},
}

// metaspaceFile is both the pre-tokenizer and the decoder.
type metaspaceFile struct {
	Replacement    string
	AddPrefixSpace bool   `json:"add_prefix_space"` // in old files, for prepend_scheme
	PrependScheme  string `json:"prepend_scheme"`
	Split          bool
}

func readMetaspace(raw json.RawMessage) (metaspaceFile, error) {
	f := metaspaceFile{AddPrefixSpace: true, Split: true}
	if err := json.Unmarshal(raw, &f); err != nil {
		return f, err
	}
	if utf8.RuneCountInString(f.Replacement) != 1 {
		return f, fmt.Errorf("replacement %q is not one character", f.Replacement)
	}
	f.PrependScheme = cmp.Or(f.PrependScheme, map[bool]string{true: "always", false: "never"}[f.AddPrefixSpace])
	if !slices.Contains([]string{"always", "first", "never"}, f.PrependScheme) {
		return f, fmt.Errorf("prepend_scheme %q is not one of always, first, never", f.PrependScheme)
	}
	return f, nil
}

func readDecoder(raw json.RawMessage) ([]decoder, error) {
	elements, err := sequence(raw, "decoders")
	if err != nil {
		return nil, fmt.Errorf("decoder: %w", err)
	}
	var steps []decoder
	times := 1
	for _, e := range elements {
		var f struct {
			Type        string
			Pattern     patternFile
			Content     string
			Start, Stop int
			Prefix      *string
			Cleanup     *bool
			Suffix      *string
		}
		if err := json.Unmarshal(e, &f); err != nil {
			return nil, fmt.Errorf("decoder: %w", err)
		}
		var step decoder
		switch f.Type {
		case "ByteLevel":
			step = byteLevelDecoder{}
		case "ByteFallback":
			step = byteFallbackDecoder{}
		case "Fuse":
			step = fuseDecoder{}
		case "Strip":
			if utf8.RuneCountInString(f.Content) != 1 {
				return nil, fmt.Errorf("decoder Strip: content %q is not one character", f.Content)
			}
			step = stripDecoder{f.Content, f.Start, f.Stop}
		case "Replace":
			find, err := readReplace(f.Pattern, f.Content)
			if err != nil {
				return nil, fmt.Errorf("decoder Replace: %w", err)
			}
			if times *= lengthens(find, f.Content); times > maxDecoded {
				return nil, fmt.Errorf("decoder Replace: the steps up to it can make a token %d times as long, at most %d are supported", times, maxDecoded)
			}
			step = replaceDecoder{find, f.Content}
		case "Metaspace":
			m, err := readMetaspace(e)
			if err != nil {
				return nil, fmt.Errorf("decoder Metaspace: %w", err)
			}
			step = metaspaceDecoder{m.Replacement, m.PrependScheme != "never"}
		case "WordPiece":
			w := wordPieceDecoder{prefix: "##", cleanUp: true}
			if f.Prefix != nil {
				w.prefix = *f.Prefix
			}
			if f.Cleanup != nil {
				w.cleanUp = *f.Cleanup
			}
			step = w
		case "BPEDecoder":
			b := wordEndDecoder("</w>")
			if f.Suffix != nil {
				b = wordEndDecoder(*f.Suffix)
			}
			step = b
		default:
			return nil, fmt.Errorf("decoder.type %q is not supported", f.Type)
		}
		steps = append(steps, step)
	}
	return steps, nil
}

// readPostProcessor returns the ids that are put before and after a text.
func readPostProcessor(raw json.RawMessage) (prefix, suffix []int32, err error) {
	elements, err := sequence(raw, "processors")
	if err != nil {
		return nil, nil, fmt.Errorf("post_processor: %w", err)
	}
	templates := 0
	for _, e := range elements {
		var f struct {
			Type          string
			Single        []templateItem
			SpecialTokens map[string]struct{ IDs []int32 } `json:"special_tokens"`
			Cls, Sep      namedID
		}
		if err := json.Unmarshal(e, &f); err != nil {
			return nil, nil, fmt.Errorf("post_processor: %w", err)
		}
		switch f.Type {
		case "ByteLevel": // concerns offsets only
			continue
		case "RobertaProcessing", "BertProcessing":
			prefix, suffix = []int32{f.Cls.id}, []int32{f.Sep.id}
		case "TemplateProcessing":
			texts := 0
			for _, item := range f.Single {
				switch {
				case item.Sequence != nil:
					texts++
				case item.SpecialToken == nil:
					return nil, nil, fmt.Errorf("post_processor.single: an item is neither Sequence nor SpecialToken")
				default:
					tok, ok := f.SpecialTokens[item.SpecialToken.ID]
					if !ok {
						return nil, nil, fmt.Errorf("post_processor.single: %q is not in special_tokens", item.SpecialToken.ID)
					}
					if texts == 0 {
						prefix = append(prefix, tok.IDs...)
					} else {
						suffix = append(suffix, tok.IDs...)
					}
					if n := len(prefix) + len(suffix); n > maxTemplate {
						return nil, nil, fmt.Errorf("post_processor.single adds %d ids or more, at most %d are supported", n, maxTemplate)
					}
				}
			}
			if texts != 1 {
				return nil, nil, fmt.Errorf("post_processor.single has %d texts, only one is supported", texts)
			}
		default:
			return nil, nil, fmt.Errorf("post_processor.type %q is not supported", f.Type)
		}
		if templates++; templates > 1 {
			return nil, nil, fmt.Errorf("post_processor has more than one step that adds tokens, which is not supported")
		}
	}
	return prefix, suffix, nil
}

type templateItem struct {
	Sequence     *struct{ ID string }
	SpecialToken *struct{ ID string }
}

// namedID is written ["</s>", 2].
type namedID struct{ id int32 }

func (n *namedID) UnmarshalJSON(raw []byte) error {
	var name string
	return json.Unmarshal(raw, &[]any{&name, &n.id})
}

// checkTemplate refuses a template with ids that are no tokens.
func (t *Tokenizer) checkTemplate() error {
	for _, id := range slices.Concat(t.prefix, t.suffix) {
		if _, _, ok := t.Token(id); !ok {
			return fmt.Errorf("post_processor adds id %d, which is no token", id)
		}
	}
	return nil
}
