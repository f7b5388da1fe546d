package server

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	inferencepb "github.com/mmserve/mmserve/proto/inference"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/serving"
)

// openInference answers the probes of KServe's Open Inference Protocol, and what it asks of the server and its models.
type openInference struct {
	inferencepb.UnimplementedGRPCInferenceServiceServer
	server *Server
}

// ServerLive says that the process answers.
func (o openInference) ServerLive(
	context.Context, *inferencepb.ServerLiveRequest,
) (*inferencepb.ServerLiveResponse, error) {
	return &inferencepb.ServerLiveResponse{Live: true}, nil
}

// ServerReady says whether requests are taken.
func (o openInference) ServerReady(
	context.Context, *inferencepb.ServerReadyRequest,
) (*inferencepb.ServerReadyResponse, error) {
	return &inferencepb.ServerReadyResponse{Ready: o.server.Ready() == nil}, nil
}

// ModelReady says whether requests to a model are taken.
func (o openInference) ModelReady(
	ctx context.Context, in *inferencepb.ModelReadyRequest,
) (*inferencepb.ModelReadyResponse, error) {
	switch _, err := o.model(ctx, in); {
	case serving.KindOf(err) == serving.NotFound: // who asks may have no credential, and is told no names
		return nil, status.Error(codes.NotFound, "no model of this name and version is served here")
	case err != nil:
		return nil, toStatus(err)
	}
	return &inferencepb.ModelReadyResponse{Ready: o.server.Ready() == nil}, nil
}

// ServerMetadata says which server this is.
func (o openInference) ServerMetadata(
	context.Context, *inferencepb.ServerMetadataRequest,
) (*inferencepb.ServerMetadataResponse, error) {
	return &inferencepb.ServerMetadataResponse{Name: "mmserve", Version: o.server.options.Version}, nil
}

// ModelMetadata says what a model takes and gives, in the protocol's terms: any number of texts and image files in, a
// text out.
func (o openInference) ModelMetadata(
	ctx context.Context, in *inferencepb.ModelMetadataRequest,
) (*inferencepb.ModelMetadataResponse, error) {
	m, err := o.model(ctx, in)
	if err != nil {
		return nil, toStatus(err)
	}
	strings := func(name string, n int64) *inferencepb.ModelMetadataResponse_TensorMetadata {
		return &inferencepb.ModelMetadataResponse_TensorMetadata{Name: name, Datatype: "BYTES", Shape: []int64{n}}
	}
	out := &inferencepb.ModelMetadataResponse{
		Name: m.GetName(), Versions: []string{m.GetDigest()}, Platform: "mmserve",
		Inputs:  []*inferencepb.ModelMetadataResponse_TensorMetadata{strings("text", -1)},
		Outputs: []*inferencepb.ModelMetadataResponse_TensorMetadata{strings("text", 1)},
	}
	if m.GetImages() {
		out.Inputs = append(out.Inputs, strings("image", -1))
	}
	return out, nil
}

// model is the one that a request names, with the version that it names.
func (o openInference) model(ctx context.Context, in interface {
	GetName() string
	GetVersion() string
}) (*pb.ModelInfo, error) {
	if !o.server.attached.Load() {
		return nil, errLoading()
	}
	m, err := o.server.modelInfo(ctx, in.GetName())
	if err == nil && in.GetVersion() != "" && in.GetVersion() != m.GetDigest() {
		err = serving.NotServed("version", in.GetVersion(), []string{m.GetDigest()})
	}
	return m, err
}
