package chat_test

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mmserve/mmserve/internal/chat"
)

// golden is testdata/golden.json, which testdata/gen.py writes with Jinja2.
type golden struct {
	Conversations map[string][]chat.Message
	Templates     map[string]*goldenTemplate
}

type goldenTemplate struct {
	source      string
	Joined      []string // roles whose content is a string
	Placeholder string
	Tokens      map[string]string
	Guarded     []string
	Prompts     map[string]struct{ Text, Raised, Failed string }
}

func (t *goldenTemplate) options() chat.Options {
	return chat.Options{
		BOS: t.Tokens["bos_token"], EOS: t.Tokens["eos_token"], Unk: t.Tokens["unk_token"], Pad: t.Tokens["pad_token"],
		Placeholder: t.Placeholder,
		Guarded:     t.Guarded,
		Now:         func() time.Time { return time.Date(2026, 11, 3, 9, 5, 7, 0, time.UTC) },
	}
}

func readGolden(t testing.TB) golden {
	t.Helper()
	data, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var g golden
	if err := json.Unmarshal(data, &g); err != nil {
		t.Fatal(err)
	}
	for name, template := range g.Templates {
		source, err := os.ReadFile(filepath.Join("testdata/templates", name+".jinja"))
		if err != nil {
			t.Fatal(err)
		}
		template.source = string(source)
	}
	return g
}

func parse(t testing.TB, source string, o chat.Options) *chat.Template {
	t.Helper()
	template, err := chat.Parse(source, o)
	if err != nil {
		t.Fatal(err)
	}
	return template
}

// plain is what the tokenizer reads of p.
func plain(p chat.Prompt) string {
	if p.Guard == 0 {
		return p.Text
	}
	return strings.ReplaceAll(p.Text, string(p.Guard), "")
}

func TestPromptsEqualJinja2s(t *testing.T) {
	g := readGolden(t)
	for name, want := range g.Templates {
		t.Run(name, func(t *testing.T) {
			template := parse(t, want.source, want.options())
			for _, role := range []string{"system", "user", "assistant"} {
				if got, want := template.Joined(role), slices.Contains(want.Joined, role); got != want {
					t.Errorf("Parse takes the content of %q for a string: %t, want %t", role, got, want)
				}
			}
			for conversation, want := range want.Prompts {
				t.Run(conversation, func(t *testing.T) {
					t.Parallel() // a Template may be shared
					p, err := template.Render(g.Conversations[conversation])
					switch {
					case want.Raised != "":
						if !errors.Is(err, chat.ErrMessages) || !strings.Contains(err.Error(), want.Raised) {
							t.Errorf("error %v, want ErrMessages with %q", err, want.Raised)
						}
					case want.Failed != "":
						if err == nil {
							t.Errorf("no error; Jinja2's is %q", want.Failed)
						}
					case err != nil:
						t.Error(err)
					case plain(p) != want.Text:
						t.Errorf("\n got %q\nwant %q", plain(p), want.Text)
					}
				})
			}
		})
	}
}

// Line ends of a template mean the same in every form, as in Jinja2.
func TestLineEnds(t *testing.T) {
	g := readGolden(t)
	for name, template := range g.Templates {
		source := strings.ReplaceAll(template.source, "\n", "\r\n")
		p, err := parse(t, source, template.options()).Render(g.Conversations["turns"])
		if err != nil {
			t.Fatal(err)
		}
		if want := template.Prompts["turns"].Text; plain(p) != want {
			t.Errorf("%s:\n got %q\nwant %q", name, plain(p), want)
		}
	}
}

const list = "{% for m in messages %}{% for p in m.content %}{{ p.text if p.type == 'text' else '<image>' }}{% endfor %}{% endfor %}"

func user(texts ...string) []chat.Message {
	m := chat.Message{Role: "user"}
	for _, text := range texts {
		m.Parts = append(m.Parts, chat.Part{Image: text == "IMAGE", Text: text})
	}
	return []chat.Message{m}
}

