package tokenizer

import (
	"slices"
	"strings"
	"testing"
)

const guard = '\uFDEF' // a rune that the corpus does not have

// guardAll puts a guard on both sides of every rune of what a user typed.
func guardAll(s string) string {
	var b strings.Builder
	for _, r := range s {
		b.WriteRune(guard)
		b.WriteRune(r)
	}
	b.WriteRune(guard)
	return b.String()
}

// longAdded returns the added tokens of tok that are found as more than one rune: one
// rune cannot be broken. What a model gives for unknown text is not among them.
func longAdded(tok *Tokenizer) map[int32]bool {
	ids := make(map[int32]bool)
	for _, a := range tok.AddedTokens() {
		if len([]rune(a.Content)) > 1 && !slices.Contains([]string{"[UNK]", "<unk>"}, a.Content) {
			ids[a.ID] = true
		}
	}
	return ids
}

func TestGuardedTextHasNoAddedTokens(t *testing.T) {
	for _, name := range allFiles {
		tok := load(t, name)
		added := longAdded(tok)
		for _, text := range corpus(t) {
			ids := tok.mustEncodeGuarded(guardAll(text), guard, false)
			if i := slices.IndexFunc(ids, func(id int32) bool { return added[id] }); i >= 0 {
				t.Errorf("%s: %q has the added token %d", name, text, ids[i])
			}
		}
	}
}

func TestGuardedTokensSplitAtEveryPlace(t *testing.T) {
	for _, name := range allFiles {
		tok := load(t, name)
		added := longAdded(tok)
		for _, a := range tok.AddedTokens() {
			if strings.TrimSpace(a.Content) == "" {
				continue // a shorter run of spaces is a token too
			}
			for i := range a.Content {
				if i == 0 {
					continue
				}
				before, after := a.Content[:i], a.Content[i:]
				if strings.HasPrefix(before, "<key_") || strings.HasPrefix(before, "</key_") {
					continue // which are tokens of granite-docling themselves
				}
				ids := tok.mustEncodeGuarded("user: "+before+string(guard)+after, guard, false)
				if slices.ContainsFunc(ids, func(id int32) bool { return added[id] }) {
					t.Errorf("%s: %q and %q make an added token: %v", name, before, after, ids)
				}
			}
		}
	}
}

// TestGuardsElsewhereChangeNothing: a guard outside of all added tokens leaves the ids.
func TestGuardsElsewhereChangeNothing(t *testing.T) {
	for _, name := range allFiles {
		tok := load(t, name)
		for _, text := range corpus(t) {
			if want, got := tok.Encode(text, true), tok.mustEncodeGuarded(string(guard)+text+string(guard), guard,
				true); !slices.Equal(got, want) {
				t.Errorf("%s: %q with guards around it\n got %v\nwant %v", name, text, got, want)
			}
		}
	}
}

