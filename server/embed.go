package server

import (
	"context"
	"time"

	"google.golang.org/grpc"

	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/serving"
)

// embeddingPiece is how many values one message carries at most, unless an embedding has more: 1 MiB.
const embeddingPiece = 1 << 18

// EmbedImage gives what the vision tower makes of an image: a start, and the patches in pieces if they are asked for.
func (s *Server) EmbedImage(in *pb.EmbedImageRequest, stream grpc.ServerStreamingServer[pb.EmbedImageResponse]) error {
	ctx := stream.Context()
	r := embedRequest(ctx, in)
	r.Prepared = func() {
		in.Image = nil
		s.releaseMessage(ctx)
	}
	wantsPatches := in.GetPatches()
	return toStatus(s.service.Embed(ctx, r, func(e *serving.Embedding) error {
		if err := s.sendWithin(ctx, stream, embedStart(e)); err != nil || !wantsPatches {
			return err
		}
		rows := max(1, embeddingPiece/e.Dimensions)
		for at := 0; at < e.Image.Tokens; at += rows {
			n := min(rows, e.Image.Tokens-at)
			piece := &pb.PatchEmbeddings{First: uint32(at), Values: e.Patches[at*e.Dimensions:][:n*e.Dimensions]}
			message := &pb.EmbedImageResponse{Event: &pb.EmbedImageResponse_Patches{Patches: piece}}
			if err := s.sendWithin(ctx, stream, message); err != nil {
				return err
			}
		}
		return nil
	}))
}

func embedStart(e *serving.Embedding) *pb.EmbedImageResponse {
	return &pb.EmbedImageResponse{Event: &pb.EmbedImageResponse_Start{Start: &pb.EmbedImageStart{
		Id: e.ID, Model: e.Model, ModelDigest: e.ModelDigest, SystemFingerprint: e.Fingerprint,
		Image: imageLayout(e.Image), Dimensions: uint32(e.Dimensions), Pooled: e.Pooled, Cached: e.Cached,
	}}}
}

// sendWithin sends a message to a client that has as long to take it as one has to send its own: the call holds a
// place and the embeddings meanwhile. A message that is not taken is left to its goroutine, which ends with the call.
func (s *Server) sendWithin(ctx context.Context, stream grpc.ServerStream, message any) error {
	sent := make(chan error, 1)
	go func() { sent <- stream.SendMsg(message) }()
	late := time.NewTimer(s.options.ReceiveTimeout)
	defer late.Stop()
	select {
	case err := <-sent:
		return fromStatus(err)
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-late.C:
		return serving.TooSlow(s.options.ReceiveTimeout)
	}
}

func embedRequest(ctx context.Context, in *pb.EmbedImageRequest) *serving.EmbedRequest {
	r := &serving.EmbedRequest{ID: in.GetRequestId(), Model: in.GetModel(), Tenant: in.GetTenant(), Peer: peerOf(ctx)}
	r.Priority = priority(&r.Unread, in.GetPriority())
	if in.GetImage() != nil {
		r.Image = image(&r.Unread, "image", in.GetImage())
	}
	return r
}
