package server_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/media"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
)

func digestOf(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

// send uploads messages and closes the stream.
func send(t testing.TB, c pb.InferenceServiceClient, list ...*pb.UploadMediaRequest) (*pb.UploadMediaResponse, error) {
	t.Helper()
	stream, err := c.UploadMedia(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list {
		if err := stream.Send(m); err == io.EOF {
			break // the server has ended the stream
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return stream.CloseAndRecv()
}

// pieces are the messages of an upload, of chunks of n bytes.
func pieces(h *pb.UploadMediaHeader, data []byte, n int) (list []*pb.UploadMediaRequest) {
	list = append(list, &pb.UploadMediaRequest{Header: h})
	for chunk := range slices.Chunk(data, n) {
		list = append(list, &pb.UploadMediaRequest{Chunk: chunk})
	}
	return list
}

func withMedia(t testing.TB, o server.Options) (*fixture, pb.InferenceServiceClient, *media.Store) {
	t.Helper()
	o.Media = media.New(media.Options{Bytes: 8 << 20, TTL: time.Hour})
	f := start(t, tinyVLM(t), newChain(2, 430, 4), o)
	return f, pb.NewInferenceServiceClient(f.conn), o.Media
}

func showing(i *pb.Image) *pb.GenerateRequest {
	return client.Prompt(&pb.Part{Content: &pb.Part_Image{Image: i}}, client.Text("small"))
}

func TestUploadMedia(t *testing.T) {
	f, c, store := withMedia(t, server.Options{})
	data, tenant := pngFile(64), "a"
	size := uint64(len(data))
	got, err := send(t, c, pieces(&pb.UploadMediaHeader{
		Tenant: tenant, RequestId: "up-1", Size: &size, Digest: digestOf(data), MediaType: "image/png",
	}, data, 50)...)
	if err != nil {
		t.Fatal(err)
	}
	left := time.Until(got.GetExpireTime().AsTime())
	if got.GetDigest() != digestOf(data) || got.GetSize() != size || got.GetMediaType() != "image/png" ||
		left < 50*time.Minute {
		t.Errorf("uploaded %v, kept for %v", got, left)
	}
	again, err := send(t, c, pieces(&pb.UploadMediaHeader{Tenant: tenant, Digest: got.GetDigest()}, data, 50)...)
	if err != nil || again.GetDigest() != got.GetDigest() || again.GetMediaType() != "image/png" ||
		store.Usage().Files != 1 {
		t.Errorf("sent again: %v, %v", again, err)
	}

	byDigest, byData := showing(&pb.Image{Digest: got.GetDigest()}), showing(&pb.Image{Data: data})
	byDigest.Tenant, byData.Tenant = tenant, tenant
	want, err := c.Generate(t.Context(), byData)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := c.Generate(t.Context(), byDigest)
	if err != nil || answer.GetText() != want.GetText() || answer.GetUsage().GetImageTokens() != imageTokens {
		t.Errorf("by digest %v, %v; with the bytes %v", answer, err, want)
	}
	list, err := c.HasMedia(t.Context(), &pb.HasMediaRequest{
		Tenant: tenant, Digests: []string{digestOf(nil), got.GetDigest()},
	})
	if m := list.GetMedia(); err != nil || len(m) != 2 || m[0].GetPresent() || !m[1].GetPresent() ||
		m[1].GetSize() != size {
		t.Errorf("has %v, %v", list, err)
	}

	for { // an upload takes no place of an engine
		ticket, err := f.engine.Acquire()
		if err != nil {
			break
		}
		defer ticket.Release()
	}
	if _, err := send(t, c, pieces(&pb.UploadMediaHeader{}, pngFile(8), 50)...); err != nil {
		t.Errorf("while every place is taken: %v", err)
	}
	byDigest.Tenant = "b"
	_, foreign := c.CountTokens(t.Context(), byDigest)
	if status.Code(foreign) != codes.NotFound || !strings.Contains(foreign.Error(), "prompt.parts[0].image.digest") {
		t.Errorf("another tenant's digest: %v", foreign)
	}
	list, err = c.HasMedia(t.Context(), &pb.HasMediaRequest{Tenant: "b", Digests: []string{got.GetDigest()}})
	if err != nil || list.GetMedia()[0].GetPresent() {
		t.Errorf("another tenant has it: %v, %v", list, err)
	}
	for tenant, want := range map[string]bool{"b": false, tenant: true} {
		out, err := c.DeleteMedia(t.Context(), &pb.DeleteMediaRequest{Tenant: tenant, Digest: got.GetDigest()})
		if err != nil || out.GetExisted() && !want || out.GetInUse() {
			t.Errorf("tenant %s deletes: %v, %v", tenant, out, err)
		}
	}
	byDigest.Tenant = tenant
	_, err = c.CountTokens(t.Context(), byDigest)
	wantCode(t, "a deleted digest", err, codes.NotFound)
	_, err = c.DeleteMedia(t.Context(), &pb.DeleteMediaRequest{Tenant: tenant, Digest: "sha256:"})
	checkViolation(t, err, "digest", "64 hexadecimal digits")
	for _, digest := range []string{got.GetDigest()[7:20], "up-1"} {
		if log := f.log.String(); strings.Contains(log, digest) != (digest == "up-1") {
			t.Errorf("the log has %q or lacks it:\n%s", digest, log)
		}
	}
}

// Each mistake names its field, and leaves nothing.
func TestUploadMediaErrors(t *testing.T) {
	_, c, store := withMedia(t, server.Options{})
	data := pngFile(64)
	header := &pb.UploadMediaHeader{}
	whole := pieces(header, data, 1<<20)
	for name, c2 := range map[string]struct {
		list  []*pb.UploadMediaRequest
		code  codes.Code
		field string
	}{
		"no message":       {nil, codes.InvalidArgument, "header"},
		"no header":        {whole[1:], codes.InvalidArgument, "header"},
		"two headers":      {slices.Concat(whole, whole), codes.InvalidArgument, "header"},
		"no bytes":         {whole[:1], codes.InvalidArgument, "chunk"},
		"a large chunk":    {pieces(header, make([]byte, serving.MaxChunk+1), 2<<20), codes.InvalidArgument, "chunk"},
		"a larger chunk":   {pieces(header, make([]byte, 65<<20), 65<<20), codes.ResourceExhausted, ""},
		"more than a file": {pieces(header, make([]byte, 9<<20), 1<<20), codes.InvalidArgument, "chunk"},
		"no image": {pieces(header, []byte(`<html>secret</html>`), 1<<20), codes.InvalidArgument,
			"chunk"},
		"a declared size beyond all": {pieces(&pb.UploadMediaHeader{Size: proto.Uint64(1 << 40)}, data, 1<<20),
			codes.InvalidArgument, "header.size"},
		"another digest": {pieces(&pb.UploadMediaHeader{Digest: digestOf(nil)}, data, 1<<20), codes.InvalidArgument,
			"header.digest"},
	} {
		_, err := send(t, c, c2.list...)
		if status.Code(err) != c2.code || !strings.Contains(err.Error(), c2.field) ||
			strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %v of %q", name, err, c2.code, c2.field)
		}
		eventually(t, name+": nothing is left", func() bool { return store.Usage().Bytes == 0 }) // its status comes first
	}
	_, err := c.HasMedia(t.Context(), &pb.HasMediaRequest{Digests: make([]string, 257)})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "digests") {
		t.Errorf("257 digests: %v", err)
	}
	f := start(t, tinyVLM(t), newChain(2, 4), server.Options{})
	off := pb.NewInferenceServiceClient(f.conn)
	_, err = send(t, off, whole...)
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "--media-bytes") {
		t.Errorf("where there are no uploads: %v", err)
	}
	if _, err := off.HasMedia(t.Context(), &pb.HasMediaRequest{}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("where there are no uploads: %v", err)
	}
}

// An upload whose client stops, leaves or dribbles ends in time and leaves nothing.
func TestUploadMediaAborted(t *testing.T) {
	_, c, store := withMedia(t, server.Options{ReceiveTimeout: 300 * time.Millisecond})
	data := pngFile(64)
	for name, rest := range map[string]func(stream pb.InferenceService_UploadMediaClient, leave func()) error{
		"it stops": func(stream pb.InferenceService_UploadMediaClient, _ func()) error {
			return stream.RecvMsg(&pb.UploadMediaResponse{})
		},
		"it leaves": func(stream pb.InferenceService_UploadMediaClient, leave func()) error {
			leave()
			return stream.RecvMsg(&pb.UploadMediaResponse{})
		},
		"each message is in time, all are not": func(stream pb.InferenceService_UploadMediaClient, _ func()) error {
			for began := time.Now(); time.Since(began) < 10*time.Second; time.Sleep(20 * time.Millisecond) {
				if err := stream.Send(&pb.UploadMediaRequest{Chunk: data[:1]}); err != nil {
					return stream.RecvMsg(&pb.UploadMediaResponse{})
				}
			}
			return nil
		},
	} {
		ctx, leave := context.WithCancel(t.Context())
		stream, err := c.UploadMedia(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&pb.UploadMediaRequest{Header: &pb.UploadMediaHeader{}, Chunk: data[:40]}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the first bytes are there", func() bool { return store.Usage().Bytes > 0 })
		want := codes.DeadlineExceeded
		if name == "it leaves" {
			want = codes.Canceled
		}
		if err := rest(stream, leave); status.Code(err) != want {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
		leave()
		eventually(t, name+": nothing is left", func() bool { return store.Usage().Bytes == 0 })
	}
	if _, err := send(t, c, pieces(&pb.UploadMediaHeader{}, data, 40)...); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
