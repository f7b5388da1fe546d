//go:build !nostores

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gocloud.dev/blob"

	"github.com/mmserve/mmserve/internal/racetest"
	"github.com/mmserve/mmserve/internal/socket/sockettest"
)

// startStores runs stand-ins for S3 and Google Cloud Storage in a process of their own, and gives URLs of their bucket.
func startStores(t *testing.T, args ...string) (urls []string) {
	t.Helper()
	bin := filepath.Join("..", "..", "bin", "stores")
	if _, err := os.Stat(bin); err != nil {
		t.Skip("no bin/stores: make test-captioning builds it")
	}
	s3, gcs := sockettest.FreeAddress(t), sockettest.FreeAddress(t)
	cmd := exec.Command(bin, append(args, "-s3", s3, "-gcs", gcs)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if _, err := io.ReadFull(out, make([]byte, 5)); err != nil { // "ready"
		t.Fatal(err)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "test")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "test")
	t.Setenv("STORAGE_EMULATOR_HOST", gcs)
	return []string{
		"s3://images/?region=us-east-1&use_path_style=true&endpoint=http://" + s3,
		"gs://images/?anonymous=true",
	}
}

// under puts a prefix into the URL of a bucket.
func under(url, prefix string) string { return strings.Replace(url, "/?", "/"+prefix+"?", 1) }

// committedRows reads a store's output as its manifests say, without what differs from run to run.
func committedRows(t *testing.T, b *blob.Bucket, prefix string) []string {
	t.Helper()
	var all bytes.Buffer
	objects := b.List(&blob.ListOptions{Prefix: prefix})
	for {
		o, err := objects.Next(t.Context())
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		name := o.Key[strings.LastIndexByte(o.Key, '/')+1:]
		if !strings.HasPrefix(name, "part-") {
			continue
		}
		text, err := b.ReadAll(t.Context(), o.Key)
		var m struct{ Object string }
		if err == nil {
			err = json.Unmarshal(text, &m)
		}
		if err != nil {
			t.Fatal(err)
		}
		rows, err := b.ReadAll(t.Context(), strings.TrimSuffix(o.Key, name)+m.Object)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(rows)
	}
	path := filepath.Join(t.TempDir(), "all.jsonl")
	if err := os.WriteFile(path, all.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, line := range sortedLines(t, path) {
		var row map[string]any
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprint(row["id"], row["text"], row["error_code"]))
	}
	slices.Sort(out)
	return out
}

// Three workers of an Indexed Job caption what a store has, into the store; one is killed again and again and another
// one is given the same index: each image has one row, as in an undisturbed run.
func TestCaptionIndexedJobOverStores(t *testing.T) {
	images := captioning(60, 600)
	urls := startStores(t)
	addr, _, _ := serveProcess(t)
	dir := t.TempDir()
	shapes(t, dir, images)
	for _, url := range urls {
		t.Run(url[:2], func(t *testing.T) {
			b, err := blob.OpenBucket(t.Context(), strings.Replace(url, "/?", "?", 1))
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			for i := range images {
				name := fmt.Sprintf("i%05d.png", i)
				data, err := os.ReadFile(filepath.Join(dir, name))
				if err == nil {
					err = b.WriteAll(t.Context(), "in/"+name, data, nil)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			job := func(index int, out string) *process {
				t.Setenv("JOB_COMPLETION_INDEX", fmt.Sprint(index))
				return startProcess(
					t,
					"caption",
					under(url, "in/"),
					"--server",
					addr,
					"--max-tokens",
					"16",
					"--shard",
					"/3",
					"-o",
					under(url, out),
					"--progress",
					"none",
				)
			}
			for i := range 3 {
				if p := job(i, "want/"); p.exit(t) != 0 {
					t.Fatalf("undisturbed: %s", p.stderr.String())
				}
			}
			first, second, twin := job(0, "got/"), job(1, "got/"), job(1, "got/")
			for range captioning(3, 20) {
				p := job(2, "got/")
				select {
				case <-time.After(time.Duration(rand.Int64N(int64(700 * time.Millisecond)))):
					_ = p.Process.Kill()
				case <-p.waited:
				}
				<-p.waited
			}
			for name, p := range map[string]*process{"first": first, "killed": job(2, "got/")} {
				if p.exit(t) != 0 {
					t.Errorf("%s: %s", name, p.stderr.String())
				}
			}
			codes := []int{second.exit(t), twin.exit(t)}
			slices.Sort(codes)
			if !slices.Equal(codes, []int{0, 0}) && !slices.Equal(codes, []int{0, 3}) {
				t.Errorf("two with one index: status %v: %s%s", codes, second.stderr.String(), twin.stderr.String())
			}
			want, got := committedRows(t, b, "want/"), committedRows(t, b, "got/")
			if len(want) != images || !slices.Equal(want, got) {
				t.Errorf("%d rows, want %d", len(got), len(want))
			}
			t.Logf("%d images, two with one index ended with %v", images, codes)
		})
	}
}

// The keys of a store are listed as they come: a million take no more memory than a few.
func TestCaptionListsStore(t *testing.T) {
	keys := captioning(20_000, 1_000_000)
	url := startStores(t, "-objects", strconv.Itoa(keys))[0]
	began := time.Now()
	c := exec.Command(os.Args[0], "caption", under(url, "many/"), "-o", filepath.Join(t.TempDir(), "o.jsonl"), "--dry-run")
	c.Env = append(os.Environ(), asCommand+"=1")
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), fmt.Sprintf("%d images", keys)) {
		t.Fatalf("%v: %s", err, out)
	}
	idle := exec.Command(os.Args[0], "version") // of which the larger part is the program itself
	idle.Env = c.Env
	if err := idle.Run(); err != nil {
		t.Fatal(err)
	}
	took := peakRSS(c) - peakRSS(idle)
	t.Logf("%d keys in %.1f s, %.0f MB", keys, time.Since(began).Seconds(), took/1e6)
	if took > 150e6 && !racetest.Enabled { // which keeps a shadow of all memory
		t.Errorf("listing took %.0f MB, want at most 150", took/1e6)
	}
}
