package observability_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html/template"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/socket/sockettest"
)

const (
	callerTrace = "0af7651916cd43dd8448eb211c80319c" // the example of W3C Trace Context
	callerSpan  = "b7ad6b7169203331"
)

// collectorConfig takes OTLP and writes each signal to a file.
const collectorConfig = `
receivers:
  otlp:
    protocols:
      grpc:
        endpoint: %[1]s
exporters:
  file/traces: {path: %[2]s/traces.json, flush_interval: 100ms}
  file/metrics: {path: %[2]s/metrics.json, flush_interval: 100ms}
  file/logs: {path: %[2]s/logs.json, flush_interval: 100ms}
service:
  telemetry:
    logs: {level: warn}
    metrics: {level: none}
  pipelines:
    traces: {receivers: [otlp], exporters: [file/traces]}
    metrics: {receivers: [otlp], exporters: [file/metrics]}
    logs: {receivers: [otlp], exporters: [file/logs]}
`

// span is as OTLP's JSON writes it.
type span struct {
	TraceID, SpanID, ParentSpanID, Name string
	StartTimeUnixNano                   string
	EndTimeUnixNano                     string
	Attributes                          []struct {
		Key   string
		Value map[string]any
	}
	Links []struct{ TraceID, SpanID string }
}

// spans are all that the collector wrote, in order of their begin.
func spans(dir string) []span {
	raw, err := os.ReadFile(filepath.Join(dir, "traces.json"))
	if err != nil {
		return nil // it has written nothing yet
	}
	var list []span
	for line := range strings.Lines(string(raw)) {
		var batch struct {
			ResourceSpans []struct {
				ScopeSpans []struct{ Spans []span }
			}
		}
		if json.Unmarshal([]byte(line), &batch) != nil {
			break // the last line is not complete yet
		}
		for _, r := range batch.ResourceSpans {
			for _, s := range r.ScopeSpans {
				list = append(list, s.Spans...)
			}
		}
	}
	slices.SortStableFunc(list, func(a, b span) int { return strings.Compare(a.StartTimeUnixNano, b.StartTimeUnixNano) })
	return list
}

func tree(list []span, trace, parent, indent string) string {
	var b strings.Builder
	for _, s := range list {
		if s.TraceID == trace && s.ParentSpanID == parent {
			b.WriteString(indent + s.Name + "\n" + tree(list, trace, s.SpanID, indent+"  "))
		}
	}
	return b.String()
}

// An OpenTelemetry Collector gets the spans of a request with an image, under the caller's span, and its metrics and
// log line with them.
func TestCollector(t *testing.T) {
	otelcol := tool(t, "otelcol", "run make otelcol")
	dir, endpoint := t.TempDir(), sockettest.FreeAddress(t)
	config := filepath.Join(dir, "otelcol.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, collectorConfig, endpoint, dir), 0o600); err != nil {
		t.Fatal(err)
	}
	process(t, nil, otelcol, "--config", config)
	c, _, stop := serve(t, []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"},
		"--slots", "2", "--trace-steps", "1")
	in := client.Chat(client.User(client.ImageBytes(sampleImage(t, 0)), client.Text("Describe the image.")))
	in.RequestId, in.Tenant = "r-1", "acme"
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-"+callerTrace+"-"+callerSpan+"-01")
	if _, err := c.Generate(ctx, in); err != nil {
		t.Fatal(err)
	}
	stop() // which sends what has not been sent
	const want = `mmserve.v1.MMServe/Generate
  chat tiny-vlm
    mmserve.preprocess
      mmserve.image.decode
      mmserve.image.resize
    mmserve.tokenize
    mmserve.encode
    mmserve.queue
    mmserve.prefill
    mmserve.decode
`
	var list []span
	until(t, "the collector has the trace", func() bool {
		list = spans(dir)
		return strings.Contains(tree(list, callerTrace, callerSpan, ""), "mmserve.decode")
	})
	if got := tree(list, callerTrace, callerSpan, ""); got != want {
		t.Errorf("the collector has\n%swant\n%s", got, want)
	}
	if path := os.Getenv("MMSERVE_TRACE_HTML"); path != "" {
		if err := os.WriteFile(path, waterfall(t, list), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	chat := list[slices.IndexFunc(list, func(s span) bool { return s.Name == "chat tiny-vlm" })]
	linked := 0
	for _, s := range list {
		if strings.HasPrefix(s.Name, "mmserve.step.") && slices.ContainsFunc(s.Links,
			func(l struct{ TraceID, SpanID string }) bool { return l.SpanID == chat.SpanID }) {
			linked++
		}
	}
	if linked < 2 {
		t.Errorf("%d steps are linked to the request, want its prefill and decode steps", linked)
	}
	until(t, "the collector has metrics and the log line", func() bool {
		metrics, _ := os.ReadFile(filepath.Join(dir, "metrics.json"))
		logs, _ := os.ReadFile(filepath.Join(dir, "logs.json"))
		return strings.Contains(string(metrics), `"gen_ai.server.time_to_first_token"`) &&
			strings.Contains(string(metrics), `"mmserve.engine.step.duration"`) &&
			strings.Contains(string(logs), `"traceId":"`+callerTrace+`"`)
	})
	for _, file := range []string{"traces.json", "metrics.json", "logs.json"} {
		if text := read(t, filepath.Join(dir, file)); strings.Contains(text, "Describe") ||
			strings.Contains(text, "orange star") {
			t.Errorf("%s holds content", file)
		}
	}
}

// page draws a trace as a waterfall.
var page = template.Must(template.New("").Parse(`<!doctype html><meta charset="utf-8"><title>A request with an image</title>
<style>body{font:14px sans-serif;margin:24px;width:1100px}h1{font-size:17px}div.r{display:flex;align-items:center;height:26px;border-bottom:1px solid #eee}
span.n{width:330px;white-space:pre}span.t{position:relative;flex:1;height:14px}i{position:absolute;height:14px;background:#4878a8;border-radius:2px;min-width:2px}
span.d{width:90px;text-align:right;color:#555}</style><h1>A request with an image, as an OpenTelemetry Collector got it</h1>
{{range .}}<div class="r"><span class="n">{{.Name}}</span><span class="t"><i style="left:{{.Left}}%;width:{{.Width}}%"></i></span><span class="d">{{.Took}}</span></div>
{{end}}`))

type bar struct {
	Name        string
	Left, Width float64
	Took        time.Duration
}

func waterfall(t *testing.T, list []span) []byte {
	t.Helper()
	at := func(nanos string) int64 {
		n, err := strconv.ParseInt(nanos, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	var bars []bar
	var zero, whole int64
	var walk func(parent, indent string)
	walk = func(parent, indent string) {
		for _, s := range list {
			if s.TraceID != callerTrace || s.ParentSpanID != parent {
				continue
			}
			began, ended := at(s.StartTimeUnixNano), at(s.EndTimeUnixNano)
			if whole == 0 {
				zero, whole = began, ended-began
			}
			percent := 100 / float64(whole)
			bars = append(bars, bar{indent + s.Name, float64(began-zero) * percent, float64(ended-began) * percent,
				time.Duration(ended - began).Round(time.Microsecond)})
			walk(s.SpanID, indent+"    ")
		}
	}
	walk(callerSpan, "")
	var b bytes.Buffer
	if err := page.Execute(&b, bars); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
