package server_test

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/decoder"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/safety"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
)

// says is a decoder that answers with the given tokens, one request at a time.
type says struct {
	ids    []int32
	mu     sync.Mutex
	prompt []int32
}

func (s *says) Capacity() decoder.Capacity { return decoder.Capacity{Slots: 1, MaxLen: contextLen} }

func (s *says) Run(_ context.Context, b *decoder.Batch) (out []decoder.Token, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, row := range b.Rows {
		if row.Past == 0 {
			s.prompt = nil
		}
		if len(row.IDs) > 1 || row.Past == 0 {
			s.prompt = append(s.prompt[:min(row.Past, len(s.prompt))], row.IDs...)
		}
		if row.Sampler == nil {
			continue
		}
		at := row.Past + len(row.IDs) - len(s.prompt)
		id := int32(4) // the end
		if at < len(s.ids) {
			id = s.ids[at]
		}
		out = append(out, decoder.Token{ID: id})
	}
	return out, nil
}

// policyAudit keeps what a policy tells.
type policyAudit struct {
	mu     sync.Mutex
	events []serving.PolicyEvent
}

func (a *policyAudit) PolicyFindings(_ context.Context, e serving.PolicyEvent) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.events = append(a.events, e)
}

// policyOf is a server's policy of a file's text.
func policyOf(t *testing.T, text string, a *policyAudit) *serving.Policy {
	t.Helper()
	p, err := safety.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	out := &serving.Policy{Now: func() *safety.Policy { return p }}
	if a != nil {
		out.Audit = a
	}
	return out
}

// saying serves the tiny model, which always answers with a text, under a policy.
func saying(t *testing.T, answer, policy string, a *policyAudit) (*webFixture, *says) {
	t.Helper()
	m := tinyVLM(t)
	r := &says{ids: m.Prompter.Tokenizer.Encode(answer, false)}
	return startHTTP(t, &m, r, server.Options{Policy: policyOf(t, policy, a)}), r
}

const strict = `
default:
  personal_data: {input: redact, output: redact}
  hate: {input: block, output: block}
  health: {input: flag}
  health_notice: Ask a doctor.
tenants:
  open:
    personal_data: {input: allow, output: allow}
use_policy: For images of shapes.
`

