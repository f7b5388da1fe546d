package main

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/mmserve/mmserve/internal/hub"
	"github.com/mmserve/mmserve/internal/hub/hubtest"
	"github.com/mmserve/mmserve/internal/socket/sockettest"
)

// tinyHub is a hub with the embedded model, and a cache that is empty.
func tinyHub(t *testing.T) (h *hubtest.Hub, r *hubtest.Repo, home string) {
	t.Helper()
	h = hubtest.Start(t)
	r = h.Add(t, "mmserve/tiny-vlm", os.DirFS(tinyVLM))
	home = t.TempDir()
	for name, value := range map[string]string{
		"HF_ENDPOINT": h.URL, "HF_HOME": home, "HF_HUB_CACHE": "", "HF_TOKEN": "", "HF_TOKEN_PATH": "", "HF_HUB_OFFLINE": "",
		"TRANSFORMERS_OFFLINE": "", "HUGGINGFACE_HUB_CACHE": "", "HUGGING_FACE_HUB_TOKEN": "",
	} {
		if t.Setenv(name, value); value == "" {
			os.Unsetenv(name) // as it was once the test is over
		}
	}
	return h, r, home
}

// A model of a hub is pulled, captions and is served, each in one line, and everything that takes a folder takes it.
func TestHubModelInOneLine(t *testing.T) {
	h, r, home := tinyHub(t)
	code, out, errs := mmserve(t, "model", "pull", "mmserve/tiny-vlm")
	if want := filepath.Join(home, "hub", "models--mmserve--tiny-vlm", "snapshots", r.Commit) + "\n"; code != 0 || out != want {
		t.Fatalf("pull: status %d, %q: %s\nwant %q", code, out, errs, want)
	}
	pulled(t, home, r.Commit)
	sample := filepath.Join(tinyVLM, "samples", "sample0.png")
	made := filepath.Join(t.TempDir(), "made")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"caption", "--model", "mmserve/tiny-vlm", sample}, "sample0.png: A large orange star in the center on a beige background.\n"},
		{[]string{"caption", "--model", "mmserve/tiny-vlm", "--load-format", "dummy", "--max-tokens", "2", sample}, ""},
		{[]string{"image", "--model", "mmserve/tiny-vlm", sample}, "sample0.png"},
		{[]string{"doctor", "--model", "mmserve/tiny-vlm"}, "tiny-vlm (idefics3), 1.8 M parameters"},
		{[]string{"doctor"}, h.URL + " with no token, 1 models in " + filepath.Join(home, "hub")},
		{[]string{"model", "inspect", "mmserve/tiny-vlm@" + r.Commit}, "name               tiny-vlm\n"},
		{[]string{"model", "verify", "hf://mmserve/tiny-vlm"}, "no reference values"},
		{[]string{"model", "init", "--config", "mmserve/tiny-vlm", "--out", made}, "stored as BF16"},
		{[]string{"model", "list"}, "mmserve/tiny-vlm  main      " + r.Commit},
	} {
		want := 0
		if slices.Contains(c.args, "verify") { // there is nothing to compare with
			want = exitNoReference
		}
		if code, out, errs := mmserve(t, c.args...); code != want || !strings.Contains(out, c.want) {
			t.Errorf("%v: status %d, %s%s\nwant %q", c.args, code, out, errs, c.want)
		}
	}
	c := startServer(t, "--model", "hf://mmserve/tiny-vlm@main", "--model", "second=mmserve/tiny-vlm@"+r.Commit)
	models, err := c.Models(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range models {
		names = append(names, m.GetName())
	}
	if got := strings.Join(names, " "); got != "tiny-vlm second" {
		t.Errorf("models %s", got)
	}
	if n := h.Count("/resolve/"); n == 0 || h.Count("samples/") > 0 || h.Count("mmserve-gold") > 0 {
		t.Errorf("%d files were fetched: %v", n, h.Requests)
	}
	code, out, errs = mmserve(t, "model", "remove", "mmserve/tiny-vlm")
	if code != 0 || !strings.Contains(out, "removed, 6.8 MiB") || cachedBytes(home) != 0 {
		t.Errorf("remove: status %d, %s%s", code, out, errs)
	}
	code, _, errs = mmserve(t, "model", "remove", "mmserve/tiny-vlm")
	if code != 1 || !strings.Contains(errs, "is not in the cache") {
		t.Errorf("remove again: status %d, %s", code, errs)
	}
}

