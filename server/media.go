package server

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/serving"
)

// UploadMedia implements mmserve.v1.InferenceService.
func (s *Server) UploadMedia(stream grpc.ClientStreamingServer[pb.UploadMediaRequest, pb.UploadMediaResponse]) error {
	ctx := stream.Context()
	in, err := stream.Recv()
	switch {
	case errors.Is(err, io.EOF):
		return toStatus(noHeader())
	case err != nil:
		return err
	case in.GetHeader() == nil:
		return toStatus(noHeader())
	}
	h := in.GetHeader()
	u, err := s.service.UploadMedia(ctx, serving.UploadHeader{
		ID: h.GetRequestId(), Tenant: h.GetTenant(), Size: h.Size, Digest: h.GetDigest(), Type: h.GetMediaType(),
	})
	if err != nil {
		return toStatus(err)
	}
	defer u.Abort() // after a panic
	if u.Kept == nil {
		err = receiveFile(stream, u, in)
	}
	m, err := u.Finish(ctx, fromStatus(err))
	if err != nil {
		return toStatus(err)
	}
	return stream.SendAndClose(&pb.UploadMediaResponse{
		Digest: m.Digest, Size: uint64(m.Bytes), MediaType: m.Type, ExpireTime: timestamppb.New(m.Expires),
	})
}

func noHeader() error { return serving.InvalidField("header", "none; want it with the first message") }

// receiveFile writes the chunks of a stream, of which in is the first message.
func receiveFile(stream grpc.ClientStreamingServer[pb.UploadMediaRequest, pb.UploadMediaResponse], u *serving.Upload,
	in *pb.UploadMediaRequest) error {
	for {
		chunk := in.GetChunk()
		err := u.Write(chunk)
		clear(chunk) // the upload has its own
		if err != nil {
			return err
		}
		in, err = stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case in.GetHeader() != nil:
			return serving.InvalidField("header", "a second one; want it with the first message only")
		}
	}
}

// DeleteMedia implements mmserve.v1.InferenceService.
func (s *Server) DeleteMedia(ctx context.Context, in *pb.DeleteMediaRequest) (*pb.DeleteMediaResponse, error) {
	d, err := s.service.DeleteMedia(ctx, in.GetTenant(), in.GetDigest())
	if err != nil {
		return nil, toStatus(err)
	}
	return &pb.DeleteMediaResponse{Existed: d.Existed, InUse: d.InUse}, nil
}

// HasMedia implements mmserve.v1.InferenceService.
func (s *Server) HasMedia(ctx context.Context, in *pb.HasMediaRequest) (*pb.HasMediaResponse, error) {
	if n := len(in.GetDigests()); n > maxDigests {
		return nil, toStatus(serving.InvalidField("digests", "%d values; at most %d are allowed", n, maxDigests))
	}
	list, err := s.service.HasMedia(ctx, in.GetTenant(), in.GetDigests())
	if err != nil {
		return nil, toStatus(err)
	}
	out := &pb.HasMediaResponse{Media: make([]*pb.MediaStatus, len(list))}
	for i, m := range list {
		out.Media[i] = &pb.MediaStatus{Digest: in.GetDigests()[i]}
		if m != nil {
			out.Media[i].Present, out.Media[i].Size, out.Media[i].ExpireTime = true, uint64(m.Bytes), timestamppb.New(m.Expires)
		}
	}
	return out, nil
}
