package chat

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/mmserve/mmserve/internal/racetest"
)

// snippets are short templates with what Jinja2 makes of them; see testdata/SOURCES.md.
type snippets struct {
	Messages []map[string]string
	BOS      string `json:"bos_token"`
	EOS      string `json:"eos_token"`
	Cases    map[string]struct {
		Template string
		Output   *string
		Error    string
	}
}

// renderSnippet renders a template over messages whose contents are strings.
func renderSnippet(source string, s snippets) (string, error) {
	body, err := parseTemplate(source)
	if err != nil {
		return "", err
	}
	in := &interp{budget: newBudget(context.Background(), 100), globals: globals(time.Now)}
	in.guard = firstGuard
	var messages []any
	for _, m := range s.Messages {
		messages = append(messages, dictOf("role", m["role"], "content", m["content"]))
	}
	in.globals["messages"] = &list{messages, 'l'}
	in.globals["bos_token"], in.globals["eos_token"], in.globals["add_generation_prompt"] = s.BOS, s.EOS, true
	return in.render(body)
}

func TestSnippetsEqualJinja2s(t *testing.T) {
	// How many of a file's templates may be refused by name: powers that are complex or that no one rounds alike.
	for file, most := range map[string]int{"snippets.json": 0, "generated.json": 8} {
		data, err := os.ReadFile("testdata/jinja2/" + file)
		if err != nil {
			t.Fatal(err)
		}
		var s snippets
		if err := json.Unmarshal(data, &s); err != nil {
			t.Fatal(err)
		}
		refused := 0
		for name, c := range s.Cases {
			got, err := renderSnippet(c.Template, s)
			if c.Output != nil && err != nil && strings.Contains(err.Error(), "not supported") {
				refused++
				t.Logf("%s: %s: %v", name, c.Template, err)
			}
			switch {
			case c.Output == nil && err == nil:
				t.Errorf("%s: %s: got %q, want %s", name, c.Template, got, c.Error)
			case c.Output != nil && err != nil && !strings.Contains(err.Error(), "not supported"):
				t.Errorf("%s: %s: %v, want %q", name, c.Template, err, *c.Output)
			case c.Output != nil && err == nil && got != *c.Output:
				t.Errorf("%s: %s:\n got %q\nwant %q", name, c.Template, got, *c.Output)
			}
		}
		if refused > most {
			t.Errorf("%s: %d of %d templates are refused, want at most %d", file, refused, len(s.Cases), most)
		}
	}
}

// The templates of testdata/jinja2/own differ between Jinja2 and other engines in silence.
func TestOwnTemplatesEqualJinja2s(t *testing.T) {
	data, err := os.ReadFile("testdata/jinja2/own/expected.json")
	if err != nil {
		t.Fatal(err)
	}
	var want snippets
	if err := json.Unmarshal(data, &want); err != nil {
		t.Fatal(err)
	}
	var messages []Message
	for _, m := range want.Messages {
		messages = append(messages, Message{Role: m["role"], Parts: []Part{{Text: m["content"]}}})
	}
	for name, c := range want.Cases {
		source, err := os.ReadFile("testdata/jinja2/own/" + name)
		if err != nil {
			t.Fatal(err)
		}
		template, err := Parse(string(source), Options{BOS: want.BOS, EOS: want.EOS, Guarded: []string{"<s>", "</s>"}})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		p, err := template.Render(messages)
		if got := (mark{guard: p.Guard}).plain(p.Text); err != nil || got != *c.Output {
			t.Errorf("%s: %v\n got %q\nwant %q", name, err, got, *c.Output)
		}
	}
}

