package loadtest_test

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"image"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/mmserve/mmserve/loadtest"
)

// sampled are answers with known times: the n-th has its first text after n, and its four tokens n apart.
func sampled(n int) []loadtest.Sample {
	list := make([]loadtest.Sample, n)
	for i := range list {
		d := time.Duration(i+1) * time.Millisecond
		s := &list[i]
		s.Code, s.Images, s.Answer = "OK", 1, loadtest.Answer{Prompt: 10, Completion: 4, Finish: "length"}
		s.Due, s.Sent = time.Duration(i)*time.Second, time.Duration(i)*time.Second+500*time.Microsecond
		for j := range 4 {
			s.Deltas = append(s.Deltas, loadtest.Delta{At: s.Due + time.Duration(j+1)*d, Tokens: 1})
		}
		s.Ended = s.Due + 4*d
	}
	return list
}

func TestSummary(t *testing.T) {
	s := loadtest.Summarize(sampled(100), 0, 100*time.Second, loadtest.SLO{TTFT: 90 * time.Millisecond,
		TPOT: 80 * time.Millisecond, E2E: 200 * time.Millisecond})
	for _, c := range []struct {
		name      string
		got, want float64
	}{
		{"TTFT p50", s.TTFT.P50, 50}, {"TTFT p90", s.TTFT.P90, 90}, {"TTFT p99", s.TTFT.P99, 99},
		{"TTFT p95", s.TTFT.P95, 95}, {"TTFT p99.9 of 100", s.TTFT.P999, 0}, {"TTFT mean", s.TTFT.Mean, 50.5},
		{"TPOT p50", s.TPOT.P50, 50}, {"ITL n", float64(s.ITL.Count), 300}, {"ITL p50", s.ITL.P50, 50},
		{"E2E p50", s.E2E.P50, 200}, {"E2E from send p50", s.FromSend.E2E.P50, 199.5},
		{"lag", s.Lag.Mean, 0.5}, {"requests/s", s.Throughput, 1}, {"tokens/s", s.OutputRate, 4},
		{"prompt tokens/s", s.PromptRate, 10}, {"images/s", s.ImageRate, 1},
		{"goodput", s.Goodput, 0.5}, {"attainment", s.Attainment, 0.5},
	} {
		if c.got < c.want-1e-9 || c.got > c.want+1e-9 {
			t.Errorf("%s is %v, want %v", c.name, c.got, c.want)
		}
	}
}

func TestSLO(t *testing.T) {
	slo, err := loadtest.ParseSLO("ttft=500ms, tpot=80ms,e2e=5s")
	if err != nil || slo != (loadtest.SLO{TTFT: 500 * time.Millisecond, TPOT: 80 * time.Millisecond,
		E2E: 5 * time.Second}) || slo.String() != "ttft=500ms,tpot=80ms,e2e=5s" {
		t.Errorf("%v, %v", slo, err)
	}
	for _, bad := range []string{"", "ttft", "ttft=5", "ttft=-5ms", "itl=5ms", "ttft=1s,,"} {
		if _, err := loadtest.ParseSLO(bad); err == nil {
			t.Errorf("%q is an SLO", bad)
		}
	}
	one := loadtest.Sample{Code: "OK", Deltas: []loadtest.Delta{{At: time.Second, Tokens: 1}}, Ended: time.Second,
		Answer: loadtest.Answer{Completion: 1}}
	if !(loadtest.SLO{TPOT: time.Millisecond}).Met(&one) || (loadtest.SLO{TTFT: time.Millisecond}).Met(&one) {
		t.Error("an answer of one token has no TPOT to miss, and a TTFT")
	}
}

