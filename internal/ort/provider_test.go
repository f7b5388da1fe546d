package ort

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/onnx"
	ort "github.com/yalue/onnxruntime_go"
)

func TestParseProvider(t *testing.T) {
	for _, c := range []struct{ text, want, err string }{
		{text: "cpu", want: "cpu"},
		{text: "cuda:device_id=1,gpu_mem_limit=1073741824", want: "cuda:arena_extend_strategy=kSameAsRequested,cudnn_conv_algo_search=HEURISTIC,device_id=1,gpu_mem_limit=1073741824,use_tf32=0"},
		{text: "webgpu:validationMode=basic", want: "webgpu:powerPreference=high-performance,validationMode=basic"},
		{text: "openvino:device_type=AUTO:GPU.1", want: "openvino:device_type=AUTO:GPU.1"},
		{text: "coreml:MLComputeUnits=CPUAndGPU", want: "coreml:MLComputeUnits=CPUAndGPU,ModelFormat=MLProgram"},
		{text: "abacus", err: `unknown execution provider "abacus"; known are coreml, cpu, cuda, directml, migraphx, openvino, tensorrt, webgpu`},
		{text: "", err: `unknown execution provider ""`},
		{text: "cpu:speed=11", err: `cpu: unknown option "speed"; it takes none`},
		{text: "webgpu:speed=11", err: `webgpu: unknown option "speed"; it takes dawnBackendType, defaultBufferCacheMode, deviceId`},
		{text: "webgpu:deviceId", err: `option "deviceId" has no value; want deviceId=0 to 255`},
		{text: "webgpu:deviceId=-1", err: `option deviceId is "-1"; want 0 to 255`},
		{text: "webgpu:powerPreference=low", err: `option powerPreference is "low"; want high-performance or low-power`},
		{text: "cuda:device_id=01", err: `option device_id is "01"; want 0 to 255`},
		{text: "cuda:use_tf32=yes", err: `option use_tf32 is "yes"; want 0 or 1`},
		{text: "webgpu:enableGraphCapture=1", err: `option enableGraphCapture is "1"; want 0: a recorded run`},
		{text: "cuda:enable_cuda_graph=1", err: `option enable_cuda_graph is "1"; want 0`},
		{text: "tensorrt:trt_cuda_graph_enable=1", err: `option trt_cuda_graph_enable is "1"; want 0`},
		{text: "cuda:device_id=0,", err: `unknown option ""`},
		{text: "openvino:device_type=AUTOGPU", err: `option device_type is "AUTOGPU"`},
		{text: "tensorrt:trt_engine_cache_path=", err: `want a path`},
	} {
		p, err := ParseProvider(c.text)
		switch {
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%q: error %v, want %q", c.text, err, c.err)
		case c.err == "" && (err != nil || p.String() != c.want):
			t.Errorf("%q: %v, %v, want %s", c.text, p, err, c.want)
		}
		if again, err := ParseProvider(p.String()); c.err == "" && (err != nil || again.String() != p.String()) {
			t.Errorf("%q: %v is read as %v, %v", c.text, p, again, err)
		}
	}
}

func FuzzParseProvider(f *testing.F) {
	f.Add("cuda:device_id=1,use_tf32=0")
	f.Add("openvino:device_type=AUTO:GPU")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParseProvider(text)
		if err != nil {
			return
		}
		if again, err := ParseProvider(p.String()); err != nil || again.String() != p.String() {
			t.Errorf("%q: %v is read as %v, %v", text, p, again, err)
		}
	})
}

// What a kind sets by itself must be something that users may set as well.
func TestDefaultsAreAllowed(t *testing.T) {
	for name, k := range kinds {
		for key, value := range k.defaults {
			if o, ok := k.options[key]; !ok || !o.ok(value) {
				t.Errorf("%s: default %s=%s is not allowed", name, key, value)
			}
		}
	}
}

func TestProbeCPU(t *testing.T) {
	startLibrary(t)
	if err := (Provider{}).Probe(); err != nil {
		t.Error(err)
	}
}

// A provider that the library was compiled with is no provider that works: npm's lists CUDA and cannot load it.
func TestListedIsNotThere(t *testing.T) {
	startLibrary(t)
	p, err := ParseProvider("cuda")
	if err != nil {
		t.Fatal(err)
	}
	if p.is().present() == nil {
		t.Skip("this library brings the provider")
	}
	err = p.Probe()
	if err == nil || !strings.Contains(err.Error(), "failed to load") || !strings.Contains(err.Error(), "cuDNN 9") {
		t.Errorf("got %v, want that it failed to load, and what it needs", err)
	}
}

