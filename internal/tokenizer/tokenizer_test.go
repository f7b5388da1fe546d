package tokenizer

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"
)

// TestConformance holds ids that another project recorded from transformers.
func TestConformance(t *testing.T) {
	for _, c := range []struct{ file, tokenizer string }{{"gpt2_encoded_tokens", "vit-gpt2"},
		{"llama_encoded", "phi-3-vision"}} {
		data, err := os.ReadFile("testdata/conformance/" + c.file + ".json")
		if err != nil {
			t.Fatal(err)
		}
		var f struct {
			Text string
			IDs  []int32 `json:"token_ids"`
		}
		if err := json.Unmarshal(data, &f); err != nil {
			t.Fatal(err)
		}
		if got := load(t, c.tokenizer).Encode(f.Text, true); !slices.Equal(got, f.IDs) {
			t.Errorf("%s\n got %v\nwant %v", c.file, got, f.IDs)
		}
	}
}

func TestVocabulary(t *testing.T) {
	tok := load(t, "phi-3-vision")
	if got := tok.Size(); got != 32045 {
		t.Errorf("Size() = %d", got)
	}
	if id, ok := tok.TokenID("<|end|>"); id != 32007 || !ok {
		t.Errorf("TokenID(<|end|>) = %d, %v", id, ok)
	}
	if _, ok := tok.TokenID("no such token"); ok {
		t.Error("TokenID finds what is no token")
	}
	if content, special, ok := tok.Token(32007); content != "<|end|>" || !special || !ok {
		t.Errorf("Token(32007) = %q, %v, %v", content, special, ok)
	}
	for _, id := range []int32{-1, 32045, 1 << 30} {
		if _, _, ok := tok.Token(id); ok {
			t.Errorf("Token(%d) is known", id)
		}
		if got := tok.Decode([]int32{id}, false); got != "" {
			t.Errorf("Decode(%d) = %q", id, got)
		}
	}
	added := tok.AddedTokens()
	if first := added[0]; first != (AddedToken{0, "<unk>", true}) || len(added) != 48 {
		t.Errorf("AddedTokens(): %d, the first %v", len(added), first)
	}
}

func TestTokenBytes(t *testing.T) {
	for _, c := range []struct{ file, token, want string }{
		{"phi-3-vision", "▁the", " the"},
		{"phi-3-vision", "<0xE2>", "\xe2"},
		{"phi-3-vision", "</s>", "</s>"}, // an added token that is not special
		{"vit-gpt2", "Ġthe", " the"},
		{"vit-gpt2", "âĢ", "\xe2\x80"},
		{"vit-gpt2", "Ċ", "\n"},
	} {
		tok := load(t, c.file)
		id, ok := tok.TokenID(c.token)
		if !ok {
			t.Fatalf("%s: no token %q", c.file, c.token)
		}
		if got := tok.TokenBytes(id); string(got) != c.want {
			t.Errorf("%s: TokenBytes(%q) = %q, want %q", c.file, c.token, got, c.want)
		}
	}
	tok := load(t, "phi-3-vision")
	if got := tok.TokenBytes(32007); got != nil {
		t.Errorf("TokenBytes of a special token = %q", got)
	}
	if got := tok.TokenBytes(1 << 20); got != nil {
		t.Errorf("TokenBytes of no token = %q", got)
	}
}

// TestTokenBytesMakeUpTheText: the bytes of the tokens are the text, but for the space
// that phi-3 puts in front.
func TestTokenBytesMakeUpTheText(t *testing.T) {
	for _, name := range files {
		tok := load(t, name)
		for _, text := range corpus(t) {
			ids := tok.mustEncodeGuarded(guardAll(text), guard, false)
			var b []byte
			for _, id := range ids {
				b = append(b, tok.TokenBytes(id)...)
			}
			if name == "phi-3-vision" {
				// A metaspace in the text itself is a space then.
				text = strings.ReplaceAll(text, metaspace, " ")
				b = bytes.TrimPrefix(b, []byte(" "))
			}
			if string(b) != text {
				t.Errorf("%s: the tokens of %q are %q", name, text, b)
			}
		}
	}
}

