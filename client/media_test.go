package client_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/mmserve/mmserve/client"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// store is a server that keeps media as mmserve's does, and notes what came.
type store struct {
	pb.UnimplementedMMServeServer
	pb.UnimplementedInferenceServiceServer
	refuse error // of uploads
	amnesy bool  // it has no file by the time of a request
	lie    bool  // it names another digest

	mu       sync.Mutex
	files    map[string][]byte // by tenant and digest
	sent     int               // files that came whole
	asked    int               // uploads that began
	requests []*pb.GenerateRequest
}

func digest(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

func (s *store) UploadMedia(stream grpc.ClientStreamingServer[pb.UploadMediaRequest, pb.UploadMediaResponse]) error {
	s.mu.Lock()
	s.asked++
	s.mu.Unlock()
	if s.refuse != nil {
		return s.refuse
	}
	in, err := stream.Recv()
	if err != nil {
		return err
	}
	h := in.GetHeader()
	s.mu.Lock()
	data, known := s.files[h.GetTenant()+h.GetDigest()]
	s.mu.Unlock()
	for !known {
		data = append(data, in.GetChunk()...)
		if in, err = stream.Recv(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		if len(in.GetChunk()) > 1<<20 || in.GetHeader() != nil {
			return status.Error(codes.InvalidArgument, "not as the contract has it")
		}
	}
	d := digest(data)
	if h.Size != nil && h.GetSize() != uint64(len(data)) || h.GetDigest() != "" && h.GetDigest() != d {
		return status.Error(codes.InvalidArgument, "the header is wrong")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !known {
		s.sent++
		s.files[h.GetTenant()+d] = data
	}
	if s.lie {
		d = digest([]byte("another"))
	}
	return stream.SendAndClose(&pb.UploadMediaResponse{
		Digest: d, Size: uint64(len(data)), ExpireTime: timestamppb.New(time.Now().Add(time.Hour)),
	})
}

func (s *store) DeleteMedia(_ context.Context, in *pb.DeleteMediaRequest) (*pb.DeleteMediaResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, existed := s.files[in.GetTenant()+in.GetDigest()]
	delete(s.files, in.GetTenant()+in.GetDigest())
	return &pb.DeleteMediaResponse{Existed: existed, InUse: true}, nil
}

func (s *store) admit(in *pb.GenerateRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, in)
	for _, m := range in.GetChat().GetMessages() {
		for i, p := range m.GetParts() {
			d := p.GetImage().GetDigest()
			if _, ok := s.files[in.GetTenant()+d]; d == "" || ok && !s.amnesy {
				continue
			}
			st, err := status.New(codes.NotFound, "an image is gone").WithDetails(&errdetails.BadRequest{
				FieldViolations: []*errdetails.BadRequest_FieldViolation{
					{Field: fmt.Sprintf("chat.messages[0].parts[%d].image.digest", i)},
				},
			})
			if err != nil {
				return err
			}
			return st.Err()
		}
	}
	return nil
}

func (s *store) Generate(_ context.Context, in *pb.GenerateRequest) (*pb.GenerateResponse, error) {
	return &pb.GenerateResponse{Text: "yes"}, s.admit(in)
}

func (s *store) GenerateStream(in *pb.GenerateRequest,
	stream grpc.ServerStreamingServer[pb.GenerateStreamResponse]) error {
	if err := s.admit(in); err != nil {
		return err
	}
	return stream.Send(&pb.GenerateStreamResponse{Event: &pb.GenerateStreamResponse_Finish{Finish: &pb.StreamFinish{}}})
}

// rpc are the methods of both services of which a store has its own.
type rpc struct{ *store }

func (s *store) dial(t *testing.T, opts ...client.Option) *client.Client {
	s.files = map[string][]byte{}
	lis := bufconn.Listen(1 << 16)
	g := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
	pb.RegisterMMServeServer(g, rpc{s}) //lint:ignore SA1019 the client's
	pb.RegisterInferenceServiceServer(g, rpc{s})
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(lis) }()
	conn, err := grpc.NewClient("passthrough:///memory", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); g.Stop(); <-done })
	return client.New(conn, opts...)
}

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