// What a request may not say is refused by field and category, and never repeated; what is to be redacted does not
// get to
// the model, also where two parts make it one.
func TestPolicyOfInput(t *testing.T) {
	a := &policyAudit{}
	f, r := saying(t, "fine", strict, a)
	_, err := f.grpc.Generate(t.Context(), client.Chat(client.User(client.Text("Hi. We should k1ll all the "),
		client.Text("jews"))))
	if st := status.Convert(err); st.Code() != codes.InvalidArgument || !strings.Contains(st.Message(),
		"chat.messages[0].parts[0].text") ||
		!strings.Contains(st.Message(), "hate") || strings.Contains(st.Message(), "jews") {
		t.Errorf("refused with %v", err)
	}
	in := client.Chat(client.User(client.Text("Mail bob@exam"), client.Text("ple.com now")))
	out, err := f.grpc.Generate(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	m := tinyVLM(t)
	if got := m.Prompter.Tokenizer.Decode(r.prompt, false); strings.Contains(got, "bob") || !strings.Contains(got,
		"Mail [email] now") {
		t.Errorf("the model was given %q", got)
	}
	want := []*pb.ContentFinding{{Category: "personal_data", Place: pb.ContentPlace_CONTENT_PLACE_INPUT,
		Action: pb.ContentAction_CONTENT_ACTION_REDACT, Count: 1}}
	if got := out.GetFindings(); len(got) != 1 || !proto.Equal(got[0], want[0]) {
		t.Errorf("findings are %v", got)
	}
	in = client.Chat(client.User(client.Text("Mail bob@example.com now")))
	in.Tenant = "open"
	if out, err = f.grpc.Generate(t.Context(), in); err != nil || len(out.GetFindings()) != 0 {
		t.Errorf("another tenant's rules: %v, %v", out.GetFindings(), err)
	}
	in.Tenant = ""
	var ids []uint32
	for _, id := range m.Prompter.Tokenizer.Encode("bob@example.com", false) {
		ids = append(ids, uint32(id))
	}
	part := &pb.Part{Content: &pb.Part_TokenIds{TokenIds: &pb.TokenIds{Ids: ids}}}
	in = &pb.GenerateRequest{Input: &pb.GenerateRequest_Prompt{Prompt: &pb.Prompt{Parts: []*pb.Part{part}}}}
	if _, err := f.grpc.Generate(t.Context(), in); status.Code(err) != codes.InvalidArgument {
		t.Errorf("tokens of an address: %v", err)
	}
	if len(a.events) < 2 || !a.events[0].Refused || a.events[1].Refused ||
		a.events[1].Counts[0].Category != safety.PersonalData {
		t.Errorf("the audit was told %+v", a.events)
	}
	if log := f.log.String(); strings.Contains(log, "bob") || strings.Contains(log, "jews") {
		t.Errorf("the log has content: %s", log)
	}
}

// An answer is redacted or ended as it comes, over both edges, and says so.
func TestPolicyOfOutput(t *testing.T) {
	f, _ := saying(t, "mail bob@example.com now", strict, nil)
	out, err := f.grpc.Generate(t.Context(), client.Chat(client.User(client.Text("Who?"))))
	if err != nil || out.GetText() != "mail [email] now" ||
		out.GetFinishReason() != pb.FinishReason_FINISH_REASON_STOP {
		t.Errorf("the answer is %v, %v", out, err)
	}
	f, _ = saying(t, "They say kill all jews today", strict, nil)
	if out, err = f.grpc.Generate(t.Context(), client.Chat(client.User(client.Text("Who?")))); err != nil {
		t.Fatal(err)
	}
	if out.GetText() != "They say " || out.GetFinishReason() != pb.FinishReason_FINISH_REASON_CONTENT_FILTER ||
		out.GetFindings()[0].GetCategory() != "hate" {
		t.Errorf("the answer is %v", out)
	}
	rests := func() { // the slot of an answer that was cut off is free a moment later
		eventually(t, "the slot is free", func() bool { return f.engine.Stats().Running == 0 })
	}
	for _, stream := range []string{"false", "true"} {
		rests()
		body := read(t, f.post(t, "/v1/chat/completions",
			`{"model":"tiny-vlm","stream":`+stream+`,"messages":[{"role":"user","content":"Who?"}]}`))
		text := string(body)
		if !strings.Contains(text, `"finish_reason":"content_filter"`) || strings.Contains(text, "kill") ||
			!strings.Contains(text, `"content_filter_results":{"hate":{"detected":true,"filtered":true}}`) {
			t.Errorf("stream %s: %s", stream, text)
		}
	}
	rests()
	var e struct{ Error struct{ Code, Param string } }
	body := read(t, f.post(t, "/v1/chat/completions",
		`{"model":"tiny-vlm","messages":[{"role":"user","content":"kill all jews"}]}`))
	if err := json.Unmarshal(body, &e); err != nil || e.Error.Code != "content_filter" ||
		e.Error.Param != "messages[0].content[0].text" {
		t.Errorf("%s: %v", body, err)
	}
}

// A question about health has a notice follow its answer, and nothing else has; the operator's use policy is told.
func TestHealthNotice(t *testing.T) {
	f, _ := saying(t, "It depends.", strict, nil)
	for text, want := range map[string]string{
		"I have a fever. What dose of ibuprofen can I take?": "It depends.\n\nAsk a doctor.",
		"What colour is it?": "It depends.",
	} {
		out, err := f.grpc.Generate(t.Context(), client.Chat(client.User(client.Text(text))))
		if err != nil || out.GetText() != want {
			t.Errorf("%s: %q, %v", text, out.GetText(), err)
		}
	}
	info, err := f.grpc.ServerInfo(t.Context())
	if err != nil || info.GetUsePolicy() != "For images of shapes." {
		t.Errorf("%v, %v", info, err)
	}
}
