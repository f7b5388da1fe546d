package server

import (
	"context"

	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/serving"
)

// CountTokens says what Generate would report of the request's prompt.
func (s *Server) CountTokens(ctx context.Context, in *pb.GenerateRequest) (*pb.CountTokensResponse, error) {
	c, err := s.service.Count(ctx, request(ctx, in))
	if err != nil {
		return nil, toStatus(err)
	}
	out := &pb.CountTokensResponse{
		Id: c.ID, Model: c.Model, ModelDigest: c.ModelDigest, SystemFingerprint: c.Fingerprint,
		PromptTokens: uint32(c.Prompt), TextTokens: uint32(c.Text), ImageTokens: uint32(c.Image),
		Context: uint32(c.Context), MaxTokens: uint32(c.MaxTokens), Fits: c.Fits, TokenIds: ids(c.IDs),
	}
	for _, l := range c.Images {
		out.Images = append(out.Images, imageLayout(l))
	}
	return out, nil
}

func imageLayout(l serving.ImageLayout) *pb.ImageLayout {
	return &pb.ImageLayout{
		Format: l.Format, Width: uint32(l.Width), Height: uint32(l.Height),
		EffectiveWidth: uint32(l.ScaledWidth), EffectiveHeight: uint32(l.ScaledHeight),
		Tiles: uint32(l.Grid.Tiles()), Tokens: uint32(l.Tokens),
	}
}
