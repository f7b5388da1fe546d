package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/ort"

	"github.com/mmserve/mmserve/serving"
)

// startedRuntime loads the library that the commands find.
func startedRuntime(t *testing.T) {
	t.Helper()
	if err := serving.StartRuntime(""); err != nil {
		t.Fatal(err)
	}
}

// A provider that is asked for and does not work ends the command with what is missing and what there is.
func TestMissingProvider(t *testing.T) {
	startedRuntime(t)
	sample := filepath.Join("..", "..", "model", "tiny-vlm", "samples", "sample0.png")
	for name, want := range map[string]string{"cuda": "failed to load", "tensorrt": "TensorRT 10", "coreml": "macOS",
		"directml": "Windows", "openvino": "OpenVINO", "migraphx": "ROCm"} {
		if ort.Working(name) == nil {
			continue
		}
		for _, flag := range []string{"--provider", "--vision-provider"} {
			code, out, errs := mmserve(t, "caption", flag, name, sample)
			if code != 1 || out != "" || !strings.Contains(errs, "mmserve: "+flag+": execution provider "+name) ||
				!strings.Contains(errs, want) || !strings.Contains(errs, "what works here: cpu") {
				t.Errorf("%s %s: status %d, %s%s", flag, name, code, out, errs)
			}
		}
	}
}

func TestProviderFlags(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--provider", "abacus"}, `--provider: unknown execution provider "abacus"; known are coreml, cpu, cuda`},
		{[]string{"--provider", "cpu:speed=11"}, `--provider: execution provider cpu: unknown option "speed"; it takes none`},
		{[]string{"--vision-provider", "webgpu:powerPreference=high"}, `--vision-provider: execution provider webgpu: option powerPreference is "high"; want high-performance or low-power`},
	} {
		code, out, errs := mmserve(t, append([]string{"caption"}, c.args...)...)
		if code != 1 || !strings.Contains(errs, c.want) {
			t.Errorf("%v: status %d, %s%s; want %q", c.args, code, out, errs, c.want)
		}
	}
}

func TestVerifyOnProvider(t *testing.T) {
	dir := filepath.Join("..", "..", "model", "tiny-vlm")
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--provider", "cpu"}, 0, "cases, 0 missed"},
		{[]string{"--provider", "abacus"}, 1, `--provider: unknown execution provider "abacus"`},
		{[]string{"--precision", "fp16"}, 1, "the cpu provider multiplies no faster in 16 bits"},
	} {
		code, out, errs := mmserve(t, append([]string{"model", "verify", dir}, c.args...)...)
		if code != c.code || !strings.Contains(out+errs, c.want) {
			t.Errorf("%v: status %d, %s%s; want %d, %q", c.args, code, out, errs, c.code, c.want)
		}
	}
}

// Where the nodes run, in all the places that say so.
func TestPlacementIsReported(t *testing.T) {
	c := startServer(t, "--slots", "2", "--provider", "cpu")
	info, err := c.ServerInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(info.Sessions) != 2 || info.Sessions[0].Graph != "vision" || info.Sessions[1].Graph != "decoder" ||
		info.Model != "tiny-vlm" || info.Slots != 2 {
		t.Fatalf("server info %v", info)
	}
	for _, s := range info.Sessions {
		if s.Provider != "cpu" || s.Nodes["CPUExecutionProvider"] == 0 || len(s.Nodes) != 1 || len(s.Fallbacks) != 0 {
			t.Errorf("session %v", s)
		}
	}
	for precision, want := range map[string][]string{
		"fp32": {"precision   vision fp32, decoder fp32\n", "KV cache    ", "vision on cpu: ", "decoder on cpu: "},
		"fp16": {"placement   FAILED: --precision fp16: the cpu provider"},
	} {
		code, out, errs := mmserve(t, "doctor", "--provider", "cpu", "--precision", precision)
		if (code == 0) == (precision == "fp16") {
			t.Errorf("doctor: status %d: %s", code, errs)
		}
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("doctor: no %q in\n%s", w, out)
			}
		}
	}
}

