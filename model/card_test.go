package model_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"
	"unicode/utf8"

	"github.com/mmserve/mmserve/model"
)

func card(text string) *model.Card {
	return model.ReadCard(fstest.MapFS{"README.md": {Data: []byte(text)}})
}

// The embedded model's card says what it is, under which license, and what it does badly.
func TestEmbeddedCard(t *testing.T) {
	c := model.ReadCard(model.DefaultFiles())
	if c == nil || c.Problem != "" || c.License != "apache-2.0" || fmt.Sprint(c.Languages) != "[en]" ||
		len(c.Evaluations) != 1 ||
		c.Evaluations[0].Value != "0.995" || c.Truncated {
		t.Fatalf("the card is %+v", c)
	}
	if !strings.Contains(c.Limits, "Counts and digits") || strings.Contains(c.Limits, "#") {
		t.Errorf("its limits are %q", c.Limits)
	}
	for _, want := range []string{"# tiny-vlm", "## Data", "## Evaluation", "## Intended use"} {
		if !strings.Contains(c.Text, want) {
			t.Errorf("its text has no %q", want)
		}
	}
}

func TestCard(t *testing.T) {
	c := card("---\nlicense: other\nlicense_name: Some License\nlicense_link: https://example.com\nlanguage:\n- en\n- de\n" +
		"datasets: a/b\nbase_model: [x/y, z]\ntags: [1, two, {three: 4}, null]\nlimits: No medicine.\nwidget: {a: [1]}\n" +
		"model-index:\n- name: m\n  results:\n  - task: {type: vqa}\n    dataset: {name: DocVQA, type: docvqa}\n" +
		"    metrics: [{type: anls, value: 81.5}, {type: nothing}]\n---\n# Text\n\n## Limitations\nOther.\n")
	want := model.Card{
		License: "other", LicenseName: "Some License", LicenseLink: "https://example.com", Languages: []string{"en", "de"},
		Datasets: []string{"a/b"}, BaseModels: []string{"x/y", "z"}, Tags: []string{"1", "two"}, Limits: "No medicine.",
		Evaluations: []model.Evaluation{{Task: "vqa", Dataset: "DocVQA", Metric: "anls", Value: "81.5"}},
		Text:        "# Text\n\n## Limitations\nOther.\n",
	}
	if fmt.Sprintf("%+v", *c) != fmt.Sprintf("%+v", want) {
		t.Errorf("got  %+v\nwant %+v", *c, want)
	}
	if c := model.ReadCard(fstest.MapFS{}); c != nil {
		t.Errorf("without a file %+v", c)
	}
	c = card("# T\n\n## Uses\nA.\n\n### Out-of-Scope Use\nB.\n#### More\nC.\n### Else\nD.\n")
	if c.Limits != "B.\n#### More\nC." || c.Problem != "" {
		t.Errorf("limits %q, problem %q", c.Limits, c.Problem)
	}
}

// A card is a stranger's: what it says is bounded and clean, and none of it keeps a model from being opened.
func TestHostileCard(t *testing.T) {
	bomb := "---\na: &a [x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c <= 'z'; c++ {
		bomb += fmt.Sprintf("%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n", c, c, c-1, c-1, c-1, c-1, c-1, c-1, c-1, c-1)
	}
	for text, problem := range map[string]string{
		bomb + "license: mit\n---\ntext":                                                 "an alias",
		"---\nlicense: &l mit\nlanguage: *l\n---\ntext":                                  "an alias",
		"---\nlicense: [\n---\ntext":                                                     "front matter",
		"---\na: " + strings.Repeat("[", 5000) + "\n---\ntext":                           "front matter",
		"---\na: " + strings.Repeat("[", 100) + strings.Repeat("]", 100) + "\n---\ntext": "in each other",
		"---\na: [" + strings.Repeat("1,", 30000) + "]\n---\ntext":                       "values",
		"---\n" + strings.Repeat("# c\n", 20000) + "---\ntext":                           "front matter: 80000 bytes",
		"---\nlicense: mit\ntext":                                                        "no end",
		"---\nlicense: \xff\xfe\n---\ntext":                                              "front matter",
	} {
		c := card(text)
		if !strings.Contains(c.Problem, problem) || c.License != "" || !strings.HasSuffix(c.Text, "text") {
			t.Errorf("%.40q: problem %.80q, want %q; license %q, text %.20q", text, c.Problem, problem, c.License, c.Text)
		}
	}
	c := card("---\nlicense: \"m\\e[31mit\\0\"\nlanguage: [" + strings.Repeat("en,", 1000) + "]\n---\na\x1b[2Jb\u202ec\xffd\r\n" +
		strings.Repeat("ü", 300<<10))
	if c.License != "m[31mit" || len(c.Languages) != 64 || !strings.HasPrefix(c.Text, "a[2Jbc\ufffdd\n") || !c.Truncated {
		t.Errorf("license %q, %d languages, text %.20q", c.License, len(c.Languages), c.Text)
	}
	if n := len(c.Text); n > 256<<10 || n < 250<<10 || strings.Count(c.Text, "\ufffd") != 1 {
		t.Errorf("the text has %d bytes", n)
	}
	if n := testing.AllocsPerRun(3, func() { card(bomb + "---\n") }); n > 20000 {
		t.Errorf("a bomb takes %v allocations", n)
	}
}

func FuzzCard(f *testing.F) {
	f.Add("---\nlicense: mit\nlanguage: [en]\nmodel-index: [{results: [{metrics: [{value: 1}]}]}]\n---\n# T\n## Limits\nx")
	f.Add("---\na: &a [*a]\n---\n")
	f.Fuzz(func(t *testing.T, text string) {
		c := card(text)
		for _, s := range append(append(c.Tags, c.Languages...), c.License, c.Limits, c.Text, c.Problem) {
			if !utf8.ValidString(s) || strings.ContainsAny(s, "\x1b\x00\u009b\u202e") || len(s) > 256<<10 {
				t.Errorf("%q", s)
			}
		}
	})
}
