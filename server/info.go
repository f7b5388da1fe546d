package server

import (
	"context"

	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// GetServerInfo says what is served and where it runs.
func (s *Server) GetServerInfo(context.Context, *pb.GetServerInfoRequest) (*pb.GetServerInfoResponse, error) {
	info := &pb.GetServerInfoResponse{
		Model: s.model.Name, ModelDigest: s.model.Digest, Context: uint32(s.model.MaxLen), Slots: uint32(s.engine.Stats().Slots),
		Version: s.options.Version, ProviderReason: s.model.ProviderReason,
	}
	for _, at := range s.model.Sessions {
		info.Sessions = append(info.Sessions, &pb.Session{Graph: at.Graph, Provider: at.Provider, Nodes: counts(at.Nodes), Fallbacks: counts(at.Fallbacks)})
	}
	return info, nil
}

func counts(m map[string]int) map[string]uint32 {
	list := make(map[string]uint32, len(m))
	for k, n := range m {
		list[k] = uint32(n)
	}
	return list
}
