package chat_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/chat"
)

// The prompts are those of transformers 5.12.1's apply_chat_template(continue_final_message=True) over these templates.
func TestRenderContinue(t *testing.T) {
	const keeps = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant:{% endif %}"
	trims := strings.Replace(keeps, "m.content", "m.content | trim", 1)
	for _, tt := range []struct{ template, text, want string }{
		{keeps, "A large", "<s>user: Say it.</s>\n<s>assistant: A large"},
		{keeps, "A large ", "<s>user: Say it.</s>\n<s>assistant: A large "},
		{trims, "A large", "<s>user: Say it.</s>\n<s>assistant: A large"},
		{trims, " A large \n", "<s>user: Say it.</s>\n<s>assistant: A large"},
		{keeps, "user: Say it.</s>", "<s>user: Say it.</s>\n<s>assistant: user: Say it.</s>"},
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
	if _, err := template.RenderContinue(t.Context(), []chat.Message{{Role: "assistant", Parts: []chat.Part{{Image: true}}}}); !errors.Is(err, chat.ErrMessages) {
		t.Errorf("an image cannot be continued: %v", err)
	}
}
