package server_test

import (
	"encoding/json"
	"io"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
)

// sessions are those of a model on a device whose decoder has fallen back in part.
var sessions = []serving.Session{
	{Graph: "vision", Provider: "cuda", Nodes: map[string]int{"CUDAExecutionProvider": 81}},
	{Graph: "decoder", Provider: "cuda",
		Nodes:     map[string]int{"CUDAExecutionProvider": 50, "CPUExecutionProvider": 6},
		Fallbacks: map[string]int{"Det": 2, "Softmax": 1}},
}

func TestGetServerInfo(t *testing.T) {
	m := tinyVLM(t)
	m.Sessions, m.ProviderReason, m.Fingerprint = sessions, "--provider auto chose cuda", "fp_1"
	f := start(t, m, newChain(2, 4), server.Options{Version: "v9"})
	got, err := f.ServerInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := &pb.GetServerInfoResponse{
		Model: "tiny-vlm", ModelDigest: "sha256:test", Context: contextLen, Slots: 2, Version: "v9",
		ProviderReason:    "--provider auto chose cuda",
		SystemFingerprint: "fp_1",
		Sessions: []*pb.Session{
			{Graph: "vision", Provider: "cuda", Nodes: map[string]uint32{"CUDAExecutionProvider": 81}},
			{Graph: "decoder", Provider: "cuda",
				Nodes:     map[string]uint32{"CUDAExecutionProvider": 50, "CPUExecutionProvider": 6},
				Fallbacks: map[string]uint32{"Det": 2, "Softmax": 1}},
		},
	}
	want.Models = []*pb.ModelInfo{{
		Name: want.Model, Digest: want.ModelDigest, Context: want.Context, Slots: want.Slots,
		Sessions: want.Sessions, ProviderReason: want.ProviderReason,
		SystemFingerprint: "fp_1", Vocabulary: vocab, Images: true, Chat: true,
	}}
	if !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	models, err := f.Models(t.Context())
	if err != nil || !proto.Equal(&pb.ListModelsResponse{Models: models}, &pb.ListModelsResponse{Models: want.Models}) {
		t.Errorf("models %v, %v", models, err)
	}
}

func TestPlacementMetrics(t *testing.T) {
	m := tinyVLM(t)
	m.Sessions = sessions
	families := startScraped(t, m, newChain(2, 4)).scrape(t)
	for _, want := range []struct {
		name, graph, provider string
		value                 float64
	}{
		{"mmserve_session_nodes", "vision", "CUDAExecutionProvider", 81},
		{"mmserve_session_nodes", "decoder", "CUDAExecutionProvider", 50},
		{"mmserve_session_nodes", "decoder", "CPUExecutionProvider", 6},
		{"mmserve_session_fallback_nodes", "vision", "cuda", 0},
		{"mmserve_session_fallback_nodes", "decoder", "cuda", 3},
	} {
		got := value(t, families, want.name, "model=tiny-vlm", "graph="+want.graph, "provider="+want.provider)
		if got != want.value {
			t.Errorf("%s of %s on %s is %v, want %v", want.name, want.graph, want.provider, got, want.value)
		}
	}
}

// GetModel gives what the model's authors say, in full; lists do not. OpenAI's API has it as an extra.
func TestModelCard(t *testing.T) {
	m := tinyVLM(t)
	m.Card = &serving.ModelCard{
		License: "mit", LicenseName: "n", LicenseLink: "l", Languages: []string{"en"}, Datasets: []string{"d"},
		BaseModels: []string{"b"}, Tags: []string{"t"}, Limits: "No medicine.", Text: "# Card", Truncated: true, Problem: "p",
	}
	m.Card.Evaluations = append(m.Card.Evaluations, struct{ Task, Dataset, Metric, Value string }{"vqa", "a", "b", "1"})
	f := startHTTP(t, &m, newChain(2, 4), server.Options{})
	r := f.do(t, "GET", "/v1/models/tiny-vlm", nil)
	var body struct {
		ID   string
		Card json.RawMessage
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil || r.StatusCode != 200 || body.ID != "tiny-vlm" {
		t.Fatalf("%d, %v", r.StatusCode, err)
	}
	const fields = `{"license":"mit","license_name":"n","license_link":"l","languages":["en"],"datasets":["d"],` +
		`"base_models":["b"],"tags":["t"],"evaluations":[{"task":"vqa","dataset":"a","metric":"b","value":"1"}],` +
		`"limits":"No medicine.","text":"# Card","truncated":true,"problem":"p"}`
	if string(body.Card) != fields {
		t.Errorf("over HTTP %s", body.Card)
	}
	var want pb.ModelCard
	if err := protojson.Unmarshal([]byte(fields), &want); err != nil {
		t.Fatal(err)
	}
	got, err := pb.NewModelServiceClient(start(t, m, newChain(2, 4), server.Options{}).conn).
		GetModel(t.Context(), &pb.GetModelRequest{})
	if err != nil || !proto.Equal(got.GetCard(), &want) {
		t.Errorf("got %v, %v", got.GetCard(), err)
	}
	r = f.do(t, "GET", "/v1/models", nil)
	list, err := io.ReadAll(r.Body)
	if err != nil || strings.Contains(string(list), "card") {
		t.Errorf("the list is %s, %v", list, err)
	}
}
