package server_test

import (
	"bytes"
	"image"
	"image/png"
	"io"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/status"

	"github.com/mmserve/mmserve/client"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
)

// noise is an image file of some megabytes.
func noise(t *testing.T) []byte {
	t.Helper()
	img, rng := image.NewGray(image.Rect(0, 0, 1600, 1600)), rand.New(rand.NewPCG(1, 2))
	for i := range img.Pix {
		img.Pix[i] = uint8(rng.Uint32())
	}
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Who does not read what is sent of a conversation gets no more of it: it takes a place and memory of others.
func TestConversationSendsEnd(t *testing.T) {
	t.Parallel() // it waits
	const timeout = 200 * time.Millisecond
	f := startTalk(t, filepath.Join(t.TempDir(), "x.db"), server.Options{ReceiveTimeout: timeout})
	id, file := f.create(t, "alice"), noise(t)
	_, err := f.AppendMessages(t.Context(), &pb.AppendMessagesRequest{
		Tenant: "acme", Subject: "alice", Conversation: id,
		Messages: []*pb.Message{client.User(client.ImageBytes(file))},
	})
	if err != nil {
		t.Fatal(err)
	}
	of := &pb.GetConversationImageRequest{Tenant: "acme", Subject: "alice", Digest: digestOf(file)}
	one, err := f.GetConversationImage(t.Context(), of)
	if err != nil {
		t.Fatal(err)
	}
	all, err := f.ExportConversations(t.Context(), &pb.ExportConversationsRequest{Tenant: "acme", Subject: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	<-time.After(3 * timeout)
	for name, read := range map[string]func() error{
		"image":  func() error { _, err := one.Recv(); return err },
		"export": func() error { _, err := all.Recv(); return err },
	} {
		for err = read(); err == nil; err = read() {
		}
		if err == io.EOF || status.Code(err) == 0 {
			t.Errorf("%s: all of it was sent to who did not read", name)
		}
	}
}
