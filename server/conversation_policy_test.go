package server_test

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/safety"
	"github.com/mmserve/mmserve/server"
)

// covers is an inspector that puts another file in the place of one.
type covers struct{ bad, good []byte }

func (c covers) Inspect(_ context.Context, _ *safety.Rules, data []byte) ([]safety.Finding, []byte, error) {
	if bytes.Equal(data, c.bad) {
		return []safety.Finding{{Category: safety.PersonalData, Action: safety.Redact}}, c.good, nil
	}
	return nil, data, nil
}

// What a policy covers or refuses is in no conversation: neither as it was said, nor as a file.
func TestConversationKeepsWhatPolicyLeaves(t *testing.T) {
	plain, secret, covered := pngFile(16), pngFile(64), pngFile(32)
	policy := policyOf(t, strict, nil)
	policy.Inspector = covers{secret, covered}
	f := startTalk(t, filepath.Join(t.TempDir(), "x.db"), server.Options{Policy: policy})
	id := f.create(t, "alice")
	f.ask(t, id, client.User(client.ImageBytes(plain), client.Text("What is this?")))
	f.ask(t, id, client.User(client.Text("Mail bob@exam"), client.ImageBytes(secret), client.Text("or bob@example.com")),
		client.User(client.Text("or "), client.Text("eve@exam"), client.Text("ple.com")))
	_, err := f.Generate(t.Context(), turnOf(id, client.User(client.Text("We should k1ll all the jews"))))
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("what is blocked gets %v", err)
	}
	c := f.get(t, id)
	if n := c.GetConversation().GetMessages(); n != 5 {
		t.Errorf("%d messages are kept, want 5", n)
	}
	if text := c.String(); strings.Contains(text, "bob@example.com") || strings.Contains(text, "eve@") ||
		strings.Count(text, "[email]") != 2 || !strings.Contains(text, digestOf(plain)) ||
		strings.Contains(text, digestOf(secret)) || !strings.Contains(text, digestOf(covered)) {
		t.Errorf("kept: %s", text)
	}
}
