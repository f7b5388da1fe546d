package tokenizer

import (
	"encoding/json"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// readBert returns the steps of a BertNormalizer.
func readBert(raw json.RawMessage) ([]normalizer, error) {
	f := struct {
		CleanText    bool  `json:"clean_text"`
		Chinese      bool  `json:"handle_chinese_chars"`
		StripAccents *bool `json:"strip_accents"` // null: as lowercase
		Lowercase    bool  `json:"lowercase"`
	}{true, true, nil, true}
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, err
	}
	var steps []normalizer
	if f.CleanText {
		steps = append(steps, cleanNormalizer{})
	}
	if f.Chinese {
		steps = append(steps, ideographNormalizer{})
	}
	if f.StripAccents != nil && *f.StripAccents || f.StripAccents == nil && f.Lowercase {
		steps = append(steps, unicodeNormalizer{norm.NFD}, stripAccentsNormalizer{unicode.Mn})
	}
	if f.Lowercase {
		steps = append(steps, lowercaseNormalizer{})
	}
	return steps, nil
}

// cleanNormalizer removes control characters and writes any white space as a space.
type cleanNormalizer struct{}

func (cleanNormalizer) rewrite(s string, edit func(int, int, string)) {
	for i, r := range s {
		switch {
		case ' ' <= r && r <= '~':
		case r == '\t', r == '\n', r == '\r':
			edit(i, i+1, " ")
		case r == utf8.RuneError, unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co):
			edit(i, i+utf8.RuneLen(r), "")
		case unicode.IsSpace(r):
			edit(i, i+utf8.RuneLen(r), " ")
		}
	}
}

// ideographs are what BERT calls Chinese characters: CJK blocks, not the script Han.
var ideographs = &unicode.RangeTable{
	R16: []unicode.Range16{{Lo: 0x3400, Hi: 0x4DBF, Stride: 1}, {Lo: 0x4E00, Hi: 0x9FFF, Stride: 1},
		{Lo: 0xF900, Hi: 0xFAFF, Stride: 1}},
	R32: []unicode.Range32{{Lo: 0x20000, Hi: 0x2A6DF, Stride: 1}, {Lo: 0x2A700, Hi: 0x2B81F, Stride: 1},
		{Lo: 0x2B920, Hi: 0x2CEAF, Stride: 1},
		{Lo: 0x2F800, Hi: 0x2FA1F, Stride: 1}},
}

// ideographNormalizer puts spaces around ideographs.
type ideographNormalizer struct{}

func (ideographNormalizer) rewrite(s string, edit func(int, int, string)) {
	for i, r := range s {
		if r >= utf8.RuneSelf && unicode.Is(ideographs, r) {
			edit(i, i, " ")
			edit(i+utf8.RuneLen(r), i+utf8.RuneLen(r), " ")
		}
	}
}
