package server

import (
	"context"

	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/serving"
)

// GetServerInfo says what is served and where it runs.
func (s *Server) GetServerInfo(ctx context.Context, _ *pb.GetServerInfoRequest) (*pb.GetServerInfoResponse, error) {
	models := s.modelInfos(ctx)
	if len(models) == 0 {
		return nil, toStatus(s.models.NoModel("model"))
	}
	first := models[0]
	usePolicy := ""
	if p := s.options.Policy; p != nil {
		usePolicy = p.Now().UsePolicy
	}
	return &pb.GetServerInfoResponse{
		Model: first.Name, ModelDigest: first.Digest, Context: first.Context, Slots: first.Slots, Sessions: first.Sessions,
		ProviderReason: first.ProviderReason, SystemFingerprint: first.SystemFingerprint,
		Version: s.options.Version, Models: models, UsePolicy: usePolicy,
	}, nil
}

// GetModel says the same of one model as ListModels does of all, and what its authors say.
func (s *Server) GetModel(ctx context.Context, in *pb.GetModelRequest) (*pb.GetModelResponse, error) {
	m, err := s.modelInfo(ctx, in.GetName())
	if err != nil {
		return nil, toStatus(err)
	}
	return &pb.GetModelResponse{Model: m, Card: modelCard(s.card(ctx, m.GetName()))}, nil
}

// card is the card of a model that the caller may use; nil if it has none.
func (s *Server) card(ctx context.Context, name string) (card *serving.ModelCard) {
	s.models.EachOf(ctx, func(d *serving.Deployment) {
		if d.Model.Name == name {
			card = d.Model.Card
		}
	})
	return card
}

func modelCard(c *serving.ModelCard) *pb.ModelCard {
	if c == nil {
		return nil
	}
	out := &pb.ModelCard{
		License: c.License, LicenseName: c.LicenseName, LicenseLink: c.LicenseLink, Languages: c.Languages,
		Datasets: c.Datasets, BaseModels: c.BaseModels, Tags: c.Tags,
		Limits: c.Limits, Text: c.Text, Truncated: c.Truncated, Problem: c.Problem,
	}
	for _, e := range c.Evaluations {
		out.Evaluations = append(out.Evaluations,
			&pb.ModelEvaluation{Task: e.Task, Dataset: e.Dataset, Metric: e.Metric, Value: e.Value})
	}
	return out
}

// modelInfo is what there is to say of the model of a name, or of the default where it is empty.
func (s *Server) modelInfo(ctx context.Context, name string) (*pb.ModelInfo, error) {
	models := s.modelInfos(ctx)
	if len(models) == 0 {
		return nil, s.models.NoModel("name")
	}
	names := make([]string, len(models))
	for i, m := range models {
		if names[i] = m.GetName(); name == names[i] || name == "" {
			return m, nil
		}
	}
	return nil, serving.NotServed("name", name, names)
}

// ListModels says which models are served of those that the caller may use, the caller's default first.
func (s *Server) ListModels(ctx context.Context, _ *pb.ListModelsRequest) (*pb.ListModelsResponse, error) {
	return &pb.ListModelsResponse{Models: s.modelInfos(ctx)}, nil
}

func (s *Server) modelInfos(ctx context.Context) (list []*pb.ModelInfo) {
	s.models.EachOf(ctx, func(d *serving.Deployment) {
		info := &pb.ModelInfo{
			Name: d.Model.Name, Digest: d.Model.Digest, Context: uint32(d.Model.MaxLen), Slots: uint32(d.Engine.Stats().Slots),
			ProviderReason: d.Model.ProviderReason, SystemFingerprint: d.Model.Fingerprint, Vocabulary: uint32(d.Model.Vocab),
			Images: d.Model.Prompter.Preprocessor != nil, Chat: d.Model.Prompter.Template != nil,
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
