package tokenizer

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"
)

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