// TestStream shows when text is certain.
func TestStream(t *testing.T) {
	for _, c := range []struct {
		file   string
		tokens []string
		want   []string // what each Push returns, then Flush
	}{
		{"vit-gpt2", []string{"Hello", "ĠðŁ", "ĺ", "Ģ", "!"}, []string{"Hello", " ", "", "😀", "!", ""}},
		{"vit-gpt2", []string{"ð", "Ł", "a", "â", "Ģ"}, []string{"", "", "\uFFFDa", "", "", "\uFFFD"}},
		{"phi-3-vision", []string{"▁Hello", "▁", "<0xE2>", "<0x82>", "<0xAC>", "a", "<0xE2>"},
			[]string{"Hello", " ", "", "", "", "€a", "", "\uFFFD"}},
		{"phi-3-vision", []string{"<0xE2>", "<0x82>", "▁a"}, []string{"", "", "\uFFFD\uFFFD a", ""}},
	} {
		tok := load(t, c.file)
		s := tok.NewStream(false)
		var got []string
		for _, token := range c.tokens {
			id, ok := tok.TokenID(token)
			if !ok {
				t.Fatalf("%s: no token %q", c.file, token)
			}
			got = append(got, s.Push(id))
		}
		if got = append(got, s.Flush()); !slices.Equal(got, c.want) {
			t.Errorf("%s %q\n got %q\nwant %q", c.file, c.tokens, got, c.want)
		}
	}
}

// TestStripAtTheEnd covers what the goldens cannot: the reference aborts on it.
func TestStripAtTheEnd(t *testing.T) {
	const file = `{"model":{"type":"BPE","vocab":{"xx":0,"axx":1,"xbx":2,"":3,"xxx":4},"merges":[]},"decoder":%s}`
	for _, c := range []struct {
		decoder string
		ids     []int32
		want    string
	}{
		{`{"type":"Strip","content":"x","start":1,"stop":1}`, []int32{0, 1, 2, 3, 4}, "axbx"},
		{`{"type":"Sequence","decoders":[{"type":"Fuse"},{"type":"Strip","content":"x","start":1,"stop":2}]}`, []int32{3, 0, 1, 0}, "xaxx"},
		{`{"type":"Sequence","decoders":[{"type":"Fuse"},{"type":"Strip","content":"x","start":4,"stop":2}]}`, []int32{0, 3, 0}, ""},
		{`{"type":"Sequence","decoders":[{"type":"Fuse"},{"type":"Strip","content":"x","start":0,"stop":9}]}`, []int32{1, 3, 0, 2, 0}, "axxxxxb"},
	} {
		tok, err := Parse(fmt.Appendf(nil, file, c.decoder))
		if err != nil {
			t.Fatal(err)
		}
		checkDecode(t, tok, c.ids, c.want, c.want)
	}
}

func TestInvalidUTF8(t *testing.T) {
	tok := load(t, "vit-gpt2")
	if got, want := tok.Encode("a\xff\xfeb", false), tok.Encode("a\uFFFDb", false); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestConcurrentUse(t *testing.T) {
	texts := corpus(t)[:600]
	shared, fresh := load(t, "granite-docling"), load(t, "tiny-vlm")
	want := make([][]int32, len(texts))
	for i, s := range texts {
		want[i] = shared.Encode(s, true)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i, s := range texts {
				if got := shared.Encode(s, true); !slices.Equal(got, want[i]) {
					t.Errorf("%q: got %v, want %v", s, got, want[i])
				}
				fresh.Decode(fresh.Encode(s, true), true)
			}
		})
	}
	wg.Wait()
}

func TestWordCacheIsBounded(t *testing.T) {
	c := newWordCache()
	for i := range 3 * cacheShards * shardWords {
		c.put(fmt.Sprint(i), []int32{int32(i)})
	}
	c.put(strings.Repeat("x", maxCachedWord+1), nil)
	words := 0
	for i := range c.shards {
		words += len(c.shards[i].words)
	}
	if words > cacheShards*shardWords {
		t.Errorf("%d words", words)
	}
	last := 3*cacheShards*shardWords - 1
	if ids, ok := c.get(fmt.Sprint(last)); !ok || !slices.Equal(ids, []int32{int32(last)}) {
		t.Errorf("the last word has ids %v", ids)
	}
}

