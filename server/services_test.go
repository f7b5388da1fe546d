package server_test

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/client"
	inferencepb "github.com/mmserve/mmserve/proto/inference"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
)

// The old service and the new ones give the same answers.
func TestOldServiceName(t *testing.T) {
	f := start(t, tinyVLM(t), newChain(2, 430, 529, 4), server.Options{Version: "v9"})
	ctx := t.Context()
	//lint:ignore SA1019 it is what this is about
	old := pb.NewMMServeClient(f.conn)
	calls, models := pb.NewInferenceServiceClient(f.conn), pb.NewModelServiceClient(f.conn)

	a, errA := old.Generate(ctx, question())
	b, errB := calls.Generate(ctx, question())
	if errA != nil || errB != nil || a.GetText() == "" || a.GetText() != b.GetText() {
		t.Errorf("Generate: %v, %v; %v, %v", a, errA, b, errB)
	}
	infoA, errA := old.GetServerInfo(ctx, &pb.GetServerInfoRequest{})
	infoB, errB := models.GetServerInfo(ctx, &pb.GetServerInfoRequest{})
	if errA != nil || errB != nil || !proto.Equal(infoA, infoB) || infoA.GetVersion() != "v9" {
		t.Errorf("GetServerInfo: %v, %v; %v, %v", infoA, errA, infoB, errB)
	}
	listA, errA := old.ListModels(ctx, &pb.ListModelsRequest{})
	listB, errB := models.ListModels(ctx, &pb.ListModelsRequest{})
	if errA != nil || errB != nil || !proto.Equal(listA, listB) || len(listA.GetModels()) != 1 {
		t.Errorf("ListModels: %v, %v; %v, %v", listA, errA, listB, errB)
	}
	stream, err := calls.GenerateStream(ctx, question())
	if err != nil {
		t.Fatal(err)
	}
	text := ""
	for {
		e, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if text += e.GetDelta().GetText(); e.GetFinish() != nil {
			break
		}
	}
	if text != a.GetText() {
		t.Errorf("GenerateStream: %q, want %q", text, a.GetText())
	}
}

func TestGetModel(t *testing.T) {
	f := start(t, tinyVLM(t), newChain(2, 4), server.Options{})
	c := pb.NewModelServiceClient(f.conn)
	for _, name := range []string{"", "tiny-vlm"} {
		got, err := c.GetModel(t.Context(), &pb.GetModelRequest{Name: name})
		if m := got.GetModel(); err != nil || m.GetName() != "tiny-vlm" || m.GetVocabulary() != vocab || !m.GetImages() ||
			!m.GetChat() {
			t.Errorf("%q: %v, %v", name, got, err)
		}
	}
	_, err := c.GetModel(t.Context(), &pb.GetModelRequest{Name: "secret"})
	if status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), `"tiny-vlm"`) ||
		strings.Contains(err.Error(), "secret") {
		t.Errorf("another name: %v", err)
	}
}

// Where a file is named and not sent, the field is refused by name.
func TestImageSources(t *testing.T) {
	f := start(t, tinyVLM(t), newChain(2, 4), server.Options{})
	for field, image := range map[string]*pb.Image{
		"prompt.parts[0].image.digest": {Digest: "sha256:" + strings.Repeat("0", 64)},
		"prompt.parts[0].image.url":    {Url: "http://169.254.169.254/"},
		"prompt.parts[0].image.data":   {},
	} {
		in := client.Prompt(&pb.Part{Content: &pb.Part_Image{Image: image}})
		_, err := f.Generate(t.Context(), in)
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), field) ||
			strings.Contains(err.Error(), "169.254") {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestOpenInference(t *testing.T) {
	f := start(t, tinyVLM(t), newChain(2, 4), server.Options{Version: "v9"})
	c, ctx := inferencepb.NewGRPCInferenceServiceClient(f.conn), t.Context()
	if r, err := c.ServerLive(ctx, &inferencepb.ServerLiveRequest{}); err != nil || !r.GetLive() {
		t.Errorf("ServerLive: %v, %v", r, err)
	}
	if r, err := c.ServerReady(ctx, &inferencepb.ServerReadyRequest{}); err != nil || !r.GetReady() {
		t.Errorf("ServerReady: %v, %v", r, err)
	}
	if r, err := c.ServerMetadata(ctx, &inferencepb.ServerMetadataRequest{}); err != nil || r.GetName() != "mmserve" ||
		r.GetVersion() != "v9" {
		t.Errorf("ServerMetadata: %v, %v", r, err)
	}
	for _, in := range []*inferencepb.ModelReadyRequest{
		{}, {Name: "tiny-vlm"}, {Name: "tiny-vlm", Version: "sha256:test"},
	} {
		if r, err := c.ModelReady(ctx, in); err != nil || !r.GetReady() {
			t.Errorf("ModelReady %v: %v, %v", in, r, err)
		}
	}
	for _, in := range []*inferencepb.ModelReadyRequest{{Name: "other"}, {Name: "tiny-vlm", Version: "1"}} {
		if _, err := c.ModelReady(ctx, in); status.Code(err) != codes.NotFound || strings.Contains(err.Error(), "tiny-vlm") {
			t.Errorf("ModelReady %v: %v", in, err)
		}
	}
	m, err := c.ModelMetadata(ctx, &inferencepb.ModelMetadataRequest{Name: "tiny-vlm"})
	if err != nil || m.GetName() != "tiny-vlm" || len(m.GetInputs()) != 2 || m.GetInputs()[1].GetName() != "image" ||
		len(m.GetOutputs()) != 1 {
		t.Errorf("ModelMetadata: %v, %v", m, err)
	}
	// Whatever the message is, and however large.
	for _, message := range [][]byte{nil, make([]byte, 10<<20)} {
		err := raw(ctx, f.conn, "/inference.GRPCInferenceService/ModelInfer", message)
		if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "mmserve.v1.InferenceService") {
			t.Errorf("ModelInfer of %d bytes: %v", len(message), err)
		}
	}
}
