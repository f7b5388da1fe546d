package server_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/server"
)

// clientCase is a request as a client sends it, and what that client needs of the answer. Texts in the request: <image>
// is the golden question's image as a data: URL, <base64> without the head, <long> more than the context takes.
type clientCase struct {
	Name, Wants string
	Request     struct {
		Method, Path string
		Header       map[string]string
		Body         json.RawMessage
	}
	Answer struct {
		Status int
		Header map[string]any
		// Body has members that the answer has to have, Each those of every event or line, First and Last of those.
		Body, Each, First, Last any
		// Text is all that the deltas say.
		Text  string
		Empty bool // there is no body
	}
}

// lacks says what of want is not so in got: objects may have more members, a text <any> is any value but null, <absent>
// is none or null, and what begins with ~ is a part of a text.
func lacks(path string, got, want any) string {
	switch want := want.(type) {
	case nil:
		if got != nil {
			return fmt.Sprintf("%s is %v; want null", path, got)
		}
	case map[string]any:
		object, ok := got.(map[string]any)
		if !ok {
			return fmt.Sprintf("%s is %v; want an object", path, got)
		}
		for name, value := range want {
			if has, ok := object[name]; !ok && value == nil {
				return fmt.Sprintf("%s.%s is not there; want null", path, name)
			} else if fault := lacks(path+"."+name, has, value); fault != "" {
				return fault
			}
		}
	case []any:
		list, ok := got.([]any)
		if !ok || len(list) != len(want) {
			return fmt.Sprintf("%s is %v; want %d values", path, got, len(want))
		}
		for i := range want {
			if fault := lacks(fmt.Sprintf("%s[%d]", path, i), list[i], want[i]); fault != "" {
				return fault
			}
		}
	case string:
		return lacksText(path, got, want)
	default:
		if got != want {
			return fmt.Sprintf("%s is %v; want %v", path, got, want)
		}
	}
	return ""
}

func lacksText(path string, got any, want string) string {
	text, _ := got.(string)
	part, isPart := strings.CutPrefix(want, "~")
	if ok := want == "<any>" && got != nil || want == "<absent>" && got == nil || isPart && strings.Contains(text, part) ||
		got == any(want); !ok {
		return fmt.Sprintf("%s is %v; want %s", path, got, want)
	}
	return ""
}

// TestClients holds what programs that people put in front of mmserve send, and what they need of answers.
func TestClients(t *testing.T) {
	f, g := tinyHTTP(t, server.Options{HTTP: server.HTTPOptions{AllowOrigins: []string{"https://webui.example"}}})
	file := pngFile(64)
	fill := strings.NewReplacer(
		"<image>", dataURL(file), "<base64>", base64.StdEncoding.EncodeToString(file),
		"<long>", strings.Repeat("word ", 2*contextLen), "<golden>", g.Text,
	)
	paths, err := filepath.Glob(filepath.Join("testdata", "clients", "*.json"))
	if err != nil || len(paths) == 0 {
		t.Fatal(paths, err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var cases []clientCase
		d := json.NewDecoder(strings.NewReader(fill.Replace(string(text))))
		d.DisallowUnknownFields()
		if err := d.Decode(&cases); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		for _, c := range cases {
			t.Run(strings.TrimSuffix(filepath.Base(path), ".json")+"/"+c.Name, func(t *testing.T) { c.check(t, f) })
		}
	}
}

func (c *clientCase) check(t *testing.T, f *webFixture) {
	r, err := http.NewRequestWithContext(t.Context(), c.Request.Method, f.url+c.Request.Path,
		bytes.NewReader(c.Request.Body))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range c.Request.Header {
		r.Header.Set(name, value)
	}
	resp, err := f.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	body := read(t, resp)
	if resp.StatusCode != c.Answer.Status {
		t.Fatalf("status %d, want %d: %.500s", resp.StatusCode, c.Answer.Status, body)
	}
	header := map[string]any{}
	for name := range c.Answer.Header {
		if list := resp.Header.Values(name); list != nil {
			header[name] = strings.Join(list, ", ")
		}
	}
	if fault := lacks("header", header, anyMap(c.Answer.Header)); fault != "" {
		t.Error(fault)
	}
	if c.Answer.Empty && len(body) > 0 {
		t.Errorf("a body: %q", body)
	}
	if c.Answer.Body != nil {
		hold(t, "body", body, c.Answer.Body)
	}
	if c.Answer.Last != nil || c.Answer.First != nil || c.Answer.Each != nil {
		c.checkStream(t, resp.Header.Get("Content-Type"), body)
	}
}

func anyMap(m map[string]any) any {
	if m == nil {
		return map[string]any{}
	}
	return m
}

// hold holds that JSON has what is wanted.
func hold(t *testing.T, name string, text []byte, want any) {
	t.Helper()
	var got any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Errorf("%s: %v: %.300s", name, err, text)
	} else if fault := lacks(name, got, want); fault != "" {
		t.Errorf("%s: %.500s", fault, text)
	}
}

