package transcript

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/client"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// some are files that are there: those in the list.
func some(list ...string) Files {
	there := func(path string) bool { return slices.Contains(list, path) }
	return Files{Home: "/home/ann", Exists: there, Sniff: func(path string) bool {
		return there(path) && !strings.HasSuffix(path, ".txt")
	}}
}

// said writes a message's parts: texts as they are, images in brackets.
func said(parts []Part) string {
	var list []string
	for _, p := range parts {
		if p.Image != nil {
			list = append(list, "["+p.Image.Name+"]")
			continue
		}
		list = append(list, p.Text)
	}
	return strings.Join(list, "|")
}

func TestSplit(t *testing.T) {
	files := some("a.png", "/tmp/my cat.JPG", "/home/ann/dog.webp", "./b.gif", "/tmp/shot", "/tmp/notes.txt", "it's.png",
		"/tmp/a.png", "über straße.png", "/tmp/b\\c.png", "-dash.jpg", "\xff\xfe.png")
	for _, c := range []struct{ text, want, missing string }{
		{"no image here", "no image here", ""},
		{"what is this? a.png", "[a.png]|what is this?", ""},
		{"a.png what is this?", "[a.png]|what is this?", ""},
		{"a.png", "[a.png]", ""},
		{"(a.png)", "(|[a.png]|)", ""},
		{"see a.png, please", "see|[a.png]|, please", ""},
		{"compare a.png with /tmp/a.png now", "compare|[a.png]|with|[/tmp/a.png]|now", ""},
		{`'/tmp/my cat.JPG' `, "[/tmp/my cat.JPG]", ""},
		{`"/tmp/my cat.JPG" and "a.png"`, "[/tmp/my cat.JPG]|[a.png]|and", ""},
		{`/tmp/my\ cat.JPG what?`, "[/tmp/my cat.JPG]|what?", ""},
		{"/tmp/my cat.JPG what?", "[/tmp/my cat.JPG]|what?", ""},
		{"~/dog.webp?", "[/home/ann/dog.webp]|?", ""},
		{"file:///tmp/my%20cat.JPG hi", "[/tmp/my cat.JPG]|hi", ""},
		{"/tmp/shot describe", "[/tmp/shot]|describe", ""},
		{"/tmp/notes.txt describe", "/tmp/notes.txt describe", ""},
		{"it\\'s.png ok", "[it's.png]|ok", ""},
		{`"it's.png" ok`, "[it's.png]|ok", ""},
		{"'it was' she said", "'it was' she said", ""},
		{"über\\ straße.png", "[über straße.png]", ""},
		{"-dash.jpg what", "[-dash.jpg]|what", ""},
		{"\xff\xfe.png what", "[\xff\xfe.png]|what", ""},
		{`/tmp/b\c.png what`, `[/tmp/b\c.png]|what`, ""},
		{"/tmp/gone.png what", "/tmp/gone.png what", "/tmp/gone.png"},
		{"~/gone.jpg", "~/gone.jpg", "/home/ann/gone.jpg"},
		{"gone.png is a name", "gone.png is a name", ""},
		{"https://example.com/a.png what", "https://example.com/a.png what", ""},
		{"a.png\nsecond line", "[a.png]|\nsecond line", ""},
		{`'`, `'`, ""},
		{`\`, `\`, ""},
	} {
		parts, missing := files.Split(c.text)
		if got := said(parts); got != c.want || strings.Join(missing, ",") != c.missing {
			t.Errorf("%q: %q %q; want %q %q", c.text, got, missing, c.want, c.missing)
		}
	}
}

// Whatever is typed, Split ends, and gives back all of a text that names no file.
func FuzzSplit(f *testing.F) {
	for _, text := range []string{"what? a.png", `"x.png`, `'\`, "file:%zz", "/x y.png", "~", `C:\x.png`} {
		f.Add(text)
	}
	none, all := some(), Files{
		Home: "/h", Exists: func(string) bool { return true }, Sniff: func(string) bool { return true },
	}
	f.Fuzz(func(t *testing.T, text string) {
		if parts, _ := none.Split(text); len(parts) != 1 || parts[0].Text != text {
			t.Errorf("%q became %q", text, said(parts))
		}
		all.Split(text)
		Unquote(text)
		ParseCommand(text)
	})
}

func TestParseCommand(t *testing.T) {
	for line, want := range map[string]string{
		"/help": "help:", "/?": "help:", "/bye": "bye:", "/exit": "bye:", "/set temperature 0.2": "set:temperature 0.2",
		"/reset": "clear:", "/frobnicate x": "?frobnicate:x", "/": "?:", "/tmp/a.png what?": "-", "hello": "-",
		" /help": "-",
		"/a-b":   "-",
	} {
		command, name, arg, ok := ParseCommand(line)
		got := "-"
		if ok && command != nil {
			got = command.Name + ":" + arg
		} else if ok {
			got = "?" + name + ":" + arg
		}
		if got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
	for name, want := range map[string]string{
		"hlep": "help", "imgae": "image", "sav": "save", "xyzzy": "", "tok": "tokens",
	} {
		var names []string
		for _, c := range Commands {
			names = append(names, c.Name)
		}
		if got := Nearest(name, names); got != want {
			t.Errorf("nearest to %q is %q, want %q", name, got, want)
		}
	}
}

// A conversation as its user sees it, step by step.
func TestConversation(t *testing.T) {
	var c Conversation
	a, b := &Image{Name: "dir/a.png"}, &Image{Name: "b.png"}
	c.Pending = []*Image{a}
	c.Ask([]Part{{Text: "one"}})
	if got := said(c.Turns[0].Question); got != "[dir/a.png]|one" || c.Pending != nil {
		t.Errorf("asked %q, %v wait", got, c.Pending)
	}
	c.Ask([]Part{{Text: "one, better"}}) // the first had no answer
	if got := said(c.Turns[0].Question); len(c.Turns) != 1 || got != "[dir/a.png]|one, better" {
		t.Errorf("%d turns, %q", len(c.Turns), got)
	}
	c.Answer("1")
	c.Ask([]Part{{Text: "two"}, {Image: b}, {Text: "?"}})
	c.Answer("2")
	if !c.Retry() || c.Turns[1].Answered {
		t.Error("retry")
	}
	if text, ok := c.Take(); !ok || text != "two ?" || len(c.Pending) != 1 || len(c.Turns) != 1 {
		t.Errorf("take: %q %v %v", text, ok, c)
	}
	c.Pending = append(c.Pending, a)
	for _, which := range []string{"3", "0", "none.png"} {
		if _, err := c.Drop(which); err == nil {
			t.Errorf("dropped %q", which)
		}
	}
	if gone, err := c.Drop("a.png"); err != nil || gone[0] != a {
		t.Errorf("drop by name: %v %v", gone, err)
	}
	if gone, err := c.Drop("1"); err != nil || gone[0] != b {
		t.Errorf("drop by number: %v %v", gone, err)
	}
	if _, err := c.Drop(""); err == nil {
		t.Error("dropped nothing")
	}
	if _, ok := c.Undo(); !ok {
		t.Error("undo")
	}
	if _, ok := c.Undo(); ok || c.Retry() {
		t.Error("there is nothing left")
	}
}

// What is saved in either form is what was said.
func TestFileBothForms(t *testing.T) {
	png := []byte("\x89PNG\r\n\x1a\n…")
	c := Conversation{System: "Be brief.", Turns: []Turn{
		{Question: []Part{{Image: &Image{Data: png}}, {Text: "what \"is\" this?\nquick"}}, Answer: "a star", Answered: true},
		{Question: []Part{{Text: "and now?"}}},
	}}
	in := client.Chat(c.Messages(pb.Detail_DETAIL_LOW)...)
	in.MaxTokens, in.Stop = proto.Uint32(7), []string{"\n"}
	in.Sampling = &pb.Sampling{Temperature: proto.Float32(0.25), Seed: proto.Uint64(1 << 60), TopK: proto.Uint32(3)}
	in.Constraint = ChoicesConstraint([]string{"yes", "no"})
	for name, marshal := range map[string]func(*pb.GenerateRequest) ([]byte, error){
		"openai": MarshalOpenAI, "grpc": MarshalGRPC,
	} {
		path := filepath.Join(t.TempDir(), "talk.json")
		data, err := marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		if again, _ := marshal(in); !bytes.Equal(data, again) {
			t.Errorf("%s: two times, two texts", name)
		}
		for range 2 { // the second replaces the first
			if err := WriteFile(path, data); err != nil {
				t.Fatal(err)
			}
		}
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, st.Mode(), err)
		}
		got, err := ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		talk, err := FromMessages(got.GetChat().GetMessages())
		if err != nil {
			t.Fatal(err)
		}
		if talk.System != c.System || len(talk.Turns) != 2 || talk.Turns[0].Answer != "a star" || talk.Turns[1].Answered ||
			!bytes.Equal(talk.Turns[0].Images()[0].Data, png) || talk.Turns[0].Text() != c.Turns[0].Text() {
			t.Errorf("%s: %+v", name, talk)
		}
		if got.GetMaxTokens() != 7 || got.GetSampling().GetTemperature() != 0.25 || got.GetSampling().GetSeed() != 1<<60 ||
			got.GetSampling().GetTopK() != 3 || got.GetStop()[0] != "\n" ||
			len(got.GetConstraint().GetChoices().GetTexts()) != 2 {
			t.Errorf("%s: settings %v", name, got)
		}
	}
}

