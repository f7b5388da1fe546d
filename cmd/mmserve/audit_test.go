package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/audit"
	"github.com/mmserve/mmserve/internal/socket/sockettest"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// A server keeps a log that verifies, and requests of it are asked again with the same answers, over either edge.
// Another image, another text or another key is told.
func TestAuditAndReplay(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "audit.jsonl")
	t.Run("serve", func(t *testing.T) { auditRequests(t, dir, log) })

	status, out, errs := mmserve(t, "audit", "verify", log)
	if status != 0 || !strings.Contains(out, "nothing was changed") {
		t.Fatalf("status %d: %s%s", status, out, errs)
	}
	for _, c := range []struct{ id, input, want string }{
		{"over-grpc", "grpc.json", "the answer is the same to the bit"},
		{"over-http", "http.json", "the answer is the same to the bit"},
		{"over-grpc", "other.json", "request      DIFFERENT"},
		{"over-http", "grpc.json", "request      DIFFERENT"},
		{"nobody", "grpc.json", "no request with that id"},
	} {
		args := []string{"replay", "--audit-log", log, "--input", filepath.Join(dir, c.input), c.id}
		status, out, errs := mmserve(t, args...)
		if !strings.Contains(out+errs, c.want) || (status == 0) != strings.Contains(c.want, "to the bit") {
			t.Errorf("replay %s of %s: status %d: %s%s", c.id, c.input, status, out, errs)
		}
	}
	other := filepath.Join(dir, "other.key")
	if _, err := audit.OpenKeys(other); err != nil {
		t.Fatal(err)
	}
	status, _, errs = mmserve(t, "replay", "--audit-log", log, "--audit-key", other, "--input",
		filepath.Join(dir, "grpc.json"), "over-grpc")
	if status != 1 || !strings.Contains(errs, "is not the log's") {
		t.Errorf("another key: status %d: %s", status, errs)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte(`"tenant":"acme"`), []byte(`"tenant":"evil"`), 1)
	if err := os.WriteFile(log, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if status, out, _ := mmserve(t, "audit", "verify", log); status != 1 || !strings.Contains(out, "THE LOG WAS CHANGED") {
		t.Errorf("a log that was changed: status %d: %s", status, out)
	}
}

// auditRequests has a server answer two requests, which lie in dir.
func auditRequests(t *testing.T, dir, log string) {
	web := sockettest.FreeAddress(t)
	c := startServer(t, "--audit-log", log, "--http-listen", web)
	temperature, most := float32(0.8), uint32(24)
	in := client.Chat(client.User(client.ImageBytes(sample(t, 1)), client.Text("What is in the image?")))
	in.RequestId, in.Tenant, in.MaxTokens = "over-grpc", "acme", &most
	in.Sampling = &pb.Sampling{Temperature: &temperature}
	if _, err := c.Generate(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	save := func(name string, text []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text, err := protojson.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	save("grpc.json", text)
	in.GetChat().GetMessages()[0].GetParts()[0] = client.ImageBytes(sample(t, 2))
	if text, err = protojson.Marshal(in); err != nil {
		t.Fatal(err)
	}
	save("other.json", text)

	body, err := json.Marshal(map[string]any{
		"model": "tiny-vlm", "max_tokens": 24, "temperature": 0.9, "n": 2, "stream": true,
		"messages": []any{map[string]any{"role": "user", "content": []any{
			map[string]any{"type": "text", "text": "Describe the image."},
			map[string]any{"type": "image_url", "image_url": map[string]any{
				"url": "data:image/png;base64," + base64.StdEncoding.EncodeToString(sample(t, 2)),
			}},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	save("http.json", body)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, fmt.Sprintf("http://%s/v1/chat/completions", web),
		bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-Request-Id", "over-http")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if answer, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%v: %s", err, answer)
	}
}

// Flags of the audit log that do not go together are refused.
func TestAuditFlags(t *testing.T) {
	for _, c := range []struct{ arg, want string }{
		{"--audit-required", "--audit-log is missing"},
		{"--audit-key=/tmp/key", "--audit-log is missing"},
		{"--audit-max-bytes=5", "--audit-max-bytes 5: want"},
		{"--audit-keep=-1h", "--audit-keep -1h0m0s: want"},
		{"--audit-log=/nowhere/at/all", "audit key"},
	} {
		status, _, errs := mmserve(t, "serve", "--pace=1ms,1ms", "--admin-address=", "--listen=127.0.0.1:0", c.arg)
		if status == 0 || !strings.Contains(errs, c.want) {
			t.Errorf("%s: status %d: %s; want %q", c.arg, status, errs, c.want)
		}
	}
}

// The commands of a person's rights, as they are typed: what access gives can be imported elsewhere, and a receipt
// checks.
func TestSubjectCommands(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	master := base64.StdEncoding.EncodeToString(make([]byte, 32)) + "\n"
	if err := os.WriteFile(file("master"), []byte(master), 0o600); err != nil {
		t.Fatal(err)
	}
	addr := serveAt(t, "--audit-log", file("audit.jsonl"), "--conversations", "sqlite:"+file("store"),
		"--conversation-master-key", "file:"+file("master"))
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	talks := pb.NewConversationServiceClient(conn)
	c, err := talks.CreateConversation(t.Context(), &pb.CreateConversationRequest{Tenant: "acme", Subject: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	id := c.GetConversation().GetId()
	in := client.Chat(client.User(client.ImageBytes(sample(t, 1)), client.Text("What is in the image?")))
	in.Tenant, in.Subject, in.Conversation = "acme", "alice", id
	if _, err := client.New(conn).Generate(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	with := func(args ...string) []string { return append(args, "--server", addr, "--tenant", "acme") }
	for _, step := range []struct {
		args []string
		want string
	}{
		{with("subject", "access", "alice", "-o", file("a.zip"), "--receipt", file("receipt")), `"action":"access"`},
		{[]string{"subject", "check", "--public", file("audit.jsonl.pub"), file("receipt")}, `"action":"access"`},
		{with("subject", "import", "bob", "--archive", file("a.zip")), `"counts":{"conversations":1}`},
		{with("subject", "correct", "alice", "--conversation", id, "--number", "1", "--text", "no"), `"messages":1`},
		{with("subject", "object", "alice", "--training"), `"action":"object"`},
		{with("subject", "restrict", "alice"), `"action":"restrict"`},
		{with("subject", "delete", "alice", "--yes"), `"images":0,"messages":2`},
		{[]string{"audit", "verify", file("audit.jsonl")}, "nothing was changed"},
	} {
		if status, out, errs := mmserve(t, step.args...); status != 0 || !strings.Contains(out, step.want) {
			t.Errorf("%v: status %d: %s%s; want %s", step.args, status, out, errs, step.want)
		}
	}
	if status, _, errs := mmserve(t, with("subject", "access", "alice", "-o", file("b.zip"))...); status == 0 ||
		!strings.Contains(errs, "nothing of this name") {
		t.Errorf("access after the deletion: status %d: %s", status, errs)
	}
	if _, err := os.Stat(file("b.zip")); err == nil {
		t.Error("an archive that broke off stays")
	}
}
