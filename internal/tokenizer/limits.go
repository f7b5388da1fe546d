package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// What a tokenizer.json may have, well above what released models have, so that work on a text stays linear in it.
const (
	maxSteps       = 32   // of normalizers, of pre-tokenizers, of decoders
	maxNesting     = 8    // of sequences
	maxTemplate    = 64   // ids that the template adds
	maxAddedToken  = 512  // bytes
	maxAffix       = 64   // bytes of prefixes and suffixes that a model adds to runes
	maxTrieToken   = 512  // bytes of a token that is looked for at every place of a text
	maxToken       = 8192 // bytes of any token
	maxReplacement = 1024 // bytes that stand for one match or precompiled rule
	maxDecoded     = 64   // times that decoders' replacements may lengthen a token
)

// ErrGrows says that the normalizers or pre-tokenizers make a text longer than any model needs.
var ErrGrows = errors.New("the text grows beyond bounds in the tokenizer's normalizers")

// growth is the bytes that all steps together may write for a text of n bytes. The longest Unicode decomposition has 11
// times a rune's bytes.
func growth(n int) int { return 1<<16 + 64*n }

func checkLen(what, s string, most int) error {
	if len(s) > most {
		return fmt.Errorf("%s has %d bytes, at most %d are supported", what, len(s), most)
	}
	return nil
}

// checkVocab refuses tokens that would make looking for them, or writing them out, costly.
func (t *Tokenizer) checkVocab() error {
	most := maxTrieToken
	if m, ok := t.asIs.model.(*bpe); ok {
		most = maxToken
		if err := errors.Join(checkLen("model.continuing_subword_prefix", m.prefix, maxAffix),
			checkLen("model.end_of_word_suffix", m.suffix, maxAffix)); err != nil {
			return err
		}
	}
	for _, e := range t.entries {
		if err := checkLen("a token of model.vocab", e.content, most); err != nil {
			return err
		}
	}
	return nil
}

// lengthens is how many times as long a text can be after its matches of find are replaced.
func lengthens(find finder, with string) int {
	if l, ok := find.(literal); ok {
		return max(1, (len(with)+len(l)-1)/len(l))
	}
	return 1 + len(with)
}

// checkRules refuses precompiled replacements that are long.
func checkRules(replacements string) error {
	for rest := replacements; rest != ""; {
		rule, after, _ := strings.Cut(rest, "\x00")
		if err := checkLen("precompiled_charsmap: a replacement", rule, maxReplacement); err != nil {
			return err
		}
		rest = after
	}
	return nil
}

// flatten lists the elements of nested sequences, which stand under key.
func flatten(raw json.RawMessage, key string, depth int) ([]json.RawMessage, error) {
	typ, err := typeOf(raw)
	if err != nil || typ == "" {
		return nil, err
	}
	if typ != "Sequence" {
		return []json.RawMessage{raw}, nil
	}
	if depth >= maxNesting {
		return nil, fmt.Errorf("sequences are nested more than %d deep", maxNesting)
	}
	var f map[string]json.RawMessage
	var elements, flat []json.RawMessage
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(f[key], &elements); err != nil {
		return nil, fmt.Errorf("%s of a Sequence: %w", key, err)
	}
	for _, e := range elements {
		inner, err := flatten(e, key, depth+1)
		if err != nil {
			return nil, err
		}
		if flat = append(flat, inner...); len(flat) > maxSteps {
			return nil, fmt.Errorf("more than %d steps", maxSteps)
		}
	}
	return flat, nil
}
