//go:build !nostores

package main

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gocloud.dev/blob"

	"github.com/mmserve/mmserve/internal/socket/sockettest"
)

// Five workers share the shards of a queue; two are killed, and one is stopped for longer than its shard may be silent
// and then goes on: each image has one row, as in an undisturbed run.
func TestCaptionWorkersOfAQueue(t *testing.T) {
	images, shards := captioning(60, 1000), "/12"
	dir, store := t.TempDir(), t.TempDir()
	shapes(t, dir, images)
	s, err := holdQueue(sockettest.FreeAddress(t), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	addr, _, _ := serveProcess(t)
	args := []string{
		"caption",
		dir,
		"--server",
		addr,
		"--max-tokens",
		"16",
		"--shard",
		shards,
		"--progress",
		"none",
		"-j",
		"2",
	}
	for i := 0; i < 12; i += 4 { // so many at a time
		var undisturbed []*process
		for j := range 4 {
			t.Setenv("JOB_COMPLETION_INDEX", strconv.Itoa(i+j))
			undisturbed = append(undisturbed,
				startProcess(t, append(args[:len(args):len(args)], "-o", "file://"+store+"/want/")...))
		}
		for _, p := range undisturbed {
			if code := p.exit(t); code != 0 {
				t.Fatalf("undisturbed: status %d, %s", code, p.stderr.String())
			}
		}
	}
	var workers []*process
	for range 5 {
		workers = append(
			workers,
			startProcess(
				t,
				append(args, "--queue", s.ClientURL(), "--ack-wait", "1s", "-o", "file://"+store+"/got/")...),
		)
	}
	work := func(n int) { // waits until so many parts are committed
		eventually(t, "parts are committed", func() bool {
			parts, _ := filepath.Glob(filepath.Join(store, "got", "shard-*", "part-*.json"))
			return len(parts) >= n
		})
	}
	work(1)
	_ = workers[0].Process.Kill()
	_ = workers[1].Process.Signal(syscall.SIGSTOP)
	stopped := time.Now()
	work(2)
	_ = workers[2].Process.Kill()
	time.Sleep(time.Until(stopped.Add(2500 * time.Millisecond)))
	_ = workers[1].Process.Signal(syscall.SIGCONT)
	for _, i := range []int{1, 3, 4} {
		if code := workers[i].exit(t); code != 0 {
			t.Errorf("worker %d: status %d, %s", i, code, workers[i].stderr.String())
		}
	}
	b, err := blob.OpenBucket(t.Context(), "file://"+store)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	want, got := committedRows(t, b, "want/"), committedRows(t, b, "got/")
	if len(want) != images || !slices.Equal(want, got) {
		t.Errorf("%d rows, want %d", len(got), len(want))
	}
	if done, _ := filepath.Glob(filepath.Join(store, "got", "shard-*", "_SUCCESS")); len(done) != 12 {
		t.Errorf("%d shards are marked complete: %s", len(done), strings.Join(done, " "))
	}
}

// For one machine, a worker holds the queue itself.
func TestCaptionQueueInTheProcess(t *testing.T) {
	t.Parallel() // it runs in processes of its own
	dir, store, addr := t.TempDir(), t.TempDir(), sockettest.FreeAddress(t)
	shapes(t, dir, 20)
	serve, _, _ := serveProcess(t)
	args := []string{
		"caption",
		dir,
		"--server",
		serve,
		"--max-tokens",
		"8",
		"--shard",
		"/4",
		"--progress",
		"none",
		"--cache-dir",
		t.TempDir(),
		"-o",
		"file://" + store + "/",
	}
	holder := startProcess(t, append(args, "--queue", "listen:"+addr)...)
	for holding := true; holding; { // until the queue is there, or was
		select {
		case <-holder.waited:
			holding = false
		default:
			holding = startProcess(t, append(args, "--queue", "nats://"+addr)...).exit(t) != 0
		}
	}
	if code := holder.exit(t); code != 0 {
		t.Errorf("status %d, %s", code, holder.stderr.String())
	}
	b, err := blob.OpenBucket(t.Context(), "file://"+store)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if rows := committedRows(t, b, ""); len(rows) != 20 {
		t.Errorf("%d rows", len(rows))
	}
}
