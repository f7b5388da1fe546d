package fusion

import (
	"strings"
	"unicode"

	"github.com/mmserve/mmserve/internal/chat"
	"github.com/mmserve/mmserve/internal/tokenizer"
)

// Thinking is how a model marks what it thinks before it answers: by a text before and one behind it. It is zero for a
// model that marks nothing.
type Thinking struct{ Open, Close string }

// thinkings are the marks that are known: those of Qwen, GLM, LFM2 and most others, and Mistral's.
var thinkings = []Thinking{{"<think>", "</think>"}, {"[THINK]", "[/THINK]"}}

// FindThinking is the Thinking that a chat template writes, or that a tokenizer has tokens for.
func FindThinking(template string, t *tokenizer.Tokenizer) Thinking {
	for _, m := range thinkings {
		if strings.Contains(template, m.Close) {
			return m
		}
	}
	added := map[string]bool{}
	for _, a := range t.AddedTokens() {
		added[a.Content] = true
	}
	for _, m := range thinkings {
		if added[m.Open] && added[m.Close] {
			return m
		}
	}
	return Thinking{}
}

// Tokens are the ids of the marks that are tokens.
func (m Thinking) Tokens(t *tokenizer.Tokenizer) (list []int32) {
	for _, text := range []string{m.Open, m.Close} {
		if id, ok := t.TokenID(text); ok && text != "" {
			list = append(list, id)
		}
	}
	return list
}

// opened tells that an answer to a prompt begins amid thoughts: the template has written the mark before them, or the
// message to go on with has not got to the one behind them. What a user typed has guards within, or ends a turn.
func (m Thinking) opened(in Prompt, text chat.Prompt) bool {
	switch {
	case m.Open == "" || len(in.Messages) == 0:
		return false
	case !in.Continue:
		return strings.HasSuffix(strings.TrimRightFunc(text.Text, unicode.IsSpace), m.Open)
	}
	said := ""
	for _, p := range in.Messages[len(in.Messages)-1].Parts {
		said += p.Text
	}
	return strings.HasPrefix(strings.TrimLeftFunc(said, unicode.IsSpace), m.Open) && !strings.Contains(said, m.Close)
}
