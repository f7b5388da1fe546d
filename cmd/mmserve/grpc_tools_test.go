package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// grpcTools are programs that speak gRPC, against a server with TLS and keys.
type grpcTools struct {
	server *rotating
	key    string
}

// tool is the path of a program that make test-clients builds.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", "bin", name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("MMSERVE_TEST_CLIENTS") != "" {
			t.Fatal(err)
		}
		t.Skipf("%v; make test-clients builds it", err)
	}
	return path
}

// grpcurl gives what it prints.
func (g grpcTools) grpcurl(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), tool(t, "grpcurl"), append([]string{"-cacert", g.server.root}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil {
		return errs.String(), err
	}
	return out.String(), nil
}

// grpcurl finds the methods by reflection, and asks them all. docs/api.md has the same commands.
func TestGRPCurl(t *testing.T) {
	tool(t, "grpcurl")
	g := grpcTools{}
	g.server, g.key = startRotating(t)
	key := []string{"-H", "authorization: Bearer " + g.key}
	in, err := json.Marshal(map[string]any{"chat": map[string]any{"messages": []any{map[string]any{
		"role": "ROLE_USER", "parts": []any{
			map[string]any{"image": map[string]any{"data": base64.StdEncoding.EncodeToString(sample(t, 0))}},
			map[string]any{"text": "Describe the image."},
		}}}}})
	if err != nil {
		t.Fatal(err)
	}
	const answer = "A large orange star in the center on a beige background."
	const service = "mmserve.v1.InferenceService"
	at := g.server.addr
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{at, "list"}, []string{service, "mmserve.v1.ModelService", "grpc.health.v1.Health"}},
		{[]string{at, "list", service}, []string{service + ".Generate", service + ".DeleteMedia"}},
		{[]string{at, "describe", "mmserve.v1.Sampling"}, []string{"optional float temperature = 1"}},
		{[]string{"-d", string(in), at, service + "/Generate"}, []string{answer, `"imageTokens": 16`}},
		{[]string{"-d", string(in), at, service + "/GenerateStream"}, []string{`"start"`, `"delta"`, `"finish"`}},
		{[]string{"-d", string(in), at, service + "/CountTokens"}, []string{`"imageTokens": 16`, `"fits": true`}},
		{[]string{at, "mmserve.v1.ModelService/ListModels"}, []string{"tiny-vlm"}},
		{[]string{at, "grpc.health.v1.Health/Check"}, []string{"SERVING"}},
		{[]string{at, "inference.GRPCInferenceService/ServerReady"}, []string{"true"}},
	} {
		out, err := g.grpcurl(t, append(key[:2:2], c.args...)...)
		for _, want := range c.want {
			if err != nil || !strings.Contains(out, want) {
				t.Errorf("%v: no %q in %s, %v", c.args[len(c.args)-2:], want, out, err)
			}
		}
	}
	if out, err := g.grpcurl(t, at, "list"); err == nil || !strings.Contains(out, "wants a credential") {
		t.Errorf("without a key: %s, %v", out, err)
	}
	bad := strings.Replace(string(in), "ROLE_USER", "ROLE_SYSTEM", 1)
	bad = strings.TrimSuffix(bad, "}") + `,"sampling":{"temperature":9}}`
	out, err := g.grpcurl(t, append(key, "-d", bad, at, service+"/Generate")...)
	if err == nil || !strings.Contains(out, "InvalidArgument") || !strings.Contains(out, "sampling.temperature") {
		t.Errorf("a wrong field: %s, %v", out, err)
	}
}

// ghz has two hundred calls answered, and reports how long they took.
func TestGHZ(t *testing.T) {
	ghz := tool(t, "ghz")
	s, key := startRotating(t)
	authorization := `{"authorization":"Bearer ` + key + `"}`
	for method, wants := range map[string]string{"Generate": "OK", "GenerateStream": "OK"} {
		cmd := exec.CommandContext(t.Context(), ghz, "--cacert", s.root, "--metadata", authorization,
			"--reflect-metadata", authorization, "--call", "mmserve.v1.InferenceService/"+method, "-n", "200", "-c", "8", "-O", "json",
			"-d", `{"max_tokens":8,"ignore_eos":true,"chat":{"messages":[{"role":"ROLE_USER","parts":[{"text":"red"}]}]}}`, s.addr)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v: %s", method, err, out)
		}
		var report struct {
			Count       int
			Errors      map[string]int `json:"errorDistribution"`
			Statuses    map[string]int `json:"statusCodeDistribution"`
			Percentiles []struct {
				Percentage int
				Latency    int64 // ns
			} `json:"latencyDistribution"`
		}
		if err := json.Unmarshal(out, &report); err != nil {
			t.Fatal(err)
		}
		if report.Count != 200 || len(report.Errors) > 0 || report.Statuses[wants] != 200 || len(report.Percentiles) == 0 {
			t.Errorf("%s: %+v", method, report)
		}
		t.Logf("%s: %+v", method, report.Percentiles)
	}
}