// What doctor says of a device is what serve does there: precision, memory, number of sequences.
func TestDoctorOnWebGPU(t *testing.T) {
	if os.Getenv("MMSERVE_TEST_WEBGPU") == "" {
		t.Skip("`make test-webgpu` runs it")
	}
	args := []string{"--provider", "webgpu", "--precision", "auto", "--device-memory", "22MiB", "--prefill-chunk", "64"}
	code, out, errs := mmserve(t, append([]string{"doctor"}, args...)...)
	if code != 0 {
		t.Fatalf("status %d: %s%s", code, out, errs)
	}
	for _, want := range []string{"--precision auto chose fp16", "precision   vision fp16, decoder fp16\n", "vision on webgpu: ", "decoder on webgpu: "} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	info, err := startServer(t, args...).ServerInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("of up to %d sequences with up to %d each\n", info.Slots, info.Context); info.Slots >= 16 ||
		!strings.Contains(out, want) {
		t.Errorf("a server has %d slots; no %q in\n%s", info.Slots, want, out)
	}
	for _, s := range info.Sessions {
		if at := placementText(ort.Placement{Graph: s.Graph, Provider: s.Provider,
			Nodes: map[string]int{"WebGpuExecutionProvider": int(s.Nodes["WebGpuExecutionProvider"])}}); !strings.Contains(out, at+"\n") {
			t.Errorf("a server has %q; doctor says\n%s", at, out)
		}
	}
	if code, out, _ := mmserve(t, "doctor", "--provider", "webgpu", "--device-memory", "8MiB"); code != 1 ||
		!strings.Contains(out, "FAILED: the model does not fit") {
		t.Errorf("8 MiB: status %d: %s", code, out)
	}
}

// Without a Vulkan driver a server for webgpu does not start. The loader looks for drivers once in a process: the
// command runs in another.
func TestNoDriverNoServer(t *testing.T) {
	if os.Getenv("VK_DRIVER_FILES") == "/nowhere.json" {
		os.Exit(run(t.Context(), []string{"serve", "--provider", "webgpu", "--listen", "127.0.0.1:0", "--admin-address", ""},
			os.Stdout, os.Stderr))
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestNoDriverNoServer$")
	cmd.Env = append(os.Environ(), "VK_DRIVER_FILES=/nowhere.json")
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 1 ||
		!strings.Contains(string(out), "mmserve: --provider: execution provider webgpu: ") || !strings.Contains(string(out), "needs a GPU") {
		t.Errorf("%v\n%s", err, out)
	}
}

// A server on the device answers as one on the processor does, in both precisions, and says what crossed.
func TestServeOnWebGPU(t *testing.T) {
	if os.Getenv("MMSERVE_TEST_WEBGPU") == "" {
		t.Skip("`make test-webgpu` runs it")
	}
	sample := filepath.Join("..", "..", "model", "tiny-vlm", "samples", "sample0.png")
	_, out, errs := mmserve(t, "caption", sample)
	want, _, ok := strings.Cut(out, "\n")
	if !ok {
		t.Fatal(errs)
	}
	for _, precision := range []string{"fp32", "fp16"} {
		code, got, errs := mmserve(t, "caption", "--slots", "2", "--provider", "webgpu", "--precision", precision, sample)
		if code != 0 || !strings.HasPrefix(got, want+"\n") {
			t.Errorf("%s: status %d, %q, on the processor %q\n%s", precision, code, got, want, errs)
		}
	}
	if code, _, errs := mmserve(t, "caption", "--provider", "webgpu", "--precision", "int8", sample); code != 1 ||
		!strings.Contains(errs, "webgpu takes fp32 and fp16") {
		t.Errorf("int8: status %d, %s", code, errs)
	}
	if code, _, errs := mmserve(t, "caption", "--provider", "webgpu", "--device-memory", "8MiB", sample); code != 1 ||
		!strings.Contains(errs, "--device-memory") {
		t.Errorf("8 MiB: status %d, %s", code, errs)
	}
}