// A folder goes before a hub's model of that name, and the command says so; a path that cannot be a model's name is
// never asked for.
func TestHubOrFolder(t *testing.T) {
	h, _, _ := tinyHub(t)
	t.Chdir(t.TempDir())
	tiny := os.DirFS(filepath.Join(packageFolder, tinyVLM))
	if err := os.CopyFS(filepath.Join("mmserve", "tiny-vlm"), tiny); err != nil {
		t.Fatal(err)
	}
	code, out, errs := mmserve(t, "model", "inspect", "mmserve/tiny-vlm")
	if code != 0 || !strings.Contains(out, "tiny-vlm") || !strings.Contains(errs, "hf:// in front would name a hub's") ||
		h.Count("") != 0 {
		t.Errorf("status %d, %s%s, %d requests", code, out, errs, h.Count(""))
	}
	for _, dir := range []string{"./mmserve/none", "a/b/c", "/no/such", "none"} {
		code, _, errs := mmserve(t, "model", "inspect", dir)
		if code != 1 || !strings.Contains(errs, "no model folder "+dir) || h.Count("") != 0 {
			t.Errorf("%s: status %d, %s", dir, code, errs)
		}
	}
	code, _, errs = mmserve(t, "model", "inspect", "hf://a/b/c")
	if code != 1 || !strings.Contains(errs, "want ORG/NAME") {
		t.Errorf("status %d, %s", code, errs)
	}
	code, _, errs = mmserve(t, "caption", "--model", "mmserve/none", "photo.jpg")
	if code != 1 || !strings.Contains(errs, "has no such model") || !strings.Contains(errs, "HF_TOKEN") ||
		!strings.Contains(errs, "there is no folder mmserve/none here") {
		t.Errorf("status %d, %s", code, errs)
	}
	if code, _, errs := mmserve(t, "model", "inspect", "hf://mmserve/tiny-vlm", "--hub-max-size", "1MiB"); code != 1 ||
		!strings.Contains(errs, "--hub-max-size") {
		t.Errorf("status %d, %s", code, errs)
	}
}

// packageFolder is the working folder of the tests, before one of them changes it.
var packageFolder, _ = os.Getwd()

// Offline the cache must do; --hub-endpoint goes before the variable.
func TestHubOffline(t *testing.T) {
	h, _, _ := tinyHub(t)
	args := []string{"model", "inspect", "mmserve/tiny-vlm"}
	code, _, errs := mmserve(t, append(args, "--hub-offline")...)
	if code != 1 || !strings.Contains(errs, "is not in the cache") {
		t.Errorf("status %d, %s", code, errs)
	}
	t.Setenv("HF_ENDPOINT", "http://127.0.0.1:9")
	if code, _, errs := mmserve(t, append(args, "--hub-endpoint", h.URL)...); code != 0 {
		t.Errorf("status %d, %s", code, errs)
	}
	asked := h.Count("")
	t.Setenv("HF_HUB_OFFLINE", "1")
	if code, _, errs := mmserve(t, args...); code != 0 || h.Count("") != asked || !strings.Contains(errs, "from=cache") {
		t.Errorf("status %d, %s", code, errs)
	}
}

// A repository that mmserve does not run is refused by what it has, before its weights are fetched.
func TestHubRefusesModels(t *testing.T) {
	h, r, _ := tinyHub(t)
	tiny := &fstest.MapFile{Data: r.Files["config.json"]}
	weights := &fstest.MapFile{Data: make([]byte, 100_000)}
	config := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	index := func(file string) *fstest.MapFile { return config(`{"weight_map":{"a":"` + file + `"}}`) }
	const indexName = "model.safetensors.index.json"
	quantised := config(`{"model_type":"idefics3","quantization_config":{"quant_method":"awq"}}`)
	adapter := config(`{"peft_type":"LORA"}`)
	for want, files := range map[string]fstest.MapFS{
		`model_type "gpt5v" is not supported`: {
			"config.json": config(`{"model_type":"gpt5v"}`), "model.safetensors": weights,
		},
		"GGUF, the format of llama.cpp": {"x.gguf": weights, "README.md": config("x")},
		"PyTorch's pickled weights":     {"config.json": tiny, "pytorch_model.bin": weights},
		"an adapter": {
			"config.json": tiny, "adapter_config.json": adapter, "model.safetensors": weights,
		},
		"reads no quantised checkpoints": {"config.json": quantised, "model.safetensors": weights},
		`names "../x.safetensors": want a file`: {
			"config.json": tiny, indexName: index("../x.safetensors"), "x.safetensors": weights,
		},
		`names "model.bin": want a file`: {"config.json": tiny, indexName: index("model.bin"), "model.bin": weights},
	} {
		h.Add(t, "org/model", files)
		code, _, errs := mmserve(t, "model", "pull", "org/model")
		if code != 1 || !strings.Contains(errs, want) {
			t.Errorf("status %d, %s\nwant %q", code, errs, want)
		}
	}
	if n := h.Count(strings.TrimPrefix(h.CDN, "http://")); n > 0 {
		t.Errorf("weights were fetched %d times", n)
	}
}

