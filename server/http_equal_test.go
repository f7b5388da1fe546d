package server_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	nometric "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/decoder/decodertest"
	"github.com/mmserve/mmserve/internal/constrain"
	"github.com/mmserve/mmserve/internal/openai"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
)

// startHash serves answers that depend on prompt, sampling and constraint.
func startHash(t *testing.T, o server.Options) *webFixture {
	t.Helper()
	m := tinyVLM(t)
	compiler, err := constrain.NewCompiler(m.Prompter.Tokenizer, m.EOS)
	if err != nil {
		t.Fatal(err)
	}
	m.Compiler = func() (*constrain.Compiler, error) { return compiler, nil }
	return startHTTP(t, &m, decodertest.NewHash(8, contextLen, vocab), o)
}

// TestHTTPEqualsGRPC holds that both edges give the same answers to the same requests: every field that both have.
func TestHTTPEqualsGRPC(t *testing.T) {
	f := startHash(t, server.Options{})
	for more, set := range map[string]func(*pb.GenerateRequest){
		``: func(*pb.GenerateRequest) {},
		`,"temperature":1,"top_p":0.9,"top_k":50,"min_p":0.01,"seed":7,"n":3,"max_tokens":40`: func(in *pb.GenerateRequest) {
			in.Sampling = &pb.Sampling{
				Temperature: proto.Float32(1), TopP: proto.Float32(0.9), TopK: proto.Uint32(50),
				MinP: proto.Float32(0.01), Seed: proto.Uint64(7),
			}
			in.N, in.MaxTokens = 3, proto.Uint32(40)
		},
		`,"logprobs":true,"top_logprobs":3,"max_tokens":20,"seed":1`: func(in *pb.GenerateRequest) {
			in.Logprobs, in.TopLogprobs = true, 3
			in.MaxTokens, in.Sampling = proto.Uint32(20), &pb.Sampling{Seed: proto.Uint64(1)}
		},
		`,"presence_penalty":1,"frequency_penalty":0.5,"repetition_penalty":1.3,"logit_bias":{"430":100},"max_completion_tokens":10`: func(in *pb.GenerateRequest) {
			in.Sampling = &pb.Sampling{
				PresencePenalty: proto.Float32(1), FrequencyPenalty: proto.Float32(0.5),
				RepetitionPenalty: proto.Float32(1.3), LogitBias: map[uint32]float32{430: 100},
			}
			in.MaxTokens = proto.Uint32(10)
		},
		`,"stop":["e","a"],"max_tokens":100`: func(in *pb.GenerateRequest) {
			in.Stop, in.MaxTokens = []string{"e", "a"}, proto.Uint32(100)
		},
		`,"stop":["e"],"include_stop_str_in_output":true`: func(in *pb.GenerateRequest) { in.Stop, in.IncludeStop = []string{"e"}, true },
		`,"min_tokens":30,"max_tokens":30,"ignore_eos":true,"stop_token_ids":[5]`: func(in *pb.GenerateRequest) {
			in.MinTokens, in.MaxTokens, in.IgnoreEos, in.StopTokenIds = 30, proto.Uint32(30), true, []uint32{5}
		},
		`,"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"object","properties":{"a":{"enum":[1,2]}},"required":["a"],"additionalProperties":false}}}`: func(in *pb.GenerateRequest) {
			in.Constraint = &pb.Constraint{Kind: &pb.Constraint_JsonSchema{
				JsonSchema: `{"type":"object","properties":{"a":{"enum":[1,2]}},"required":["a"],"additionalProperties":false}`}}
		},
		`,"guided_choice":["red","blue"]`: func(in *pb.GenerateRequest) {
			in.Constraint = &pb.Constraint{Kind: &pb.Constraint_Choices{Choices: &pb.Choices{Texts: []string{"red", "blue"}}}}
		},
		`,"structured_outputs":{"regex":"[ab]{3}"}`: func(in *pb.GenerateRequest) {
			in.Constraint = &pb.Constraint{Kind: &pb.Constraint_Regex{Regex: "[ab]{3}"}}
		},
	} {
		in := question()
		set(in)
		want, err := f.grpc.Generate(t.Context(), in)
		if err != nil {
			t.Fatalf("%s: %v", more, err)
		}
		b := read(t, f.post(t, "/v1/chat/completions", chatBody(more)))
		var got openai.ChatCompletion
		if err := json.Unmarshal(b, &got); err != nil || len(got.Choices) != len(want.GetChoices()) {
			t.Errorf("%s: %v, %s", more, err, b)
			continue
		}
		u := want.GetUsage()
		wantUsage := openai.NewUsage(int(u.GetPromptTokens()), int(u.GetImageTokens()),
			got.Usage.PromptDetails.Cached, int(u.GetCompletionTokens()))
		if !reflect.DeepEqual(got.Usage, wantUsage) {
			t.Errorf("%s: usage %+v, want %+v", more, got.Usage, wantUsage)
		}
		sent := events(t, f.post(t, "/v1/chat/completions", chatBody(more+`,"stream":true`)))
		streamed := joinChunks(t, sent, len(got.Choices))
		for i, w := range want.GetChoices() {
			g := got.Choices[i]
			if g.Message.Content != w.GetText() ||
				!strings.EqualFold("FINISH_REASON_"+g.FinishReason, w.GetFinishReason().String()) ||
				!reflect.DeepEqual(g.StopReason, openai.NewStopReason(w.MatchedStop, nil, nil)) {
				t.Errorf("%s: answer %d is %+v, want %v", more, i, g, w)
			}
			sameLogprobs(t, g.Logprobs, w.GetLogprobs())
			s := streamed[i]
			if s.Message.Content != w.GetText() || s.FinishReason != g.FinishReason {
				t.Errorf("%s: streamed answer %d is %+v, want %+v", more, i, s, g)
			}
			sameLogprobs(t, s.Logprobs, w.GetLogprobs())
		}
	}
}

