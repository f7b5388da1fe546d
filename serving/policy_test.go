package serving_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/safety"
	"github.com/mmserve/mmserve/serving"
	"github.com/mmserve/mmserve/serving/servingtest"
)

// A policy's stages keep the contract of stages, whatever they redact or end the answer for.
func TestPolicyStages(t *testing.T) {
	p, err := safety.Parse([]byte(`default: {personal_data: {output: redact}, hate: {output: block},
		violence: {output: redact}, spam: {output: flag}}`))
	if err != nil {
		t.Fatal(err)
	}
	servingtest.TestStage(t, func() serving.Stage { return serving.NewPolicyStage(p.Of("")) },
		"", "Plain text.", "mail bob@example.com, now", "+49 170 1234567 and 4111 1111 1111 1111.",
		"we k1ll all jews ok", "i will killll you and x@y.org", "a\xff@b.de \xe2\x82", "12 34 x 56 DE89 3704 0044 0532 0130 00")
	servingtest.TestStage(t, func() serving.Stage { return serving.NewNoticeStage("See a doctor.") }, "", "It hurts.")
}

// shouts is a classifier to which capitals are hate. It fails at a word.
type shouts struct{}

func (shouts) ReadsTexts(r *safety.Rules, place safety.Place) (reads, holds bool) {
	return r.Acts(safety.Hate, place), r.Action(safety.Hate, place, 1) >= safety.Redact
}

func (shouts) InspectText(
	_ context.Context, r *safety.Rules, place safety.Place, text string,
) ([]safety.Finding, error) {
	switch {
	case strings.Contains(text, "fail"):
		return nil, errors.New("the model fails")
	case text != strings.ToUpper(text):
		return nil, nil
	}
	f := safety.Finding{Category: safety.Hate, End: len(text), Score: 0.9}
	f.Action = r.Action(f.Category, place, f.Score)
	return []safety.Finding{f}, nil
}

// What models say of an answer becomes of it whatever way it is cut: passes at once where nothing is held back, leaves
// as a mark, or ends the answer before it.
func TestClassifierStage(t *testing.T) {
	calm, loud := strings.Repeat("Calm words stand here, one. ", 8), strings.Repeat("LOUD WORDS STAND HERE, TWO. ", 8)
	for action, want := range map[string]string{
		"flag": calm + loud + calm, "redact": calm + "[hate]" + calm, "block": calm,
	} {
		p, err := safety.Parse([]byte("default: {hate: {output: " + action + "}}"))
		if err != nil {
			t.Fatal(err)
		}
		stage := func() serving.Stage { return serving.NewClassifierStage(t.Context(), p.Of(""), shouts{}) }
		servingtest.TestStage(t, stage, "", "Short.", "fail", "HATE \xff\xe2")
		var out strings.Builder
		s := stage()
		emit := func(p serving.Piece) { out.WriteString(p.Text) }
		end := s.Push(calm, emit)
		if passed := out.String(); action == "flag" && passed != calm {
			t.Errorf("flag: %q is held back", calm[len(passed):])
		}
		for rest := loud + calm; end == nil && rest != ""; rest = rest[min(7, len(rest)):] {
			end = s.Push(rest[:min(7, len(rest))], emit)
		}
		if end == nil {
			end = s.Flush(emit)
		}
		got := strings.ReplaceAll(out.String(), " [hate]", "[hate] ")
		if (end != nil) != (action == "block") || strings.TrimSpace(got) != strings.TrimSpace(want) && action != "redact" ||
			action == "redact" && (!strings.Contains(got, "[hate]") || strings.Contains(got, "LOUD")) {
			t.Errorf("%s: %q, %v", action, got, end)
		}
		out.Reset()
		s = stage()
		s.Push("This may fail.", emit)
		if end := s.Flush(emit); (end != nil) != (action != "flag") || (out.Len() == 0) != (action != "flag") {
			t.Errorf("%s: a model that fails lets %q out, %v", action, out.String(), end)
		}
	}
}
