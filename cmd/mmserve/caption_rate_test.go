package main

import (
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/client"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// Images a second of a bare client with so many calls in flight, and of caption, which finds out by itself; in turns,
// on one server. MMSERVE_BENCH_SERVER names one that runs. The numbers are logged: they are no pass or fail.
func TestCaptionRate(t *testing.T) {
	images := captioning(0, 600)
	if images == 0 {
		t.Skip("make test-captioning runs it")
	}
	addr := os.Getenv("MMSERVE_BENCH_SERVER")
	if addr == "" {
		addr, _, _ = serveProcess(t)
	} else {
		images = 32
	}
	dir := t.TempDir()
	shapes(t, dir, images)
	if _, stderr := captionProcess(t, dir, "--server", addr, "--max-tokens", "24",
		"-o", filepath.Join(t.TempDir(), "warm.jsonl")); stderr == "" {
		t.Fatal("no summary")
	}
	best := map[int]float64{}
	for round := range 3 {
		for _, n := range []int{1, 4, 8, 16, 20, 32} {
			best[n] = max(best[n], bareRate(t, addr, dir, n))
		}
		for _, j := range []int{0, 1} {
			began := time.Now()
			code, stderr := captionProcess(
				t,
				dir,
				"--server",
				addr,
				"--max-tokens",
				"24",
				"-j",
				strconv.Itoa(j),
				"--progress",
				"none",
				"-o",
				filepath.Join(t.TempDir(), "o.jsonl"),
			)
			if code != 0 {
				t.Fatal(stderr)
			}
			best[-1-j] = max(best[-1-j], float64(images)/time.Since(began).Seconds())
		}
		t.Logf("round %d, best so far: caption %.1f images/s, caption -j 1 %.1f", round, best[-1], best[-2])
		for _, n := range []int{1, 4, 8, 16, 20, 32} {
			t.Logf("  bare client, %d in flight: %.1f images/s", n, best[n])
		}
	}
}

// bareRate asks about every image of a folder, n at a time, and does nothing else.
func bareRate(t *testing.T, addr, dir string, n int) float64 {
	t.Helper()
	c, err := client.Dial(addr, client.WithRetries(100))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	names, err := filepath.Glob(filepath.Join(dir, "*.png"))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	work := make(chan string)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for name := range work {
				data, err := os.ReadFile(name)
				if err != nil {
					t.Error(err)
					continue
				}
				in := client.Chat(client.User(client.ImageBytes(data), client.Text("Describe the image.")))
				in.MaxTokens, in.Priority = proto.Uint32(24), pb.Priority_PRIORITY_BATCH
				if _, err := c.Generate(t.Context(), in); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for _, name := range names {
		work <- name
	}
	close(work)
	wg.Wait()
	return float64(len(names)) / time.Since(began).Seconds()
}