func TestParseErrors(t *testing.T) {
	const bpe = `"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}`
	for _, c := range []struct{ file, want string }{
		{``, "unexpected end of JSON"},
		{`{}`, "model is missing"},
		{`{"model":{"type":"WordLevel"}}`, `model.type "WordLevel" is not supported; supported are BPE, Unigram, WordPiece`},
		{`{"model":{"vocab":{"a":0}}}`, `model.type ""`},
		{`{"model":{"type":"Unigram"}}`, "model.unk_id is missing"},
		{`{"model":{"type":"Unigram","unk_id":1,"vocab":[["a",0]]}}`, "model.unk_id is 1, model.vocab has 1 tokens"},
		{`{"model":{"type":"Unigram","unk_id":0,"vocab":[["a"]]}}`, "a list of 1 given"},
		{`{"model":{"type":"Unigram","unk_id":0,"vocab":{"a":0}}}`, "cannot unmarshal object"},
		{`{"model":{"type":"WordPiece"}}`, `model.unk_token: "[UNK]" is not in model.vocab`},
		{`{"model":{"type":"WordPiece","unk_token":"a","vocab":{"a":0},"max_input_chars_per_word":-1}}`, "-1 given"},
		{`{"model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}}`, `model.merges[0]: "b" is not in model.vocab`},
		{`{"model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":["a b"]}}`, `"ab" is not in model.vocab`},
		{`{"model":{"type":"BPE","vocab":{"a":0},"merges":["a b c"]}}`, `"a b c" given`},
		{`{"model":{"type":"BPE","vocab":{"a":0},"merges":[["a"]]}}`, "a list of 1 strings given"},
		{`{"model":{"type":"BPE","vocab":{"a":0},"merges":[7]}}`, "neither a list of strings"},
		{`{"model":{"type":"BPE","vocab":{"a":0}}}`, "model.merges is missing"},
		{`{"model":{"type":"BPE","vocab":{"a":-1},"merges":[]}}`, `token "a" has id -1`},
		{`{"model":{"type":"BPE","vocab":{"a":99999999},"merges":[]}}`, `token "a" has id 99999999`},
		{`{"model":{"type":"BPE","dropout":0.1,"vocab":{"a":0},"merges":[]}}`, "model.dropout: 0.1 given"},
		{`{` + bpe + `,"normalizer":{"type":"Precompiled"}}`, "precompiled_charsmap has 0 bytes"},
		{`{` + bpe + `,"normalizer":{"type":"Precompiled","precompiled_charsmap":"CAAAAAAAAAA="}}`, "says that 8 of 4 bytes are its trie"},
		{`{` + bpe + `,"normalizer":{"type":"Precompiled","precompiled_charsmap":"BAAAAAAAAAD/"}}`, "not UTF-8"},
		{`{` + bpe + `,"normalizer":{"type":"BertNormalizer","lowercase":1}}`, "normalizer BertNormalizer"},
		{`{` + bpe + `,"normalizer":{"type":"Sequence","normalizers":[{"type":"NFC"},{"type":"Nmt"}]}}`, `normalizer.type "Nmt"`},
		{`{` + bpe + `,"normalizer":{"type":"Replace","pattern":{"String":""},"content":""}}`, "empty String"},
		{`{` + bpe + `,"normalizer":{"type":"Replace","pattern":{"Regex":"(a)"},"content":"$1"}}`, "refers to groups"},
		{`{` + bpe + `,"pre_tokenizer":{"type":"UnicodeScripts"}}`, `pre_tokenizer.type "UnicodeScripts"`},
		{`{` + bpe + `,"pre_tokenizer":{"type":"Split","pattern":{"Regex":"(?<=a)"},"behavior":"Isolated"}}`, "(?<="},
		{`{` + bpe + `,"pre_tokenizer":{"type":"Split","pattern":{"String":"a"},"behavior":"isolated"}}`, `behavior "isolated"`},
		{`{` + bpe + `,"pre_tokenizer":{"type":"Metaspace","replacement":"__"}}`, "not one character"},
		{`{` + bpe + `,"pre_tokenizer":{"type":"Metaspace","replacement":"_","prepend_scheme":"last"}}`, `prepend_scheme "last"`},
		{`{` + bpe + `,"pre_tokenizer":{"behavior":"Isolated"}}`, `"type" is missing`},
		{`{` + bpe + `,"decoder":{"type":"CTC"}}`, `decoder.type "CTC"`},
		{`{` + bpe + `,"post_processor":{"type":"Unknown"}}`, `post_processor.type "Unknown"`},
		{`{` + bpe + `,"post_processor":{"type":"BertProcessing","sep":["x",7],"cls":["a",0]}}`, "id 7, which is no token"},
		{`{` + bpe + `,"post_processor":{"type":"TemplateProcessing","single":[],"special_tokens":{}}}`, "has 0 texts"},
		{`{` + bpe + `,"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"x"}}],"special_tokens":{}}}`, `"x" is not in special_tokens`},
	} {
		_, err := Parse([]byte(c.file))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\n got error %v\nwant %s", c.file, err, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(readGzip(f, "tiny-vlm.json.gz"))
	var v struct {
		Variants []struct{ JSON json.RawMessage }
	}
	readJSON(f, "variants.json.gz", &v)
	for _, variant := range v.Variants {
		var file map[string]json.RawMessage
		if err := json.Unmarshal(variant.JSON, &file); err != nil {
			f.Fatal(err)
		}
		file["model"] = json.RawMessage(`{"type":"BPE","vocab":{"a":0,"b":1,"ab":2,"Ġ":3,"▁":4,"<0x41>":5},"merges":["a b"],"byte_fallback":true}`)
		small, err := json.Marshal(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(small)
	}
	for _, model := range []string{
		`{"type":"Unigram","unk_id":0,"byte_fallback":true,"vocab":[["?",0],["a",-1],["b",-1],["ab",-1.5],["▁",-2],["<0xC3>",-3],["<0xA9>",-3],["<s>",0]]}`,
		`{"type":"WordPiece","unk_token":"?","max_input_chars_per_word":5,"vocab":{"?":0,"a":1,"##b":2,"<s>":3}}`,
	} {
		f.Add([]byte(`{"model":` + model + `,"normalizer":{"type":"BertNormalizer"},"pre_tokenizer":{"type":"BertPreTokenizer"},"decoder":{"type":"WordPiece"},"added_tokens":[{"content":"<s>","special":true}]}`))
		f.Add([]byte(`{"model":` + model + `,"pre_tokenizer":{"type":"Metaspace","replacement":"▁"},"decoder":{"type":"BPEDecoder","suffix":"b"}}`))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		tok, err := Parse(data)
		if err != nil {
			return
		}
		for _, s := range []string{"", "ab  a'S b\n 12<s>é", "▁ab A\u0301"} {
			ids := tok.mustEncodeGuarded(s, 'b', true)
			if whole, streamed := tok.Decode(ids, false), stream(t, tok, ids, false); whole != streamed {
				t.Errorf("%q decoded, %q streamed", whole, streamed)
			}
			for _, id := range ids {
				tok.TokenBytes(id)
			}
		}
	})
}

func FuzzRoundTrip(f *testing.F) {
	for i, s := range corpus(f) {
		if i%20 == 0 {
			f.Add(s)
		}
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !utf8.ValidString(s) {
			return
		}
		for _, name := range []string{"tiny-vlm", "phi-2-codegen"} {
			tok := load(t, name)
			ids := tok.Encode(s, false)
			if got := tok.Decode(ids, false); got != s {
				t.Errorf("%s: %q decodes to %q", name, s, got)
			}
			if got := stream(t, tok, ids, false); got != s {
				t.Errorf("%s: %q streams to %q", name, s, got)
			}
		}
	})
}