// joinChunks puts n answers together.
func joinChunks(t *testing.T, list []string, n int) []openai.ChatChoice {
	t.Helper()
	out := make([]openai.ChatChoice, n)
	for _, data := range list[:len(list)-1] {
		var c chunk
		if err := json.Unmarshal([]byte(data), &c); err != nil {
			t.Fatal(err)
		}
		for _, choice := range c.Choices {
			to := &out[choice.Index]
			if choice.Delta.Content != nil {
				to.Message.Content += *choice.Delta.Content
			}
			if choice.FinishReason != nil {
				to.FinishReason += *choice.FinishReason
			}
			if choice.Logprobs != nil {
				if to.Logprobs == nil {
					to.Logprobs = &openai.Logprobs{}
				}
				to.Logprobs.Content = append(to.Logprobs.Content, choice.Logprobs.Content...)
			}
		}
	}
	return out
}

func sameLogprobs(t *testing.T, got *openai.Logprobs, want []*pb.Logprobs) {
	t.Helper()
	if got == nil {
		got = &openai.Logprobs{}
	}
	if len(got.Content) != len(want) {
		t.Errorf("%d log-probabilities, want %d", len(got.Content), len(want))
		return
	}
	for i, w := range want {
		g := got.Content[i]
		same := g.Logprob == w.GetToken().GetLogprob() && len(g.Bytes) == len(w.GetToken().GetText()) &&
			len(g.Top) == len(w.GetTop())
		for j := range g.Bytes {
			same = same && g.Bytes[j] == int(w.GetToken().GetText()[j])
		}
		for j, top := range w.GetTop() {
			same = same && g.Top[j].Logprob == top.GetLogprob()
		}
		if !same {
			t.Errorf("token %d: %+v, want %v", i, g, w)
		}
	}
}

// TestHTTPConstraintFaults holds that a constraint that is refused is named as the caller named it.
func TestHTTPConstraintFaults(t *testing.T) {
	f := startHash(t, server.Options{})
	for more, param := range map[string]string{
		`,"response_format":{"type":"json_schema","json_schema":{"schema":{"type":"nothing"}}}`: "response_format.json_schema.schema",
		`,"guided_regex":"("`:                 "guided_regex",
		`,"structured_outputs":{"choice":[]}`: "structured_outputs.choice",
		`,"stop":[""]`:                        "stop[0]",
		`,"stop_token_ids":[99999]`:           "stop_token_ids[0]",
		`,"logit_bias":{"99999":1}`:           "logit_bias[99999]",
		`,"top_p":0`:                          "top_p",
		`,"logprobs":true,"top_logprobs":21`:  "top_logprobs",
		`,"min_tokens":9,"max_tokens":8`:      "min_tokens",
	} {
		t.Run(param, func(t *testing.T) { wantError(t, f.post(t, "/v1/chat/completions", chatBody(more)), 400, param) })
	}
	for body, param := range map[string]string{
		`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}]}`: "messages[0].content[0].image_url.url",
		`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":"https://x.example/a.png"}]}]}`:            "messages[0].content[0].image_url.url",
		`{"messages":[{"role":"assistant","content":"a"}]}`:                                                                "messages[0].role",
		`{"messages":[{"role":"user","content":"a"}],"continue_final_message":true}`:                                       "continue_final_message",
		`{"messages":[{"role":"user","content":"` + strings.Repeat("a b ", 500) + `"}]}`:                                   "messages",
	} {
		if text := wantError(t, f.post(t, "/v1/chat/completions", body), 400, param); strings.Contains(text, "ROLE_") {
			t.Errorf("%s: %s", param, text)
		}
	}
}