// TestReport writes every form of a report with stages, failures, metrics and an earlier report, and reads the page as
// strictly as XML is read.
func TestReport(t *testing.T) {
	samples := sampled(60)
	samples[7].Code, samples[7].Deltas = "RESOURCE_EXHAUSTED", nil
	samples[8].Code = "ABANDONED"
	run := &loadtest.Result{
		Started: time.Unix(1700000000, 0), Samples: samples, Took: 61 * time.Second,
		Windows: []loadtest.Window{{Rate: 1, From: 0, To: 20 * time.Second},
			{Rate: 2, From: 20 * time.Second, To: 40 * time.Second}, {Rate: 3, From: 40 * time.Second, To: 60 * time.Second}},
		Scraped: []loadtest.Series{{Name: "running", Kind: "batch", Points: [][2]float64{{0, 1}, {1, 3}}},
			{Name: "kv", Kind: "kv", Points: [][2]float64{{0, 0.5}}},
			{Name: "x<y", Kind: "other", Points: [][2]float64{{0, 5}, {1, 5}}}},
	}
	for i := range samples {
		samples[i].Stage = i / 20
	}
	r := loadtest.NewReport(run, loadtest.About{Version: "v", Target: "grpc://<x>",
		Options: map[string]string{"rate": "1&2"}, SLO: loadtest.SLO{E2E: 165 * time.Millisecond}, Attain: 0.9})
	if len(r.Stages) != 3 || r.Knee == nil || r.Knee.Rate != 2 || r.Knee.Above != 3 {
		t.Errorf("stages %+v, knee %+v", r.Stages, r.Knee)
	}
	var b bytes.Buffer
	if err := r.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	old, err := loadtest.ReadReport(&b)
	if err != nil {
		t.Fatal(err)
	}
	old.Summary.TTFT.P50, old.Options["rate"], old.Knee.Rate = r.Summary.TTFT.P50/1.5, "1", 1
	var page bytes.Buffer
	if err := r.WriteHTML(&page, old); err != nil {
		t.Fatal(err)
	}
	html := page.String()
	for _, want := range []string{"knee 2/s", "Not the same work: rate", "x&lt;y (scraped)", "&lt;x&gt;",
		`<td class="bad">&#43;50.0 %</td>`, "RESOURCE_EXHAUSTED", "Use of the KV cache"} {
		if !strings.Contains(html, want) {
			t.Errorf("no %q in the page", want)
		}
	}
	if strings.Contains(html, "NaN") || strings.Contains(html, "Inf") || strings.Contains(html, "ZgotmplZ") {
		t.Error("a number or a text went wrong")
	}
	for _, svg := range regexp.MustCompile(`(?s)<svg.*?</svg>`).FindAllString(html, -1) {
		d := xml.NewDecoder(strings.NewReader(svg))
		for {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%v in %.80s", err, svg)
			}
		}
	}
	var text bytes.Buffer
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteDifference(&text, old); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2 requests/s are sustained, 3 are not", "itl = ", "RESOURCE_EXHAUSTED 1",
		"not the same work: rate", "worse"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
	for _, bad := range []string{"", "{}", `{"schema":"mmserve.bench/9"}`, "[]"} {
		if _, err := loadtest.ReadReport(strings.NewReader(bad)); err == nil {
			t.Errorf("%q is a report", bad)
		}
	}
	if err := loadtest.NewReport(&loadtest.Result{}, loadtest.About{}).WriteHTML(io.Discard, nil); err != nil {
		t.Errorf("of nothing: %v", err)
	}
}