func FuzzEncodeGuarded(f *testing.F) {
	f.Add("<|im_", "start|>")
	f.Add("a<|end|>", " \u0301<|")
	f.Add("</s", "><row_1_col_1>")
	names := []string{"granite-docling", "phi-3-vision", "wordpiece", "unigram"}
	for _, name := range names {
		load(f, name) // not within the time that an input may take
	}
	f.Fuzz(func(t *testing.T, before, after string) {
		if !utf8.ValidString(before) || !utf8.ValidString(after) {
			return // a run of bytes is one U+FFFD only while no guard is in it
		}
		for _, name := range names {
			tok := load(t, name)
			added := longAdded(tok)
			ids := tok.mustEncodeGuarded(guardAll(before)+guardAll(after), guard, false)
			if slices.ContainsFunc(ids, func(id int32) bool { return added[id] }) {
				t.Errorf("%s: %q %q has an added token: %v", name, before, after, ids)
			}
			plain := strings.ReplaceAll(before+after, string(guard), "")
			if want := tok.Encode(plain, false); !slices.ContainsFunc(want, func(id int32) bool { return added[id] }) &&
				!slices.Equal(ids, want) {
				t.Errorf("%s: %q with guards\n got %v\nwant %v", name, plain, ids, want)
			}
		}
	})
}

