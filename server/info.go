package server

import (
	"context"

	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/serving"
)

// GetServerInfo says what is served and where it runs.
func (s *Server) GetServerInfo(context.Context, *pb.GetServerInfoRequest) (*pb.GetServerInfoResponse, error) {
	models := s.modelInfos()
	if len(models) == 0 {
		return nil, toStatus(serving.Stopping())
	}
	first := models[0]
	return &pb.GetServerInfoResponse{
		Model: first.Name, ModelDigest: first.Digest, Context: first.Context, Slots: first.Slots, Sessions: first.Sessions,
		ProviderReason: first.ProviderReason, Version: s.options.Version, Models: models,
	}, nil
}

// ListModels says which models are served, the default first.
func (s *Server) ListModels(context.Context, *pb.ListModelsRequest) (*pb.ListModelsResponse, error) {
	return &pb.ListModelsResponse{Models: s.modelInfos()}, nil
}

func (s *Server) modelInfos() (list []*pb.ModelInfo) {
	s.models.Each(func(d *serving.Deployment) {
		info := &pb.ModelInfo{
			Name: d.Model.Name, Digest: d.Model.Digest, Context: uint32(d.Model.MaxLen), Slots: uint32(d.Engine.Stats().Slots),
			ProviderReason: d.Model.ProviderReason,
		}
		for _, at := range d.Model.Sessions {
			info.Sessions = append(info.Sessions,
				&pb.Session{Graph: at.Graph, Provider: at.Provider, Nodes: counts(at.Nodes), Fallbacks: counts(at.Fallbacks)})
		}
		list = append(list, info)
	})
	return list
}

func counts(m map[string]int) map[string]uint32 {
	list := make(map[string]uint32, len(m))
	for k, n := range m {
		list[k] = uint32(n)
	}
	return list
}
