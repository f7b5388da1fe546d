package safety_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/safety"
)

// A mistake in a policy is refused with its line and its field: a rule that is not understood holds nothing back.
func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		"defaults: {}":                                                    "line 1: defaults: not known; want abuse, block_lists, classifiers, default,",
		"default:\n  hat: {}":                                             "line 2: default.hat: not known; want hate,",
		"default:\n  hate: {input: deny}":                                 `line 2: default.hate.input: "deny"; want allow, flag, redact, block`,
		"default:\n  hate:\n    threshold: 2":                             `line 3: default.hate.threshold: "2"; want a number of 0 to 1`,
		"default:\n  hate:\n    threshold: .nan":                          "want a number of 0 to 1",
		"default:\n  hate: block":                                         "line 2: default.hate: want names with values",
		"default: {hate: {}, hate: {}}":                                   "line 1: default.hate: given twice",
		"a: &x {}\ndefault: *x":                                           "line 1: a: an anchor or alias",
		"default: {personal_data_kinds: [mail]}":                          `line 1: default.personal_data_kinds[0]: "mail"; want email,`,
		"default: {phone_regions: [DE, XX]}":                              `line 1: default.phone_regions[1]: "XX"; want the two letters`,
		"default: {phone_regions: DE}":                                    "line 1: default.phone_regions: want a list",
		"block_lists:\n- {category: hate}":                                "line 2: block_lists[0]: want category and terms",
		"block_lists:\n- category: hate\n  terms: [ok, '...']":            "line 3: block_lists[0].terms[1]: no letters",
		"tenants: {a: {hate: {output: no}}}":                              "tenants.a.hate.output",
		"tenants:\n  '': {}":                                              "line 2: tenants.: a tenant's name of 0 bytes",
		"classifiers: [{kind: sound}]":                                    `classifiers[0].kind: "sound"; want text, image`,
		"classifiers:\n- {kind: text, folder: a}":                         "line 2: classifiers[0]: want kind, folder and labels",
		"classifiers:\n- {kind: text, folder: a, labels: {toxic: nasty}}": "classifiers[0].labels.toxic",
		"[]":                           "line 1: the file: want names with values",
		"default: {}\n---\n{}":         "more than one document",
		"default: {health_notice: ''}": "0 bytes; want 1 to",
		strings.Repeat(" ", 5<<20):     "want at most",
	} {
		if _, err := safety.Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, want %s", text, err, want)
		}
	}
}

// A tenant has the default's rules but for those of its own, wherever the default stands in the file.
func TestTenants(t *testing.T) {
	p, err := safety.Parse([]byte(`
tenants:
  clinic: {health: {input: allow}, personal_data: {threshold: 0.9}}
default:
  health: {input: flag}
  personal_data: {input: redact}
block_lists:
- {category: spam, score: 0.9, terms: [Zaubertrank]}
`))
	if err != nil {
		t.Fatal(err)
	}
	clinic, other := p.Of("clinic"), p.Of("other")
	if clinic.Acts(safety.Health, safety.Input) || !other.Acts(safety.Health, safety.Input) ||
		!clinic.Acts(safety.PersonalData, safety.Input) {
		t.Error("the rules are not those of the file")
	}
	if a, b := clinic.Action(safety.PersonalData, safety.Input, 0.8), other.Action(safety.PersonalData, safety.Input,
		0.8); a != safety.Allow || b != safety.Redact {
		t.Errorf("the thresholds give %v and %v", a, b)
	}
	if c := safety.Default().Of("x").Check(safety.Input, "kill all jews, bob@example.com"); len(c.Findings) != 0 ||
		c.Text() == "" {
		t.Error("a policy that says nothing does something")
	}
}

// A policy follows its file, and stays as it was where that makes no sense.
func TestOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := safety.Open(path, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a file that is not there is a policy")
	}
	write("default: {hate: {input: block}}")
	f, again, err := safety.Open(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		text string
		want bool
	}{{"default: {hate: {input: allow}}", false}, {"default: {hate: block}", false},
		{"default: {hate: {input: flag}}", true}} {
		write(c.text)
		_ = again.Reload()
		if got := f.Policy().Of("").Acts(safety.Hate, safety.Input); got != c.want {
			t.Errorf("after %s: %v", c.text, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("default:\n  hate: {input: block, threshold: 0.5}\nblock_lists:\n- {category: spam, terms: [a b]}\n")
	f.Add("tenants: {a: {phone_regions: [DE]}}\nclassifiers: [{kind: text, folder: x, labels: {a: hate}}]")
	f.Fuzz(func(t *testing.T, text string) {
		if p, err := safety.Parse([]byte(text)); err == nil {
			p.Of("a").Check(safety.Input, text)
		}
	})
}
