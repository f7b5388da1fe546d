package chat_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/chat"
)

// The prompts follow from the rule of transformers' apply_chat_template(continue_final_message=True), worked out by
// hand: "CONTINUE_FINAL_MESSAGE_TAG " is added to the last text and the prompt is cut before the tag; where the tag's
// space is lost, white space before it goes, too; a prompt without the tag or without the text is an error. No run made
// them.
func TestRenderContinue(t *testing.T) {
	const keeps = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant:{% endif %}"
	trims := strings.Replace(keeps, "m.content", "m.content | trim", 1)
	for _, tt := range []struct{ template, text, want string }{
		{keeps, "A large", "<s>user: Say it.</s>\n<s>assistant: A large"},
		{keeps, "A large ", "<s>user: Say it.</s>\n<s>assistant: A large "},
		{trims, "A large", "<s>user: Say it.</s>\n<s>assistant: A large"},
		{trims, " A large \n", "<s>user: Say it.</s>\n<s>assistant: A large"},
		{keeps, "user: Say it.</s>", "<s>user: Say it.</s>\n<s>assistant: user: Say it.</s>"},
		{keeps, "", "<s>user: Say it.</s>\n<s>assistant: "},
		{trims, "", "<s>user: Say it.</s>\n<s>assistant:"},
		{trims, "<s>A\xff large\n", "<s>user: Say it.</s>\n<s>assistant: <s>A\uFFFD large"},
	} {
		template := parse(t, tt.template, chat.Options{Guarded: []string{"<s>", "</s>"}})
		p, err := template.RenderContinue(t.Context(), []chat.Message{
			{Role: "user", Parts: []chat.Part{{Text: "Say it."}}}, {Role: "assistant", Parts: []chat.Part{{Text: tt.text}}},
		})
		if got := plain(p); err != nil || got != tt.want {
			t.Errorf("%q: %q, %v; want %q", tt.text, got, err, tt.want)
		}
	}
	template := parse(t, keeps, chat.Options{Placeholder: "<image>"})
	if _, err := template.RenderContinue(t.Context(), []chat.Message{{Role: "assistant",
		Parts: []chat.Part{{Image: true}}}}); !errors.Is(err, chat.ErrMessages) {
		t.Errorf("an image cannot be continued: %v", err)
	}
}

// A template that leaves out a part of the text cannot be continued: the model would go on with another text.
func TestContinuedTextMustShow(t *testing.T) {
	const source = "{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1] }}\n{% endfor %}"
	template := parse(t, source, chat.Options{})
	for text, ok := range map[string]bool{"A large": true, "<think>Hm</think>A large": false} {
		_, err := template.RenderContinue(t.Context(), []chat.Message{{Role: "assistant", Parts: []chat.Part{{Text: text}}}})
		if ok != (err == nil) || !ok && !errors.Is(err, chat.ErrMessages) {
			t.Errorf("%q: error %v", text, err)
		}
	}
}
