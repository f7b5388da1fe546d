// Package observability_test checks what this folder gives to operators against the tools that read it: promtool, a
// Prometheus that scrapes a loaded server, an OpenTelemetry Collector. `make test-observability` runs it all; a tool
// that is not there skips its test.
package observability_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"image"
	"image/png"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/socket/sockettest"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

const root = "../.."

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Each alert has its page, and each page its alert.
func TestRunbooks(t *testing.T) {
	var alerts []string
	for _, m := range regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(read(t, "rules.yml"), -1) {
		alerts = append(alerts, m[1]+".md")
	}
	pages, err := filepath.Glob(filepath.Join(root, "docs", "runbooks", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range pages {
		pages[i] = filepath.Base(pages[i])
	}
	slices.Sort(alerts)
	if !slices.Equal(alerts, pages) {
		t.Errorf("alerts %v, pages %v", alerts, pages)
	}
	for _, a := range alerts {
		if !strings.Contains(read(t, "rules.yml"), "runbook: docs/runbooks/"+a) {
			t.Errorf("%s is not named by its alert", a)
		}
	}
}

// metric finds names of metrics in PromQL, without what a histogram adds.
var metric = regexp.MustCompile(`\b((?:mmserve|gen_ai|rpc|process|go)_\w+?)(?:_bucket|_count|_sum)?\b[^_\w]`)

// What dashboards and alerts ask for is documented.
func TestNamesAreDocumented(t *testing.T) {
	docs := read(t, filepath.Join(root, "docs", "observability.md"))
	var exprs []string
	for _, q := range queries(t) {
		exprs = append(exprs, q.expr)
	}
	exprs = append(exprs, read(t, "rules.yml"))
	n := 0
	for _, m := range metric.FindAllStringSubmatch(strings.Join(exprs, "\n"), -1) {
		name := m[1]
		if strings.HasPrefix(name, "process_") || strings.HasPrefix(name, "go_") ||
			strings.HasPrefix(name, "gen_ai_operation") || name == "rpc_method" || name == "rpc_response_status_code" {
			continue
		}
		n++
		if !strings.Contains(docs, "`"+name+"`") {
			t.Errorf("docs/observability.md does not name %s", name)
		}
	}
	if n < 50 {
		t.Errorf("found %d names only", n)
	}
}

type query struct{ panel, expr string }

// queries are the dashboard's.
func queries(t *testing.T) []query {
	t.Helper()
	var d struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, "dashboard.json")), &d); err != nil {
		t.Fatal(err)
	}
	var list []query
	for _, p := range d.Panels {
		for _, g := range p.Targets {
			list = append(list, query{p.Title, g.Expr})
		}
	}
	return list
}

// tool gives the path of a program, or skips the test: what these tests take is for make test-observability only.
func tool(t *testing.T, name, hint string) string {
	t.Helper()
	if os.Getenv("MMSERVE_TEST_OBSERVABILITY") == "" {
		t.Skip("it takes a while: run make test-observability")
	}
	for _, path := range []string{filepath.Join(root, "bin", name), name} {
		if p, err := exec.LookPath(path); err == nil {
			if p, err = filepath.Abs(p); err == nil {
				return p
			}
		}
	}
	t.Skipf("%s was not found: %s", name, hint)
	return ""
}

const debian = "Debian's package prometheus has it"

func TestRules(t *testing.T) {
	promtool := tool(t, "promtool", debian)
	for _, args := range [][]string{{"check", "config", "prometheus.yml"}, {"check", "rules", "rules.yml"},
		{"test", "rules", "rules_test.yml"}} {
		if out, err := exec.CommandContext(t.Context(), promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
}

// process runs a program in dir until the test ends or it is told to stop, and shows what it wrote if the test failed.
func process(t *testing.T, env []string, program string, args ...string) (stop func()) {
	t.Helper()
	var out strings.Builder
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = root, append(os.Environ(), env...), &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		err := cmd.Wait()
		if t.Failed() {
			t.Logf("%s ended with %v:\n%s", filepath.Base(program), err, out.String())
		}
	})
	t.Cleanup(stop)
	return stop
}

// until polls what another process is about to do.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not within a minute: " + what)
		}
	}
}

func get(url string) (status int, body []byte) {
	resp, err := http.Get(url)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	body, _ = io.ReadAll(resp.Body)
	return resp.StatusCode, body
}

// serve runs bin/mmserve and gives a client of it once it is ready.
func serve(t *testing.T, env []string, args ...string) (c *client.Client, admin string, stop func()) {
	t.Helper()
	mmserve := tool(t, "mmserve", "run make build")
	addr := sockettest.FreeAddress(t)
	admin = sockettest.FreeAddress(t)
	stop = process(t, env, mmserve, append([]string{"serve", "--listen", addr, "--admin-address", admin}, args...)...)
	until(t, "mmserve is ready", func() bool { status, _ := get("http://" + admin + "/readyz"); return status == 200 })
	c, err := client.Dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, admin, stop
}

