package main

import (
	"cmp"
	"encoding/json"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/racetest"
	"github.com/mmserve/mmserve/loadtest"
)

// TestBench loads the embedded model, and compares the report with one of the same run.
func TestBench(t *testing.T) {
	addr, dir := serveAt(t), t.TempDir()
	metrics := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "# TYPE mmserve_requests_running gauge\nmmserve_requests_running 3\n# TYPE other gauge\nother 1\n")
	}))
	defer metrics.Close()
	file := func(name string) string { return filepath.Join(dir, name) }
	args := []string{"bench", "--quiet", "--server", addr, "--rate", "40", "--duration", "1500ms", "--warm-up", "300ms",
		"--prompt", "uniform:4,12", "--output", "8", "--images", "0.3",
		"--image-sizes", "64x64,80x60", "--image-pool", "4", "--tenants", "a:2,b", "--priorities", "interactive,batch",
		"--slo", "e2e=60s", "--metrics-url", metrics.URL,
		"--json", file("r.json"), "--html", file("r.html"), "--ledger", file("r.jsonl")}
	code, out, errs := mmserve(t, args...)
	if code != 0 || !strings.Contains(out, "attainment 100.0 %") || !strings.Contains(out, "tpot = (e2e") {
		t.Fatalf("status %d: %s%s", code, out, errs)
	}
	f, err := os.Open(file("r.json"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	report, err := loadtest.ReadReport(f)
	if err != nil {
		t.Fatal(err)
	}
	s := report.Summary
	if s.Due < 20 || s.OK != s.Due || s.Tokens.Output != 8*s.OK || s.Tokens.Image == 0 || s.Tokens.Extra != 0 ||
		s.Server["prefill"].Count != s.OK {
		t.Errorf("summary %+v", s)
	}
	if len(report.Metrics) != 1 || report.Metrics[0].Name != "mmserve_requests_running" || report.Metrics[0].Points[0][1] != 3 {
		t.Errorf("metrics %+v", report.Metrics)
	}
	page, err := os.ReadFile(file("r.html"))
	if err != nil || strings.Contains(string(page), "http://") || strings.Contains(string(page), "<script") ||
		strings.Count(string(page), "<svg") < 7 {
		t.Errorf("the page is not whole, or not by itself: %v, %d plots", err, strings.Count(string(page), "<svg"))
	}
	ledger, err := os.ReadFile(file("r.jsonl"))
	if n := strings.Count(string(ledger), `"code":"OK"`); err != nil || n < s.OK {
		t.Errorf("%d lines of %d requests in the ledger: %v", n, s.OK, err)
	}
	code, out, errs = mmserve(t, append(args, "--compare", file("r.json"), "--tolerance", "1e9")...)
	if code != 0 || !strings.Contains(out, "then") || strings.Contains(out, "not the same work") {
		t.Errorf("compared: status %d: %s%s", code, out, errs)
	}
	if report.Server["model"] == "" || report.Server["slots"] == "" || !strings.Contains(out, "SLO kept: 100 %") {
		t.Errorf("tested %v; %s", report.Server, out)
	}
}

// The exit status says that an SLO was not kept, that numbers are worse, or that books do not agree.
func TestBenchStatus(t *testing.T) {
	addr, dir := serveAt(t, "--pace", "10us,100us"), t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	bench := func(want int, says string, args ...string) {
		t.Helper()
		code, out, errs := mmserve(t, append([]string{"bench", "--quiet", "--server", addr, "--warm-up", "0s",
			"--output", "2", "--rate", "40", "--duration", "250ms"}, args...)...)
		if code != want || !strings.Contains(out+errs, says) {
			t.Errorf("%q: status %d, want %d and %q:\n%s%s", args, code, want, says, out, errs)
		}
	}
	bench(0, "over 3 runs", "--repeat", "3", "--slo", "e2e=1m", "--json", file("r.json"), "--ledger", file("l.jsonl"))
	bench(3, "SLO not kept: 0 %", "--slo", "e2e=1us")
	text, err := os.ReadFile(file("r.json"))
	if err != nil {
		t.Fatal(err)
	}
	better := regexp.MustCompile(`"(requests_per_s|output_tokens_per_s)": [0-9.]+`).ReplaceAll(text, []byte(`"$1": 1e6`))
	if err := os.WriteFile(file("better.json"), better, 0o600); err != nil {
		t.Fatal(err)
	}
	bench(4, "worse than before by more than 10 %: requests/s", "--compare", file("better.json"))
	bench(3, "", "--compare", file("better.json"), "--slo", "e2e=1us")

	ledger, err := os.ReadFile(file("l.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	log := regexp.MustCompile(`"code":"OK".*?"output_tokens":(\d+).*`).ReplaceAllString(string(ledger),
		`"code":"OK","msg":"request","completion_tokens":$1}`)
	books := func(text string) []string {
		if err := os.WriteFile(file("log"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return []string{"--from-ledger", file("l.jsonl"), "--reconcile", file("log")}
	}
	bench(0, "30 ended alike in both, 0 never came to the server; 0 problems", books(log)...)
	bench(0, "; 0 problems", books(log+`{"msg":"request","id":"another","code":"OK"}`)...)
	bench(5, "; 1 problems", books(log[strings.IndexByte(log, '\n')+1:])...)
	bench(5, "has 2 tokens, in the log 3", books(strings.Replace(log, `completion_tokens":2`, `completion_tokens":3`, 1))...)
	bench(1, "--from-ledger wants --reconcile", "--from-ledger", file("l.jsonl"))
	bench(1, "--from-ledger", "--from-ledger", file("none"), "--reconcile", file("log"))
}

// A rate of a ramp begins when the last request of the one before has ended.
func TestBenchRampDrains(t *testing.T) {
	racetest.Without(t)
	addr, ledger := serveAt(t, "--pace", "10us,10ms", "--slots", "1"), filepath.Join(t.TempDir(), "l")
	code, out, errs := mmserve(t, "bench", "--quiet", "--server", addr, "--warm-up", "0s", "--output", "20",
		"--ramp", "10:20:10", "--arrivals", "constant", "--duration", "400ms", "--ledger", ledger)
	if code != 0 {
		t.Fatalf("status %d: %s%s", code, out, errs)
	}
	text, err := os.ReadFile(ledger)
	if err != nil {
		t.Fatal(err)
	}
	lastEnd, nextDue := 0.0, math.Inf(1)
	for line := range strings.Lines(string(text)) {
		var l struct {
			ID    string
			Due   float64 `json:"due_s"`
			Ended float64 `json:"ended_s"`
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(l.ID, "-0-") {
			lastEnd = max(lastEnd, l.Ended)
		} else {
			nextDue = min(nextDue, l.Due)
		}
	}
	if lastEnd < 0.6 || nextDue < lastEnd {
		t.Errorf("the first rate's last request ended at %v s, the second rate's first was due at %v s", lastEnd, nextDue)
	}
}

func TestBenchErrors(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("mms_key"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args, want string
		code       int // 0: that of usage
	}{
		{"--rate 0", "--rate 0: want 1e-6 to 1e6", 0},
		{"--arrivals pareto", "poisson, constant or gamma:SHAPE", 0},
		{"--prompt many", "--prompt: lengths", 0},
		{"--images 2 --image-pool 1 --image-sizes 8x8", "want 0 to 1", 0},
		{"--images 1 --image-sizes 8", "WIDTHxHEIGHT", 0},
		{"--images 1 --image-dir /none", "no such file", 0},
		{"--slo fast", "--slo: SLO \"fast\"", 0},
		{"--search 1:10", "--search needs --slo", 0},
		{"--search 1 --slo e2e=1s", "FROM:TO", 0},
		{"--ramp 1:2:1 --search 1:10", "exclude each other", 0},
		{"--warm-up 60s", "leaves nothing", 0},
		{"--repeat 0", "--repeat 0: want 1 to 100", 0}, {"--repeat 2 --ramp 1:2:1", "--repeat 2: want", 0},
		{"--tolerance NaN", "--tolerance", 0}, {"--tolerance=-1", "--tolerance", 0},
		{"--priorities urgent", "interactive, default or batch", 0},
		{"--openai localhost", "http://host:port", 0},
		{"--openai https://localhost --tls-ca bench_test.go", "--tls-ca", 0},
		{"--openai http://mm.example --api-key-file " + key, "in plaintext", 0},
		{"--compare none.json", "--compare", 1},
		{"--server 127.0.0.1:1 --rate 100 --duration 100ms --warm-up 0s", "no request was answered", 1},
	} {
		code, out, errs := mmserve(t, append([]string{"bench", "--quiet"}, strings.Fields(c.args)...)...)
		if code != cmp.Or(c.code, exitUsage) || !strings.Contains(errs, c.want) {
			t.Errorf("%s: status %d, %s%s; want %q", c.args, code, out, errs, c.want)
		}
	}
}

// TestPacedServer holds that a server without a model takes images, and gives the tokens that were asked for.
func TestPacedServer(t *testing.T) {
	addr := serveAt(t, "--pace", "10us,1ms")
	code, out, errs := mmserve(t, "bench", "--quiet", "--server", addr, "--rate", "40", "--duration", "1s",
		"--warm-up", "0s", "--prompt", "8", "--output", "20", "--images", "0.5", "--image-sizes", "64x64", "--image-pool",
		"2")
	if code != 0 || !strings.Contains(out, "0 failed") || !strings.Contains(out, "0 answers differ") {
		t.Errorf("status %d: %s%s", code, out, errs)
	}
	if code, _, errs := mmserve(t, "serve", "--pace", "fast"); code != 1 || !strings.Contains(errs, "as 1ms,20ms") {
		t.Errorf("status %d: %s", code, errs)
	}
}
