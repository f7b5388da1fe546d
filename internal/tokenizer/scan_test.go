package tokenizer

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dlclark/regexp2"

	"github.com/mmserve/mmserve/internal/racetest"
)

// randomTexts are short, of the runes on which the patterns turn.
func randomTexts(n int) []string {
	rng := rand.New(rand.NewPCG(1, 2))
	alphabet := []string{"'", "s", "T", "re", "VE", "m", "lL", "d", " ", "  ", "\t", "\n", "\r", "\r\n", "a", "Z", "é",
		"ß", "中", "1", "½", "٣", ".", "!", "_",
		"\u00a0", "\u3000", "\u0085", "\u2028", "\u200b", "\u0301", "😀", "ª", "ǅ", "\u0000", "x", "-", "/"}
	texts := make([]string, n)
	for i := range texts {
		var b strings.Builder
		for range 1 + rng.IntN(24) {
			b.WriteString(alphabet[rng.IntN(len(alphabet))])
		}
		texts[i] = b.String()
	}
	return texts
}

// regexp2Pieces cuts s with another implementation of regular expressions.
func regexp2Pieces(t *testing.T, re *regexp2.Regexp, s string) []string {
	t.Helper()
	var pieces []string
	runes := []rune(s)
	done := 0
	add := func(from, to int) {
		if from < to {
			pieces = append(pieces, string(runes[from:to]))
		}
	}
	m, err := re.FindRunesMatch(runes)
	for ; m != nil && err == nil; m, err = re.FindNextMatch(m) {
		add(done, m.Index)
		add(m.Index, m.Index+m.Length)
		done = m.Index + m.Length
	}
	if err != nil {
		t.Fatal(err)
	}
	add(done, len(runes))
	return pieces
}

func texts(pieces []piece) []string {
	var list []string
	for _, p := range pieces {
		if p.text != "" {
			list = append(list, p.text)
		}
	}
	return list
}

// TestScanners compares the scanners with the expressions they stand for.
func TestScanners(t *testing.T) {
	all := append(corpus(t), randomTexts(racetest.Part(5000))...)
	for expr, scan := range scanners {
		re := regexp2.MustCompile(expr, regexp2.None)
		own, err := compilePattern(expr)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range all {
			got := texts(scan.split(nil, piece{text: s}))
			if want := texts(splitter{find: own, behavior: isolated}.split(nil, piece{text: s})); !slices.Equal(got, want) {
				t.Errorf("%s\n scanner %q\n pattern %q", expr, got, want)
			}
			if strings.Contains(s, "ſ") {
				continue // regexp2 does not know that it is an s
			}
			if want := regexp2Pieces(t, re, s); !slices.Equal(got, want) {
				t.Errorf("%s\n scanner %q\n regexp2 %q", expr, got, want)
			}
		}
	}
}

// TestPatterns compares the matcher with another for expressions without a scanner.
func TestPatterns(t *testing.T) {
	all := randomTexts(racetest.Part(3000))
	for _, expr := range []string{
		`[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
		`\s+$|^[^\S\n]+|(?=a)\S\S|x*?y`,
		`(a|ab|')*(?!1)(\s|\.)?`,
		`(?:(?!\d)\S)+|\d{2}(?=\d)|\D??!`,
		`(a*)*z|(?:a|aé)+(?=1| )`,
		`x*`,
	} {
		re := regexp2.MustCompile(expr, regexp2.Multiline)
		p, err := compilePattern(expr)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range all {
			got := texts(splitter{find: p, behavior: isolated}.split(nil, piece{text: s}))
			if want := regexp2Pieces(t, re, s); !slices.Equal(got, want) {
				t.Errorf("%s in %q\n got %q\nwant %q", expr, s, got, want)
			}
		}
	}
}

// TestPatternsDoNotHang runs expressions that take a backtracking matcher ages.
func TestPatternsDoNotHang(t *testing.T) {
	for _, expr := range []string{`(a+)+$`, `(a|a)*b`, `(?:a*)*b`, `a+b|a`, `\s+(?!\S)|a*a*a*a*a*c`, `(?=(a+)+b)a`} {
		p, err := compilePattern(expr)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		p.findAll(strings.Repeat("a", 3000)+" !", func(int, int) {})
		t.Logf("%s: %v", expr, time.Since(start))
	}
}

func TestUnsupportedExpressions(t *testing.T) {
	for _, expr := range []string{`a++`, `(?>a)`, `(?<!a)b`, `(?<name>a)`, `[a-z&&[^b]]`, `[[:alpha:]]`, `\h`, `(a)\1`,
		`a{,3}`, `[]a]`, `(?m:.)`, `(`, `\p{Foo}`, `a{2000}`, `(?:a?b?){300}`, `[a\`} {
		if p, err := compilePattern(expr); err == nil {
			t.Errorf("%s: compiled to %v", expr, p.prog)
		}
	}
}