func TestScrape(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model="a"} 3
vllm:num_requests_running{model="b"} 4
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{model="a"} 0.25
vllm:kv_cache_usage_perc{model="b"} 0.5
# TYPE mmserve_requests_waiting gauge
mmserve_requests_waiting 2
# TYPE http_requests_running_total counter
http_requests_running_total 9
# TYPE mmserve_engine_step_rows histogram
mmserve_engine_step_rows_bucket{phase="decode",le="+Inf"} 2
mmserve_engine_step_rows_sum{phase="decode"} 6
mmserve_engine_step_rows_count{phase="decode"} 2
# TYPE go_goroutines gauge
go_goroutines 12
`)
	}))
	defer srv.Close()
	for _, c := range []struct {
		match *regexp.Regexp
		want  map[string]float64
	}{
		{nil, map[string]float64{"vllm:num_requests_running": 7, "vllm:kv_cache_usage_perc": 0.5,
			"mmserve_requests_waiting": 2}},
		{regexp.MustCompile("^go_"), map[string]float64{"go_goroutines": 12}},
	} {
		s := &loadtest.Scraper{URL: srv.URL, Client: srv.Client(), Match: c.match}
		r, err := loadtest.Run(t.Context(), loadtest.Config{Target: instant, Schedule: constant(t, 100, 50*time.Millisecond),
			Mix: text(t), Scraper: s})
		if err != nil || s.Err() != nil {
			t.Fatal(err, s.Err())
		}
		got := map[string]float64{}
		for _, v := range r.Scraped {
			got[v.Name] = v.Points[0][1]
		}
		for name, v := range c.want {
			if got[name] != v || len(got) != len(c.want) {
				t.Errorf("%v, want %v", got, c.want)
			}
		}
	}
	gauges, rows, err := loadtest.ReadMetrics(strings.NewReader("# TYPE m_step_rows histogram\nm_step_rows_sum{phase=\"decode\"} 6\nm_step_rows_count{phase=\"decode\"} 2\n"))
	if err != nil || len(gauges) != 0 || fmt.Sprint(rows) != "map[m_step_rows decode:{6 2}]" {
		t.Errorf("gauges %v, rows %v, %v", gauges, rows, err)
	}
	s := &loadtest.Scraper{URL: srv.URL + "0", Client: srv.Client()}
	if _, err := loadtest.Run(t.Context(), loadtest.Config{Target: instant,
		Schedule: constant(t, 100, 50*time.Millisecond), Mix: text(t), Scraper: s}); err != nil || s.Err() == nil {
		t.Errorf("a scrape of nothing: %v, %v", err, s.Err())
	}
	srv.Client().CloseIdleConnections()
}

func FuzzReadMetrics(f *testing.F) {
	f.Add([]byte("# TYPE a gauge\na{b=\"c\"} 1\n"))
	f.Add([]byte("# TYPE a_step_rows histogram\na_step_rows_sum{phase=\"x\"} 3\na_step_rows_count{phase=\"x\"} 1\n"))
	f.Fuzz(func(t *testing.T, b []byte) { _, _, _ = loadtest.ReadMetrics(bytes.NewReader(b)) })
}

// TestImages decodes what was drawn and stamped: other bytes, the same image.
func TestImages(t *testing.T) {
	list, err := loadtest.DrawImages(8, "40x30,64x64:2", 0.5, 7)
	if err != nil {
		t.Fatal(err)
	}
	again, err := loadtest.DrawImages(8, "40x30,64x64:2", 0.5, 7)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	dir := t.TempDir()
	for i, p := range list {
		kinds[p.Type]++
		if !bytes.Equal(p.Data, again[i].Data) {
			t.Errorf("image %d is another with the same seed", i)
		}
		a, format, err := image.Decode(bytes.NewReader(p.Data))
		q := loadtest.Stamp(p, 1)
		b, _, err2 := image.Decode(bytes.NewReader(q.Data))
		if err != nil || err2 != nil || "image/"+format != p.Type || a.Bounds() != b.Bounds() || a.At(5, 5) != b.At(5, 5) {
			t.Errorf("image %d: %v, %v", i, err, err2)
		}
		if bytes.Equal(q.Data, p.Data) || bytes.Equal(q.Data, loadtest.Stamp(p, 2).Data) {
			t.Errorf("image %d: stamps do not tell", i)
		}
		if err := os.WriteFile(filepath.Join(dir, string(rune('a'+i))+"."+format), p.Data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if kinds["image/png"] == 0 || kinds["image/jpeg"] == 0 {
		t.Errorf("kinds %v", kinds)
	}
	if read, err := loadtest.ReadImages(dir); err != nil || len(read) != 8 || !bytes.Equal(read[3].Data, list[3].Data) ||
		read[3].Type != list[3].Type {
		t.Errorf("read %d, %v", len(read), err)
	}
	if _, err := loadtest.ReadImages(t.TempDir()); err == nil {
		t.Error("an empty folder has images")
	}
}

// TestMix holds the shares and that the same seed makes the same requests.
func TestMix(t *testing.T) {
	m := &loadtest.Mix{
		Prompt: lengths(t, "uniform:1,9"), Output: lengths(t, "uniform:1,5"), ImageShare: 0.25,
		ImagesEach: lengths(t, "uniform:1,3"), Images: []loadtest.Image{{Data: []byte("x"), Type: "image/gif"}},
		Tenants: []loadtest.Weighted{{Value: "a", Weight: 3}, {Value: "b", Weight: 1}}, AbandonShare: 0.1,
		AbandonAfter: time.Second, Name: "m",
	}
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	rng, twin := rand.New(rand.NewPCG(1, 1)), rand.New(rand.NewPCG(1, 1))
	var images, tenant, abandoned, words int
	const n = 4000
	for i := range n {
		r, same := m.Request(rng, i, loadtest.Arrival{}), m.Request(twin, i, loadtest.Arrival{})
		if r.Text != same.Text || r.MaxTokens != same.MaxTokens || r.Tenant != same.Tenant || r.Abandon != same.Abandon ||
			len(r.Images) != len(same.Images) {
			t.Fatalf("%+v is not %+v", r, same)
		}
		words += len(strings.Fields(r.Text))
		if len(r.Images) > 0 {
			images++
		}
		if r.Tenant == "a" {
			tenant++
		}
		if r.Abandon > 0 {
			abandoned++
		}
	}
	for name, share := range map[string][2]float64{"images": {float64(images) / n, 0.25},
		"tenant": {float64(tenant) / n, 0.75}, "abandoned": {float64(abandoned) / n, 0.1},
		"words": {float64(words) / n / 5, 1}} {
		if share[0] < share[1]-0.03 || share[0] > share[1]+0.03 {
			t.Errorf("%s: %.3f, want %.2f", name, share[0], share[1])
		}
	}
	if r := m.Request(rng, 0, loadtest.Arrival{Prompt: 50, Output: 7}); len(strings.Fields(r.Text)) != 50 ||
		r.MaxTokens != 7 {
		t.Errorf("a trace's lengths do not count: %+v", r)
	}
}
