package server_test

import (
	"bytes"
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mmserve/mmserve/client"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/safety"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
	"github.com/mmserve/mmserve/vision"
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

// refuses is an inspector that has a policy block all images but one.
type refuses struct{ good []byte }

func (r refuses) Inspect(_ context.Context, _ *safety.Rules, data []byte) ([]safety.Finding, []byte, error) {
	if bytes.Equal(data, r.good) {
		return nil, data, nil
	}
	return []safety.Finding{{Category: safety.Sexual, Action: safety.Block}}, data, nil
}

// The policy's rules of images hold for embeddings: what is blocked is refused by its field, what is covered is
// embedded covered.
func TestEmbedIsHeldToPolicy(t *testing.T) {
	good, bad := pngFile(16), pngFile(64)
	audit := &policyAudit{}
	policy := policyOf(t, strict, audit)
	policy.Inspector = refuses{good}
	embed := func(p *serving.Policy, file []byte) (*pb.EmbedImageStart, error) {
		m := tinyVLM(t)
		encode := m.Encode
		m.Encode = func(ctx context.Context, img *vision.Image) ([]float32, bool, error) { // each size has its own
			out, cached, err := encode(ctx, img)
			for i := range out {
				out[i] = float32(img.Width)
			}
			return out, cached, err
		}
		f := start(t, m, newChain(1, 4), server.Options{Policy: p})
		stream, err := pb.NewInferenceServiceClient(f.conn).EmbedImage(t.Context(),
			&pb.EmbedImageRequest{Image: client.ImageBytes(file).GetImage()})
		if err != nil {
			t.Fatal(err)
		}
		first, err := stream.Recv()
		return first.GetStart(), err
	}
	if _, err := embed(policy, good); err != nil {
		t.Error(err)
	}
	_, err := embed(policy, bad)
	if st := status.Convert(err); st.Code() != codes.InvalidArgument || !strings.Contains(st.Message(), "image") ||
		!strings.Contains(st.Message(), "sexual") {
		t.Errorf("refused with %v", err)
	}
	if len(audit.events) != 1 || !audit.events[0].Refused {
		t.Errorf("the audit was told %+v", audit.events)
	}
	policy = policyOf(t, strict, audit)
	policy.Inspector = covers{bad, good}
	got, err := embed(policy, bad)
	want, err2 := embed(nil, good)
	if plain, err := embed(nil, bad); err != nil || slices.Equal(plain.GetPooled(), want.GetPooled()) {
		t.Errorf("both images have one embedding, %v", err)
	}
	if err != nil || err2 != nil || len(want.GetPooled()) == 0 || !slices.Equal(got.GetPooled(), want.GetPooled()) {
		t.Errorf("a covered image gives %v, %v; want %v, %v", got.GetImage(), err, want.GetImage(), err2)
	}
}
