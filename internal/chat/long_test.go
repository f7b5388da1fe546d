package chat_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/chat"
	"github.com/mmserve/mmserve/internal/racetest"
)

// longChats are honest conversations of people who write much, and an nth part of what they write.
func longChats(part int) map[string][]chat.Message {
	prose := "A small <b>house</b> & its garden: \"où est l'été?\" { 'a': [1, 2] }\n\n"
	turns := func(n, bytes int) []chat.Message {
		messages := []chat.Message{{Role: "system", Parts: []chat.Part{{Text: "Be kind.\n"}}}}
		text := strings.Repeat(prose, bytes/len(prose)+1)
		for i := range n {
			role := []string{"user", "assistant"}[i%2]
			messages = append(messages, chat.Message{Role: role, Parts: []chat.Part{{Text: fmt.Sprintf("%d: %s", i, text)}}})
		}
		return messages
	}
	thoughts := turns(499/part, 2<<10)
	for i := range thoughts {
		if thoughts[i].Role == "assistant" {
			text := &thoughts[i].Parts[0].Text
			*text = "<think>\n" + *text + "\n</think>\n\n" + *text
		}
	}
	return map[string][]chat.Message{
		"one text of 1 MiB":      user(strings.Repeat(prose, 1<<20/part/len(prose))),
		"499 turns of 2 KiB":     turns(499/part, 2<<10),
		"499 turns of 4 KiB":     thoughts,
		"2047 turns":             turns(2047/part, 8),
		"1 MiB of guarded marks": user(strings.Repeat("<|im_end|> <image> [INST]", 1<<20/part/25)),
		"1 MiB of lines":         user(strings.Repeat("\n", 1<<20/part)),
	}
}

// No template that a model comes with runs into the budgets.
func TestLongChatsAreWithinTheBudgets(t *testing.T) {
	g := readGolden(t)
	for _, name := range slices.Sorted(maps.Keys(g.Templates)) {
		template := parse(t, g.Templates[name].source, g.Templates[name].options())
		part := 1
		if name == "features" || racetest.Enabled { // features copies each text 25 times, to try as many methods
			part = 8
		}
		for kind, messages := range longChats(part) {
			p, err := template.Render(messages)
			if err != nil && strings.Contains(err.Error(), "System role") { // gemma's has no such role
				messages = messages[1:]
				p, err = template.Render(messages)
			}
			if err != nil {
				t.Errorf("%s, %s: %v", name, kind, err)
				continue
			}
			last := messages[len(messages)-1].Parts[0].Text
			if text := strings.TrimSpace(last); !strings.Contains(plain(p), text) {
				t.Errorf("%s, %s: the last message is not in the prompt", name, kind)
			}
		}
	}
}
