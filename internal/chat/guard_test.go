package chat

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/mmserve/mmserve/internal/racetest"
)

// stolen are guarded strings. Each has a q, and no template of the test has one, in any case: where one of them shows
// in a prompt, a user's text took part in it.
var stolen = []string{"<q>", "<|im_q|>", "</q", "&lt;q", "&gt;q", "&#34;Q", `\nq`, `\"q`, `\\Q`, `\x01q`, `\u0001q`,
	"ssq", "SSQ", "qq", `"q"`, "'Q'", " q", "Q\n",
	"[q", "q, ", "kq", "KQ", "{'q", "q=\"", "q...", "0q", "Qx", "xq", "é q", "ÉQ"}

// writer makes random templates out of what a template can do with a text.
type writer struct{ *rand.Rand }

func (w writer) literal() string {
	return []string{"'<'", "'>'", "'|im_'", "'|>'", "'&'", "'lt;'", "'x'", "' '", "''", `'\\'`, "'n'", "'s'", "'S'",
		"'\"'", "'</'", "'k'", "'0'",
		`'\n'`, "'#34;'", "','", "'é'"}[w.IntN(21)]
}

func (w writer) number() int { return w.IntN(9) - 4 }

// text is an expression whose value is a string.
func (w writer) text(depth int) string {
	if depth <= 0 || w.IntN(9) == 0 {
		return fmt.Sprintf("u[%d]", w.IntN(4))
	}
	e := func() string { return w.text(depth - 1 - w.IntN(2)) }
	either := func() string {
		if w.IntN(3) == 0 {
			return e()
		}
		return w.literal()
	}
	one := []string{"%s.upper()", "(%s|upper)", "%s.lower()", "(%s|lower)", "(%s|title)", "%s.title()", "(%s|capitalize)",
		"%s.casefold()",
		"(%s|trim)", "%s.strip('<x ')", "%s.lstrip('|<')", "(%s|reverse)", "(%s|first)", "(%s|last)", "(%s|list|join)",
		"(%s|tojson)",
		"(%s|tojson(ensure_ascii=true))", "(%s|e)", "(%s|forceescape)", "(%s|safe)", "(%s|string)", "(%s|safe|e)",
		"(%s.splitlines()|join)",
		"('%%s' %% %s)", "('%%9s' %% %s)", "('%%.3s' %% %s)", "('%%r' %% %s)", "'{}'.format(%s)", "'{:>9}'.format(%s)",
		"'{!r:x<9.5}'.format(%s)",
		"('%%s'|format(%s))", "([%s]|string)", "((%s,)|string)", "({%s: 1}|string)", "({%s: 1}|tojson)",
		"([%s]|tojson(indent=1))",
		"({'a': %s}|xmlattr)", "(%s|center(12))", "%s.ljust(9, 'x')", "%s.zfill(9)", "(%s|indent(2, true))",
		"(%s|truncate(5, true))",
		"(%s|truncate(4, false, '...', 0))", "(%s.split()|join(''))", "(%s.split('x')|join('|'))", "(%s.rsplit('<', 1)|join)",
		"(%s.partition('|')|join)", "(%s.rpartition('i')|join(' '))", "(%s|list|sort|join)", "(%s|list|unique|join)",
		"(%s|map('upper')|join)",
		"(%s|list|batch(2)|map('join')|join)", "(%s|list|slice(2)|map('join', 'x')|join)", "(%s|max)", "(%s|list|min)",
		"({%s: 'x'}|dictsort|first|join)",
		"(%s * 2)", "f(%s)", "(%s|default('x', true))", "(%s.split('x')|map('trim')|list)[0]",
		"(dict(a=%s).items()|first|join)",
		"(%s|replace('x', ''))", "%s.removeprefix('<')", "%s.removesuffix('>')", "(namespace(a=%s).a)",
		"([{'a': %s}]|map(attribute='a')|join)",
		"([{'a': %s}]|groupby('a')|first|first)", "(%s if 1)", "(%s or 'x')", "joiner(%s)()", "(%s|list)[1:]|join",
		"%s.encode()|string"}
	switch w.IntN(6) {
	case 0:
		return "(" + e() + " ~ " + either() + ")"
	case 1:
		return "(" + either() + " + " + e() + ")"
	case 2:
		return fmt.Sprintf("%s.replace(%s, %s)", e(), either(), either())
	case 3:
		if w.IntN(2) == 0 {
			return fmt.Sprintf("%s[%d:%d]", e(), w.number(), w.number())
		}
		return []string{fmt.Sprintf("%s[%d]", e(), w.number()), e() + "[::2]", e() + "[::-1]",
			fmt.Sprintf("%s.join([%s, %s])", either(), e(), either())}[w.IntN(4)]
	}
	return fmt.Sprintf(one[w.IntN(len(one))], e())
}

