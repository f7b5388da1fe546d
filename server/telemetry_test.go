package server_test

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	notrace "go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/telemetry"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
	"github.com/mmserve/mmserve/vision"
)

// scraped is a server whose metrics are read as Prometheus does.
type scraped struct {
	*fixture
	sdk *telemetry.Telemetry
}

func startScraped(t *testing.T, m serving.Model, r *chain) scraped {
	t.Helper()
	sdk, err := telemetry.Start(t.Context(), telemetry.Options{Prometheus: true}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sdk.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	tel, err := serving.NewTelemetry(notrace.NewTracerProvider(), sdk.Meter, 0)
	if err != nil {
		t.Fatal(err)
	}
	return scraped{start(t, m, r, server.Options{Telemetry: tel}), sdk}
}

func (s scraped) scrape(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	w := httptest.NewRecorder()
	s.sdk.Scrape.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	p := expfmt.NewTextParser(model.LegacyValidation)
	families, err := p.TextToMetricFamilies(w.Body)
	if err != nil || w.Code != 200 {
		t.Fatal(w.Code, err)
	}
	return families
}

// value is that of the metric with all the given labels ("name=value"): of a histogram its count.
func value(t *testing.T, families map[string]*dto.MetricFamily, name string, labels ...string) float64 {
	t.Helper()
	for _, m := range families[name].GetMetric() {
		var have []string
		for _, l := range m.GetLabel() {
			have = append(have, l.GetName()+"="+l.GetValue())
		}
		if !slices.ContainsFunc(labels, func(l string) bool { return !slices.Contains(have, l) }) {
			switch {
			case m.Histogram != nil:
				return float64(m.Histogram.GetSampleCount())
			case m.Counter != nil:
				return m.Counter.GetValue()
			default:
				return m.Gauge.GetValue()
			}
		}
	}
	return -1
}

func TestMetrics(t *testing.T) {
	g := readGolden(t)
	m := tinyVLM(t)
	m.EncoderStats = func() vision.EncoderStats {
		return vision.EncoderStats{Hits: 3, Misses: 2, CacheBytes: 77, CacheEntries: 5}
	}
	m.DeviceStats = func() serving.DeviceStats { return serving.DeviceStats{To: 11, From: 12, Held: 13} }
	f := startScraped(t, m, newChain(2, g.GeneratedIDs...))
	prompt, answer := float64(len(g.PromptIDs)), float64(len(g.GeneratedIDs))
	for range 2 {
		if _, err := f.Generate(t.Context(), question()); err != nil {
			t.Fatal(err)
		}
	}
	short := client.Prompt(client.Text("a small"))
	short.MaxTokens = proto.Uint32(1)
	if _, _, _, err := collect(t.Context(), f.Client, short); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []*pb.GenerateRequest{
		{}, {Model: "other"}, client.Chat(client.User(client.ImageBytes([]byte("no")))),
	} {
		if _, err := f.Generate(t.Context(), bad); err == nil {
			t.Fatal("a bad request was taken")
		}
	}
	families := f.scrape(t)
	chat, complete := "gen_ai_operation_name=chat", "gen_ai_operation_name=text_completion"
	for _, want := range []struct {
		name   string
		labels string
		value  float64
	}{
		{"gen_ai_server_request_duration_seconds", chat + " gen_ai_provider_name=mmserve gen_ai_request_model=tiny-vlm gen_ai_response_model=tiny-vlm", 2},
		{"gen_ai_server_request_duration_seconds", complete, 1},
		{"gen_ai_server_request_duration_seconds", "error_type=INVALID_ARGUMENT", 2},
		{"gen_ai_server_request_duration_seconds", "error_type=NOT_FOUND", 1},
		{"gen_ai_server_time_to_first_token_seconds", chat, 2},
		{"gen_ai_server_time_to_first_token_seconds", complete, 1},
		{"gen_ai_server_time_per_output_token_seconds", chat, 2},
		{"gen_ai_server_time_per_output_token_seconds", complete, -1}, // one token has no next
		{"mmserve_requests_finished_total", "outcome=stop", 2},
		{"mmserve_requests_finished_total", "outcome=length", 1},
		{"mmserve_requests_finished_total", "outcome=INVALID_ARGUMENT", 2},
		{"mmserve_requests_rejected_total", "reason=invalid", 2},
		{"mmserve_requests_rejected_total", "reason=model", 1},
		{"mmserve_request_stage_duration_seconds", "stage=preprocess", 3},
		{"mmserve_request_stage_duration_seconds", "stage=prefill", 3},
		{"mmserve_request_stage_duration_seconds", "stage=decode", 3},
		{"mmserve_tokens_total", "kind=prompt", 2*prompt + 2 - value(t, families, "mmserve_tokens_total", "kind=cached")},
		{"mmserve_tokens_total", "kind=generated", 2*answer + 1},
		{"mmserve_tokens_total", "kind=wasted", 0},
		{"mmserve_images_total", "", 2},
		{"mmserve_slots", "", 2},
		{"mmserve_requests_running", "", 0},
		{"mmserve_requests_waiting", "", 0},
		{"mmserve_requests_preparing", "", 0},
		{"mmserve_kv_budget", "", 2 * contextLen},
		{"mmserve_kv_utilization_ratio", "", 0},
		{"mmserve_engine_stalled_seconds", "", 0},
		{"mmserve_engine_steps_total", "phase=decode", 2 * (answer - 1)},
		{"mmserve_engine_step_duration_seconds", "phase=decode", 2 * (answer - 1)},
		{"mmserve_engine_step_rows", "phase=prefill", value(t, families, "mmserve_engine_steps_total", "phase=prefill")},
		{"mmserve_encoder_requests_total", "result=hit", 3},
		{"mmserve_encoder_requests_total", "result=miss", 2},
		{"mmserve_encoder_cache_size_bytes", "", 77},
		{"mmserve_encoder_cache_entries", "", 5},
		{"mmserve_device_copied_bytes_total", "direction=to", 11},
		{"mmserve_device_copied_bytes_total", "direction=from", 12},
		{"mmserve_device_memory_bytes", "", 13},
		{"mmserve_model_info", "model=tiny-vlm digest=sha256:test", 1},
		{"mmserve_build_info", "", 1},
	} {
		if got := value(t, families, want.name, strings.Fields(want.labels)...); got != want.value {
			t.Errorf("%s{%s} is %v, want %v", want.name, want.labels, got, want.value)
		}
	}
}

// What a caller may choose freely is no label.
func TestLabelsAreBounded(t *testing.T) {
	f := startScraped(t, tinyVLM(t), newChain(1, 430, 4))
	in := client.Prompt(client.Text("a"))
	in.Tenant, in.RequestId = "acme", "r-77"
	if _, err := f.Generate(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	in.Model = "gpt-9"
	if _, err := f.Generate(t.Context(), in); err == nil {
		t.Fatal("another model was served")
	}
	for name, family := range f.scrape(t) {
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				if v := l.GetValue(); v == "acme" || v == "r-77" || v == "gpt-9" {
					t.Errorf("%s has the label %s=%q", name, l.GetName(), v)
				}
			}
		}
	}
}

