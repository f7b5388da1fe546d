package server_test

import (
	"context"
	"log/slog"
	"runtime/metrics"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/decoder/decodertest"
	"github.com/mmserve/mmserve/internal/constrain"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
)

// FuzzRequest takes bytes from the wire through counting, decoding, validation, template, tokenizer, constraint and
// engine, everything but gRPC's transport, and bounds the memory that is allocated on the way.
func FuzzRequest(f *testing.F) {
	m := tinyVLM(f)
	compiler, err := constrain.NewCompiler(m.Prompter.Tokenizer, m.EOS)
	if err != nil {
		f.Fatal(err)
	}
	m.Compiler = func() (*constrain.Compiler, error) { return compiler, nil }
	e := newEngine(f, decodertest.NewHash(4, contextLen, vocab), batching.Options{MaxWaiting: 16})
	s := server.New(m, e, server.Options{Logger: slog.New(slog.DiscardHandler)})
	for _, in := range requestSeeds() {
		b, err := proto.Marshal(in)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := allocated()
		in := new(pb.GenerateRequest)
		if err := server.DecodeMessage(b, in); err != nil {
			if status.Code(err) != codes.InvalidArgument {
				t.Fatalf("not decoded: %v", err)
			}
			return
		}
		const others = 8 << 20 // what the engine and requests before this one still allocate
		if n := allocated() - before; n > others+64*uint64(len(b)) {
			t.Errorf("decoding %d bytes allocated %d", len(b), n)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		count, errCount := s.CountTokens(ctx, in)
		answer, err := s.Generate(grpc.NewContextWithServerTransportStream(ctx, unaryCall{}), in)
		if err == nil && (errCount != nil || !count.GetFits() ||
			count.GetPromptTokens() != answer.GetUsage().GetPromptTokens()) {
			t.Errorf("counted %v, %v; answered %v", count, errCount, answer.GetUsage())
		}
		switch status.Code(err) {
		case codes.OK, codes.InvalidArgument, codes.NotFound, codes.ResourceExhausted, codes.FailedPrecondition:
		default:
			t.Errorf("%v", err)
		}
		bound := uint64(64<<20 + 256*len(b))
		if in.GetConstraint() != nil {
			bound += 512 << 20 // grammars are compiled within a budget of their own
		}
		if n := allocated() - before; n > bound {
			t.Errorf("a request of %d bytes allocated %d, want at most %d", len(b), n, bound)
		}
	})
}

// requestSeeds have every field of a request.
func requestSeeds() []*pb.GenerateRequest {
	full := question()
	full.MaxTokens, full.MinTokens, full.N = proto.Uint32(4), 2, 2
	full.Stop, full.StopTokenIds = []string{"x", "yz"}, []uint32{1, 2}
	full.Logprobs, full.TopLogprobs, full.PromptLogprobs, full.Speculative = true, 3, true, proto.Bool(true)
	full.ReturnTokenIds, full.IncludeStop = true, true
	full.RequestId, full.Tenant, full.Priority = "id", "tenant", pb.Priority_PRIORITY_BATCH
	full.Sampling = &pb.Sampling{
		Temperature: proto.Float32(1), TopK: proto.Uint32(5), TopP: proto.Float32(0.9), Seed: proto.Uint64(1),
		MinP: proto.Float32(0.1), TypicalP: proto.Float32(0.9),
		RepetitionPenalty: proto.Float32(1.1), PresencePenalty: proto.Float32(0.1),
		FrequencyPenalty: proto.Float32(0.1), LogitBias: map[uint32]float32{5: 1},
	}
	list := []*pb.GenerateRequest{full, client.Prompt(client.Text("red"))}
	list = append(list, client.Prompt(tokens(1, 2), client.ImageBytes(pngFile(8)), tokens(3)))
	for _, image := range []*pb.Image{
		{Digest: "sha256:0"}, {Url: "http://localhost/"}, {Data: []byte("x"), Url: "file:///"},
	} {
		list = append(list, client.Prompt(&pb.Part{Content: &pb.Part_Image{Image: image}}))
	}
	goesOn := client.Chat(
		client.System(client.Text("s")), client.User(client.Text("u")), client.Assistant(client.Text("A large ")),
	)
	goesOn.GetChat().ContinueFinalMessage = true
	list = append(list, goesOn)
	for _, c := range []*pb.Constraint{
		{Kind: &pb.Constraint_Choices{Choices: &pb.Choices{Texts: []string{"red", "blue"}}}},
		choices("1", "10", "light red"), {Kind: &pb.Constraint_Regex{Regex: "[a-z]{2}"}},
		{Kind: &pb.Constraint_JsonSchema{JsonSchema: `{"type": "boolean"}`}},
		{Kind: &pb.Constraint_JsonObject{JsonObject: true}},
	} {
		in := client.Prompt(client.Text("red"))
		in.Constraint, in.MaxTokens = c, proto.Uint32(8)
		list = append(list, in)
	}
	return list
}

// allocated is how many bytes the process has allocated so far.
func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// unaryCall is a call of Generate, without a transport.
type unaryCall struct{}

func (unaryCall) Method() string               { return pb.MMServe_Generate_FullMethodName }
func (unaryCall) SetHeader(metadata.MD) error  { return nil }
func (unaryCall) SendHeader(metadata.MD) error { return nil }
func (unaryCall) SetTrailer(metadata.MD) error { return nil }