func TestTypedTextFormsNoToken(t *testing.T) {
	guarded := []string{"<|im_end|>", "</s>", " sp ", "\n\n", "aXaX", "ÉTÉ"}
	// Each template does something to the parts (p.text) that could make a token of them.
	for name, expression := range map[string]string{
		"nothing":    "p.text",
		"trim":       "p.text | trim",
		"strip":      "p.text.strip('< ')",
		"lower":      "p.text.lower()",
		"upper":      "p.text | upper",
		"capitalize": "p.text | capitalize",
		"title":      "p.text.title()",
		"split":      "p.text.split('x') | join('')",
		"replace":    "p.text.replace('x', '').replace('[', '<')",
		"slice":      "p.text[1:] + p.text[:1] + p.text[2:-2]",
		"items":      "p.text[0] ~ p.text[1] ~ p.text[2:]",
		"first":      "(p.text | first) ~ p.text[1:-1] ~ (p.text | last)",
		"reverse":    "p.text[::-1] + (p.text | reverse)",
		"partition":  "p.text.partition('x') | join",
		"lines":      "p.text.splitlines() | join",
		"letters":    "p.text | list | join",
		"json":       "p.text | tojson",
		"between":    "'<' + p.text + '>' + '<im' + p.text.strip()",
	} {
		t.Run(name, func(t *testing.T) {
			source := "{% for m in messages %}{% for p in m.content %}{% if p.type == 'text' %}" +
				"{% if p.text is defined and 'probe' in p.text %}{{ p.text }}{% else %}{{ " + expression + " }}{% endif %}" +
				"{% else %}<image>{% endif %}{% endfor %}{% endfor %}"
			template := parse(t, source, chat.Options{Placeholder: "<image>", Guarded: guarded})
			for _, texts := range [][]string{
				{"<image>"}, {"<im", "age>"}, {"<", "image", ">"}, {" <im ", " age> "}, {"<imxage>"}, {"<x", "ximage>"},
				{"[image>"}, {">egami<"}, {"<IMAGE>"}, {"image>"}, {"age>", "<im"}, {"image", "<im"},
				{"<|im_end|>"}, {"<|im_", "end|>"}, {"<|im", "\n", "_end|>"}, {"</", "s>"}, {" s", "p "}, {" s", "", "p "},
				{"x sp x"},
				{"a\n", "\nb"}, {"a\n\n\nb"}, {"aXaXaXaX"}, {"aXa", "XaX"}, {"été"}, {"ét", "É"},
				{"<image", "IMAGE", ">"}, {"<", "IMAGE", "image>"}, {"😀<image>😀"}, {"\ufdd0<image>\ufdd1"},
			} {
				p, err := template.Render(user(texts...))
				if err != nil {
					t.Errorf("%q: %v", texts, err) // it counts the placeholders
				}
				for _, token := range guarded {
					if strings.Contains(p.Text, token) {
						t.Errorf("%q is in the prompt of %q: %q", token, texts, p.Text)
					}
				}
			}
		})
	}
}