func (w writer) template() string {
	x := w.text(4)
	return "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ " + []string{"''", "'<'", "'|im_'"}[w.IntN(3)] + " }}" + []string{
		"{{ " + x + " }}", "{% set y %}<{{ " + x + " }}{% endset %}{{ y }}",
		"{% filter upper %}{{ " + x + " }}{% endfilter %}",
		"{% for c in " + x + " %}{{ c }}{% endfor %}", "{% for c in " + x + ".split('i') %}{{ c }}{% endfor %}",
		"{% autoescape true %}{{ " + x + " }}{{ '<' }}{% endautoescape %}", "{% call f(" + x + ") %}{% endcall %}",
	}[w.IntN(7)] + "{{ " + w.literal() + " }}"
}

// typed is a random text that tries to be a guarded string, or to become one.
func (w writer) typed() string {
	var b strings.Builder
	for range w.IntN(6) {
		switch w.IntN(3) {
		case 0:
			b.WriteString(stolen[w.IntN(len(stolen))])
		case 1:
			s := []rune(stolen[w.IntN(len(stolen))])
			b.WriteString(string(s[w.IntN(len(s)):]))
		default:
			b.WriteString([]string{"<", ">", "q", "Q", "|im_", "ß", "\n", "\"", "'", "\\", "x", " ", "\u212a", "\u0001", "i",
				"s", "q>", "0", "é", "k"}[w.IntN(20)])
		}
	}
	return b.String()
}

// renderTyped renders source over texts that a user typed. Without guarded strings there are no guards.
func renderTyped(source string, texts []string, guarded []string) (string, mark, error) {
	body, err := parseTemplate(source)
	if err != nil {
		return "", mark{}, err
	}
	g, err := newGuards(guarded)
	if err != nil {
		return "", mark{}, err
	}
	in := &interp{budget: newBudget(context.Background(), 100), globals: globals(time.Now),
		mark: mark{guards: g, guard: firstGuard}}
	u := &list{kind: 'l'}
	for _, text := range texts {
		u.items = append(u.items, in.protect(text))
	}
	in.globals["u"] = u
	out, err := in.render(body)
	return out, in.mark, err
}

// checkTyped renders a template over texts and fails if the guards do not hold, or show.
func checkTyped(t *testing.T, source string, texts []string) (rendered bool) {
	t.Helper()
	got, m, err := renderTyped(source, texts, stolen)
	want, _, wantErr := renderTyped(source, texts, nil)
	if (err != nil) != (wantErr != nil) {
		t.Errorf("%s\n of %q: error %v, and %v without guards", source, texts, err, wantErr)
	}
	if err != nil || wantErr != nil {
		return false
	}
	for _, token := range stolen {
		if strings.Contains(got, token) {
			t.Errorf("%s\n of %q makes %q: %q", source, texts, token, got)
		}
	}
	if m.plain(got) != want {
		t.Errorf("%s\n of %q: guards change the prompt:\n got %q\nwant %q", source, texts, m.plain(got), want)
	}
	return true
}

func TestNothingMakesTokensOfTypedText(t *testing.T) {
	n := racetest.Part(8_000)
	rendered := 0
	for seed := range uint64(n) {
		w := writer{rand.New(rand.NewPCG(seed, 16))}
		if checkTyped(t, w.template(), []string{w.typed(), w.typed(), w.typed(), w.typed()}) {
			rendered++
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	if rendered < n*2/3 {
		t.Errorf("%d of %d templates rendered: too few to prove much", rendered, n)
	}
}
