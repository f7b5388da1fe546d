package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/hub/hubtest"
)

// tinyHub is a hub with the embedded model, whose cache is empty.
func tinyHub(t *testing.T) (h *hubtest.Hub, r *hubtest.Repo, home string) {
	t.Helper()
	h = hubtest.Start(t)
	r = h.Add(t, "mmserve/tiny-vlm", os.DirFS(filepath.Join("..", "..", "model", "tiny-vlm")))
	home = t.TempDir()
	for name, value := range map[string]string{
		"HF_ENDPOINT": h.URL, "HF_HOME": home, "HF_HUB_CACHE": "", "HF_TOKEN": "", "HF_TOKEN_PATH": "", "HF_HUB_OFFLINE": "",
		"TRANSFORMERS_OFFLINE": "", "HUGGINGFACE_HUB_CACHE": "", "HUGGING_FACE_HUB_TOKEN": "",
	} {
		t.Setenv(name, value)
	}
	return h, r, home
}

// A model of a hub is pulled, captions and is served, each in one line.
func TestHubModelInOneLine(t *testing.T) {
	h, r, home := tinyHub(t)
	code, out, errs := mmserve(t, "model", "pull", "mmserve/tiny-vlm")
	if want := filepath.Join(home, "hub", "models--mmserve--tiny-vlm", "snapshots", r.Commit) + "\n"; code != 0 || out != want {
		t.Fatalf("pull: status %d, %q: %s\nwant %q", code, out, errs, want)
	}
	sample := filepath.Join("..", "..", "model", "tiny-vlm", "samples", "sample0.png")
	code, out, errs = mmserve(t, "caption", "--model", "mmserve/tiny-vlm", sample)
	if code != 0 || !strings.Contains(out, "sample0.png: A large orange star in the center on a beige background.\n") {
		t.Errorf("caption: status %d, %s%s", code, out, errs)
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
}