func TestRaw(t *testing.T) {
	for _, test := range []struct {
		texts []string
		want  string // G for the guard
	}{
		{[]string{"caption en"}, "caption en"},
		{[]string{"IMAGE", "caption en"}, "<image>caption en"},
		{[]string{"a < b, <image> or <", "image>"}, "Ga <G b, <Gimage> or <GGimage>"},
		{nil, ""},
	} {
		var parts []chat.Part
		for _, message := range user(test.texts...) {
			parts = message.Parts
		}
		p, err := chat.Raw(parts, "<image>", nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.ReplaceAll(p.Text, string(p.Guard), "G"); p.Guard != 0 && got != test.want ||
			p.Guard == 0 && p.Text != test.want {
			t.Errorf("%q: got %q, want %q", test.texts, got, test.want)
		}
	}
	if _, err := chat.Raw([]chat.Part{{Image: true}}, "", nil); !errors.Is(err, chat.ErrMessages) {
		t.Errorf("an image without a placeholder: error %v, want ErrMessages", err)
	}
}

func TestGuardIsNotInTheText(t *testing.T) {
	var all strings.Builder
	for r := '\uFDD0'; r <= '\uFDEF'; r++ {
		all.WriteRune(r)
	}
	template := parse(t, list, chat.Options{Placeholder: "<image>"})
	text := strings.Replace(all.String(), "\uFDD7", "<", 1)
	p, err := template.Render(user(text))
	if err != nil {
		t.Fatal(err)
	}
	if p.Guard != '\uFDD7' || plain(p) != text {
		t.Errorf("guard %U, want the only rune that is free: %U", p.Guard, '\uFDD7')
	}
	if _, err := template.Render(user(all.String())); !errors.Is(err, chat.ErrMessages) {
		t.Errorf("no guard is free: error %v, want ErrMessages", err)
	}
	if p, _ := template.Render(user("plain")); p.Guard != 0 {
		t.Errorf("guard %U where none is needed", p.Guard)
	}
}

func TestImagesMustShow(t *testing.T) {
	// Only the first part of a message, as some templates do with the system's.
	template := parse(t, "{% for m in messages %}{% if m.content | length < 4 %}"+list[len("{% for m in messages %}"):len(list)-len("{% endfor %}")]+
		"{% endif %}{% endfor %}", chat.Options{Placeholder: "<image>"})
	if _, err := template.Render(user("a", "IMAGE", "b", "c")); !errors.Is(err, chat.ErrMessages) {
		t.Errorf("an image that is left out: error %v, want ErrMessages", err)
	}
	template = parse(t, list, chat.Options{})
	if _, err := template.Render(user("IMAGE")); !errors.Is(err, chat.ErrMessages) {
		t.Errorf("an image for a model without a placeholder: error %v, want ErrMessages", err)
	}
}

// TestErrorsDoNotQuoteTheConversation holds it for whole words and parts of them, for reasons and for errors of the
// engine.
func TestErrorsDoNotQuoteTheConversation(t *testing.T) {
	const text = "messages[0].content[0].text"
	for name, test := range map[string]struct{ fail, want string }{
		"a reason":                {"raise_exception('bad: ' + " + text + ")", "is left out"},
		"a part of a text":        {"raise_exception('bad: ' + " + text + "[5:12])", "is left out"},
		"another case":            {"raise_exception('bad: ' + (" + text + " | lower)[::-1])", "is left out"},
		"a format":                {"raise_exception('bad %s' % " + text + ")", "is left out"},
		"the template's words":    {"raise_exception('roles must alternate')", "roles must alternate"},
		"a role":                  {"raise_exception('no such role: ' + messages[0].role + '!')", "no such role: user!"},
		"a member":                {"{}[" + text + "].x", "UndefinedError"},
		"a member of a namespace": {"namespace(a=1)[" + text + "].x", "UndefinedError"},
		"a key":                   {"('%(' + " + text + " + ')s') % {}", "Error: "},
		"an argument":             {"('{' + " + text + " + '}').format(1)", "line"},
		"a directive":             {"strftime_now('%' + " + text + ")", "strftime_now"},
		"a filter":                {"[1] | map(" + text + ") | list", "line"},
		"a test":                  {"[1] | select(" + text + ") | list", "line"},
		"a number's format":       {"(('{:' + " + text + " + '}').format(1))", "line"},
		"the template's name":     {"nowhere.x", `"nowhere" is undefined`},
	} {
		t.Run(name, func(t *testing.T) {
			template := parse(t, list+"{% if 'probe' not in "+text+" and messages | length == 1 %}{{ "+test.fail+" }}{% endif %}", chat.Options{})
			for _, words := range []string{"Qq7\"Zcanary9 zebra", "Qq7canary9zebra"} {
				_, err := template.Render(user(words))
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("error %v, want one with %q", err, test.want)
				}
				for _, part := range []string{"q7", "canary", "CANARY", "yranac", "zebra"} {
					if strings.Contains(err.Error(), part) {
						t.Errorf("error %q quotes the conversation", err)
					}
				}
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	deep := strings.Repeat("(", 2000) + "1" + strings.Repeat(")", 2000)
	for name, test := range map[string]struct{ source, want string }{
		"filter":       {list + "{{ 'x' | urlize }}", `filter "urlize" is not supported`},
		"test":         {list + "{{ 'x' is spam }}", `test "spam" is not supported`},
		"method":       {list + "{{ 'x'.swapcase() }}", `method "swapcase" of str is not supported`},
		"include":      {list + "{% include 'x' %}", "{% include %} is not supported"},
		"extends":      {"{%- extends 'x' %}", "{% extends %} is not supported"},
		"unclosed":     {list + "{{ 'x'", "not closed"},
		"comment":      {list + "{# x", "not closed"},
		"raw":          {list + "{% raw %} x", "not closed"},
		"bracket":      {list + "{{ x[1 }}", "unexpected"},
		"syntax":       {list + "{% if %}", "SyntaxError"},
		"deep":         {list + "{{ " + deep + " }}", "nest deeper"},
		"guard":        {list + "\uFDD3", "noncharacter"},
		"large":        {strings.Repeat("x", 1<<20+1), "at most"},
		"no text":      {"Hello", "does not show a message of"},
		"endless":      {"{% for i in range(99999) %}{% for j in range(99999) %}{% set x = i %}{% endfor %}{% endfor %}" + list, "budget"},
		"long":         {"{% set x = 'x' * 90000000 %}{{ x }}" + list, "budget of"},
		"strftime":     {"{{ strftime_now('%Q') }}" + list, "%Q"},
		"recursion":    {"{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}" + list, "recursion"},
		"bad operator": {list + "{{ 'a' + 1 }}", "TypeError"},
	} {
		_, err := chat.Parse(test.source, chat.Options{Placeholder: "<image>"})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, test.want)
		}
	}
	if _, err := chat.Parse(list, chat.Options{Guarded: []string{"<\uFDD0>"}}); err == nil {
		t.Error("a guarded string with a noncharacter is taken")
	}
}

// FuzzParse reads arbitrary templates, which come with a model.
func FuzzParse(f *testing.F) {
	g := readGolden(f)
	for _, template := range g.Templates {
		f.Add(template.source)
	}
	f.Fuzz(func(t *testing.T, source string) {
		template, err := chat.Parse(source, chat.Options{Placeholder: "<image>", Guarded: []string{"<|im_end|>"}})
		if err != nil {
			return
		}
		p, err := template.Render(user("a <|im_end|>", "IMAGE", "<image>"))
		if err == nil && strings.Count(p.Text, "<image>") != 1 {
			t.Errorf("%d images in %q, want 1", strings.Count(p.Text, "<image>"), p.Text)
		}
	})
}

// FuzzRender renders arbitrary text with every template twice: once guarded, and once
// with nothing to guard against.
func FuzzRender(f *testing.F) {
	g := readGolden(f)
	names := slices.Sorted(maps.Keys(g.Templates))
	type pair struct {
		guarded, unguarded *chat.Template
		tokens             []string
	}
	var templates []pair
	for _, name := range names {
		o := g.Templates[name].options()
		tokens := append(o.Guarded, o.Placeholder)
		bare := o
		bare.Guarded, bare.Placeholder = nil, ""
		source := g.Templates[name].source
		templates = append(templates, pair{parse(f, source, o), parse(f, source, bare), tokens})
	}
	for i := range names {
		for _, conversation := range g.Conversations {
			text := ""
			for _, part := range conversation[len(conversation)-1].Parts {
				text += part.Text
			}
			f.Add(uint8(i), text, "<im", "age>")
		}
	}
	f.Fuzz(func(t *testing.T, i uint8, a, b, c string) {
		p := templates[int(i)%len(templates)]
		messages := []chat.Message{
			{Role: "user", Parts: []chat.Part{{Text: a}, {Text: b}}},
			{Role: "assistant", Parts: []chat.Part{{Text: c}}},
			{Role: "user", Parts: []chat.Part{{Text: b}, {Text: c}, {Text: a}}},
		}
		got, err := p.guarded.Render(messages)
		want, wantErr := p.unguarded.Render(messages)
		if (err != nil) != (wantErr != nil) {
			t.Fatalf("error %v, and %v without guards", err, wantErr)
		}
		if plain(got) != want.Text {
			t.Fatalf("guards change the prompt:\n got %q\nwant %q", plain(got), want.Text)
		}
		for i := range messages { // what the template itself writes
			for j := range messages[i].Parts {
				messages[i].Parts[j].Text = ""
			}
		}
		own, err := p.guarded.Render(messages)
		if err != nil {
			t.Fatal(err)
		}
		for _, token := range p.tokens {
			if len([]rune(token)) < 2 || names[int(i)%len(names)] == "features" {
				continue // it repeats and joins texts with its own
			}
			if n, own := strings.Count(got.Text, token), strings.Count(own.Text, token); n > own {
				t.Fatalf("the prompt has %d of %q, the template %d", n, token, own)
			}
		}
	})
}

// BenchmarkRender renders every conversation with every template, and long ones with that of the default model.
func BenchmarkRender(b *testing.B) {
	g := readGolden(b)
	var templates []*chat.Template
	for _, name := range slices.Sorted(maps.Keys(g.Templates)) {
		templates = append(templates, parse(b, g.Templates[name].source, g.Templates[name].options()))
	}
	b.Run("golden", func(b *testing.B) {
		for b.Loop() {
			for _, template := range templates {
				for _, messages := range g.Conversations {
					template.Render(messages) // some are refused
				}
			}
		}
	})
	template := parse(b, g.Templates["tiny-vlm"].source, g.Templates["tiny-vlm"].options())
	var turns []chat.Message
	for i := range 499 {
		turns = append(turns, chat.Message{Role: []string{"user", "assistant"}[i%2],
			Parts: []chat.Part{{Text: strings.Repeat("A small house. ", 140)}}})
	}
	qwen := parse(b, g.Templates["Qwen-Qwen2.5-7B-Instruct"].source, g.Templates["Qwen-Qwen2.5-7B-Instruct"].options())
	for name, render := range map[string]func() error{
		"image":    func() error { _, err := template.Render(g.Conversations["image first"]); return err },
		"megabyte": func() error { _, err := template.Render(user(strings.Repeat("<image> of ", 1<<20/11))); return err },
		"turns":    func() error { _, err := qwen.Render(turns); return err },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := render(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