// carried says how the images of the last request came.
func (s *store) carried() (list []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.requests[len(s.requests)-1].GetChat().GetMessages() {
		for _, p := range m.GetParts() {
			switch {
			case p.GetImage().GetDigest() != "":
				list = append(list, "digest")
			case p.GetImage() != nil:
				list = append(list, "data")
			}
		}
	}
	return list
}

// A large image is sent once and then named, whatever request has it; small ones and other tenants' are sent as they
// are.
func TestUploadsOnce(t *testing.T) {
	s := new(store)
	c := s.dial(t, client.WithUploads("alice", 1000))
	large, small := noise(600_000), noise(999)
	in := client.Chat(client.System(client.Text("s")), client.User(client.ImageBytes(large), client.Text("?"),
		client.ImageBytes(small), client.ImageBytes(large)), client.Assistant(client.Text("a")))
	in.Tenant, in.MaxTokens, in.Stop = "alice", proto.Uint32(7), []string{"x"}
	in.GetChat().GetMessages()[1].GetParts()[0].GetImage().Detail = pb.Detail_DETAIL_HIGH
	in.ProtoReflect().SetUnknown([]byte{0xf8, 0x7f, 1}) // a field that this client does not know
	before := proto.CloneOf(in)
	for range 3 {
		if _, err := c.Generate(t.Context(), in); err != nil {
			t.Fatal(err)
		}
		if _, err := stream(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		for _, err := range c.Stream(t.Context(), in) {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if s.sent != 1 || s.asked != 1 || !proto.Equal(in, before) {
		t.Errorf("%d files were sent in %d uploads; the request is as it was: %v", s.sent, s.asked, proto.Equal(in, before))
	}
	if got := strings.Join(s.carried(), " "); got != "digest data digest" {
		t.Error(got)
	}
	// But for the image's bytes the request is what was asked.
	got := proto.CloneOf(s.requests[len(s.requests)-1])
	for _, i := range []int{0, 3} {
		img := got.GetChat().GetMessages()[1].GetParts()[i].GetImage()
		img.Data, img.Digest = large, ""
	}
	if !proto.Equal(got, before) {
		t.Error("more than the images was changed")
	}
	in.Tenant = "bob"
	if _, err := c.Generate(t.Context(), in); err != nil || strings.Join(s.carried(), " ") != "data data data" {
		t.Errorf("another tenant's: %v, %v", s.carried(), err)
	}
}

// What was deleted is not relied on any more: the next request has it uploaded anew.
func TestDeleteMedia(t *testing.T) {
	s := new(store)
	c := s.dial(t, client.WithUploads("alice", 1000))
	data := noise(2000)
	in := client.Chat(client.User(client.ImageBytes(data)))
	in.Tenant = "alice"
	for i := range 2 {
		if _, err := c.Generate(t.Context(), in); err != nil || s.sent != i+1 || s.asked != i+1 {
			t.Errorf("%v; %d files were sent in %d uploads, want %d", err, s.sent, s.asked, i+1)
		}
		existed, inUse, err := c.DeleteMedia(t.Context(), "alice", digest(data))
		if err != nil || !existed || !inUse {
			t.Errorf("deleted: %v %v %v", existed, inUse, err)
		}
	}
}

func TestUploadsOnceAtOnce(t *testing.T) {
	s := new(store)
	c := s.dial(t, client.WithUploads("", 1))
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			if _, err := c.Generate(t.Context(), client.Chat(client.User(client.ImageBytes(noise(300_000))))); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if s.asked != 1 || strings.Join(s.carried(), " ") != "digest" {
		t.Errorf("%d uploads; the last request has %v", s.asked, s.carried())
	}
}

// Whatever becomes of an upload, the request is answered, or has its own error.
func TestUploadsFallBack(t *testing.T) {
	for _, tt := range []struct {
		name     string
		store    *store
		asked    int // uploads for three requests
		requests int
		carried  string
	}{
		{"no store", &store{refuse: status.Error(codes.Unimplemented, "no media")}, 1, 3, "data"},
		{"full", &store{refuse: status.Error(codes.ResourceExhausted, "full")}, 3, 3, "data"},
		{"gone by then", &store{amnesy: true}, 6, 9, "data"},
		{"another file", &store{lie: true}, 3, 3, "data"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := tt.store.dial(t, client.WithUploads("", 1))
			for range 3 {
				if _, err := c.Generate(t.Context(), client.Chat(client.User(client.ImageBytes(noise(2000))))); err != nil {
					t.Fatal(err)
				}
			}
			s := tt.store
			if s.asked != tt.asked || len(s.requests) != tt.requests || strings.Join(s.carried(), " ") != tt.carried {
				t.Errorf("%d uploads, %d requests, the last with %v; want %d, %d, %s",
					s.asked, len(s.requests), s.carried(), tt.asked, tt.requests, tt.carried)
			}
		})
	}
}

// What the server lost is uploaded again, and what expired too.
func TestUploadsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := new(store)
		c := s.dial(t, client.WithUploads("", 1))
		ask := func(sent, requests int) {
			t.Helper()
			if _, err := c.Generate(t.Context(), client.Chat(client.User(client.ImageBytes(noise(2000))))); err != nil {
				t.Error(err)
			}
			if s.sent != sent || len(s.requests) != requests || s.carried()[0] != "digest" {
				t.Errorf("%d files, %d requests, the last with %v; want %d, %d",
					s.sent, len(s.requests), s.carried(), sent, requests)
			}
		}
		ask(1, 1)
		clear(s.files)
		ask(2, 3)
		time.Sleep(time.Hour)
		clear(s.files)
		ask(3, 4) // the client knew
	})
}

