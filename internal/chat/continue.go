package chat

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// RenderContinue returns the prompt up to the end of the last message's text, for the model to go on with that message:
// what apply_chat_template(continue_final_message=True) of transformers gives. The last message has to end with a text.
// Its trailing white space stays, unless the template trims it.
func (t *Template) RenderContinue(ctx context.Context, messages []Message) (Prompt, error) {
	last := len(messages) - 1
	if last < 0 || len(messages[last].Parts) == 0 || messages[last].Parts[len(messages[last].Parts)-1].Image {
		return Prompt{}, fmt.Errorf("%w: the message to continue does not end with a text", ErrMessages)
	}
	// A noncharacter that no text holds marks the end. What comes after it tells whether the template trims.
	m, err := t.guards.mark(texts(messages))
	if err != nil {
		return Prompt{}, err
	}
	end := string(m.guard)
	text := strings.TrimFunc(messages[last].Parts[len(messages[last].Parts)-1].Text, isSpace)
	messages = slices.Clone(messages)
	parts := slices.Clone(messages[last].Parts)
	parts[len(parts)-1].Text += end + " "
	messages[last].Parts = parts
	p, err := t.render(ctx, messages, nil, false)
	if err != nil {
		return Prompt{}, err
	}
	at := strings.LastIndex(p.Text, end)
	if at < 0 || !strings.Contains(m.plain(mark{guard: p.Guard}.plain(p.Text)), strings.ToValidUTF8(text, "\uFFFD")) {
		return Prompt{}, fmt.Errorf("%w: the template does not show the text of the message to continue", ErrMessages)
	}
	rest := p.Text[at+len(end):]
	if p.Guard != 0 {
		rest = strings.TrimLeft(rest, string(p.Guard))
	}
	p.Text = p.Text[:at]
	if !strings.HasPrefix(rest, " ") {
		p.Text = strings.TrimRightFunc(p.Text, func(r rune) bool {
			return unicode.IsSpace(r) || p.Guard != 0 && r == p.Guard
		})
	}
	p.Text = strings.ReplaceAll(p.Text, end, "") // where the template shows the text twice
	return p, nil
}