// hostile are templates that want all memory or time. Each must end soon, with an error.
var hostile = map[string]string{
	"27 doublings": "{% set s = 'xxxxxxxxxxxxxxxx' %}" + strings.Repeat("{% set s = s ~ s %}", 27),
	"40 doublings": "{% set s = 'x' %}" + strings.Repeat("{% set s = s ~ s %}", 40),
	"plus":         "{% set s = 'x' %}" + strings.Repeat("{% set s = s + s %}", 40),
	"lists":        "{% set s = [1] %}" + strings.Repeat("{% set s = s + s %}", 40),
	"nested":       "{% set s = [1] %}" + strings.Repeat("{% set s = [s, s] %}", 40) + "{{ s }}",
	"equal": "{% set s = [1] %}{% set t = [1] %}" + strings.Repeat("{% set s = [s, s] %}{% set t = [t, t] %}",
		40) + "{{ s == t }}",
	"deep":           "{% set ns = namespace(s=[]) %}{% for i in range(100000) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s }}",
	"json":           "{% set s = [1] %}" + strings.Repeat("{% set s = [s, s] %}", 40) + "{{ s | tojson }}",
	"json indent":    "{{ [1] | tojson(indent=1000000000) }}",
	"replace":        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(50) %}{% set ns.s = ns.s.replace('x', 'xxxxxxxx') %}{% endfor %}",
	"replace filter": "{% set s = 'x' * 9999 %}{% for i in range(50) %}{{ s | replace('x', s) }}{% endfor %}",
	"ranges":         "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
	"ranges of work": "{% set s = 'x' * 9999999 %}{% for i in range(99999) %}{% for j in range(99) %}{% if s == s ~ '' %}{% endif %}{% endfor %}{% endfor %}",
	"indent":         "{{ 'x\ny' | indent(1000000000) }}",
	"indent rows":    "{{ ('x\n' * 9999) | indent(99999) }}",
	"times":          "{{ 'x' * 10000000000 }}",
	"list times":     "{{ [1] * 10000000000 }}",
	"join":           "{{ ([1] * 99999) | join('x' * 99999) }}",
	"method join":    "{{ ('x' * 99999).join('y' * 99999) }}",
	"center":         "{{ 'x' | center(10000000000) }}",
	"ljust":          "{{ 'x'.ljust(10000000000) }}",
	"zfill":          "{{ 'x'.zfill(10000000000) }}",
	"percent":        "{{ '%999999999s' % 'x' }}",
	"percent float":  "{{ '%.999999999f' % 1.5 }}",
	"format":         "{{ '{:999999999}'.format('x') }}",
	"power":          "{{ 9 ** 9 ** 9 ** 9 ** 9 }}",
	"power by steps": "{% set ns = namespace(n=9) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
	"slices":         "{{ [1] | slice(1000000000) | list }}",
	"batch":          "{{ [1] | batch(1000000000, 'x') | list }}",
	"letters":        "{{ ('x' * 9999999) | list | length }}",
	"split":          "{{ ('x' * 9999999).split('x') | length }}",
	"macros":         "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
	"macro tree":     "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(50) }}",
	"loop":           "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
	"call":           "{% macro f() %}{{ caller() }}{% endmacro %}{% macro g() %}{% call f() %}{{ g() }}{% endcall %}{% endmacro %}{{ g() }}",
	"escape":         "{% set ns = namespace(s='&' * 99) %}{% for i in range(60) %}{% set ns.s = ns.s | forceescape | string | replace('&', '&&&&') %}{% endfor %}",
	"minus":          "{{ " + strings.Repeat("-", 200<<10) + "1 }}",
	"more minus":     "{{ " + strings.Repeat("-", 900<<10) + "1 }}",
	"not":            "{{ " + strings.Repeat("not ", 40<<10) + "1 }}",
	"brackets":       "{{ " + strings.Repeat("(", 50<<10) + strings.Repeat(")", 50<<10) + " }}",
	"sum":            "{{ 1" + strings.Repeat("+1", 29<<10) + " }}",
	"attributes":     "{{ messages" + strings.Repeat(".a", 29<<10) + " }}",
	"filters":        "{{ 'a'" + strings.Repeat("|e", 29<<10) + " }}",
	"conditions":     "{{ 1" + strings.Repeat(" if 1", 29<<10) + " }}",
	"blocks":         strings.Repeat("{% if 1 %}", 14<<10) + strings.Repeat("{% endif %}", 4<<10),
	"elifs of ifs":   strings.Repeat("{% for x in [1] %}", 500) + strings.Repeat("{% endfor %}", 500),
}

func TestHostileTemplatesEnd(t *testing.T) {
	if racetest.Enabled {
		t.Skip("one goroutine runs; make test runs this without the race detector, too")
	}
	for name, source := range hostile {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := time.Now()
		_, err := renderSnippet(source, snippets{})
		runtime.ReadMemStats(&after)
		if err == nil || !strings.Contains(err.Error(), "line ") {
			t.Errorf("%s: error %v, want one with a line", name, err)
		}
		if made := after.TotalAlloc - before.TotalAlloc; made > 1<<30 {
			t.Errorf("%s: allocated %d bytes in all", name, made)
		}
		t.Logf("%s: %v, %d kB: %.150v", name, time.Since(start), (after.TotalAlloc-before.TotalAlloc)>>10, err)
	}
}

func TestRenderEndsWithItsCaller(t *testing.T) {
	template, err := Parse("{% for m in messages %}{{ m.content }}{% if 'go' == m.content %}{% for i in range(99999) %}{% for j in range(99999) %}"+
		"{% endfor %}{% endfor %}{% endif %}{% endfor %}", Options{})
	if err != nil {
		t.Fatal(err)
	}
	ask := []Message{{Role: "user", Parts: []Part{{Text: "go"}}}}
	if _, err := template.Render(ask); !errors.Is(err, ErrMessages) || !strings.Contains(err.Error(), "budget") {
		t.Errorf("error %v, want ErrMessages that names the budget", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := template.RenderContext(ctx, ask); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
}
