package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/socket/sockettest"
	"github.com/mmserve/mmserve/model/synth"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

const tinyVLM = "../../model/tiny-vlm"

// modelsDir is a folder of models: "tiny", the embedded one, "random", of its shape with other weights, and "wide",
// whose weights take about 70 MB.
func modelsDir(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	if err := os.CopyFS(filepath.Join(root, "tiny"), os.DirFS(tinyVLM)); err != nil {
		t.Fatal(err)
	}
	if err := synth.Init(tinyVLM, filepath.Join(root, "random"), synth.InitOptions{Seed: 7, DType: "f32"}); err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile(filepath.Join(tinyVLM, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	shape := t.TempDir()
	if err := os.CopyFS(filepath.Join(shape, "wide"), os.DirFS(tinyVLM)); err != nil {
		t.Fatal(err)
	}
	config = bytes.Replace(config, []byte(`"intermediate_size": 384`), []byte(`"intermediate_size": 12288`), 1)
	if err := os.WriteFile(filepath.Join(shape, "wide", "config.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := synth.Init(filepath.Join(shape, "wide"), filepath.Join(root, "wide"),
		synth.InitOptions{Seed: 8, DType: "f32"}); err != nil {
		t.Fatal(err)
	}
	return root
}

// asked is a request whose answer has its bits in it: those of the log-probabilities.
func asked(t *testing.T, modelName string, i int) *pb.GenerateRequest {
	in := client.Chat(client.User(client.ImageBytes(sample(t, i%6)), client.Text("Describe the image.")))
	in.Model, in.Logprobs, in.IgnoreEos, in.MaxTokens = modelName, true, true, proto.Uint32(uint32(8+i%5))
	in.Sampling = &pb.Sampling{Temperature: proto.Float32(float32(i%2) * 0.8), Seed: proto.Uint64(uint64(i))}
	return in
}

// bits writes out the text, the ids and the log-probabilities' bits of an answer.
func bits(out *pb.GenerateResponse) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q", out.GetText())
	for _, l := range out.GetChoices()[0].GetLogprobs() {
		fmt.Fprintf(&b, " %d:%08x", l.GetToken().GetId(), math.Float32bits(l.GetToken().GetLogprob()))
	}
	return b.String()
}

// alone gives what a server of one model answers to the requests 0 to n-1, and the model's digest.
func alone(t *testing.T, dir string, n int) (answers []string, digest string) {
	t.Helper()
	c := startServer(t, "--model", "m="+dir, "--slots", "4")
	for i := range n {
		out, err := c.Generate(t.Context(), asked(t, "m", i))
		if err != nil {
			t.Fatal(err)
		}
		answers, digest = append(answers, bits(out)), out.GetModelDigest()
	}
	return answers, digest
}

// Two models in one process answer requests that alternate with the bits that each gives alone.
func TestTwoModelsEqualAlone(t *testing.T) {
	root := modelsDir(t)
	const n = 10
	want := map[string][]string{}
	want["tiny"], _ = alone(t, filepath.Join(root, "tiny"), n)
	want["other"], _ = alone(t, filepath.Join(root, "random"), n)
	if want["tiny"][0] == want["other"][0] {
		t.Fatal("both models give the same: this would show nothing")
	}
	c := startServer(t, "--model", filepath.Join(root, "tiny"), "--model", "other="+filepath.Join(root, "random"),
		"--slots", "4")
	var wg sync.WaitGroup
	for i := range n {
		for _, name := range []string{"tiny", "other", ""} {
			in := asked(t, name, i)
			wg.Go(func() {
				out, err := c.Generate(t.Context(), in)
				if name == "" {
					name = "tiny" // the first is the default
				}
				if err != nil || bits(out) != want[name][i] || out.GetModel() != name {
					t.Errorf("%s, request %d: %v %v, want %s", name, i, out, err, want[name][i])
				}
			})
		}
	}
	wg.Wait()
	models, err := c.Models(t.Context())
	if err != nil || len(models) != 2 || models[0].GetName() != "tiny" || models[1].GetName() != "other" ||
		models[0].GetDigest() == models[1].GetDigest() {
		t.Errorf("models %v, %v", models, err)
	}
	_, err = c.Generate(t.Context(), asked(t, "nobody", 0))
	if status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), `this server has "tiny", "other"`) {
		t.Errorf("an unknown model: %v", err)
	}
}

