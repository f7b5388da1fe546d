package caption

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mmserve/mmserve/internal/openai"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// chatServer answers with what it was asked, and keeps the last request.
type chatServer struct {
	last *pb.GenerateRequest
	most uint32 // max_tokens that it takes; 0: any
}

func (s *chatServer) Healthy(context.Context) error { return nil }

func (s *chatServer) Generate(_ context.Context, in *pb.GenerateRequest) (*pb.GenerateResponse, error) {
	if s.most > 0 && in.GetMaxTokens() > s.most {
		return nil, badField("max_tokens")
	}
	s.last = in
	var text strings.Builder
	for _, m := range in.GetChat().GetMessages() {
		for _, p := range m.GetParts() {
			if p.GetImage() != nil {
				fmt.Fprintf(&text, "<%d bytes>", len(p.GetImage().GetData()))
			}
			text.WriteString(p.GetText())
		}
	}
	return &pb.GenerateResponse{
		Id:           "x",
		Text:         text.String(),
		Model:        "echo",
		ModelDigest:  "d1",
		FinishReason: pb.FinishReason_FINISH_REASON_STOP,
		Usage:        &pb.Usage{PromptTokens: 3, CompletionTokens: 4},
	}, nil
}

func badField(field string) error {
	st, _ := status.New(codes.InvalidArgument, field+": 1000; want less").
		WithDetails(&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: field}}})
	return st.Err()
}

func runBatch(t *testing.T, in, out string, s Server) ([]batchOutput, error) {
	t.Helper()
	c := BatchConfig()
	c.ModelDigest = "d1"
	b := &Batch{In: in, Fetch: FetchHTTP}
	target, err := OpenBatch(t.Context(), Begin{Out: out, Config: &c, Existing: ExistingSkip})
	if err != nil {
		t.Fatal(err)
	}
	err = Run(
		t.Context(),
		Options{
			Source:          b.Source,
			Asker:           b.Asker(),
			Config:          c,
			Server:          s,
			Output:          target,
			InFlight:        2,
			NoDedupe:        true,
			ShrinkMaxTokens: true,
		},
		&Stats{},
	)
	if err := errors.Join(err, target.Close(err == nil)); err != nil {
		return nil, err
	}
	return readBatch(t, out), nil
}

func readBatch(t *testing.T, path string) []batchOutput {
	t.Helper()
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	var all []batchOutput
	for line := range strings.Lines(string(text)) {
		var o batchOutput
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			t.Fatal(err)
		}
		all = append(all, o)
	}
	return all
}

func line(id, body string) string {
	return `{"custom_id":"` + id + `","method":"POST","url":"/v1/chat/completions","body":` + body + "}\n"
}

func TestBatch(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/none.png" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte("12345"))
	}))
	defer web.Close()
	image := func(url string) string {
		return `{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"` + url + `"}},{"type":"text","text":"what?"}]}]}`
	}
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in.jsonl"), filepath.Join(dir, "out.jsonl")
	data := "data:image/png;base64," + base64.StdEncoding.EncodeToString([]byte("123"))
	write(
		t,
		in,
		line(
			"plain",
			`{"model":"other","messages":[{"role":"system","content":"be"},{"role":"user","content":"kind"}],"max_completion_tokens":1000}`,
		)+
			line(
				"data",
				image(data),
			)+line(
			"web",
			image(web.URL+"/a.png"),
		)+line(
			"gone",
			image(web.URL+"/none.png"),
		)+line(
			"file",
			image("file:///etc/passwd"),
		)+
			line(
				"role",
				`{"messages":[{"role":"robot","content":"x"}]}`,
			)+line(
			"tools",
			`{"messages":[{"role":"user","content":"x"}],"tools":[{}]}`,
		)+
			"nonsense\n\n"+`{"custom_id":"url","method":"POST","url":"/v1/embeddings","body":{}}`+"\n"+line(
			"type",
			`{"messages":"x"}`,
		)+
			line(
				"plain",
				`{"messages":[{"role":"user","content":"same id, other body"}]}`,
			),
	)
	got, err := runBatch(t, in, out, &chatServer{most: 300})
	if err != nil {
		t.Fatal(err)
	}
	byText := map[string]int{}
	for _, o := range got {
		var body openai.ChatCompletion
		if err := json.Unmarshal(o.Response.Body, &body); err != nil {
			t.Fatal(err)
		}
		what := fmt.Sprintf("%s %d", o.CustomID, o.Response.StatusCode)
		if o.Error == nil {
			what += " " + body.Choices[0].Message.Content
			if body.Object != "chat.completion" || body.Usage.TotalTokens != 7 ||
				body.Choices[0].FinishReason != "stop" ||
				body.Model != "echo" {
				t.Errorf("%s", o.Response.Body)
			}
		} else if strings.Contains(o.Error.Message, "passwd") || strings.Contains(o.Error.Message, web.URL) {
			t.Errorf("it quotes what a user wrote: %s", o.Error.Message)
		}
		byText[what]++
	}
	for _, want := range []string{"plain 200 bekind", "data 200 <3 bytes>what?", "web 200 <5 bytes>what?", "gone 404",
		"file 400", "role 400", "tools 400", " 400",
		"url 400", "type 400", "plain 200 same id, other body"} {
		if byText[want] != 1 {
			t.Errorf("no %q in %v", want, byText)
		}
	}
	if bad := readBatch(t, filepath.Join(dir, "out.errors.jsonl")); len(got) != 11 || len(bad) != 7 {
		t.Errorf("%d lines, %d errors", len(got), len(bad))
	}
	// Again: nothing is asked but what may work now.
	s := &chatServer{}
	if again, err := runBatch(t, in, out, s); err != nil || len(again) != 11 || s.last != nil {
		t.Errorf("again: %v, %d lines, %v", err, len(again), s.last)
	}
}

