package safety

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// How well questions about health are found that nothing was trained on, by phrases, by the classifier and by both.
func TestHealthQuality(t *testing.T) {
	p, err := Parse([]byte("default: {health: {input: flag}}"))
	if err != nil {
		t.Fatal(err)
	}
	phrases, err := Parse([]byte("default: {health: {images: flag}}")) // where the classifier does not look
	if err != nil {
		t.Fatal(err)
	}
	docs, err := os.ReadFile(filepath.Join("..", "docs", "safety.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"held", "fresh"} {
		raw, err := os.ReadFile(filepath.Join("..", "training", "health", file+".txt"))
		if err != nil {
			t.Fatal(err)
		}
		class := false
		var of, byPhrase, byModel, byBoth [2]int // of what asks about health, and of the rest
		for line := range strings.Lines(string(raw)) {
			if line = strings.TrimSpace(line); line == "" || line[0] == '#' || line[0] == '[' {
				class = strings.HasPrefix(line, "[health") || class && line == ""
				continue
			}
			k := 1
			if class {
				k = 0
			}
			of[k]++
			if len(phrases.Of("").Check(Images, line).Findings) > 0 {
				byPhrase[k]++
			}
			if len(health(line)) > 0 {
				byModel[k]++
			}
			if len(p.Of("").Check(Input, line).Findings) > 0 {
				byBoth[k]++
			}
		}
		for name, n := range map[string][2]int{"phrases": byPhrase, "classifier": byModel, "both": byBoth} {
			row := fmt.Sprintf("| %s | %s | %s | %s |", file, name, percent(n[0], of[0]), percent(n[1], of[1]))
			t.Log(row)
			if !strings.Contains(string(docs), row) {
				t.Errorf("docs/safety.md has no %s", row)
			}
		}
	}
}

// A question about health in a long text is found where it is, and a long text costs little.
func TestHealthSentences(t *testing.T) {
	const question = "I have had a sore throat for two weeks, what could it be?"
	plain := strings.Repeat("The train leaves at nine. ", 20)
	list := health(plain + question + " Thanks! " + plain)
	if len(list) != 1 || !strings.Contains((plain + question)[list[0].Start:], "sore throat") {
		t.Errorf("found %+v", list)
	}
	long := strings.Repeat("a. \xff\xe2\n", 1<<17)
	began := time.Now()
	at := sentences(long)
	if len(at) != maxSentences || at[0][0] != 0 || at[len(at)-1][1] != len(long) || !slices.IsSortedFunc(at,
		func(a, b [2]int) int { return a[0] - b[0] }) {
		t.Errorf("%d sentences, %v to %v", len(at), at[0], at[len(at)-1])
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("%v", took)
	}
	if n := len(sentences(strings.Repeat("ü", 1000))); n != 5 {
		t.Errorf("a text without ends has %d sentences", n)
	}
}