// FuzzPrecompiled reads rules from bytes, and rewrites a text by them.
func FuzzPrecompiled(f *testing.F) {
	// A trie of one rule, from a to b: unit 0 leads to 1^'a', which leads to its value.
	units := make([]uint32, 128)
	units[0] = 1 << 10
	units[1^'a'] = 'a' | 1<<8 | 1<<10
	charsmap, err := binary.Append(binary.LittleEndian.AppendUint32(nil, 4*128), binary.LittleEndian, units)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(charsmap, "b\x00"...), "xaa\r\nＡe\u0301\u200d👍🏽")
	f.Fuzz(func(t *testing.T, charsmap []byte, s string) {
		n, err := newPrecompiled(charsmap)
		if err != nil || !utf8.ValidString(s) {
			return
		}
		last := 0
		n.rewrite(s, func(start, end int, with string) {
			if start < last || end <= start || end > len(s) || !utf8.ValidString(with) {
				t.Errorf("%q: [%d, %d) becomes %q, after %d", s, start, end, with, last)
			}
			last = end
		})
	})
}

func benchmarkEncode(b *testing.B, file, text string) {
	tok := load(b, file)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		tok.Encode(text, true)
	}
}

func english(b *testing.B) string {
	text, err := os.ReadFile("../../LICENSE")
	if err != nil {
		b.Fatal(err)
	}
	return strings.Repeat(string(text), 10)
}

func BenchmarkEncodeEnglish(b *testing.B) {
	for _, name := range allFiles {
		b.Run(name, func(b *testing.B) { benchmarkEncode(b, name, english(b)) })
	}
}

// BenchmarkEncodeEnglishCold starts each time with an empty word cache.
func BenchmarkEncodeEnglishCold(b *testing.B) {
	text, err := os.ReadFile("../../LICENSE")
	if err != nil {
		b.Fatal(err)
	}
	for _, name := range allFiles {
		b.Run(name, func(b *testing.B) {
			tok, err := Parse(readGzip(b, name+".json.gz"))
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				tok.asIs.cache = newWordCache()
				tok.Encode(string(text), true)
			}
		})
	}
}

// BenchmarkEncodeLongWord is one word of 20,000 bytes, which the cache does not help.
func BenchmarkEncodeLongWord(b *testing.B) {
	for _, name := range allFiles {
		b.Run(name, func(b *testing.B) { benchmarkEncode(b, name, strings.Repeat("a", 20000)) })
	}
}

func BenchmarkEncodeCorpus(b *testing.B) {
	text := strings.Join(corpus(b), "\n")
	for _, name := range allFiles {
		b.Run(name, func(b *testing.B) { benchmarkEncode(b, name, text) })
	}
}

// BenchmarkPattern is the general matcher on the expression of Llama 3.
func BenchmarkPattern(b *testing.B) {
	p, err := compilePattern(llama3Pattern)
	if err != nil {
		b.Fatal(err)
	}
	text := english(b)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		p.findAll(text, func(int, int) {})
	}
}

func BenchmarkScanner(b *testing.B) {
	text := english(b)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		for i := 0; i < len(text); {
			i = scanLlama3(text, i, 3)
		}
	}
}

func BenchmarkStream(b *testing.B) {
	for _, name := range allFiles {
		b.Run(name, func(b *testing.B) {
			tok := load(b, name)
			ids := tok.Encode(english(b), false)
			b.ReportAllocs()
			for b.Loop() {
				s := tok.NewStream(true)
				for _, id := range ids {
					s.Push(id)
				}
				s.Flush()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(ids)), "ns/token")
		})
	}
}

func BenchmarkParse(b *testing.B) {
	data := readGzip(b, "granite-docling.json.gz")
	for b.Loop() {
		if _, err := Parse(data); err != nil {
			b.Fatal(err)
		}
	}
}