// TestHTTPContinue holds that an assistant's message can be gone on with.
func TestHTTPContinueMessage(t *testing.T) {
	f := startHash(t, server.Options{})
	in := client.Chat(client.User(client.Text("Hi")),
		&pb.Message{Role: pb.Role_ROLE_ASSISTANT, Parts: []*pb.Part{client.Text("Once upon")}})
	in.GetChat().ContinueFinalMessage = true
	want, err := f.grpc.Generate(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	var got openai.ChatCompletion
	b := read(t, f.post(t, "/v1/chat/completions", `{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Once upon"}],`+
		`"continue_final_message":true,"add_generation_prompt":false}`))
	if err := json.Unmarshal(b, &got); err != nil || len(got.Choices) != 1 ||
		got.Choices[0].Message.Content != want.GetText() {
		t.Errorf("%v: %s; want %q", err, b, want.GetText())
	}
	lines := ollamaLines(t, f.post(t, "/api/chat",
		`{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Once upon"}],"stream":false}`))
	if lines[0].Message.Content != want.GetText() {
		t.Errorf("Ollama: %+v; want %q", lines, want.GetText())
	}
	text := wantError(t, f.post(t, "/v1/responses",
		`{"input":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Once upon"}]}`), 400, "input[1].role")
	if strings.Contains(text, "continue") {
		t.Errorf("a response is refused with %q", text)
	}
}

// TestHTTPCanary holds that what callers write occurs in no error, header, log line or span, whichever field it is in.
func TestHTTPCanary(t *testing.T) {
	rec := tracetest.NewSpanRecorder()
	tp := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(rec))
	tel, err := serving.NewTelemetry(tp, nometric.NewMeterProvider(), 1)
	if err != nil {
		t.Fatal(err)
	}
	f := startHash(t, server.Options{Telemetry: tel})
	sent := 0
	for _, text := range canaries {
		quoted, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		for _, body := range []string{
			`%s`, `{"messages":%s}`, `{%s:1,%[1]s:1}`, `{"messages":[{"role":%s,"content":"a"}]}`, `{"messages":[{"role":"user","content":%s}]}`,
			`{"messages":[{"role":"user","content":[%s]}],"temperature":9}`, `{"messages":[{"role":"user","content":[{"type":%s}]}]}`,
			`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":%s}]}]}`,
			`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"aaaa","detail":%s}}]}]}`,
			`{"messages":[{"role":"user","content":"a"}],"model":%s}`, `{"messages":[{"role":"user","content":"a"}],"stop":%s,"n":99}`,
			`{"messages":[{"role":"user","content":"a"}],"temperature":%s}`, `{"messages":[{"role":"user","content":"a"}],"logit_bias":{%s:1}}`,
			`{"messages":[{"role":"user","content":"a"}],"user":%s,"metadata":{"a":%[1]s},"n":99}`,
			`{"messages":[{"role":"user","content":"a"}],"response_format":{"type":%s}}`,
			`{"messages":[{"role":"user","content":"a"}],"response_format":{"type":"json_schema","json_schema":{"name":%s,"schema":{"type":%[1]s}}}}`,
			`{"messages":[{"role":"user","content":"a"}],"guided_json":%s}`, `{"messages":[{"role":"user","content":"a"}],"guided_regex":%s}`,
			`{"messages":[{"role":"user","content":"a"}],"guided_choice":[%s],"max_tokens":2}`,
			`{"messages":[{"role":"user","content":"a"}],"tools":[%s]}`, `{"messages":[{"role":"user","content":"a"}],"tool_choice":%s}`,
		} {
			body = fmt.Sprintf(body, quoted)
			resp := f.post(t, "/v1/chat/completions", body)
			sent++
			if b := string(read(t, resp)); resp.StatusCode != 200 && strings.Contains(b, canary) {
				t.Errorf("%.150s: the error quotes it: %.300s", body, b)
			}
		}
	}
	eventually(t, "each request has a line in the log", func() bool { return strings.Count(f.log.String(), "msg=request") >= sent })
	for _, line := range strings.Split(f.log.String(), "\n") {
		if strings.Contains(line, canary) {
			t.Errorf("a log line quotes it: %.300s", line)
		}
	}
	if n := strings.Count(f.log.String(), "msg=request"); n != sent {
		t.Errorf("%d lines in the log for %d requests", n, sent)
	}
	for _, s := range rec.Ended() {
		if text := fmt.Sprint(s.Name(), s.Attributes(), s.Events(), s.Status()); strings.Contains(text, canary) {
			t.Errorf("a span quotes it: %.300s", text)
		}
	}
}

// TestHTTPTrace holds that a request's span belongs to the trace that its caller names.
func TestHTTPTrace(t *testing.T) {
	rec := tracetest.NewSpanRecorder()
	tp := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(rec))
	tel, err := serving.NewTelemetry(tp, nometric.NewMeterProvider(), 0)
	if err != nil {
		t.Fatal(err)
	}
	f := startHash(t, server.Options{Telemetry: tel, HTTP: server.HTTPOptions{Propagator: propagation.TraceContext{}}})
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	read(t, f.post(t, "/v1/chat/completions", plainChat, "Traceparent", "00-"+trace+"-00f067aa0ba902b7-01"))
	eventually(t, "a span ends", func() bool { return len(rec.Ended()) > 0 })
	for _, s := range rec.Ended() {
		if got := s.SpanContext().TraceID().String(); got != trace {
			t.Errorf("span %s is of trace %s", s.Name(), got)
		}
	}
}
