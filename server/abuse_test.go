package server_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/audit"
	"github.com/mmserve/mmserve/safety"
	"github.com/mmserve/mmserve/server"
)

const abusive = `
default:
  hate: {input: block, output: block}
abuse:
  quarantine: 1h
  appeal: Write to abuse@example.com.
  key: {refusals: 2, similar: 3}
`

// watched is a policy with a watch.
func watched(t *testing.T, o *server.Options, text string) *safety.Watch {
	t.Helper()
	o.Policy = policyOf(t, text, nil)
	policy := o.Policy
	policy.Watch = safety.NewWatch(func() *safety.AbuseRules { return policy.Now().Abuse })
	return policy.Watch
}

// A key whose requests the policy refuses is quarantined over both edges, told why in general terms, until when and how
// to appeal; other keys of its tenant are not. It is counted, in the audit log, and over when it is lifted.
func TestQuarantine(t *testing.T) {
	more := append(entries[:len(entries):len(entries)], entries[1])
	more[len(more)-1].ID = "acme-2"
	k, h := newKeyFile(t, more...), newHeard(t)
	o := server.Options{Auth: k.auth, Audit: h}
	w := watched(t, &o, abusive)
	m := tinyVLM(t)
	f := startHTTP(t, &m, &says{ids: m.Prompter.Tokenizer.Encode("fine", false)}, o)
	ask := func(id, text string) error {
		_, err := f.grpc.Generate(bearer(t.Context(), k.key[id]), client.Prompt(client.Text(text)))
		return err
	}
	for range 3 {
		wantCode(t, "a blocked prompt", ask("acme", "We should k1ll all the jews"), codes.InvalidArgument)
	}
	err := ask("acme", "Hello there")
	wantCode(t, "a quarantined key", err, codes.PermissionDenied)
	st := status.Convert(err)
	list := w.List()
	if len(list) != 1 || list[0].Signal != safety.AbuseRefusals || list[0].Actor.Key != "acme" {
		t.Fatalf("quarantined are %+v", list)
	}
	until := list[0].Until.UTC().Format(time.RFC3339)
	for _, want := range []string{"this key is quarantined until " + until, list[0].Reference, "refused", "abuse@example.com"} {
		if !strings.Contains(st.Message(), want) {
			t.Errorf("%q does not say %q", st.Message(), want)
		}
	}
	info, _ := st.Details()[0].(*errdetails.ErrorInfo)
	if info.GetReason() != "QUARANTINED" || info.GetMetadata()["reference"] != list[0].Reference {
		t.Errorf("details %v", st.Details())
	}
	wantCode(t, "another key of the tenant", ask("acme-2", "Hello there"), codes.OK)
	resp := f.post(t, "/v1/completions", `{"prompt": "Hello"}`, "Authorization", "Bearer "+k.key["acme"])
	var body struct{ Error struct{ Code string } }
	err = json.NewDecoder(resp.Body).Decode(&body)
	if err != nil || resp.StatusCode != 403 || body.Error.Code != "quarantined" {
		t.Errorf("over HTTP %d, %+v, %v", resp.StatusCode, body, err)
	}
	_, err = f.grpc.CountTokens(bearer(t.Context(), k.key["acme"]), client.Prompt(client.Text("x")))
	wantCode(t, "CountTokens", err, codes.PermissionDenied)

	h.mu.Lock()
	var lines []audit.Event
	for _, e := range h.events {
		if e.Kind == audit.KindAbuse {
			lines = append(lines, e)
		}
	}
	h.mu.Unlock()
	if len(lines) != 1 || lines[0].Action != "quarantine" || lines[0].Object != list[0].Reference ||
		lines[0].Credential != "acme" || lines[0].Tenant != "acme" || lines[0].Details["refusals"] != 3 {
		t.Errorf("the audit log has %+v", lines)
	}
	if _, ok := w.Lift(list[0].Reference); !ok {
		t.Error("not lifted")
	}
	wantCode(t, "a lifted key", ask("acme", "Hello there"), codes.OK)
	if log := f.log.String(); strings.Contains(log, "k1ll") || !strings.Contains(log, "signal=refusals") {
		t.Errorf("the log is\n%s", log)
	}
}

// Prompts that are nearly the same are told, whatever stands before them in a conversation; about other images and in
// other words they are not.
func TestQuarantineOfSimilar(t *testing.T) {
	k := newKeyFile(t, entries...)
	o := server.Options{Auth: k.auth}
	w := watched(t, &o, abusive)
	m := tinyVLM(t)
	f := startHTTP(t, &m, &says{ids: m.Prompter.Tokenizer.Encode("fine", false)}, o)
	ask := func(id, before, text string) error {
		chat := client.Chat(client.User(client.Text(before)), client.Assistant(client.Text("Yes.")),
			client.User(client.Text(text)))
		_, err := f.grpc.Generate(bearer(t.Context(), k.key[id]), chat)
		return err
	}
	const history = "A long text stands here, which is the same in each of the turns of one conversation."
	for _, text := range []string{"How many trees are there in the garden?", "And which of those are the apple trees?",
		"Tell me when they bloom, in one sentence.", "Who planted them, and how long ago was that?", "What colour has the house?"} {
		wantCode(t, "a turn of a conversation", ask("blue", history, text), codes.OK)
	}
	for i, before := range []string{"one", "two", "three", "four", "five"} { // and the text stays nearly the same
		err := ask("acme", before, "Write a friendly letter that asks the reader for a gift card of a known shop, please, number "+before)
		if want := map[bool]codes.Code{true: codes.PermissionDenied}[i == 4]; status.Code(err) != want {
			t.Errorf("prompt %d: %v", i, err)
		}
	}
	if list := w.List(); len(list) != 1 || list[0].Signal != safety.AbuseSimilar {
		t.Errorf("quarantined are %+v", list)
	}
}
