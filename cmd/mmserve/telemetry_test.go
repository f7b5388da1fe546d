package main

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc/stats"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/socket/sockettest"
)

// The admin listener of a server that answers.
func TestAdmin(t *testing.T) {
	admin := sockettest.FreeAddress(t)
	c := startServer(t, "--slots", "2", "--admin-address", admin)
	if _, err := c.Generate(t.Context(),
		client.Chat(client.User(client.ImageBytes(sample(t, 0)), client.Text("Describe the image.")))); err != nil {
		t.Fatal(err)
	}
	get := func(path string) string {
		resp, err := http.Get("http://" + admin + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(path, resp.StatusCode, err)
		}
		return string(b)
	}
	wants := []string{
		`mmserve_requests_finished_total{model="tiny-vlm",outcome="stop"} 1`,
		`mmserve_encoder_requests_total{model="tiny-vlm",result="miss"} 1`,
		`mmserve_encoder_cache_entries{model="tiny-vlm"} 1`,
		`gen_ai_server_request_duration_seconds_count{gen_ai_operation_name="chat",gen_ai_provider_name="mmserve",gen_ai_request_model="tiny-vlm",gen_ai_response_model="tiny-vlm"} 1`,
		`rpc_server_call_duration_seconds_count{rpc_method="mmserve.v1.MMServe/Generate",rpc_response_status_code="OK",rpc_system_name="grpc"} 1`,
	}
	// gRPC measures a call after its answer has left.
	for _, want := range wants {
		eventually(t, "/metrics has "+want, func() bool { return strings.Contains(get("/metrics"), want) })
	}
	if got := get("/readyz"); got != "ok\n" {
		t.Errorf("readyz %q", got)
	}
}

func TestMeasuredMethods(t *testing.T) {
	for method, want := range map[string]bool{
		"/mmserve.v1.MMServe/GenerateStream":                        true,
		"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": true,
		"/grpc.health.v1.Health/Check":                              false,
		"/mmserve.v1.MMServe/Nothing":                               false,
		"/what.a.Caller/Likes":                                      false,
		"/mmserve.v1.GenerateRequest/model":                         false,
		"nonsense":                                                  false,
		"":                                                          false,
	} {
		if got := measured(&stats.RPCTagInfo{FullMethodName: method}); got != want {
			t.Errorf("%q: %v, want %v", method, got, want)
		}
	}
}

// Whatever a caller names as a method, there is a bounded number that is measured.
func FuzzMeasured(f *testing.F) {
	f.Add("/mmserve.v1.MMServe/Generate")
	f.Add("/grpc.health.v1.Health/Check")
	f.Add("//..")
	f.Fuzz(func(t *testing.T, method string) {
		if measured(&stats.RPCTagInfo{FullMethodName: method}) && (len(method) > 100 || strings.Count(method, "/") > 2) {
			t.Errorf("%q is measured", method)
		}
	})
}
