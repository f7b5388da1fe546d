package main

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/socket/sockettest"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	yalue "github.com/yalue/onnxruntime_go"
)

// A server on the device answers over gRPC as one on the processor does, says in all places where its graphs run, and
// has no kernel left to compile when it is ready: requests of other lengths, numbers of rows, images and ways of
// picking find all they need.
func TestServeGRPCOnWebGPU(t *testing.T) {
	if os.Getenv("MMSERVE_TEST_WEBGPU") == "" {
		t.Skip("`make test-webgpu` runs it")
	}
	// A process compiles a kernel once, for whichever test comes first: each precision has one of its own.
	alone := os.Getenv("MMSERVE_TEST_ALONE")
	if alone == "" {
		for _, precision := range []string{"fp32", "fp16"} {
			cmd := exec.Command(os.Args[0], "-test.run=^TestServeGRPCOnWebGPU$", "-test.v")
			cmd.Env = append(os.Environ(), "MMSERVE_TEST_ALONE="+precision)
			if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
				t.Errorf("%s: %v\n%s", precision, err, out)
			}
		}
		return
	}
	caption := client.Chat(client.User(client.ImageBytes(sample(t, 0)), client.Text("Describe the image.")))
	want, _, err := answer(t, startServer(t, "--slots", "2"), caption)
	if err != nil {
		t.Fatal(err)
	}
	for _, precision := range []string{alone} {
		t.Run(precision, func(t *testing.T) {
			admin := sockettest.FreeAddress(t)
			heard := listen(t)
			c := startServer(t, "--slots", "6", "--provider", "webgpu", "--precision", precision, "--admin-address", admin)
			if kernels, ran := heard.compiled(t); len(kernels) < 10 || ran < 1000 {
				t.Fatalf("at the start %d kernels were compiled for %d programs: not all are counted", len(kernels), ran)
			}
			if got, finish, err := answer(t, c, caption); err != nil || got != want ||
				finish.GetFinishReason() != pb.FinishReason_FINISH_REASON_STOP {
				t.Errorf("%q %v %v, on the processor %q", got, finish.GetFinishReason(), err, want)
			}
			placedOnWebGPU(t, c, admin)
			unlikeRequests(t, c)
			kernels, ran := heard.compiled(t)
			if ran < 1000 {
				t.Errorf("requests ran %d programs: not all are counted", ran)
			}
			for _, kernel := range kernels {
				t.Errorf("compiled while requests ran: %s", kernel)
			}
		})
	}
}

// placedOnWebGPU asks a server where its graphs run, by gRPC and by its metrics.
func placedOnWebGPU(t *testing.T, c *client.Client, admin string) {
	t.Helper()
	info, err := c.ServerInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get("http://" + admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	metrics := string(body)
	if len(info.Sessions) < 2 || info.Sessions[0].Graph != "vision" || info.Sessions[1].Graph != "decoder" {
		t.Fatalf("sessions %v", info.Sessions)
	}
	for _, s := range info.Sessions {
		nodes := s.Nodes["WebGpuExecutionProvider"]
		if s.Provider != "webgpu" || nodes == 0 || len(s.Fallbacks) != 0 {
			t.Errorf("session %v", s)
		}
		for _, line := range []string{
			`mmserve_session_nodes{graph="` + s.Graph + `",provider="WebGpuExecutionProvider"} ` + strconv.Itoa(int(nodes)),
			`mmserve_session_fallback_nodes{graph="` + s.Graph + `",provider="webgpu"} 0`,
		} {
			if !strings.Contains(metrics, line+"\n") {
				t.Errorf("the metrics lack %s", line)
			}
		}
	}
	for _, direction := range []string{"to", "from"} {
		if !regexp.MustCompile(`(?m)^mmserve_device_copied_bytes_total\{direction="` + direction + `"\} [1-9]`).MatchString(metrics) {
			t.Errorf("nothing was copied %s the device", direction)
		}
	}
}

// unlikeRequests sends requests that have little in common with those of a warm-up or with each other, some at once.
func unlikeRequests(t *testing.T, c *client.Client) {
	temperature, topK, topP, penalty := float32(1), uint32(40), float32(0.9), float32(1.2)
	samplings := []*pb.Sampling{
		nil,
		{Temperature: &temperature, TopK: &topK},
		{Temperature: &temperature, TopP: &topP},
		{RepetitionPenalty: &penalty},
	}
	var requests []*pb.GenerateRequest
	for i := range 40 {
		var parts []*pb.Part
		for j := range i % 4 {
			parts = append(parts, client.ImageBytes(sample(t, (i+j)%8)))
		}
		parts = append(parts, client.Text(strings.Repeat("How many? ", i)+"Describe it."))
		r := client.Chat(client.User(parts...))
		n := uint32(1 + i%23)
		r.MaxTokens, r.Sampling = &n, samplings[i%len(samplings)]
		requests = append(requests, r)
	}
	ask := func(r *pb.GenerateRequest) {
		if _, _, err := answer(t, c, r); err != nil {
			t.Error(err)
		}
	}
	for _, r := range requests[:8] {
		ask(r)
	}
	var together sync.WaitGroup
	for _, r := range requests {
		together.Go(func() { ask(r) })
	}
	together.Wait()
}

// talk is what ONNX Runtime writes on standard error when it is at its most talkative, as far as it was not asked for
// yet. Its WebGPU names each program that runs, and gives the source of each that it compiles. That drivers keep what
// they make of it between processes changes nothing here.
type talk struct{ file *os.File }

// listen diverts standard error until the test ends. Sessions are as talkative as the process was when they were
// opened.
func listen(t *testing.T) talk {
	t.Helper()
	startedRuntime(t)
	file, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	terminal, err := syscall.Dup(2)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(yalue.SetEnvironmentLogLevel(yalue.LoggingLevelVerbose),
		syscall.Dup3(int(file.Fd()), 2, 0)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(yalue.SetEnvironmentLogLevel(yalue.LoggingLevelError), syscall.Dup3(terminal, 2, 0),
			syscall.Close(terminal), file.Close()); err != nil {
			t.Error(err)
		}
	})
	heard, err := os.Open(file.Name()) // with a place of its own
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { heard.Close() })
	return talk{heard}
}

// compiled names the kernels that were compiled since it was last asked, and counts the programs that ran.
func (k talk) compiled(t *testing.T) (kernels []string, ran int) {
	t.Helper()
	text, err := io.ReadAll(k.file)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`=== WebGPU Shader code \[(.*)\] Start ===`).FindAllSubmatch(text, -1) {
		kernels = append(kernels, string(m[1]))
	}
	return kernels, bytes.Count(text, []byte("Starting program "))
}