func TestUpload(t *testing.T) {
	s := new(store)
	c := s.dial(t)
	data := noise(1_500_000)
	name := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, r := range []io.Reader{iotest.HalfReader(bytes.NewReader(data)), file, bytes.NewReader(data)} {
		got, err := c.Upload(t.Context(), "alice", r)
		if err != nil || got != digest(data) {
			t.Errorf("%T: %s, %v", r, got, err)
		}
	}
	if s.sent != 1 { // what can be read twice is known to be there
		t.Errorf("%d files were sent", s.sent)
	}
	in := client.Chat(client.User(client.ImageDigest(digest(data))))
	in.Tenant = "alice"
	if _, err := c.Generate(t.Context(), in); err != nil {
		t.Error(err)
	}
	broken := errors.New("broken")
	torn := io.MultiReader(bytes.NewReader(data), iotest.ErrReader(broken))
	if _, err := c.Upload(t.Context(), "", torn); !errors.Is(err, broken) {
		t.Errorf("a reader that breaks: %v", err)
	}
	if got, err := c.Upload(t.Context(), "", strings.NewReader("")); err != nil || got != digest(nil) {
		t.Errorf("nothing: %s, %v; the server judges", got, err)
	}
	s.lie = true
	if _, err := c.Upload(t.Context(), "", strings.NewReader("x")); status.Code(err) != codes.DataLoss {
		t.Errorf("a server that names another file: %v", err)
	}
}

func TestReadImage(t *testing.T) {
	p, err := client.ReadImage(strings.NewReader("four"), 4)
	if err != nil || string(p.GetImage().GetData()) != "four" {
		t.Errorf("%v, %v", p, err)
	}
	if _, err := client.ReadImage(strings.NewReader("fours"), 4); err == nil {
		t.Error("more than was allowed is taken")
	}
	if p := client.ImageURL("https://example.com/a.png"); p.GetImage().GetUrl() != "https://example.com/a.png" {
		t.Error(p)
	}
}
