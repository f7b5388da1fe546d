package server_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/chat"
	"github.com/mmserve/mmserve/internal/openai"
	"github.com/mmserve/mmserve/server"
)

// Tools go to the template that shows them, with what was called and what came back; another template refuses them.
func TestTools(t *testing.T) {
	tools := `"tools":[{"type":"function","function":{"name":"look","description":"Looks.","parameters":{"type":"object"}}}]`
	body := `{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":null,"tool_calls":` +
		`[{"id":"c","type":"function","function":{"name":"look","arguments":"{\"x\":1}"}}]},` +
		`{"role":"tool","tool_call_id":"c","content":"a square"}],` + tools + `}`
	m, r := thinker(t, "", "A red one.")
	f := startHTTP(t, &m, r, server.Options{})
	wantError(t, f.post(t, "/v1/chat/completions", body), 400, "tools")

	source := `{% for tool in tools or [] %}{{ tool.function.name }}: {{ tool.function | tojson }}{% endfor %}` +
		`{% for m in messages %}{{ m.role }}: {{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}` +
		`({{ c.function.arguments.x }}){% endfor %};{% endfor %}`
	var err error
	m, r = thinker(t, "", "A red one.")
	o := chat.Options{EOS: "<end_of_utterance>", Guarded: m.Prompter.Guarded, Placeholder: "<image>"}
	if m.Prompter.Template, err = chat.Parse(source, o); err != nil {
		t.Fatal(err)
	}
	f = startHTTP(t, &m, r, server.Options{})
	length := func(body string) int {
		var out openai.ChatCompletion
		if err := json.Unmarshal(read(t, f.post(t, "/v1/chat/completions", body)), &out); err != nil {
			t.Fatal(err)
		}
		if got := out.Choices[0].Message.Content; got != "A red one." {
			t.Errorf("answer %q", got)
		}
		return out.Usage.PromptTokens
	}
	with, without := length(body), length(strings.Replace(body, tools, `"tools":[]`, 1))
	if none := length(strings.Replace(body, tools, tools+`,"tool_choice":"none"`, 1)); with <= without+10 || none != without {
		t.Errorf("prompts of %d tokens with tools, %d without, %d with tool_choice none", with, without, none)
	}
	wantError(t, f.post(t, "/v1/chat/completions", `{"messages":[{"role":"user","content":"a"},`+
		`{"role":"assistant","content":"b"}],"continue_final_message":true,`+tools+`}`), 400, "tools")
}
