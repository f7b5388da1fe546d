package tokenizer

import (
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/mmserve/mmserve/internal/racetest"
)

// files are of BPE models, from whose ids the text comes back as it was.
var files = []string{"granite-docling", "phi-2-codegen", "phi-3-vision", "vit-gpt2", "tiny-vlm"}

var allFiles = append([]string{"wordpiece", "unigram"}, files...)

func readGzip(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func readJSON(t testing.TB, name string, v any) {
	t.Helper()
	if err := json.Unmarshal(readGzip(t, name), v); err != nil {
		t.Fatal(err)
	}
}

var loaded sync.Map // of *Tokenizer, by name: they are safe to share

func load(t testing.TB, name string) *Tokenizer {
	t.Helper()
	if tok, ok := loaded.Load(name); ok {
		return tok.(*Tokenizer)
	}
	tok, err := Parse(readGzip(t, name+".json.gz"))
	if err != nil {
		t.Fatal(err)
	}
	loaded.Store(name, tok)
	return tok
}

func corpus(t testing.TB) []string {
	var texts []string
	readJSON(t, "corpus.json.gz", &texts)
	return texts
}

// golden is what the reference makes of a text; gen.mjs says what is left out.
type golden struct {
	IDs         []int32 `json:"i"`
	WithSpecial []int32 `json:"s"`
	Kept        *string `json:"d"`
	Skipped     *string `json:"k"`
	Left        bool    `json:"o"` // not compared
}

func (g golden) check(t *testing.T, tok *Tokenizer, text string) {
	t.Helper()
	if g.Left {
		return
	}
	if got := tok.Encode(text, false); !slices.Equal(got, g.IDs) {
		t.Errorf("Encode(%q)\n got %v\nwant %v", text, got, g.IDs)
	}
	ids := g.WithSpecial
	if ids == nil {
		ids = g.IDs
	}
	if got := tok.Encode(text, true); !slices.Equal(got, ids) {
		t.Errorf("Encode(%q) with special tokens\n got %v\nwant %v", text, got, ids)
	}
	kept := text
	if g.Kept != nil {
		kept = *g.Kept
	}
	skipped := kept
	if g.Skipped != nil {
		skipped = *g.Skipped
	}
	checkDecode(t, tok, ids, kept, skipped)
}

// checkDecode checks both ways to decode: whole and streamed.
func checkDecode(t *testing.T, tok *Tokenizer, ids []int32, kept, skipped string) {
	t.Helper()
	for skip, want := range map[bool]string{false: kept, true: skipped} {
		if got := tok.Decode(ids, skip); got != want {
			t.Errorf("Decode(%v, %v)\n got %q\nwant %q", ids, skip, got, want)
		}
		if got := stream(t, tok, ids, skip); got != want {
			t.Errorf("stream of %v, %v\n got %q\nwant %q", ids, skip, got, want)
		}
	}
}

func stream(t *testing.T, tok *Tokenizer, ids []int32, skipSpecial bool) string {
	t.Helper()
	var b strings.Builder
	s := tok.NewStream(skipSpecial)
	for _, id := range ids {
		part := s.Push(id)
		if part != strings.ToValidUTF8(part, "") {
			t.Errorf("stream of %v: half a character in %q", ids, part)
		}
		b.WriteString(part)
	}
	b.WriteString(s.Flush())
	return b.String()
}

func TestReference(t *testing.T) {
	texts := corpus(t)
	for _, name := range allFiles {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tok := load(t, name)
			var goldens []golden
			readJSON(t, "golden-"+name+".json.gz", &goldens)
			if len(goldens) != len(texts) || len(texts) < 2000 {
				t.Fatalf("%d goldens for %d texts", len(goldens), len(texts))
			}
			left := 0
			for i, g := range goldens {
				if !racetest.Enabled || i%10 == 0 {
					g.check(t, tok, texts[i])
				}
				if g.Left {
					left++
				}
			}
			if len(texts)-left < 2000 {
				t.Errorf("only %d texts are compared", len(texts)-left)
			}
		})
	}
}

func TestReferenceDecodesAnyIDs(t *testing.T) {
	for _, name := range allFiles {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var cases []struct {
				IDs           []int32
				Kept, Skipped string
			}
			readJSON(t, "decode-"+name+".json.gz", &cases)
			tok := load(t, name)
			for _, c := range cases {
				checkDecode(t, tok, c.IDs, c.Kept, c.Skipped)
			}
		})
	}
}

// TestReferenceVariants covers every step and option on small files.
func TestReferenceVariants(t *testing.T) {
	for _, file := range []string{"variants.json.gz", "models.json.gz"} {
		var f struct {
			Texts    []string
			Variants []struct {
				Name   string
				JSON   json.RawMessage
				Golden []golden
			}
		}
		readJSON(t, file, &f)
		for _, v := range f.Variants {
			t.Run(v.Name, func(t *testing.T) {
				t.Parallel()
				tok, err := Parse(v.JSON)
				if err != nil {
					t.Fatal(err)
				}
				for i, g := range v.Golden {
					if !racetest.Enabled || i%10 == 0 {
						g.check(t, tok, f.Texts[i])
					}
				}
			})
		}
	}
}