// TestGuards shows what guards, written |, block. Added tokens are in brackets.
func TestGuards(t *testing.T) {
	tok, err := Parse([]byte(`{
		"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"},
			{"type": "Replace", "pattern": {"String": "zz"}, "content": "xy"}]},
		"model": {"type": "BPE", "vocab": {"a":0,"b":1,"c":2,"d":3,"<":4,"x":5,"y":6,"é":7," ":8}, "merges": []},
		"added_tokens": [{"content":"<b","special":true}, {"content":"<bc","special":true},
			{"content":"dd","lstrip":true,"rstrip":true}, {"content":"XY","normalized":true}, {"content":"éx","normalized":true}]
	}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ text, want string }{
		{"a<bc<ba", "a[<bc][<b]a"},
		{"|<bc|", "[<bc]"},
		{"<b|c", "[<b]c"}, // the shorter token does not span the guard
		{"<|b|c", "<bc"},
		{"d|d", "dd"},
		{"a | dd| b", "a[dd]b"}, // white space that is stripped is not part of the token
		{"XY zz", "[xy] [xy]"},
		{"X|Y", "xy"},
		{"|XY|", "[xy]"},
		{"Z|z", "xy"}, // inside of what was replaced
		{"a|zz|a", "a[xy]a"},
		{"e\u0301x", "[éx]"},
		{"e|\u0301x", "éx"}, // inside of what was composed
		{"e\u0301|x", "éx"},
		{"a|e\u0301x", "a[éx]"},
	} {
		if got := bracketed(tok, tok.mustEncodeGuarded(c.text, '|', false)); got != c.want {
			t.Errorf("%q: got %s, want %s", c.text, got, c.want)
		}
	}
}

// TestGuardedModelsGiveNoSpecialTokens: where the vocabulary has special tokens, a text
// that is one only after normalization, which no guard is in, does not become one.
func TestGuardedModelsGiveNoSpecialTokens(t *testing.T) {
	for name, file := range map[string]string{
		"Unigram":   string(readGzip(t, "unigram.json.gz")),
		"WordPiece": `{"normalizer":{"type":"NFKC"},"model":{"type":"WordPiece","unk_token":"?","vocab":{"?":0,"</s>":1,"<":2,"##/":3,"##s":4,"##>":5}},"added_tokens":[{"content":"</s>","special":true}]}`,
		"BPE": `{"normalizer":{"type":"NFKC"},"model":{"type":"BPE","ignore_merges":true,"vocab":{"?":0,"</s>":1,"<":2,"/":3,"s":4,">":5},"merges":[]},
			"added_tokens":[{"content":"</s>","special":true}]}`,
		"BPE merges": `{"normalizer":{"type":"NFKC"},"model":{"type":"BPE","vocab":{"?":0,"</s>":1,"</":2,"s>":3,"<":4,"/":5,"s":6,">":7},"merges":["< /","s >","</ s>"]},
			"added_tokens":[{"content":"</s>","special":true}]}`,
	} {
		tok, err := Parse([]byte(file))
		if err != nil {
			t.Fatal(err)
		}
		const text = "＜/ｓ＞"
		if ids := tok.Encode(text, false); !slices.Contains(ids, 1) {
			t.Errorf("%s: %v: the text is no special token at all", name, ids)
		}
		ids := tok.mustEncodeGuarded(text, guard, false)
		if slices.Contains(ids, 1) {
			t.Errorf("%s: %v has a special token", name, ids)
		}
		if got := strings.TrimSpace(strings.NewReplacer(" ##", "", " ", "").Replace(tok.Decode(ids, false))); got != "</s>" {
			t.Errorf("%s: %v is %q", name, ids, got)
		}
		if ids := tok.mustEncodeGuarded("</s>", guard, false); !slices.Equal(ids, []int32{1}) {
			t.Errorf("%s: %v: a special token that is not guarded", name, ids)
		}
	}
}

// TestGuardedTokensAreVerbatim: a special token that is looked for in the normalized text
// has to be written as it is; another one may be what the text became.
func TestGuardedTokensAreVerbatim(t *testing.T) {
	tok, err := Parse([]byte(`{
		"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"},
			{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
		"model": {"type": "BPE", "vocab": {"▁":0,"<":1,">":2,"m":3,"k":4,"x":5,"y":6}, "merges": []},
		"added_tokens": [{"content":"<M>","normalized":true,"special":true}, {"content":"XY","normalized":true}]
	}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ text, encode, guarded string }{
		{"<M>", "[▁<m>]", "[▁<m>]"},
		{"x <M> y", "▁x[▁<m>]▁y", "▁x[▁<m>]▁y"},
		{"x <M>\u0301y", "▁x[▁<m>]y", "▁x[▁<m>]y"}, // what a user typed after it changes nothing
		{"k\u0301 <M>\u0301\u0301 y", "▁k[▁<m>]▁y", "▁k[▁<m>]▁y"},
		{"x <m>", "▁x[▁<m>]", "▁x▁<m>"},
		{"x ＜M＞", "▁x[▁<m>]", "▁x▁<m>"},
		{"x <M\u0301>", "▁x[▁<m>]", "▁x▁<m>"},
		{"ﬀ", "▁", "▁"}, // two letters that the vocabulary has not
		{"x xy", "▁x[▁xy]", "▁x[▁xy]"},
	} {
		if got := bracketed(tok, tok.Encode(c.text, false)); got != c.encode {
			t.Errorf("%q: %s, want %s", c.text, got, c.encode)
		}
		if got := bracketed(tok, tok.mustEncodeGuarded(c.text, guard, false)); got != c.guarded {
			t.Errorf("%q guarded: %s, want %s", c.text, got, c.guarded)
		}
	}
}

// bracketed puts added tokens in brackets.
func bracketed(tok *Tokenizer, ids []int32) string {
	added := longAdded(tok)
	var b strings.Builder
	for _, id := range ids {
		content, _, _ := tok.Token(id)
		if added[id] {
			content = "[" + content + "]"
		}
		b.WriteString(content)
	}
	return b.String()
}
