package serving_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/serving"
)

// What is thought and what is said, of texts in one piece and byte by byte.
func TestThoughtsApart(t *testing.T) {
	blank := func(n int) string { return strings.Repeat("\n", n) }
	for _, c := range []struct {
		inside         bool
		text           string
		thoughts, said string
	}{
		{false, "<think>\nIt is red.\n</think>\n\nRed.", "It is red.", "Red."},
		{false, "\n <think>a</think>b", "a", "b"},
		{false, "<think>\n\n</think>\n\nRed. ", "", "Red. "},
		{false, "Red.", "", "Red."},
		{false, "\n\nRed. <think>no</think>", "", "\n\nRed. <think>no</think>"},
		{false, "<thinking>no</thinking>", "", "<thinking>no</thinking>"},
		{false, "a</think>b", "", "a</think>b"},
		{false, "<think>a</thin", "a</thin", ""},
		{false, "<think>a \n", "a \n", ""},
		{false, "<thi", "", "<thi"},
		{false, "<think>a</think>b</think><think>c</think>", "a", "b</think><think>c</think>"},
		{false, "", "", ""},
		{true, "\nIt is red.\n</think>\n\nRed.", "It is red.", "Red."},
		{true, "It is red", "It is red", ""},
		{true, "</think>Red.", "", "Red."},
		{true, "<think>a</think>b", "<think>a", "b"},
		{true, "", "", ""},
		{false, blank(257) + "<think>a</think>b", "", blank(257) + "<think>a</think>b"},
		{false, blank(256) + "<think>a</think>b", "a", "b"},
		{true, "a" + blank(300) + "</think>b", "a" + blank(300-256), "b"},
		{true, "a" + blank(300), "a" + blank(300), ""},
	} {
		for _, pieces := range [][]string{{c.text}, strings.Split(c.text, "")} {
			pieces = slices.DeleteFunc(pieces, func(s string) bool { return s == "" })
			thoughts, said, told, _ := serving.LetThink([]serving.Stage{serving.NewThinkingStage(c.inside)}, pieces)
			if thoughts != c.thoughts || said != c.said {
				t.Errorf("%.40q, %t: %q and %q, want %q and %q", c.text, c.inside, thoughts, said, c.thoughts, c.said)
			}
			if len(told) != len(pieces) { // log-probabilities are those of all tokens, marks too
				t.Errorf("%.40q: %d tokens are told, want %d", c.text, len(told), len(pieces))
			}
		}
	}
}

// A stop string ends thoughts, and what may become one is held back there, too.
func TestThoughtsStop(t *testing.T) {
	for stop, want := range map[string][2]string{
		"red": {"It is", ""}, "</think>": {"It is red.", ""}, "Bl": {"It is red.", ""}, "ue": {"It is red.", "Bl"},
	} {
		stages := []serving.Stage{serving.NewStopStage(stop), serving.NewThinkingStage(false)}
		thoughts, said, _, end := serving.LetThink(stages, strings.Split("<think>It is red.</think> Blue", ""))
		if end == nil || *end.Stop != stop || strings.TrimSpace(thoughts) != want[0] || said != want[1] {
			t.Errorf("%q: %q and %q, %v", stop, thoughts, said, end)
		}
	}
}
