package server

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/serving"
)

// maxAnswerBytes is the largest message that gRPC's clients accept unless they are told to.
const maxAnswerBytes = 4 << 20

// GenerateStream implements mmserve.v1.MMServe.
func (s *Server) GenerateStream(in *pb.GenerateRequest,
	stream grpc.ServerStreamingServer[pb.GenerateStreamResponse]) error {
	ctx := stream.Context()
	req := request(ctx, in)
	req.Streams = true
	return toStatus(s.generate(ctx, req, events{stream}))
}

// Generate implements mmserve.v1.MMServe: the stream, collected.
func (s *Server) Generate(ctx context.Context, in *pb.GenerateRequest) (*pb.GenerateResponse, error) {
	req := request(ctx, in)
	req.MaxAnswerBytes = maxAnswerBytes
	var c serving.Collector
	if err := s.generate(ctx, req, c.Sink()); err != nil {
		return nil, toStatus(err)
	}
	out := response(&c)
	if n := proto.Size(out); n > maxAnswerBytes {
		return nil, toStatus(serving.TooLarge(n, maxAnswerBytes))
	}
	return out, nil
}

// generate has a request answered, and its message let go of once the images are decoded.
func (s *Server) generate(ctx context.Context, req *serving.Request, to serving.Sink) error {
	req.Prepared = func() { s.releaseMessage(ctx) }
	err := s.service.Generate(ctx, req, to)
	if errors.Is(err, serving.ErrCut) {
		s.cut.Add(1)
	}
	return err
}
