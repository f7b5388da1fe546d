package constrain

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"math/bits"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/mmserve/mmserve/internal/racetest"
	"github.com/mmserve/mmserve/internal/tokenizer"
)

// realStops are the tokenizers of internal/tokenizer's test data and a stop token of each: byte-level, and
// SentencePiece with byte fallback, whose decoder drops the first space.
var realStops = map[string]string{
	"granite-docling": "<|end_of_text|>",
	"phi-2-codegen":   "<|endoftext|>",
	"phi-3-vision":    "<|end|>",
	"tiny-vlm":        "<end_of_utterance>",
}

var loaded sync.Map // of func() (*fixture, error), by name

type fixture struct {
	tok      *tokenizer.Tokenizer
	compiler *Compiler
	stop     int32
	ids      []int32 // scratch of sample
}

// load returns a real tokenizer and its compiler, which are shared by all tests.
func load(t testing.TB, name string) *fixture {
	t.Helper()
	once, _ := loaded.LoadOrStore(name, sync.OnceValues(func() (*fixture, error) {
		f, err := os.Open(filepath.Join("..", "tokenizer", "testdata", name+".json.gz"))
		if err != nil {
			return nil, err
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(z)
		if err != nil {
			return nil, err
		}
		return newFixture(data, realStops[name])
	}))
	fix, err := once.(func() (*fixture, error))()
	if err != nil {
		t.Fatal(err)
	}
	return fix
}

func newFixture(tokenizerJSON []byte, stop string) (*fixture, error) {
	tok, err := tokenizer.Parse(tokenizerJSON)
	if err != nil {
		return nil, err
	}
	id, ok := tok.TokenID(stop)
	if !ok {
		return nil, fmt.Errorf("no token %q", stop)
	}
	c, err := NewCompiler(tok, []int32{id})
	if err != nil {
		return nil, err
	}
	return &fixture{tok: tok, compiler: c, stop: id}, nil
}

// small returns a byte-level vocabulary of all bytes, the given texts, the stop token "<stop>", and the added token
// "a".
func small(t testing.TB, texts ...string) *fixture {
	t.Helper()
	vocab := map[string]int{"<stop>": 0}
	alphabet := byteAlphabet()
	for b := range 256 {
		vocab[string(alphabet[b])] = len(vocab)
	}
	for _, text := range texts {
		var token strings.Builder
		for i := range len(text) {
			token.WriteRune(alphabet[text[i]])
		}
		if _, ok := vocab[token.String()]; !ok {
			vocab[token.String()] = len(vocab)
		}
	}
	file := map[string]any{
		"model":   map[string]any{"type": "BPE", "vocab": vocab, "merges": []string{}},
		"decoder": map[string]any{"type": "ByteLevel"},
		"added_tokens": []any{
			map[string]any{"id": 0, "content": "<stop>", "special": true},
			map[string]any{"id": len(vocab), "content": "added", "special": false},
		},
	}
	data, err := json.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	fix, err := newFixture(data, "<stop>")
	if err != nil {
		t.Fatal(err)
	}
	return fix
}

// byteAlphabet is GPT-2's: printable bytes are themselves, the others follow U+0100.
func byteAlphabet() (runes [256]rune) {
	next := rune(256)
	for b := range 256 {
		runes[b] = rune(b)
		if b <= ' ' || 0x7F <= b && b <= 0xA0 || b == 0xAD {
			runes[b] = next
			next++
		}
	}
	return runes
}

func has(mask []uint64, id int32) bool {
	return int(id>>6) < len(mask) && mask[id>>6]>>(id&63)&1 == 1
}

// members appends the ids of mask to ids.
func members(ids []int32, mask []uint64) []int32 {
	for i, word := range mask {
		for ; word != 0; word &= word - 1 {
			ids = append(ids, int32(i*64+bits.TrailingZeros64(word)))
		}
	}
	return ids
}

// sample picks from mask uniformly, but stops half of the time where that is allowed, and prefers tokens that close
// something, so that outputs come to an end. It returns none if mask is empty.
func (f *fixture) sample(rng *rand.Rand, mask []uint64) int32 {
	if has(mask, f.stop) && rng.IntN(2) == 0 {
		return f.stop
	}
	f.ids = members(f.ids[:0], mask)
	ids := f.ids
	if len(ids) == 0 {
		return none
	}
	if rng.IntN(3) > 0 {
		for range 20 {
			id := ids[rng.IntN(len(ids))]
			if text := f.compiler.vocab.text[id]; strings.ContainsAny(text, `"]}0`) || id == f.stop {
				return id
			}
		}
	}
	return ids[rng.IntN(len(ids))]
}

// walk samples an output. ended is false if it did not end within n tokens.
func (f *fixture) walk(t *testing.T, g *Grammar, rng *rand.Rand, n int) (text string, ended bool) {
	t.Helper()
	s := g.Start(t.Context())
	var ids []int32
	for range n {
		id := f.sample(rng, s.Mask())
		if id == none {
			t.Fatalf("nothing may follow %q", f.tok.Decode(ids, true))
		}
		if done := s.Done(); done && id != f.stop {
			t.Fatalf("after %q the state is done, but the mask allows %d", f.tok.Decode(ids, true), id)
		}
		s.Accept(id)
		if id == f.stop {
			return f.tok.Decode(ids, true), true
		}
		ids = append(ids, id)
	}
	return f.tok.Decode(ids, true), false
}

// checkMasks compares the masks along a walk with reading each token byte by byte.
func (f *fixture) checkMasks(t *testing.T, g *Grammar, rng *rand.Rand, n int) {
	t.Helper()
	s, v := g.Start(t.Context()), f.compiler.vocab
	var ids []int32
	for range n {
		mask := s.Mask()
		for id, text := range v.text {
			if s.first {
				if first, ok := v.first[int32(id)]; ok {
					text = first
				}
			}
			want := text != "" && g.automaton.read(s.at, text) != g.automaton.dead
			if int32(id) == f.stop {
				want = s.at.accept
			}
			if got := has(mask, int32(id)); got != want {
				t.Fatalf("after %q: mask allows %q: %v, want %v", f.tok.Decode(ids, true), text, got, want)
			}
		}
		id := f.sample(rng, mask)
		s.Accept(id)
		ids = append(ids, id)
		if id == f.stop {
			return
		}
	}
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

func TestChoice(t *testing.T) {
	fix := small(t, "ca", "cat", "dog", "t ", "og", "ö", "do")
	choices := []string{"cat", "ca", "cat food", "dög", "dog"}
	g, err := fix.compiler.Choice(t.Context(), choices, false)
	if err != nil {
		t.Fatal(err)
	}
	viable := func(prefix string) bool {
		for _, c := range choices {
			if strings.HasPrefix(c, prefix) {
				return true
			}
		}
		return false
	}
	got := make(map[string]bool)
	var visit func(prefix string, s cursor)
	visit = func(prefix string, s cursor) {
		mask := s.Mask()
		for id, text := range fix.compiler.vocab.text {
			allowed := has(mask, int32(id))
			switch {
			case int32(id) == fix.stop:
				if allowed {
					got[prefix] = true
				}
			case allowed != (text != "" && viable(prefix+text)):
				t.Errorf("after %q, %q is allowed: %v", prefix, text, allowed)
			case allowed:
				next := s
				next.Accept(int32(id))
				visit(prefix+text, next)
			}
		}
		end := s
		end.Accept(fix.stop)
		if ids := members(nil, end.Mask()); len(ids) != 1 || ids[0] != fix.stop || !end.Done() {
			t.Errorf("after the end %v is allowed, done %v", ids, end.Done())
		}
	}
	visit("", g.cursor())
	if len(got) != len(choices) {
		t.Errorf("may end at %v, want exactly %v", got, choices)
	}
	for _, c := range choices {
		if !got[c] {
			t.Errorf("may not end at %q", c)
		}
	}
}

// TestRegexpAgainstEnumeration compares masks with all short texts of an alphabet that package regexp matches.
func TestRegexpAgainstEnumeration(t *testing.T) {
	alphabet := []string{"a", "b", "1", "é", "\n"}
	const length = 6
	texts := []string{""}
	for from, n := 0, 0; n < length; n++ {
		to := len(texts)
		for _, text := range texts[from:to] {
			for _, r := range alphabet {
				texts = append(texts, text+r)
			}
		}
		from = to
	}
	fix := small(t, "aa", "ab", "ba", "a1", "1a", "éa", "aé", "éé", "a\xC3", "\xA9b", "\xA9\xC3", "\n\n", "a\n", "abab",
		"b1é")
	for _, expr := range []string{
		`a`, `ab|a`, `a*`, `(ab)*`, `(a|b){1,3}`, `a?b?1?`, `.`, `.*a`, `[^a]{2}`, `(?s).a.`, `\w+\d`, `é+`, `[a-é]{1,2}`,
		`^ab$`, `a(^b|b)`, `(^a|b$)`, `(?i)A(B|É)`, `(a|ab)(1|b1)`, `(a*)*b`, `\D\d\D`, `()`, `^$`, `$^`, `a$|^b`,
		`(?:a{2}){1,2}`, `\x{e9}?b`,
	} {
		t.Run(expr, func(t *testing.T) {
			re := regexp.MustCompile(`\A(?:` + expr + `)\z`)
			prefixes, whole := make(map[string]bool), make(map[string]bool)
			for _, text := range texts {
				if re.MatchString(text) {
					whole[text] = true
					for i := range len(text) + 1 {
						prefixes[text[:i]] = true
					}
				}
			}
			g, err := fix.compiler.Regexp(t.Context(), expr, false)
			if err != nil {
				t.Fatal(err)
			}
			var visit func(prefix string, s cursor)
			visit = func(prefix string, s cursor) {
				mask := s.Mask()
				if got := has(mask, fix.stop); got != whole[prefix] {
					t.Errorf("may end at %q: %v, want %v", prefix, got, whole[prefix])
				}
				for id, text := range fix.compiler.vocab.text {
					if strings.Trim(text, "ab1é\n") != "" || text == "" || strings.Count(prefix+text, "")-1 > 3 {
						continue // the enumeration says nothing about it
					}
					want := prefixes[prefix+text]
					if got := has(mask, int32(id)); got != want {
						t.Errorf("after %q, %q is allowed: %v, want %v", prefix, text, got, want)
					} else if got {
						next := s
						next.Accept(int32(id))
						visit(prefix+text, next)
					}
				}
			}
			visit("", g.cursor())
		})
	}
}

func TestRegexpWalks(t *testing.T) {
	for name, exprs := range map[string][]string{
		"tiny-vlm": {
			`[A-Z][a-z]+( [A-Z][a-z]+){0,3}`, `\d{4}-\d{2}-\d{2}`, `(?s).{1,30}`, `\pL{2,9}`, `[^\pL\n]{3,6}`,
			`(yes|no|maybe), because .{5,40}\.`,
			`(?i)straße|\x{1F600}+`,
		},
		"phi-3-vision":    {` {1,3}x`, ` ?[a-z]{2,5}`, `[^\pL\n]{3,6}`},
		"phi-2-codegen":   {`[A-Z][a-z]+( [A-Z][a-z]+){0,3}`},
		"granite-docling": {`\d{4}-\d{2}-\d{2}`},
	} {
		if racetest.Enabled && name != "tiny-vlm" {
			continue // larger vocabularies take the detector minutes
		}
		fix := load(t, name)
		for _, expr := range exprs {
			t.Run(name+"/"+expr, func(t *testing.T) {
				g, err := fix.compiler.Regexp(t.Context(), expr, false)
				if err != nil {
					t.Fatal(err)
				}
				re := regexp.MustCompile(`\A(?:` + expr + `)\z`)
				rng := newRand(7)
				fix.checkMasks(t, g, rng, 3)
				ends := 0
				for range racetest.Part(20) {
					if text, ended := fix.walk(t, g, rng, 60); ended {
						ends++
						if !re.MatchString(text) {
							t.Errorf("%q does not match", text)
						}
					}
				}
				if ends == 0 && !racetest.Enabled {
					t.Error("no walk ended")
				}
			})
		}
	}
}

func TestRefused(t *testing.T) {
	c := small(t).compiler
	choice := func(choices ...string) func() (*Grammar, error) {
		return func() (*Grammar, error) { return c.Choice(t.Context(), choices, false) }
	}
	expr := func(expr string) func() (*Grammar, error) {
		return func() (*Grammar, error) { return c.Regexp(t.Context(), expr, false) }
	}
	for _, test := range []struct {
		name    string
		compile func() (*Grammar, error)
		want    string
	}{
		{"no choice", choice(), "0 choices"},
		{"an empty choice", choice("a", ""), "choice 1"},
		{"a choice that is no text", choice("\xFF"), "choice 0"},
		{"long choices", choice(strings.Repeat("a", maxChoices+1)), "at most"},
		{"a word boundary", expr(`a\b`), `\b`},
		{"line starts", expr(`(?m)^a`), "not supported"},
		{"a look-ahead", expr(`(?=a)`), "(?="},
		{"a back reference", expr(`(a)\1`), `\1`},
		{"nothing matches", expr(`a^`), "nothing satisfies it"},
		{"a long expression", expr(strings.Repeat("a", maxPattern+1)), "at most"},
		{"nested repetition", expr(`(a{1000}){1000}`), "repeat"},
		{"an exponential automaton", expr(`(a|b)*a(a|b){30}`), "too many states"},
		{"a large class repeated", expr(strings.Repeat(`\pL{1000}`, 30)), "too many states"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if racetest.Enabled && test.want == "too many states" {
				t.Skip("one goroutine runs for long; make test runs this without the race detector, too")
			}
			_, err := test.compile()
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}

func TestNewCompilerWantsAllBytes(t *testing.T) {
	file := `{"model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":[]},"decoder":{"type":"ByteLevel"}}`
	tok, err := tokenizer.Parse([]byte(file))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewCompiler(tok, []int32{1}); err == nil || !strings.Contains(err.Error(), "0x00") {
		t.Errorf("error %v, want one that names the byte", err)
	}
	if _, err := NewCompiler(tok, nil); err == nil {
		t.Error("no error without a stop id")
	}
}

func TestCompilerKeepsGrammars(t *testing.T) {
	c := small(t).compiler
	first, err := c.Regexp(t.Context(), "a", false)
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxGrammars - 1 {
		if _, err := c.Regexp(t.Context(), fmt.Sprintf("b%d", i), false); err != nil {
			t.Fatal(err)
		}
		if again, _ := c.Regexp(t.Context(), "a", false); again != first {
			t.Fatal("a grammar that was used last is compiled again")
		}
	}
	if choice, _ := c.Choice(t.Context(), []string{"a"}, false); choice == first {
		t.Error("a choice is taken for a regular expression")
	}
	for i := range 2 * maxGrammars {
		if _, err := c.Regexp(t.Context(), fmt.Sprintf("c%d", i), false); err != nil {
			t.Fatal(err)
		}
	}
	if len(c.byHash) != maxGrammars || c.recent.Len() != maxGrammars {
		t.Errorf("%d grammars are kept, want %d", len(c.byHash), maxGrammars)
	}
}

// TestAcceptOutsideTheMask holds that a token that is not allowed ends the output.
func TestAcceptOutsideTheMask(t *testing.T) {
	fix := small(t)
	g, err := fix.compiler.Regexp(t.Context(), "ab", false)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []int32{-1, fix.stop, 5, 1 << 20} {
		s := g.Start(t.Context())
		s.Accept(id)
		if ids := members(nil, s.Mask()); !s.Done() || len(ids) != 1 || ids[0] != fix.stop {
			t.Errorf("after id %d the mask has %v", id, ids)
		}
	}
}

// TestSharedGrammar holds that sequences of one grammar do not disturb each other, in other goroutines too.
func TestSharedGrammar(t *testing.T) {
	fix := load(t, "tiny-vlm")
	outputs := func(g *Grammar) (texts []string) {
		for seed := range uint64(5) {
			own := &fixture{tok: fix.tok, compiler: fix.compiler, stop: fix.stop}
			text, _ := own.walk(t, g, newRand(seed), 100)
			texts = append(texts, text)
		}
		return texts
	}
	compile := func() *Grammar {
		c, err := NewCompiler(fix.tok, []int32{fix.stop})
		if err != nil {
			t.Fatal(err)
		}
		g, err := c.JSONSchema(t.Context(), []byte(benchSchema), false)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	want, shared := outputs(compile()), compile()
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			if got := outputs(shared); !slices.Equal(got, want) {
				t.Errorf("outputs differ from those of a grammar for one goroutine:\n%q\n%q", got, want)
			}
		})
	}
	group.Wait()
}

// TestForgetting holds that masks are the same when what was found is forgotten all the time.
func TestForgetting(t *testing.T) {
	fix := load(t, "tiny-vlm")
	g, err := fix.compiler.JSONSchema(t.Context(), []byte(benchSchema), false)
	if err != nil {
		t.Fatal(err)
	}
	rng := newRand(5)
	s, other := g.cursor(), g.cursor()
	for range 200 {
		want := slices.Clone(s.Mask())
		g.automaton.memory = maxMemory + 1
		other.at.mask = nil
		if !slices.Equal(other.Mask(), want) {
			t.Fatal("the mask differs")
		}
		id := fix.sample(rng, want)
		s.Accept(id)
		g.automaton.forget()
		other.Accept(id)
		if id == fix.stop {
			s, other = g.cursor(), g.cursor()
		}
	}
}

// parsed is the JSON value that text is, its numbers as they stand.
func parsed(text string) (v any, err error) {
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	err = d.Decode(&v)
	return v, err
}

// TestManyThreads holds that an output can always be ended, and validates, when so many ways of reading it come up that
// some are forgotten.
func TestManyThreads(t *testing.T) {
	var branches []string
	for i := range 8 {
		branches = append(branches, fmt.Sprintf(`{"type":"object","properties":{"a":{"$ref":"#"},"b%d":{"const":%d}},"required":["a","b%d"]}`, i, i, i))
	}
	schema := `{"anyOf":[{"type":"null"},` + strings.Join(branches, ",") + `]}`
	fix := small(t, append(fuzzTexts, `{"a":`, `{"a":{`, `null`, `,"b`, `5}`, `5},"b`)...)
	g, err := fix.compiler.JSONSchema(t.Context(), []byte(schema), false)
	if err != nil {
		t.Fatal(err)
	}
	open := fix.tok.Encode(strings.Repeat(`{"a":`, 5), false)
	// The schema written out, since a validator's time doubles thrice with each level of it.
	var valid func(v any) bool
	valid = func(v any) bool {
		if v == nil {
			return true
		}
		object, _ := v.(map[string]any)
		for i := range branches {
			if b, ok := object[fmt.Sprintf("b%d", i)].(json.Number); ok && b.String() == strconv.Itoa(i) {
				a, given := object["a"]
				return given && valid(a)
			}
		}
		return false
	}
	most := 0
	for seed := range uint64(racetest.Part(200)) {
		rng, s, ids := newRand(seed), g.cursor(), slices.Clone(open)
		for _, id := range open {
			s.Accept(id)
		}
		for range 5000 {
			most = max(most, len(s.at.threads))
			id := fix.sample(rng, s.Mask())
			s.Accept(id)
			if id == fix.stop {
				break
			}
			ids = append(ids, id)
		}
		if text := fix.tok.Decode(ids, true); !s.ended {
			t.Errorf("%s does not end", text)
		} else if v, err := parsed(text); err != nil || !valid(v) {
			t.Errorf("%s is not valid (%v)", text, err)
		}
	}
	if most != maxThreads && !racetest.Enabled {
		t.Errorf("at most %d threads came up, want %d", most, maxThreads)
	}
}