// The fields of a body arrive as the contract has them.
func TestBatchFields(t *testing.T) {
	dir := t.TempDir()
	for i, c := range []struct {
		body string
		ok   func(*pb.GenerateRequest) bool
	}{
		{`"max_tokens":5,"max_completion_tokens":7`, func(in *pb.GenerateRequest) bool { return in.GetMaxTokens() == 7 }},
		{`"temperature":0.5,"top_p":0.25,"top_k":-1,"min_p":0.5,"seed":9`, func(in *pb.GenerateRequest) bool {
			s := in.GetSampling()
			return s.GetTemperature() == 0.5 && s.GetTopP() == 0.25 && s.TopK != nil && s.GetTopK() == 0 &&
				s.GetMinP() == 0.5 && s.GetSeed() == 9
		}},
		{`"stop":"x","n":3`, func(in *pb.GenerateRequest) bool {
			return len(in.GetStop()) == 1 && in.GetStop()[0] == "x" && in.GetN() == 3
		}},
		{`"stop":["x","y"],"stop_token_ids":[4]`, func(in *pb.GenerateRequest) bool {
			return len(in.GetStop()) == 2 &&
				in.GetStopTokenIds()[0] == 4
		}},
		{`"stop":null,"logit_bias":{"5":-1}`, func(in *pb.GenerateRequest) bool {
			return len(in.GetStop()) == 0 && in.GetSampling().GetLogitBias()[5] == -1
		}},
		{`"presence_penalty":1,"frequency_penalty":0.5,"repetition_penalty":2`, func(in *pb.GenerateRequest) bool {
			s := in.GetSampling()
			return s.GetPresencePenalty() == 1 && s.GetFrequencyPenalty() == 0.5 && s.GetRepetitionPenalty() == 2
		}},
		{`"response_format":{"type":"json_object"}`,
			func(in *pb.GenerateRequest) bool { return in.GetConstraint().GetJsonObject() }},
		{`"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"type":"object"}}}`, func(in *pb.GenerateRequest) bool {
			return in.GetConstraint().GetJsonSchema() == `{"type":"object"}`
		}},
		{`"guided_json":"{\"a\":1}"`, func(in *pb.GenerateRequest) bool { return in.GetConstraint().GetJsonSchema() == `{"a":1}` }},
		{`"guided_choice":["a","b"]`, func(in *pb.GenerateRequest) bool {
			return len(in.GetConstraint().GetChoices().GetTexts()) == 2
		}},
		{`"structured_outputs":{"regex":"a+"}`,
			func(in *pb.GenerateRequest) bool { return in.GetConstraint().GetRegex() == "a+" }},
		{`"logprobs":true,"top_logprobs":2`, func(in *pb.GenerateRequest) bool {
			return in.GetLogprobs() &&
				in.GetTopLogprobs() == 2
		}},
		{`"stream":true`, nil}, {`"top_logprobs":2`, nil}, {`"logit_bias":{"x":1}`, nil}, {`"temperature":"hot"`, nil},
		{`"response_format":{"type":"xml"}`, nil}, {`"top_k":99999999999`, nil}, {`"stop":5`, nil},
	} {
		in := filepath.Join(dir, fmt.Sprintf("%d.jsonl", i))
		write(t, in, line("a", `{"messages":[{"role":"user","content":"hi"}],`+c.body+`}`))
		s := &chatServer{}
		got, err := runBatch(t, in, filepath.Join(dir, fmt.Sprintf("%d.out.jsonl", i)), s)
		if err != nil || len(got) != 1 {
			t.Fatal(err, got)
		}
		if c.ok == nil {
			if got[0].Error == nil || got[0].Response.StatusCode != 400 {
				t.Errorf("%s is taken", c.body)
			}
		} else if got[0].Error != nil || !c.ok(s.last) {
			t.Errorf("%s: %+v, %v", c.body, got[0].Error, s.last)
		}
	}
}

func FuzzBatchLine(f *testing.F) {
	f.Add([]byte(line("a", `{"messages":[{"role":"user","content":[{"type":"text","text":"x"}]}]}`)))
	f.Fuzz(func(t *testing.T, b []byte) {
		in, err := chatAsker{}.Request(context.Background(), b, "")
		var known *itemError
		if err == nil && in == nil || err != nil && !errors.As(err, &known) {
			t.Errorf("%v, %v", in, err)
		}
	})
}