func TestFileRefused(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f.json")
	for text, want := range map[string]string{
		"": "no JSON", "hello": "no JSON", "{}": "no conversation", "[]": "no JSON",
		`{"messages":[{"role":"robot","content":"x"}]}`:                                                         `"robot"; want system, user or assistant`,
		`{"messages":[{"role":"user","content":7}]}`:                                                            "want a text or a list of parts",
		`{"messages":[{"role":"user","content":[{"type":"input_audio"}]}]}`:                                     `"input_audio"; want text or image_url`,
		`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://x/y.png"}}]}]}`: "named by a URL",
		`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:x;base64,%"}}]}]}`: "no base64",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := ReadFile(path)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v; want %q", text, err, want)
		}
		if err := WriteFile(path, []byte("{}")); err == nil || !strings.Contains(err.Error(), "is no saved conversation") {
			t.Errorf("%q was replaced: %v", text, err)
		}
	}
	if _, err := FromMessages([]*pb.Message{client.Assistant(client.Text("hi"))}); err == nil {
		t.Error("an answer to nothing")
	}
	if _, err := ReadFile(dir); err == nil {
		t.Error("a folder")
	}
}

// Whatever a file has, reading it ends with a conversation or an error.
func FuzzUnmarshal(f *testing.F) {
	f.Add([]byte(`{"messages":[{"role":"user","content":[{"type":"text","text":"x"}]}]}`))
	f.Add([]byte(`{"chat":{"messages":[{"role":"ROLE_USER","parts":[{"text":"x"}]}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		in, err := Unmarshal(data)
		if err != nil {
			return
		}
		if c, err := FromMessages(in.GetChat().GetMessages()); err == nil {
			c.Take()
			c.Messages(0)
		}
	})
}
