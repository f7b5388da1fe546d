package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const hubToken = "hf_TokenOfTheTests0123456789"

// pulled compares what a cache has of the embedded model with the model, and looks for what is left over.
func pulled(t *testing.T, home, commit string) {
	t.Helper()
	root := filepath.Join(home, "hub", "models--mmserve--tiny-vlm")
	for _, name := range []string{"config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"} {
		got, err := os.ReadFile(filepath.Join(root, "snapshots", commit, name))
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join(tinyVLM, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s differs (%v)", name, err)
		}
	}
	for _, pattern := range []string{"blobs/*.incomplete", "refs/*.tmp", "snapshots/*/*.tmp", "trees/*.tmp"} {
		if left, _ := filepath.Glob(filepath.Join(root, pattern)); len(left) > 0 {
			t.Errorf("%v is left", left)
		}
	}
}

// cachedBytes is what the cache has of blobs, whole or not.
func cachedBytes(home string) (n int64) {
	entries, _ := os.ReadDir(filepath.Join(home, "hub", "models--mmserve--tiny-vlm", "blobs"))
	for _, e := range entries {
		if st, err := e.Info(); err == nil {
			n += st.Size()
		}
	}
	return n
}

// A pull that is killed at 20 places goes on where it was each time, and in the end each file is right. The token is in
// none of its words and in no process's arguments, and goes to no other host.
func TestHubPullKilled(t *testing.T) {
	h, r, home := tinyHub(t)
	t.Setenv("HF_TOKEN", hubToken)
	h.Slow = time.Millisecond
	all := int64(len(r.Files["model.safetensors"]) + len(r.Files["tokenizer.json"]))
	var said strings.Builder
	const kills = 20
	for i := range int64(kills) {
		p := startProcess(t, "--log-level", "debug", "model", "pull", "mmserve/tiny-vlm")
		eventually(t, fmt.Sprintf("%d bytes", all*(i+1)/(kills+1)), func() bool {
			return cachedBytes(home) >= all*(i+1)/(kills+1)
		})
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.Process.Pid))
		if err == nil {
			said.Write(args)
		}
		if err := p.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if p.exit(t); cachedBytes(home) >= all {
			t.Fatal("the pull was over before it was killed")
		}
		said.WriteString(p.stderr.String())
		ref := filepath.Join(home, "hub", "models--mmserve--tiny-vlm", "refs", "main")
		if _, err := os.Stat(ref); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("the revision names what is not whole: %v", err)
		}
	}
	p := startProcess(t, "--log-level", "debug", "model", "pull", "mmserve/tiny-vlm")
	if code := p.exit(t); code != 0 {
		t.Fatalf("status %d: %s", code, p.stderr.String())
	}
	said.WriteString(p.stderr.String())
	pulled(t, home, r.Commit)
	resumed := 0
	for _, q := range h.Requests {
		if q.Range != "" {
			resumed++
		}
		if strings.HasSuffix(h.CDN, q.Host) && q.Authorization != "" {
			t.Errorf("another host got the token: %+v", q)
		}
		if strings.HasSuffix(h.URL, q.Host) && q.Authorization != "Bearer "+hubToken {
			t.Errorf("the hub did not get the token: %+v", q)
		}
	}
	if resumed < kills {
		t.Errorf("%d requests went on where a file ended", resumed)
	}
	if strings.Contains(said.String(), hubToken) || !strings.Contains(said.String(), "msg=model") {
		t.Errorf("the token was said, or nothing: %s", said.String())
	}
}

// An interrupt ends a pull with what to do next; two processes at once fetch each file once.
func TestHubPullInterrupted(t *testing.T) {
	h, r, home := tinyHub(t)
	h.Slow = time.Millisecond
	p := startProcess(t, "model", "pull", "mmserve/tiny-vlm")
	eventually(t, "some bytes", func() bool { return cachedBytes(home) > 500_000 })
	if err := p.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code := p.exit(t); code != 1 || !strings.Contains(p.stderr.String(), "what was fetched is kept, and the same command goes on with it") {
		t.Errorf("status %d: %s", code, p.stderr.String())
	}
	h.Lock()
	h.Requests = nil
	h.Unlock()
	pull := []string{"model", "pull", "mmserve/tiny-vlm"}
	first, second := startProcess(t, pull...), startProcess(t, pull...)
	for _, p := range []*process{first, second} {
		if code := p.exit(t); code != 0 {
			t.Errorf("status %d: %s", code, p.stderr.String())
		}
	}
	pulled(t, home, r.Commit)
	if n := h.Count("/" + r.ETag("model.safetensors")); n != 1 {
		t.Errorf("the weights were asked for %d times", n)
	}
	if said := first.stderr.String() + second.stderr.String(); !strings.Contains(said, "another process fetches the file") {
		t.Errorf("none waited: %s", said)
	}
}
