package server_test

import (
	"archive/zip"
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/conversation"
	"github.com/mmserve/mmserve/decoder/decodertest"
	"github.com/mmserve/mmserve/internal/audit"
	"github.com/mmserve/mmserve/internal/media"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
)

// rights is a server that keeps conversations and an audit log.
type rights struct {
	*talk
	pb.SubjectServiceClient
	heard *heard
	dir   string
}

func startRights(t *testing.T) *rights {
	t.Helper()
	h, dir := newHeard(t), t.TempDir()
	f := &talk{fixture: start(t, tinyVLM(t), decodertest.NewHash(2, contextLen, vocab), server.Options{
		Audit: h, Conversations: openStore(t, filepath.Join(dir, "store"), conversation.Limits{}),
		Media: media.New(media.Options{Bytes: 8 << 20, TTL: time.Hour}),
	})}
	f.ConversationServiceClient = pb.NewConversationServiceClient(f.conn)
	return &rights{f, pb.NewSubjectServiceClient(f.conn), h, dir}
}

// check gives a receipt that the server signed.
func (r *rights) check(t *testing.T, in *pb.Receipt, action string) *audit.Receipt {
	t.Helper()
	s := audit.SignedReceipt{Text: in.GetText(), Signature: in.GetSignature(), Key: in.GetKey()}
	out, err := s.Check(map[string]ed25519.PublicKey{r.heard.keys.ID(): r.heard.keys.Public()})
	if err != nil || out.Action != action || out.Subject == "" || strings.Contains(string(in.GetText()), "alice") {
		t.Fatalf("receipt %s: %v", in.GetText(), err)
	}
	s.Text = bytes.Replace(s.Text, []byte(action), []byte("another"), 1)
	if _, err := s.Check(map[string]ed25519.PublicKey{s.Key: r.heard.keys.Public()}); err == nil {
		t.Error("a receipt that was edited counts")
	}
	return out
}

// uniquePNG is an image that no other is like.
func uniquePNG(t *testing.T, n int) []byte {
	t.Helper()
	img := image.NewRGBA(image.Rect(0, 0, 16, 16))
	img.Set(0, 0, color.RGBA{R: uint8(n), G: uint8(n >> 8), A: 255})
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const subjectCanary = "Xq7canary"

// fill makes conversations of alice's, each with two images of their own, the first asked about.
func (r *rights) fill(t *testing.T, conversations int) (ids []string) {
	t.Helper()
	for i := range conversations {
		id := r.create(t, "alice")
		ids = append(ids, id)
		r.ask(t, id, client.User(client.ImageBytes(uniquePNG(t, 2*i)), client.ImageBytes(uniquePNG(t, 2*i+1)),
			client.Text(fmt.Sprint("red ", subjectCanary, i))))
	}
	return ids
}

// access gives the archive of a subject's data.
func (r *rights) access(t *testing.T, subject string) ([]byte, *pb.Receipt) {
	t.Helper()
	stream, err := r.AccessSubject(t.Context(), &pb.AccessSubjectRequest{Tenant: "acme", Subject: subject})
	if err != nil {
		t.Fatal(err)
	}
	var archive []byte
	var last *pb.Receipt
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return archive, last
		}
		if err != nil {
			t.Fatal(err)
		}
		archive, last = append(archive, m.GetChunk()...), m.GetReceipt()
	}
}

// conversations are the texts and digests of all that a subject has, in order.
func (r *rights) conversations(t *testing.T, subject string) (list []string) {
	t.Helper()
	page, err := r.ListConversations(t.Context(), &pb.ListConversationsRequest{Tenant: "acme", Subject: subject})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range page.GetConversations() {
		got, err := r.GetConversation(t.Context(), &pb.GetConversationRequest{
			Tenant: "acme", Subject: subject, Conversation: c.GetId(),
		})
		if err != nil {
			t.Fatal(err)
		}
		text := ""
		for _, m := range got.GetMessages() {
			raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			text += string(raw)
		}
		list = append(list, text)
	}
	return list
}