// Of ready-made graphs those are fetched that --onnx-dtype names, or that would be run.
func TestHubFetchesWhatIsNeeded(t *testing.T) {
	h, _, home := tinyHub(t)
	graphs := os.DirFS(exportFolder(t))
	r := h.Add(t, "org/graphs", graphs)
	names, err := fs.Glob(graphs, "onnx/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names { // others that are not asked for
		base, ext, _ := strings.Cut(name, ".onnx")
		r.Files[base+"_q4.onnx"+ext], r.Large[base+"_q4.onnx"+ext] = append([]byte("other"), r.Files[name]...), true
	}
	r.Files["model.onnx"] = []byte("not in onnx/")
	sample := filepath.Join(tinyVLM, "samples", "sample0.png")
	code, out, errs := mmserve(t, "caption", "--model", "org/graphs", "--onnx-dtype", "fp32", sample)
	if code != 0 || !strings.Contains(out, "orange star") {
		t.Errorf("status %d, %s%s", code, out, errs)
	}
	got, err := fs.Glob(os.DirFS(filepath.Join(home, "hub", "models--org--graphs", "snapshots")), "*/onnx/*")
	if err != nil || len(got) != len(names) || strings.Contains(strings.Join(got, " "), "_q4") {
		t.Errorf("%v is there of %v, %v", got, names, err)
	}
	code, _, errs = mmserve(t, "model", "pull", "org/graphs", "--onnx-dtype", "q8")
	if code != 1 || !strings.Contains(errs, "it has fp32, q4") {
		t.Errorf("status %d, %s", code, errs)
	}
	code, out, errs = mmserve(t, "model", "inspect", "org/graphs")
	if code != 0 || !strings.Contains(out, "the folder has no safetensors") {
		t.Errorf("status %d, %s%s", code, out, errs)
	}
}

// The admin listener loads a hub's model where a flag allows it, and nowhere else.
func TestHubAdmin(t *testing.T) {
	h, _, _ := tinyHub(t)
	for _, allowed := range []bool{false, true} {
		admin := sockettest.FreeAddress(t)
		args := []string{"--slots", "2", "--admin-address", admin, "--models-dir", t.TempDir()}
		if allowed {
			args = append(args[:4], "--models-hub")
		}
		c := startServer(t, args...)
		url := "http://" + admin + "/models"
		want := map[bool]int{true: http.StatusOK, false: http.StatusForbidden}[allowed]
		code, body := change(t, "POST", url, load("hub", "hf://mmserve/tiny-vlm"))
		if code != want || !allowed && !strings.Contains(body, "--models-hub") {
			t.Errorf("allowed %t: %d %s", allowed, code, body)
		}
		if code, body := change(t, "POST", url, load("x", "mmserve/tiny-vlm")); code != http.StatusForbidden {
			t.Errorf("a folder: %d %s", code, body)
		}
		if !allowed {
			if n := h.Count(""); n != 0 {
				t.Errorf("the hub was asked %d times", n)
			}
			continue
		}
		code, body = change(t, "POST", url, load("x", "hf://mmserve/none"))
		if code != http.StatusUnprocessableEntity || !strings.Contains(body, "has no such model") {
			t.Errorf("no model: %d %s", code, body)
		}
		if out, err := c.Generate(t.Context(), asked(t, "hub", 0)); err != nil || out.GetModel() != "hub" {
			t.Errorf("%v, %v", out, err)
		}
	}
}

func TestPullText(t *testing.T) {
	n := hub.Count{Total: 4 << 30, Done: 1 << 30, Received: 1 << 30, Files: 12, FilesDone: 3}
	got := pullText(n, time.Now().Add(-time.Minute))
	if want := " 1.00 GiB of 4.00 GiB, 3 of 12 files, 17.1 MiB/s, 3m0s left"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := pullLeft(hub.Count{Total: 5}, time.Now()); got != "unknown time" {
		t.Errorf("%q", got)
	}
}

// The hub's own client and mmserve use each other's caches as they are.
func TestHubReferenceClient(t *testing.T) {
	if err := exec.Command("python3", "-c", "from huggingface_hub import snapshot_download").Run(); err != nil {
		t.Skip("python3 has no huggingface_hub")
	}
	_, r, home := tinyHub(t)
	reference := func(home string) string {
		t.Helper()
		c := exec.Command("python3", "-c", `from huggingface_hub import snapshot_download, try_to_load_from_cache
print(snapshot_download("mmserve/tiny-vlm", allow_patterns=["*.json", "*.jinja", "*.safetensors"]))`)
		c.Env = append(os.Environ(), "HF_HOME="+home, "HF_HUB_DISABLE_PROGRESS_BARS=1", "HF_HUB_DISABLE_TELEMETRY=1")
		out, err := c.Output()
		if err != nil {
			var e *exec.ExitError
			if errors.As(err, &e) {
				t.Fatalf("%v: %s", err, e.Stderr)
			}
			t.Fatal(err)
		}
		return string(out)
	}
	for _, first := range []string{"reference", "mmserve"} {
		t.Setenv("HF_HOME", filepath.Join(home, first))
		t.Setenv("HF_HUB_OFFLINE", "")
		var by, other string
		pull := func() (out string) {
			code, out, errs := mmserve(t, "model", "pull", "mmserve/tiny-vlm")
			if code != 0 {
				t.Fatalf("status %d, %s", code, errs)
			}
			return out
		}
		if first == "reference" {
			by = reference(filepath.Join(home, first))
			t.Setenv("HF_HUB_OFFLINE", "1")
			other = pull()
		} else {
			by = pull()
			t.Setenv("HF_HUB_OFFLINE", "1")
			other = reference(filepath.Join(home, first))
		}
		if by != other {
			t.Errorf("%s first: %q, then %q", first, by, other)
		}
		pulled(t, filepath.Join(home, first), r.Commit)
	}
}