// change asks the admin listener to change models, and gives status and body.
func change(t *testing.T, method, url, body string, header ...string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func load(name, dir string) string {
	b, _ := json.Marshal(map[string]string{"name": name, "dir": dir})
	return string(b)
}

// Under 20 requests a second, models are swapped without one that fails, and each answer is that of the model it says.
// A request that came after a swap is answered by the new model. MMSERVE_TEST_SWAP=1m does it for a minute.
func TestSwapUnderLoad(t *testing.T) {
	last := swapTime(t)
	root := modelsDir(t)
	const n = 10
	want := map[string][]string{} // by digest
	digests := map[string]string{}
	for _, dir := range []string{"tiny", "random"} {
		answers, digest := alone(t, filepath.Join(root, dir), n)
		want[digest], digests[dir] = answers, digest
	}
	admin := sockettest.FreeAddress(t)
	c := startServer(t, "--model", "m="+filepath.Join(root, "tiny"), "--model", "stays="+filepath.Join(root, "tiny"),
		"--slots", "4",
		"--admin-address", admin, "--models-dir", root)
	var served atomic.Pointer[string] // the digest that has to answer; nil during a swap
	now := digests["tiny"]
	served.Store(&now)

	ctx, cancel := context.WithTimeout(t.Context(), last)
	defer cancel()
	var wg sync.WaitGroup
	var requests, amid atomic.Int64
	wg.Go(func() {
		tick := time.NewTicker(time.Second / 20)
		defer tick.Stop()
		for i := 0; ctx.Err() == nil; i++ {
			name := "m"
			if i%5 == 4 {
				name = "stays"
			}
			in := asked(t, name, i%n)
			wg.Go(func() {
				before := served.Load()
				out, err := generateByStream(c, in)
				requests.Add(1)
				after := served.Load()
				switch {
				case err != nil:
					t.Errorf("request %d: %v", i, err)
				case bits(out) != want[out.GetModelDigest()][i%n]:
					t.Errorf("request %d: %s, want %s", i, bits(out), want[out.GetModelDigest()][i%n])
				case name == "stays" && out.GetModelDigest() != digests["tiny"]:
					t.Errorf("request %d: answered by the other model", i)
				case name == "stays":
				case before == nil || before != after:
					amid.Add(1)
				case out.GetModelDigest() != *before:
					t.Errorf("request %d: answered by %s, served is %s", i, out.GetModelDigest(), *before)
				}
			})
			<-tick.C
		}
	})
	swaps := 0
	for dirs := []string{"random", "tiny"}; ctx.Err() == nil; swaps++ {
		dir := dirs[swaps%2]
		served.Store(nil)
		if code, body := change(t, "POST", "http://"+admin+"/models", load("m", dir)); code != http.StatusOK {
			t.Fatalf("swap: %d %s", code, body)
		}
		now := digests[dir]
		served.Store(&now)
		select { // it serves for a while
		case <-time.After(300 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	wg.Wait()
	t.Logf("%d requests, %d of them amid one of %d swaps", requests.Load(), amid.Load(), swaps)
	if requests.Load() < 20 || swaps < 2 {
		t.Errorf("%d requests and %d swaps only", requests.Load(), swaps)
	}
}

// swapTime is how long TestSwapUnderLoad takes.
func swapTime(t *testing.T) time.Duration {
	s := os.Getenv("MMSERVE_TEST_SWAP")
	if s == "" {
		return 4 * time.Second
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// generateByStream collects a stream: what a client that reads as it comes gets.
func generateByStream(c *client.Client, in *pb.GenerateRequest) (*pb.GenerateResponse, error) {
	out := &pb.GenerateResponse{Choices: []*pb.Choice{{}}}
	for e, err := range c.Stream(context.Background(), in) {
		if err != nil {
			return nil, err
		}
		if s := e.GetStart(); s != nil {
			out.Model, out.ModelDigest = s.GetModel(), s.GetModelDigest()
		}
		out.Text += e.GetDelta().GetText()
		out.Choices[0].Logprobs = append(out.Choices[0].Logprobs,
			append(e.GetDelta().GetLogprobs(), e.GetFinish().GetLogprobs()...)...)
	}
	return out, nil
}

// What is loaded and unloaded again and again leaves nothing behind.
func TestUnloadGivesMemoryBack(t *testing.T) {
	t.Parallel() // it runs in processes of its own
	if runtime.GOOS != "linux" {
		t.Skip("reads /proc")
	}
	root := modelsDir(t)
	addr, admin := sockettest.FreeAddress(t), sockettest.FreeAddress(t)
	p := startServe(t, addr, nil, "--model", filepath.Join(root, "tiny"), "--slots", "4", "--admin-address", admin,
		"--models-dir", root, "--precision", "fp32") // in which a model takes the most
	p.logged("msg=serving")
	c, err := client.Dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ask := func(name string) {
		for i := range 4 {
			if _, err := c.Generate(t.Context(), asked(t, name, i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	url := "http://" + admin + "/models"
	cycle := func() (with int64) {
		if code, body := change(t, "POST", url, load("wide", "wide")); code != http.StatusOK {
			t.Fatalf("load: %d %s", code, body)
		}
		ask("wide")
		with = int64(resident(p.cmd.Process.Pid)) << 10
		if code, body := change(t, "DELETE", url+"/wide", ""); code != http.StatusOK {
			t.Fatalf("unload: %d %s", code, body)
		}
		return with
	}
	ask("tiny")
	change(t, "POST", url, load("tiny", "tiny")) // a swap releases what the start left, so that "before" holds no garbage
	p.logged("model closed")
	ask("tiny")
	before := int64(resident(p.cmd.Process.Pid)) << 10
	var with, after int64
	for i := range 5 {
		with = cycle()
		ask("tiny")
		after = int64(resident(p.cmd.Process.Pid)) << 10
		t.Logf("cycle %d: %.1f MiB before, %.1f with the model, %.1f after", i, mib(before), mib(with), mib(after))
	}
	if with < before+before/5 {
		t.Errorf("the model takes %.1f MiB of %.1f only: this shows nothing", mib(with-before), mib(before))
	}
	if after > before+before/20 {
		t.Errorf("%.1f MiB after, %.1f before", mib(after), mib(before))
	}
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// What the admin listener refuses, and that a refusal changes nothing.
func TestModelChangesRefused(t *testing.T) {
	root := modelsDir(t)
	outside := t.TempDir()
	if err := os.CopyFS(filepath.Join(outside, "tiny"), os.DirFS(tinyVLM)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Symlink(filepath.Join(outside, "tiny"), filepath.Join(root, "link")),
		os.Mkdir(filepath.Join(root, "empty"), 0o755),
		os.WriteFile(filepath.Join(root, "file"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	admin := sockettest.FreeAddress(t)
	c := startServer(t, "--model", filepath.Join(root, "tiny"), "--slots", "2", "--admin-address", admin,
		"--models-dir", root)
	url := "http://" + admin + "/models"
	for _, tt := range []struct {
		method, path, body string
		header             []string
		code               int
		want               string
	}{
		{"POST", "", load("b", filepath.Join(outside, "tiny")), nil, 403, "below --models-dir"},
		{"POST", "", load("b", "../"+filepath.Base(outside)+"/tiny"), nil, 403, "below --models-dir"},
		{"POST", "", load("b", "link"), nil, 403, "below --models-dir"},
		{"POST", "", load("b", "."), nil, 403, "below --models-dir"},
		{"POST", "", load("b", ""), nil, 403, "below --models-dir"},
		{"POST", "", load("b", "none"), nil, 403, "below --models-dir"},
		{"POST", "", load("b", "file"), nil, 403, "below --models-dir"},
		{"POST", "", load("b", "a\x00b"), nil, 403, "below --models-dir"},
		{"POST", "", load("b", "empty"), nil, 422, "config.json"},
		{"POST", "", load("", "tiny"), nil, 400, "name"},
		{"POST", "", load("a/b", "tiny"), nil, 400, "name"},
		{"POST", "", load("a b", "tiny"), nil, 400, "name"},
		{"POST", "", load("..", "tiny"), nil, 400, "name"},
		{"POST", "", load(strings.Repeat("a", 129), "tiny"), nil, 400, "name"},
		{"POST", "", `{"name": "b"}`, nil, 400, "want"},
		{"POST", "", `{"name": "b", "dir": "random", "force": true}`, nil, 400, "want"},
		{"POST", "", `{"name": "b", "dir": "random"}{}`, nil, 400, "want"},
		{"POST", "", strings.Repeat("[", 1<<20), nil, 400, "want"},
		{"POST", "", "name=b&dir=random", []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, "application/json"},
		{"POST", "", load("b", "random"), []string{"Content-Type", "text/plain"}, 415, "application/json"},
		{"POST", "", load("b", "random"), []string{"Content-Type", ""}, 415, "application/json"},
		{"POST", "", load("b", "random"), []string{"Origin", "http://" + admin}, 403, "browsers"},
		{"POST", "", load("b", "random"), []string{"Origin", "null"}, 403, "browsers"},
		{"DELETE", "/tiny", "", []string{"Origin", "https://example.com"}, 403, "browsers"},
		{"DELETE", "/tiny", "", []string{"Sec-Fetch-Site", "cross-site"}, 403, "browsers"},
		{"DELETE", "/tiny", "", nil, 409, "the only model"},
		{"DELETE", "/nobody", "", nil, 404, "there are tiny"},
		{"GET", "/tiny", "", nil, 405, ""},
		{"PUT", "/../loglevel", "debug", []string{"Origin", "https://example.com"}, 403, "browsers"},
	} {
		code, body := change(t, tt.method, url+tt.path, tt.body, tt.header...)
		if code != tt.code || !strings.Contains(body, tt.want) {
			t.Errorf("%s %s %.60s %v: %d %s; want %d, %q", tt.method, tt.path, tt.body, tt.header, code, body, tt.code, tt.want)
		}
	}
	if models, err := c.Models(t.Context()); err != nil || len(models) != 1 || models[0].GetName() != "tiny" {
		t.Errorf("models %v, %v", models, err)
	}
	if _, err := c.Generate(t.Context(), asked(t, "tiny", 0)); err != nil {
		t.Error(err)
	}
}

// Without --models-dir nothing is loaded or unloaded, and a model that does not fit is refused before it is read.
func TestModelsDirAndMemory(t *testing.T) {
	root := modelsDir(t)
	admin := sockettest.FreeAddress(t)
	startServer(t, "--model", filepath.Join(root, "tiny"), "--model", "b="+filepath.Join(root, "random"), "--slots", "2",
		"--admin-address", admin)
	url := "http://" + admin + "/models"
	for _, c := range [][3]string{{"POST", "", load("c", "tiny")}, {"DELETE", "/b", ""}} {
		if code, body := change(t, c[0], url+c[1], c[2]); code != http.StatusForbidden ||
			!strings.Contains(body, "--models-dir") {
			t.Errorf("%v: %d %s", c, code, body)
		}
	}
	var listed struct {
		Models []servedModel `json:"models"`
	}
	if code, body := change(t, "GET", url, ""); code != http.StatusOK || json.Unmarshal([]byte(body), &listed) != nil ||
		len(listed.Models) != 2 || !listed.Models[0].Default || listed.Models[1].Name != "b" || listed.Models[1].Memory == 0 {
		t.Errorf("%d %s", code, body)
	}
	if code, _, errs := mmserve(t, "serve", "--listen", sockettest.FreeAddress(t), "--admin-address", "",
		"--model", filepath.Join(root, "tiny"),
		"--model", filepath.Join(root, "tiny")); code != 1 || !strings.Contains(errs, `two are called "tiny"`) {
		t.Errorf("one name twice: %d %s", code, errs)
	}
}