// Every provider that is not there says so by name.
func TestMissingProviders(t *testing.T) {
	startLibrary(t)
	for _, name := range Providers() {
		if name == "cpu" || name == "webgpu" {
			continue
		}
		p, err := ParseProvider(name)
		if err != nil {
			t.Fatal(err)
		}
		err = p.Probe()
		if err == nil {
			continue
		}
		says := err.Error()
		if !strings.HasPrefix(says, "execution provider "+name+": ") || !strings.Contains(says, "needs ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// ONNX Runtime takes options it does not know without a word, which is why ParseProvider does not.
func TestWebGPUIgnoresUnknownOptions(t *testing.T) {
	requireWebGPU(t)
	so, err := ort.NewSessionOptions()
	if err != nil {
		t.Fatal(err)
	}
	defer so.Destroy()
	if err := so.AppendExecutionProvider("WebGPU", map[string]string{"preferedLayout": "NHWC"}); err != nil {
		t.Logf("now it says: %v", err)
		t.Error("ONNX Runtime refuses unknown options itself")
	}
}

// requireWebGPU skips where nothing runs Vulkan, but under `make test-webgpu`, which has seen to that.
func requireWebGPU(t *testing.T) Provider {
	t.Helper()
	startLibrary(t)
	p, err := ParseProvider("webgpu")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Probe(); err != nil {
		if os.Getenv("MMSERVE_TEST_WEBGPU") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return p
}

func TestProbeWebGPU(t *testing.T) { requireWebGPU(t) }

// Without a Vulkan driver the provider must fail cleanly. The loader looks for drivers once in a process: this is
// another.
func TestWebGPUWithoutDriver(t *testing.T) {
	if os.Getenv("VK_DRIVER_FILES") == "/nowhere.json" {
		startLibrary(t)
		p, err := ParseProvider("webgpu")
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Probe(); err == nil || !strings.Contains(err.Error(), "needs a GPU") {
			t.Errorf("got %v, want what is missing", err)
		}
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestWebGPUWithoutDriver$", "-test.v")
	cmd.Env = append(os.Environ(), "VK_DRIVER_FILES=/nowhere.json")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("%v\n%s", err, out)
	}
}

// Shape plumbing stays on the processor and is no reason to refuse; work is. It is told apart by what it computes with,
// not by its name: an Add of lengths is plumbing, an Add of activations is not.
func TestJudge(t *testing.T) {
	g := onnx.New("g")
	x := g.Input("x", onnx.F32, "n", 4)
	rows := g.Op("Shape", onnx.Attrs{"end": 1}, x)
	shape := g.Op("Concat", onnx.Attrs{"axis": 0}, g.Op("Add", nil, rows, g.I64s(0)), g.I64s(4))
	g.Node("", "Expand", nil, []string{x, shape}, []string{"wide"})
	g.Node("", "Add", nil, []string{"wide", x}, []string{"y"})
	g.Output("y", onnx.F32, "n", 4)

	p, err := ParseProvider("cuda")
	if err != nil {
		t.Fatal(err)
	}
	device, host := p.is().ep, cpuName
	nodes := []node{
		{host, "", "Shape", "n.2"}, {host, "", "Add", "n.5"}, {host, "", "Concat", "n.8"},
		{device, "", "Expand", "n.9"}, {device, "", "Add", "n.10"},
	}
	at, err := p.judge(nodes, g.Reckons, false)
	if err != nil || at.Nodes[host] != 3 || at.Nodes[device] != 2 || len(at.Fallbacks) != 0 {
		t.Errorf("plumbing: %v, %v", at, err)
	}
	nodes[4].provider = host
	if _, err := p.judge(nodes, g.Reckons, false); err == nil || !strings.Contains(err.Error(), "1 Add of the graph's 5 nodes (--allow-cpu-fallback") {
		t.Errorf("an Add of activations on the processor: %v", err)
	}
	if at, err := p.judge(nodes, g.Reckons, true); err != nil || at.Fallbacks["Add"] != 1 {
		t.Errorf("allowed: %v, %v", at, err)
	}
	nodes = append(nodes, node{host, "com.microsoft", "GroupQueryAttention", "n.11"})
	if _, err := p.judge(nodes, nil, false); err == nil || !strings.Contains(err.Error(), "1 GroupQueryAttention of") {
		t.Errorf("attention on the processor: %v", err)
	}
	_, err = p.judge([]node{{host, "", "Shape", "n.2"}}, g.Reckons, true)
	if err == nil || !strings.Contains(err.Error(), "took no node") {
		t.Errorf("a provider without a node: %v", err)
	}
	if at, err := (Provider{}).judge(nodes, nil, false); err != nil || len(at.Fallbacks) != 0 {
		t.Errorf("cpu: %v, %v", at, err)
	}
}

// Where the nodes of a session run, from the library itself.
func TestPlacement(t *testing.T) {
	startLibrary(t)
	g := onnx.New("g")
	x := g.Input("x", onnx.F32, "n", 4)
	g.Node("", "Softmax", nil, []string{g.Op("Neg", nil, x)}, []string{"y"})
	g.Output("y", onnx.F32, "n", 4)
	s, err := NewSession(g, Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if at := s.Placement(); at.Provider != "cpu" || at.Nodes[cpuName] != 2 || len(at.Nodes) != 1 {
		t.Errorf("placement %v, want 2 nodes on the processor", at)
	}
}

// plumbed is a graph with work for a device, and lengths that are cut on the processor.
func plumbed() *onnx.Graph {
	g := onnx.New("plumbed")
	x := g.Input("x", onnx.F32, "n", 3, 8, 8)
	lengths := g.Input("lengths", onnx.I64, "m")
	w := g.F32s("w", []int{4, 3, 2, 2}, make([]float32, 48))
	c := g.Op("Conv", onnx.Attrs{"kernel_shape": []int{2, 2}, "strides": []int{2, 2}}, x, w)
	g.Node("", "Gather", nil, []string{c, g.Op("Slice", nil, lengths, g.I64s(0), g.I64s(1))}, []string{"y"})
	g.Output("y", onnx.F32, 1, 4, 4, 4)
	return g
}

// Lengths that the processor handles are no reason to refuse a graph. For ONNX Runtime's own switch they are, which is
// why it is not used.
func TestWebGPUAllowsPlumbing(t *testing.T) {
	p := requireWebGPU(t)
	g := plumbed()
	s, err := NewSession(g, Options{Provider: p, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if at := s.Placement(); at.Nodes[p.is().ep] != 2 || at.Nodes[cpuName] != 1 || len(at.Fallbacks) != 0 {
		t.Errorf("placement %v, want a Conv and a Gather on the device and a Slice on the processor", at)
	}
	so, err := ort.NewSessionOptions()
	if err != nil {
		t.Fatal(err)
	}
	defer so.Destroy()
	if err := so.AddSessionConfigEntry("session.disable_cpu_ep_fallback", "1"); err != nil {
		t.Fatal(err)
	}
	if err := p.configure(so, 1); err != nil {
		t.Fatal(err)
	}
	if strict, err := ort.NewDynamicAdvancedSessionWithONNXData(g.Bytes(), g.Inputs(), g.Outputs(), so); err == nil {
		strict.Destroy()
		t.Error("ONNX Runtime's own switch takes the graph: it could be used now")
	}
}

// In ONNX Runtime's own choice of layout its report of where nodes run has transpositions that it put in, and not the
// graph's nodes: what falls back to the processor would not be seen.
func TestWebGPUReportsNodes(t *testing.T) {
	p := requireWebGPU(t)
	g := plumbed()
	for _, c := range []struct {
		layout string
		set    func(*ort.SessionOptions) error
		want   bool
	}{
		{"mmserve's", func(so *ort.SessionOptions) error { return p.configure(so, 1) }, true},
		{"its own", func(so *ort.SessionOptions) error { return so.AppendExecutionProvider("WebGPU", nil) }, false},
	} {
		so, err := ort.NewSessionOptions()
		if err != nil {
			t.Fatal(err)
		}
		defer so.Destroy()
		if err := errors.Join(so.AddSessionConfigEntry("session.record_ep_graph_assignment_info", "1"), c.set(so)); err != nil {
			t.Fatal(err)
		}
		s, err := ort.NewDynamicAdvancedSessionWithONNXData(g.Bytes(), g.Inputs(), g.Outputs(), so)
		if err != nil {
			t.Fatal(err)
		}
		nodes, err := placement(s)
		if err := errors.Join(err, s.Destroy()); err != nil {
			t.Fatal(err)
		}
		var ops []string
		for _, n := range nodes {
			ops = append(ops, n.op)
		}
		slices.Sort(ops)
		if got := slices.Equal(ops, []string{"Conv", "Gather", "Slice"}); got != c.want {
			t.Errorf("in %s layout the report has %v", c.layout, ops)
		}
	}
}

// Work that the provider has no kernel for is refused unless allowed.
func TestWebGPURefusesFallback(t *testing.T) {
	p := requireWebGPU(t)
	g := onnx.New("g")
	x := g.Input("x", onnx.F32, "n", 4)
	g.Node("", "Det", nil, []string{g.Op("Reshape", nil, g.Op("Mul", nil, x, x), g.I64s(-1, 2, 2))}, []string{"y"})
	g.Output("y", onnx.F32, "n")
	_, err := NewSession(g, Options{Provider: p, Threads: 1})
	if err == nil || !strings.Contains(err.Error(), "1 Det of") {
		t.Errorf("got %v, want a refusal that names the operator", err)
	}
	s, err := NewSession(g, Options{Provider: p, Threads: 1, AllowCPUFallback: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if at := s.Placement(); at.Fallbacks["Det"] != 1 {
		t.Errorf("placement %v, want one Det on the processor", at)
	}
}