func sampleImage(t *testing.T, n int) []byte {
	t.Helper()
	return []byte(read(t, filepath.Join(root, "model", "tiny-vlm", "samples", fmt.Sprintf("sample%d.png", n))))
}

// fresh is an image like no other.
func fresh(a, b int) []byte {
	img := image.NewGray(image.Rect(0, 0, 32, 32))
	binary.LittleEndian.PutUint64(img.Pix, uint64(a)<<32|uint64(b))
	var out bytes.Buffer
	if err := png.Encode(&out, img); err != nil {
		panic(err) // a buffer takes everything
	}
	return out.Bytes()
}

// load keeps a server busy with all kinds of requests until ctx ends: images that come again, callers that leave, bad
// requests, and more than it can take.
func load(ctx context.Context, t *testing.T, c *client.Client) {
	var images [][]byte
	for i := range 8 {
		images = append(images, sampleImage(t, i))
	}
	var wg sync.WaitGroup
	for worker := range 10 {
		wg.Go(func() {
			for i := worker; ctx.Err() == nil; i++ {
				p := images[i%8]
				if i%2 == 0 {
					p = fresh(worker, i)
				}
				in := client.Chat(client.User(client.ImageBytes(p), client.Text("Describe the image.")))
				call, cancel := context.WithCancel(ctx)
				switch i % 5 {
				case 1:
					in = client.Chat(client.User(client.Text(strings.Repeat("Count to ten. ", 10))))
					n := uint32(100)
					in.MaxTokens, in.IgnoreEos = &n, true
				case 2:
					in = &pb.GenerateRequest{}
				case 3:
					time.AfterFunc(10*time.Millisecond, cancel)
				}
				for _, err := range c.Stream(call, in) {
					if err != nil {
						time.Sleep(20 * time.Millisecond) // a caller that is refused waits before it comes again
					}
				}
				cancel()
			}
		})
	}
	wg.Wait()
}

// Every query of the dashboard has an answer in a Prometheus that scrapes a loaded server, and every rule evaluates.
func TestDashboard(t *testing.T) {
	prometheus := tool(t, "prometheus", debian)
	c, admin, _ := serve(t, nil, "--slots", "4", "--max-waiting", "2", "--log-level", "error")
	dir := t.TempDir()
	rules := strings.ReplaceAll(read(t, "rules.yml"), "interval: 30s", "interval: 1s")
	config := strings.NewReplacer("15s", "1s", "127.0.0.1:9464", admin).Replace(read(t, "prometheus.yml"))
	for name, text := range map[string]string{"rules.yml": rules, "prometheus.yml": config} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	addr := sockettest.FreeAddress(t)
	process(t, nil, prometheus, "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+addr, "--log.level=warn")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan struct{})
	go func() { defer close(done); load(ctx, t, c) }()
	defer func() { cancel(); <-done }()

	missing := map[query]string{}
	for _, q := range queries(t) {
		missing[q] = "never asked"
	}
	total := len(missing)
	api := "http://" + addr + "/api/v1/"
	fill := strings.NewReplacer("$__rate_interval", "5s", "$job", "mmserve", "$instance", ".*")
	for deadline := time.Now().Add(time.Minute); len(missing) > 0 && time.Now().Before(deadline); time.Sleep(time.Second) {
		for q := range missing {
			_, body := get(api + "query?query=" + url.QueryEscape(fill.Replace(q.expr)))
			if ok, why := hasData(body); ok {
				delete(missing, q)
			} else {
				missing[q] = why
			}
		}
	}
	for q, why := range missing {
		t.Errorf("%s: %s: %s", q.panel, q.expr, why)
	}

	var r struct {
		Data struct {
			Groups []struct {
				Rules []struct{ Name, Health, LastError string }
			}
		}
	}
	_, body := get(api + "rules")
	if err := json.Unmarshal(body, &r); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, g := range r.Data.Groups {
		for _, rule := range g.Rules {
			n++
			if rule.Health != "ok" {
				t.Errorf("rule %s is %s: %s", rule.Name, rule.Health, rule.LastError)
			}
		}
	}
	t.Logf("%d queries have data, %d rules evaluate", total, n)
}

// hasData says whether Prometheus answered with a number.
func hasData(body []byte) (ok bool, why string) {
	var a struct {
		Error string
		Data  struct {
			Result []struct{ Value [2]any }
		}
	}
	if err := json.Unmarshal(body, &a); err != nil {
		return false, err.Error()
	}
	for _, r := range a.Data.Result {
		if r.Value[1] != "NaN" {
			return true, ""
		}
	}
	return false, fmt.Sprintf("%d series, none with a number %s", len(a.Data.Result), a.Error)
}