func TestRejectedByReason(t *testing.T) {
	runner := endless(1)
	runner.step = make(chan struct{})
	f := startScraped(t, tinyVLM(t), runner)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go f.Generate(ctx, client.Prompt(client.Text("a")))
	runner.step <- struct{}{}
	eventually(t, "the slot is taken", func() bool { return f.engine.Stats().Running == 1 })
	if _, err := f.Generate(t.Context(), client.Prompt(client.Text("a"))); err == nil {
		t.Fatal("a second request was taken")
	}
	families := f.scrape(t)
	if n := value(t, families, "mmserve_requests_rejected_total", "reason=busy"); n != 1 {
		t.Errorf("rejected as busy: %v, want 1", n)
	}
	if n := value(t, families, "mmserve_requests_running"); n != 1 {
		t.Errorf("running: %v, want 1", n)
	}
	defer close(runner.step)
	cancel()
	eventually(t, "the caller that left is counted", func() bool {
		return value(t, f.scrape(t), "mmserve_requests_finished_total", "outcome=CANCELLED") == 1
	})
	if n := value(t, f.scrape(t), "mmserve_requests_rejected_total", "reason=left"); n != 0 {
		t.Errorf("a request that ran counts as rejected: %v", n)
	}
}

// The gauges that deploy/gateway names are there, with the types and meanings of the gateway's model server protocol.
func TestGatewayProtocol(t *testing.T) {
	raw, err := os.ReadFile("../deploy/gateway/epp-config.yaml")
	if err != nil {
		t.Fatal(err)
	}
	spec := map[string]string{}
	for _, m := range regexp.MustCompile(`(\w+)Spec: "(\w+)"`).FindAllStringSubmatch(string(raw), -1) {
		spec[m[1]] = m[2]
	}
	m := tinyVLM(t)
	runner := endless(2)
	runner.step = make(chan struct{})
	f := startScraped(t, m, runner)
	read := func(name string) float64 {
		families := f.scrape(t)
		if kind := families[spec[name]].GetType(); kind != dto.MetricType_GAUGE {
			t.Fatalf("%s is %q, a %v; want a gauge", name, spec[name], kind)
		}
		return value(t, families, spec[name])
	}
	for _, name := range []string{"queuedRequests", "runningRequests", "kvUsage"} {
		if v := read(name); v != 0 {
			t.Errorf("%s of an idle server is %v", name, v)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 2 {
		go f.Generate(ctx, client.Prompt(client.Text(strings.Repeat(" small", 100))))
	}
	eventually(t, "both wait", func() bool { return f.engine.Stats().Waiting == 2 })
	if q, r := read("queuedRequests"), read("runningRequests"); q != 2 || r != 0 {
		t.Errorf("queued %v, running %v; want the 2 that have no slot yet", q, r)
	}
	for range 3 {
		runner.step <- struct{}{}
	}
	eventually(t, "both run", func() bool { return f.engine.Stats().Running == 2 })
	tokens := float64(f.engine.Stats().KVTokens)
	q, r, kv := read("queuedRequests"), read("runningRequests"), read("kvUsage")
	if q != 0 || r != 2 || kv != tokens/(2*contextLen) || kv < 0.1 || kv > 1 {
		t.Errorf("queued %v, running %v, KV %v with %v positions held", q, r, kv, tokens)
	}
	// The budget in blocks.
	info := f.scrape(t)[spec["cacheInfo"]].GetMetric()[0]
	labels := map[string]string{}
	for _, l := range info.GetLabel() {
		labels[l.GetName()] = l.GetValue()
	}
	if labels["block_size"] != "16" || labels["num_gpu_blocks"] != strconv.Itoa(2*contextLen/16) {
		t.Errorf("cache info %v", labels)
	}
	cancel()
	close(runner.step)
}

// docs/observability.md has a line for every metric that is served.
func TestMetricsAreDocumented(t *testing.T) {
	docs, err := os.ReadFile("../docs/observability.md")
	if err != nil {
		t.Fatal(err)
	}
	f := startScraped(t, tinyVLM(t), newChain(1, 430, 4))
	if _, err := f.Generate(t.Context(), client.Prompt(client.Text("a"))); err != nil {
		t.Fatal(err)
	}
	for name := range f.scrape(t) {
		ours := strings.HasPrefix(name, "mmserve_") || strings.HasPrefix(name, "gen_ai_")
		if ours && !strings.Contains(string(docs), "`"+name+"`") {
			t.Errorf("docs/observability.md does not name %s", name)
		}
	}
}

// A slow bucket names a trace in it.
func TestExemplars(t *testing.T) {
	sdk, err := telemetry.Start(t.Context(), telemetry.Options{Prometheus: true}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer sdk.Close(context.Background())
	tel, err := serving.NewTelemetry(sdktrace.NewTracerProvider(), sdk.Meter, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := start(t, tinyVLM(t), newChain(1, 430, 4), server.Options{Telemetry: tel})
	if _, err := f.Generate(t.Context(), client.Prompt(client.Text("a"))); err != nil {
		t.Fatal(err)
	}
	in := httptest.NewRequest("GET", "/metrics", nil)
	in.Header.Set("Accept", "application/openmetrics-text;version=1.0.0")
	w := httptest.NewRecorder()
	sdk.Scrape.ServeHTTP(w, in)
	if !regexp.MustCompile(`gen_ai_server_time_to_first_token_seconds_bucket\{.*# \{.*trace_id="[0-9a-f]{32}"`).MatchString(w.Body.String()) {
		t.Errorf("no exemplar in\n%s", w.Body)
	}
}