// checkStream looks at events, or at lines where those are what comes.
func (c *clientCase) checkStream(t *testing.T, kind string, body []byte) {
	pieces := strings.Split(strings.TrimSuffix(string(body), "\n"), "\n")
	if kind == "text/event-stream" {
		pieces = strings.Split(strings.TrimSuffix(string(body), "\n\n"), "\n\n")
		for i := range pieces {
			pieces[i] = strings.TrimPrefix(pieces[i], "data: ")
		}
		last := len(pieces) - 1
		if pieces[last] != "[DONE]" {
			t.Errorf("the stream ends with %q", pieces[last])
		}
		pieces = pieces[:last]
	}
	text := ""
	for i, piece := range pieces {
		wants := []any{c.Answer.Each}
		if i == 0 {
			wants = append(wants, c.Answer.First)
		}
		if i == len(pieces)-1 {
			wants = append(wants, c.Answer.Last)
		}
		for _, want := range wants {
			if want != nil {
				hold(t, fmt.Sprintf("piece %d", i), []byte(piece), want)
			}
		}
		var said struct {
			Choices []struct{ Delta struct{ Content string } }
			Message struct{ Content string }
		}
		_ = json.Unmarshal([]byte(piece), &said) // hold has
		text += said.Message.Content
		for _, choice := range said.Choices {
			text += choice.Delta.Content
		}
	}
	if c.Answer.Text != "" && text != c.Answer.Text {
		t.Errorf("the pieces say %q; want %q", text, c.Answer.Text)
	}
}

// TestCurlStream holds that curl -N shows what is there before more comes.
func TestCurlStream(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip(err)
	}
	g, m := readGolden(t), tinyVLM(t)
	for path, body := range map[string]string{
		"/v1/chat/completions": chatBody(`,"stream":true`), "/v1/responses": responseBody(`,"stream":true`),
		"/api/chat": ollamaBody(""),
	} {
		runner := newChain(1, g.GeneratedIDs...)
		runner.step = make(chan struct{}, 100)
		f := startHTTP(t, &m, runner, server.Options{})
		curl := exec.CommandContext(t.Context(), "curl", "-sN", f.url+path, "-H", "Content-Type: application/json", "-d", "@-")
		curl.Stdin = strings.NewReader(body)
		out, err := curl.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := curl.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		var got []string
		for i := 0; !slices.ContainsFunc(got, func(l string) bool { return strings.Contains(l, `"A`) }); i++ {
			if i < 3 {
				runner.step <- struct{}{} // the prompt, the first token, and one that shows where that ends
			}
			if !lines.Scan() {
				t.Fatalf("%s: curl shows %q and ends", path, got)
			}
			got = append(got, lines.Text())
		}
		close(runner.step)
		for lines.Scan() {
			got = append(got, lines.Text())
		}
		if err := curl.Wait(); err != nil || len(got) < 10 {
			t.Errorf("%s: %v, %d lines", path, err, len(got))
		}
	}
}