// Access gives everything, and what it gives can be imported for another subject, with equal conversations.
func TestSubjectAccessAndImport(t *testing.T) {
	r := startRights(t)
	ids := r.fill(t, 5)
	archive, signed := r.access(t, "alice")
	receipt := r.check(t, signed, "access")
	if receipt.Counts["conversations"] != 5 || receipt.Counts["audit_lines"] < 6 {
		t.Errorf("receipt %+v", receipt)
	}
	z, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
	if err != nil {
		t.Fatal(err)
	}
	images, files := 0, map[string]bool{}
	for _, f := range z.File {
		files[f.Name] = true
		if strings.HasPrefix(f.Name, "images/") {
			images++
		}
	}
	if images != 10 || !files["subject.json"] || !files["audit.jsonl"] || !files["conversations/"+ids[0]+".jsonl"] {
		t.Errorf("%d images, files %v", images, files)
	}
	send := func(archive []byte) (*pb.ImportSubjectResponse, error) {
		stream, err := r.ImportSubject(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		in := &pb.ImportSubjectRequest{Tenant: "acme", Subject: "bob"}
		for len(archive) > 0 {
			n := min(len(archive), 3000)
			in.Chunk, archive = archive[:n], archive[n:]
			_ = stream.Send(in) // the answer has its error
			in = &pb.ImportSubjectRequest{}
		}
		return stream.CloseAndRecv()
	}
	for name, bad := range map[string][]byte{
		"rubbish": []byte("rubbish"), "half": archive[:len(archive)/2], "nothing": nil,
		"many files": bytes.Repeat([]byte("PK\x01\x02"), 200_000),
	} {
		if _, err := send(bad); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	out, err := send(archive)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.check(t, out.GetReceipt(), "import"); len(out.GetConversations()) != 5 || got.Archive != receipt.Archive {
		t.Errorf("imported %v: %+v", out.GetConversations(), got)
	}
	seen := map[string]int{}
	for _, c := range r.conversations(t, "alice") {
		seen[c]++
	}
	for _, c := range r.conversations(t, "bob") {
		seen[c]--
	}
	if len(seen) != 5 {
		t.Errorf("%d different conversations", len(seen))
	}
	for _, n := range seen {
		if n != 0 {
			t.Error("an imported conversation is not equal")
		}
	}
}

// After a restriction every read refuses but the subject's own, until it is lifted.
func TestSubjectRestrict(t *testing.T) {
	r := startRights(t)
	id := r.fill(t, 1)[0]
	in := &pb.RestrictSubjectRequest{Tenant: "acme", Subject: "alice"}
	out, err := r.RestrictSubject(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	r.check(t, out.GetReceipt(), "restrict")
	reads := map[string]func() error{
		"GetConversation": func() error {
			_, err := r.GetConversation(t.Context(), &pb.GetConversationRequest{
				Tenant: "acme", Subject: "alice", Conversation: id,
			})
			return err
		},
		"AppendMessages": func() error {
			_, err := r.AppendMessages(t.Context(), &pb.AppendMessagesRequest{
				Tenant: "acme", Subject: "alice", Conversation: id, Messages: []*pb.Message{client.User(client.Text("red"))},
			})
			return err
		},
		"ForkConversation": func() error {
			_, err := r.ForkConversation(t.Context(), &pb.ForkConversationRequest{
				Tenant: "acme", Subject: "alice", Conversation: id,
			})
			return err
		},
		"Generate": func() error {
			_, err := r.Generate(t.Context(), turnOf(id, client.User(client.Text("red"))))
			return err
		},
		"ExportConversations": func() error {
			stream, err := r.ExportConversations(t.Context(), &pb.ExportConversationsRequest{Tenant: "acme", Subject: "alice"})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		},
		"GetConversationImage": func() error {
			stream, err := r.GetConversationImage(t.Context(), &pb.GetConversationImageRequest{
				Tenant: "acme", Subject: "alice", Digest: digestOf(uniquePNG(t, 0)),
			})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		},
	}
	for name, read := range reads {
		if err := read(); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("%s of what is restricted: %v", name, err)
		}
	}
	if archive, _ := r.access(t, "alice"); len(archive) == 0 {
		t.Error("the subject cannot read its own")
	}
	in.Lift = true
	if out, err = r.RestrictSubject(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	r.check(t, out.GetReceipt(), "lift_restriction")
	for name, read := range reads {
		if err := read(); err != nil {
			t.Errorf("%s after the restriction: %v", name, err)
		}
	}
}

// After a deletion nothing is left, in the files and in the caches, and every step is in the audit log.
func TestSubjectDelete(t *testing.T) {
	r := startRights(t)
	id := r.fill(t, 50)[0]
	eventually(t, "prompts are cached", func() bool { return r.engine.Stats().CachedSlots > 0 })
	out, err := r.DeleteSubject(t.Context(), &pb.DeleteSubjectRequest{Tenant: "acme", Subject: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	receipt := r.check(t, out.GetReceipt(), "delete")
	c := receipt.Counts
	if c["conversations"] != 50 || c["images"] != 100 || c["messages"] != 100 || out.GetInUse() {
		t.Errorf("receipt %+v, in use %v", receipt, out.GetInUse())
	}
	if n := r.engine.Stats().CachedSlots; n != 0 {
		t.Errorf("%d slots are still cached", n)
	}
	_, err = r.GetConversation(t.Context(), &pb.GetConversationRequest{Tenant: "acme", Subject: "alice", Conversation: id})
	if status.Code(err) != codes.NotFound {
		t.Errorf("a conversation that was deleted: %v", err)
	}
	files, err := os.ReadDir(r.dir)
	if err != nil || len(files) < 2 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, f := range files {
		text, err := os.ReadFile(filepath.Join(r.dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range [][]byte{[]byte(subjectCanary), []byte("alice"), uniquePNG(t, 7)} {
			if bytes.Contains(text, secret) {
				t.Errorf("%s has %q", f.Name(), secret[:min(len(secret), 10)])
			}
		}
	}
	if log := r.log.String(); strings.Contains(log, subjectCanary) || strings.Contains(log, "alice") {
		t.Error("the log has content, or the subject's name")
	}
	var steps []string
	for _, e := range r.heard.all() {
		if e.Kind == audit.KindSubject {
			steps = append(steps, e.Action+" "+e.Decision)
			if e.Subject != receipt.Subject {
				t.Errorf("the log names the subject %q, the receipt %q", e.Subject, receipt.Subject)
			}
		}
	}
	if want := "[delete allowed delete OK]"; fmt.Sprint(steps) != want {
		t.Errorf("steps %v, want %s", steps, want)
	}
}

// What cannot be done is refused by name, and what is not in the audit log is not done.
func TestSubjectRefusals(t *testing.T) {
	r := startRights(t)
	id := r.fill(t, 1)[0]
	_, err := r.DeleteSubject(t.Context(), &pb.DeleteSubjectRequest{Tenant: "acme"})
	wantCode(t, "no subject", err, codes.InvalidArgument)
	_, err = r.DeleteSubject(t.Context(), &pb.DeleteSubjectRequest{Tenant: "acme", Subject: "carol"})
	wantCode(t, "nobody", err, codes.NotFound)
	_, err = r.DeleteSubject(t.Context(), &pb.DeleteSubjectRequest{Tenant: "other", Subject: "alice"})
	wantCode(t, "another tenant's", err, codes.NotFound)
	correct := &pb.CorrectSubjectRequest{
		Tenant: "acme", Subject: "alice", Conversation: id, Number: 1, Message: client.User(client.Text("blue")),
	}
	out, err := r.CorrectSubject(t.Context(), correct)
	if err != nil {
		t.Fatal(err)
	}
	r.check(t, out.GetReceipt(), "correct")
	list := r.conversations(t, "alice")
	if !strings.Contains(list[0], "blue") || strings.Contains(list[0], subjectCanary) {
		t.Errorf("corrected: %q", list)
	}
	objection := &pb.ObjectSubjectRequest{Tenant: "acme", Subject: "alice", Training: true}
	objects, err := r.ObjectSubject(t.Context(), objection)
	if err != nil {
		t.Fatal(err)
	}
	r.check(t, objects.GetReceipt(), "object")
	r.heard.fill()
	_, err = r.DeleteSubject(t.Context(), &pb.DeleteSubjectRequest{Tenant: "acme", Subject: "alice"})
	wantCode(t, "a full disk", err, codes.Unavailable)
	if len(r.conversations(t, "alice")) != 1 {
		t.Error("it was done without a line in the audit log")
	}
}
