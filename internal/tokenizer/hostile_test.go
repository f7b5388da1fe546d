package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/racetest"
)

// fileWith is a small tokenizer.json with fields of its own.
func fileWith(fields string) []byte {
	return []byte(`{"model":{"type":"BPE","vocab":{"a":0,"b":1,"c":2},"merges":[]},` + fields + `}`)
}

func quoted(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

// TestHostileFileIsRefused has files whose steps, tokens or expressions cost more than a text is worth.
func TestHostileFileIsRefused(t *testing.T) {
	deep := strings.Repeat(`{"type":"Sequence","normalizers":[`, 4000) + `{"type":"NFC"}` + strings.Repeat("]}", 4000)
	many := strings.Repeat(`{"type":"NFC"},`, 100_000) + `{"type":"NFC"}`
	double := strings.Repeat(`{"type":"Replace","pattern":{"String":"a"},"content":"aa"},`, 20) + `{"type":"Fuse"}`
	split := func(expr string) string {
		return `"pre_tokenizer":{"type":"Split","behavior":"Isolated","pattern":{"Regex":` + quoted(expr) + `}}`
	}
	for want, fields := range map[string]string{
		"nested more than":              `"normalizer":` + deep,
		"more than 32 steps":            `"normalizer":{"type":"Sequence","normalizers":[` + many + `]}`,
		"20000 bytes":                   `"normalizer":{"type":"Replace","pattern":{"String":"a"},"content":"` + strings.Repeat("a", 20000) + `"}`,
		"normalizer Prepend has 5000":   `"normalizer":{"type":"Prepend","prepend":"` + strings.Repeat("a", 5000) + `"}`,
		"can make a token 128 times":    `"decoder":{"type":"Sequence","decoders":[` + double + `]}`,
		"a token has 100000 bytes":      `"added_tokens":[{"id":3,"content":"` + strings.Repeat("a", 100000) + `"}]`,
		"at most 16384":                 split(strings.Repeat("a", 1<<20)),
		"too many classes":              split(strings.Repeat(`\w`, 8000)),
		"branches":                      split(strings.Repeat(`a*`, 2000)),
		"look-aheads":                   split(strings.Repeat(`(?=b)`, 200)),
		"invalid repeat":                split(`((((a{1000}){1000}){1000}){1000})`),
		"post_processor.single adds 65": `"post_processor":{"type":"TemplateProcessing","single":[{"Sequence":{"id":"A"}},{"SpecialToken":{"id":"a"}}],"special_tokens":{"a":{"ids":[0` + strings.Repeat(",0", 64) + `]}}}`,
	} {
		if _, err := Parse(fileWith(fields)); err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 1000 {
			t.Errorf("%.300v, want an error that says %q", err, want)
		}
	}
	long := `{"model":{"type":"Unigram","unk_id":0,"vocab":[["a",0],["` + strings.Repeat("a", 1000) + `",0]]}}`
	if _, err := Parse([]byte(long)); err == nil || !strings.Contains(err.Error(),
		"a token of model.vocab has 1000 bytes") {
		t.Errorf("%v", err)
	}
}

// TestHostileGrowthEnds has steps that double a text again and again, as a whole and between added tokens.
func TestHostileGrowthEnds(t *testing.T) {
	double := strings.Repeat(`{"type":"Replace","pattern":{"String":"a"},"content":"aa"},`, 30) + `{"type":"Replace","pattern":{"String":"a"},"content":""}`
	metaspace := strings.Repeat(`{"type":"ByteLevel","use_regex":false},`, 31) + `{"type":"ByteLevel"}`
	const added = `,"added_tokens":[{"id":3,"content":"b"}]`
	for name, fields := range map[string]string{
		"normalizers":    `"normalizer":{"type":"Sequence","normalizers":[` + double + `]}` + added,
		"prepend":        `"normalizer":{"type":"Prepend","prepend":"` + strings.Repeat("c", 1000) + `"}` + added,
		"pre-tokenizers": `"pre_tokenizer":{"type":"Sequence","pretokenizers":[` + metaspace + `]}` + added,
	} {
		tok, err := Parse(fileWith(fields))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, text := range []string{strings.Repeat("a", 1<<13), strings.Repeat("ab", 1<<12), strings.Repeat("é", 1<<12),
			strings.Repeat("éb", 1<<12)} {
			if name == "prepend" && !strings.Contains(text, "b") {
				continue
			}
			ids, err := tok.EncodeGuarded(text, 0, false)
			if name == "normalizers" && strings.Contains(text, "é") {
				continue
			}
			if name == "pre-tokenizers" && !strings.Contains(text, "é") {
				continue
			}
			if !errors.Is(err, ErrGrows) || ids != nil {
				t.Errorf("%s of %.4s…: %d ids, %v, want ErrGrows", name, text, len(ids), err)
			}
		}
	}
}

// TestHostileLookAheadsAreLinear counts the steps of expressions that backtracking takes a power of the text for.
func TestHostileLookAheadsAreLinear(t *testing.T) {
	for _, expr := range []string{
		`a(?=.*)`, `a(?=a*$)`, `(?:a(?!.*b))+`, `(?=a*?(?=a*?(?=a*$)$)$)a`, `(?=(?:a|aa)*?(?=(?:a|aa)*$)$)a`,
		`(a|a|aa)*(?=a*c)`, `(a*)*c|a`,
	} {
		p, err := compilePattern(expr)
		if err != nil {
			t.Fatal(err)
		}
		matches := 0
		p.findAll(strings.Repeat("a", racetest.Part(200_000)), func(int, int) { matches++ })
		if matches == 0 && strings.HasPrefix(expr, "a(") {
			t.Errorf("%s finds nothing", expr)
		}
	}
}

// TestLookAheadsFindTheSame compares with the standard library where a look-ahead at the end is a group that is cut
// off.
func TestLookAheadsFindTheSame(t *testing.T) {
	for _, body := range []string{`a`, `b`, `ab`, `(?:a|b)`} {
		for _, ahead := range []string{`a*$`, `a*b`, `(?:a|b)*?b`, `(?:ab?)*c`, `b|$`} {
			p, err := compilePattern(body + `(?=` + ahead + `)`)
			if err != nil {
				t.Fatal(err)
			}
			first, rest := regexp.MustCompile(`^(?:`+body+`)`), regexp.MustCompile(`^(?:`+ahead+`)`)
			for n := range 3 * 3 * 3 * 3 * 3 * 3 {
				var s []byte
				for range 6 {
					s, n = append(s, "abc"[n%3]), n/3
				}
				var got, want []string
				p.findAll(string(s), func(from, to int) { got = append(got, fmt.Sprint(from, to)) })
				for at := 0; at < len(s); {
					if m := first.FindIndex(s[at:]); m != nil && rest.Match(s[at+m[1]:]) {
						want = append(want, fmt.Sprint(at, at+m[1]))
						at += m[1]
					} else {
						at++
					}
				}
				if !slices.Equal(got, want) {
					t.Errorf("%s(?=%s) in %s: %v, want %v", body, ahead, s, got, want)
				}
			}
		}
	}
}

// TestHostileWhiteSpaceIsLinear has tokens of white space that take the white space around them.
func TestHostileWhiteSpaceIsLinear(t *testing.T) {
	for _, strip := range []string{`"rstrip":true`, `"lstrip":true`, `"lstrip":true,"rstrip":true`} {
		tok, err := Parse(fileWith(`"added_tokens":[{"id":3,"content":"\n",` + strip + `}]`))
		if err != nil {
			t.Fatal(err)
		}
		if ids := tok.Encode(strings.Repeat("\n", 1_000_000), false); len(ids) != 1_000_000 {
			t.Errorf("%s: %d ids", strip, len(ids))
		}
	}
}
