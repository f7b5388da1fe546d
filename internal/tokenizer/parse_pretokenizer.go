package tokenizer

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"unicode/utf8"
)

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
