package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/socket/sockettest"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// asCommand in the environment makes the test's binary be mmserve, so that a command runs in a process that can be
// killed.
const asCommand = "MMSERVE_TEST_MAIN"

// captioning is how large the tests of this file are: small in make test, in full in make test-captioning.
func captioning(small, full int) int {
	if os.Getenv("MMSERVE_TEST_CAPTIONING") != "" {
		return full
	}
	return small
}

// process is mmserve in a process of its own.
type process struct {
	*exec.Cmd
	stderr bytes.Buffer
	waited chan struct{}
	err    error
}

func startProcess(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(os.Args[0], args...), waited: make(chan struct{})}
	p.Env = append(os.Environ(), asCommand+"=1")
	p.Stderr = &p.stderr
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.err = p.Wait(); close(p.waited) }()
	t.Cleanup(func() { _ = p.Process.Kill(); <-p.waited })
	return p
}

// exit waits for the process and gives its status; -1 if a signal ended it.
func (p *process) exit(t *testing.T) int {
	t.Helper()
	select {
	case <-p.waited:
	case <-time.After(5 * time.Minute):
		t.Fatalf("it hangs: %s", p.stderr.String())
	}
	return p.ProcessState.ExitCode()
}

// captionProcess runs caption to its end.
func captionProcess(t *testing.T, args ...string) (code int, stderr string) {
	t.Helper()
	p := startProcess(t, append([]string{"caption"}, args...)...)
	code = p.exit(t)
	return code, p.stderr.String()
}

// shapes writes n images that differ, of a square on a ground.
func shapes(t *testing.T, dir string, n int) {
	t.Helper()
	for i := range n {
		m := image.NewNRGBA(image.Rect(0, 0, 64, 64))
		ground, square := color.NRGBA{
			uint8(i),
			uint8(i >> 3),
			90,
			255,
		}, color.NRGBA{
			200,
			uint8(37 * i),
			uint8(i >> 2),
			255,
		}
		for y := range 64 {
			for x := range 64 {
				c := ground
				if x > 8+i%20 && x < 40 && y > 8+i%13 && y < 44 {
					c = square
				}
				m.SetNRGBA(x, y, c)
			}
		}
		m.SetNRGBA(0, 0, color.NRGBA{uint8(i), uint8(i >> 8), 1, 255}) // no two are alike
		var b bytes.Buffer
		if err := errors.Join(png.Encode(&b, m), os.WriteFile(filepath.Join(dir, fmt.Sprintf("i%05d.png", i)), b.Bytes(),
			0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

// counting is a server that passes calls on, and counts them by image.
type counting struct {
	pb.UnimplementedMMServeServer
	next  *client.Client
	mu    sync.Mutex
	asked map[[32]byte]int
}

func (c *counting) Generate(ctx context.Context, in *pb.GenerateRequest) (*pb.GenerateResponse, error) {
	h := sha256.Sum256(in.GetChat().GetMessages()[0].GetParts()[0].GetImage().GetData())
	c.mu.Lock()
	c.asked[h]++
	c.mu.Unlock()
	return c.next.Generate(ctx, in)
}

func (c *counting) GetServerInfo(ctx context.Context, _ *pb.GetServerInfoRequest) (*pb.GetServerInfoResponse, error) {
	return c.next.ServerInfo(ctx)
}

// startCounting serves the embedded model behind a server that counts.
func startCounting(t *testing.T) (*counting, string) {
	t.Helper()
	c := &counting{next: startServer(t), asked: map[[32]byte]int{}}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g, h := grpc.NewServer(grpc.MaxRecvMsgSize(64<<20)), health.NewServer()
	//lint:ignore SA1019 it is what the client calls
	pb.RegisterMMServeServer(g, c)
	healthpb.RegisterHealthServer(g, h)
	h.SetServingStatus(pb.MMServe_ServiceDesc.ServiceName, healthpb.HealthCheckResponse_SERVING)
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(lis) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return c, lis.Addr().String()
}

// sortedLines reads an output without what differs from run to run, sorted.
func sortedLines(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		var row map[string]any
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			t.Fatalf("%s: %q: %v", path, line, err)
		}
		delete(row, "seconds")
		delete(row, "attempts")
		text, err := json.Marshal(row)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(text))
	}
	slices.Sort(out)
	return out
}

func sameOutput(t *testing.T, got, want string) {
	t.Helper()
	g, w := sortedLines(t, got), sortedLines(t, want)
	if len(g) != len(w) {
		t.Errorf("%d rows, want %d", len(g), len(w))
	}
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			t.Fatalf("row\n%s\nwant\n%s", g[i], w[i])
		}
	}
}

// A run that is killed at random moments and begun again gives, line for line, what an undisturbed one gives; and asks
// nothing twice but what was in flight.
func TestCaptionKilledAtRandomMoments(t *testing.T) {
	t.Parallel() // it runs in processes of its own
	images, kills, inFlight := captioning(80, 2000), captioning(4, 50), 8
	dir, tmp := t.TempDir(), t.TempDir()
	shapes(t, dir, images)
	c, addr := startCounting(t)
	want, got := filepath.Join(tmp, "want.jsonl"), filepath.Join(tmp, "got.jsonl")
	args := []string{
		dir,
		"--server",
		addr,
		"-j",
		strconv.Itoa(inFlight),
		"--max-tokens",
		"16",
		"--progress",
		"none",
		"-o",
	}
	began := time.Now()
	if code, stderr := captionProcess(t, append(args, want)...); code != 0 {
		t.Fatalf("undisturbed: status %d: %s", code, stderr)
	}
	undisturbed := time.Since(began)
	clear(c.asked)
	killed := 0
	for range kills {
		p := startProcess(t, append(append([]string{"caption"}, args...), got)...)
		select {
		case <-time.After(time.Duration(rand.Int64N(int64(undisturbed/time.Duration(kills)) + int64(300*time.Millisecond)))):
			_ = p.Process.Kill()
			killed++
			<-p.waited
		case <-p.waited:
		}
	}
	if code, stderr := captionProcess(t, append(args, got)...); code != 0 {
		t.Fatalf("the last run: status %d: %s", code, stderr)
	}
	sameOutput(t, got, want)
	again := 0
	delete(c.asked, greyHash(c))
	for _, n := range c.asked {
		again += n - 1
	}
	if len(c.asked) != images || again > killed*inFlight {
		t.Errorf(
			"%d images asked about, %d calls more than that in %d kills of %d in flight",
			len(c.asked),
			again,
			killed,
			inFlight,
		)
	}
	t.Logf("%d images, %d kills, %d asked again; undisturbed %v", images, killed, again, undisturbed)
}

// greyHash finds the image that each run asks about first, to see whether what is asked is taken.
func greyHash(c *counting) (probe [32]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	most := 0
	for h, n := range c.asked {
		if n > most {
			probe, most = h, n
		}
	}
	return probe
}

// A server that is killed and started again in the middle costs nothing but time.
func TestCaptionServerKilledAndRestarted(t *testing.T) {
	t.Parallel() // it runs in processes of its own
	images, kills := captioning(80, 2000), captioning(1, 5)
	dir, tmp, addr := t.TempDir(), t.TempDir(), sockettest.FreeAddress(t)
	shapes(t, dir, images)
	serve := func() *process {
		return startProcess(t, "--log-level", "error", "serve", "--listen", addr, "--admin-address", "")
	}
	want, got := filepath.Join(tmp, "want.jsonl"), filepath.Join(tmp, "got.jsonl")
	args := []string{dir, "--server", addr, "--max-tokens", "16", "-o"}
	s := serve()
	if code, stderr := captionProcess(t, append(args, want)...); code != 0 {
		t.Fatalf("undisturbed: status %d: %s", code, stderr)
	}
	p := startProcess(t, append(append([]string{"caption"}, args...), got)...)
	for k := range kills {
		eventually(t, "it is in the middle, however fast the machine is", func() bool {
			return rowsIn(got) >= (k+1)*images/(kills+2)
		})
		_ = s.Process.Kill()
		<-s.waited
		time.Sleep(200 * time.Millisecond)
		s = serve()
	}
	if code := p.exit(t); code != 0 || !strings.Contains(p.stderr.String(), "paused: no server takes requests") {
		t.Errorf("status %d: %s", code, p.stderr.String())
	}
	sameOutput(t, got, want)
}

// rowsIn counts the lines of an output that is being written.
func rowsIn(path string) int {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	return bytes.Count(b, []byte("\n"))
}

// SIGTERM ends a run when what is in flight is answered, with the command that goes on; a second one ends it at once.
func TestCaptionSignals(t *testing.T) {
	t.Parallel() // it runs in processes of its own
	dir, tmp := t.TempDir(), t.TempDir()
	shapes(t, dir, 40)
	slow, _, _ := serveProcess(t, "--pace", "1ms,10ms")
	out := filepath.Join(tmp, "it's out.jsonl")
	args := []string{"caption", dir, "--server", slow, "-j", "2", "--max-tokens", "8", "-o", out}
	p := startProcess(t, args...)
	eventually(t, "four rows are written", func() bool { return rowsIn(out) >= 4 })
	_ = p.Process.Signal(syscall.SIGTERM)
	if code := p.exit(t); code != 130 ||
		!strings.Contains(p.stderr.String(), "go on with: "+os.Args[0]+" caption "+dir) ||
		!strings.Contains(p.stderr.String(), `'it'\''s out.jsonl'`) &&
			!strings.Contains(p.stderr.String(), `it'\''s out.jsonl`) {
		t.Errorf("status %d: %s", code, p.stderr.String())
	}
	if n := len(sortedLines(t, out)); n < 4 || n > 20 {
		t.Errorf("%d rows", n)
	}
	if code, stderr := captionProcess(t, args[1:]...); code != 0 || len(sortedLines(t, out)) != 40 {
		t.Errorf("the next run: status %d, %s", code, stderr)
	}
	stuck, _, _ := serveProcess(t, "--pace", "1ms,20s")
	p = startProcess(
		t,
		"caption",
		dir,
		"--server",
		stuck,
		"-j",
		"2",
		"--max-tokens",
		"8",
		"-o",
		filepath.Join(tmp, "two.jsonl"),
	)
	time.Sleep(500 * time.Millisecond)
	began := time.Now()
	_ = p.Process.Signal(os.Interrupt)
	time.Sleep(50 * time.Millisecond)
	_ = p.Process.Signal(os.Interrupt)
	if code := p.exit(t); code != 130 && code != -1 || time.Since(began) > 5*time.Second {
		t.Errorf("second interrupt: status %d after %v: %s", code, time.Since(began), p.stderr.String())
	}
}

// serveProcess runs serve in a process of its own until the test ends.
func serveProcess(t *testing.T, args ...string) (addr string, p *process, restart func() *process) {
	t.Helper()
	addr = sockettest.FreeAddress(t)
	restart = func() *process {
		return startProcess(
			t,
			append([]string{"--log-level", "error", "serve", "--listen", addr, "--admin-address", ""}, args...)...)
	}
	return addr, restart(), restart
}

// What is wrong with a run's surroundings is said at once, with its exit status; nothing hangs, and no row is half
// written.
func TestCaptionTrouble(t *testing.T) {
	t.Parallel() // it runs in processes of its own
	dir, tmp := t.TempDir(), t.TempDir()
	shapes(t, dir, 60)
	for i := range 60 {
		if i%30 == 7 { // a part is corrupt
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("i%05d.png", i)), []byte("\x89PNG\r\n\x1a\n and no more"),
				0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	fifo := filepath.Join(tmp, "fifo.jsonl")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tmp, "notes.jsonl"), []byte("these are\nmy notes\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	addr, _, _ := serveProcess(t)
	out := filepath.Join(tmp, "o.jsonl")
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{dir, "-o", out}, 1, "2 INVALID_ARGUMENT"},
		{[]string{dir, "-o", out}, 1, "60 skipped (2 of them failed before)"},
		{[]string{dir, "-o", out, "--existing", "error"}, 2, "it exists"},
		{[]string{dir, "-o", out, "--max-tokens", "7"}, 2, "max_tokens was 16, now 7"},
		{[]string{dir, "-o", filepath.Join(tmp, "p.jsonl"), "--max-errors", "1"}, 3, "too many items failed"},
		{[]string{dir, "-o", fifo}, 3, "a FIFO"},
		{[]string{dir, "-o", filepath.Join(tmp, "notes.jsonl")}, 3, "line 1 is not a row of captions"},
		{[]string{dir, "-o", filepath.Join(tmp, "none", "o.jsonl")}, 3, "no such file"},
		{[]string{dir, "-o", filepath.Join(tmp, "o.txt")}, 2, "want a name that ends in"},
		{[]string{filepath.Join(dir, "none*"), "-o", filepath.Join(tmp, "q.jsonl")}, 3, "nothing matches it"},
		{[]string{fifo, "-o", filepath.Join(tmp, "r.jsonl")}, 1, "INVALID_ARGUMENT"},
		{[]string{t.TempDir(), "-o", filepath.Join(tmp, "s.jsonl")}, 0, "0 images listed"},
		{[]string{dir, "-o", filepath.Join(tmp, "t.jsonl"), "--temperature", "9"}, 2, "--temperature 9: want 0 to 2"},
		{[]string{dir, "-o", filepath.Join(tmp, "u.jsonl"), "--ask", "a=x", "--ask", "a=y"}, 2, `two questions named "a"`},
		{[]string{dir, "-o", filepath.Join(tmp, "v.jsonl"), "--shard", "3/3"}, 2, "--shard 3/3"},
		{[]string{dir, "-o", filepath.Join(tmp, "w.jsonl"), "--existing", "append"}, 2, "for --sidecar"},
	} {
		code, stderr := captionProcess(t, append([]string{"--server", addr, "--max-tokens", "16"}, c.args...)...)
		if code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("%q: status %d, %s; want %d, %q", c.args, code, stderr, c.code, c.want)
		}
	}
	if b, err := os.ReadFile(filepath.Join(tmp, "notes.jsonl")); err != nil || string(b) != "these are\nmy notes\n" {
		t.Errorf("a file that is not ours: %q, %v", b, err)
	}
	code, stderr := captionProcess(
		t,
		dir,
		"--server",
		sockettest.FreeAddress(t),
		"--wait",
		"1s",
		"-o",
		filepath.Join(tmp, "x.jsonl"),
	)
	if code != 3 || !strings.Contains(stderr, "no server took requests for 1s") {
		t.Errorf("no server: status %d, %s", code, stderr)
	}
}

// Two runs on one output: the second one is refused, the first one goes on.
func TestCaptionTwoRunsAtOnce(t *testing.T) {
	t.Parallel() // it runs in processes of its own
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "o.jsonl")
	shapes(t, dir, 30)
	addr, _, _ := serveProcess(t, "--pace", "1ms,25ms") // slow enough for the second to begin
	args := []string{dir, "--server", addr, "-j", "2", "--max-tokens", "8", "-o", out}
	first := startProcess(t, append([]string{"caption"}, args...)...)
	eventually(t, "a row is written", func() bool { return rowsIn(out) > 0 })
	if code, stderr := captionProcess(t, args...); code != 3 || !strings.Contains(stderr, "another run writes to it") {
		t.Errorf("second: status %d, %s", code, stderr)
	}
	if code := first.exit(t); code != 0 || len(sortedLines(t, out)) != 30 {
		t.Errorf("first: status %d, %s", code, first.stderr.String())
	}
}

// A full or read-only disk ends a run with whole rows only, which the next run adds to.
func TestCaptionDiskFullAndReadOnly(t *testing.T) {
	t.Parallel() // it runs in processes of its own
	mount := t.TempDir()
	if err := syscall.Mount("none", mount, "tmpfs", 0, "size=160k"); err != nil {
		t.Skipf("a small disk cannot be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(mount, syscall.MNT_DETACH) })
	dir, tmp := t.TempDir(), t.TempDir()
	shapes(t, dir, 200)
	addr, _, _ := serveProcess(t)
	args := []string{dir, "--server", addr, "--max-tokens", "16", "--progress", "none", "-o"}
	want, got := filepath.Join(tmp, "want.jsonl"), filepath.Join(mount, "got.jsonl")
	code, stderr := captionProcess(t, append(args, got)...)
	if code != 3 || !strings.Contains(stderr, "no space left on device") || !strings.Contains(stderr, got) {
		t.Errorf("full: status %d, %s", code, stderr)
	}
	if n := len(sortedLines(t, got)); n < 10 || n >= 200 {
		t.Errorf("full: %d rows", n)
	}
	if err := syscall.Mount("none", mount, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if code, stderr := captionProcess(t, append(args, got)...); code != 3 ||
		!strings.Contains(stderr, "read-only file system") {
		t.Errorf("read-only: status %d, %s", code, stderr)
	}
	if err := syscall.Mount("none", mount, "tmpfs", syscall.MS_REMOUNT, "size=10m"); err != nil {
		t.Fatal(err)
	}
	if code, stderr := captionProcess(t, append(args, got)...); code != 0 {
		t.Errorf("with room: status %d, %s", code, stderr)
	}
	if code, stderr := captionProcess(t, append(args, want)...); code != 0 {
		t.Errorf("undisturbed: status %d, %s", code, stderr)
	}
	sameOutput(t, got, want)
}

// Folders without rights are rows, not ends: seen as a user without the rights of root.
func TestCaptionFolderWithoutRights(t *testing.T) {
	t.Parallel() // it runs in processes of its own
	if os.Geteuid() != 0 {
		t.Skip("becomes another user, which only root can")
	}
	dir, err := os.MkdirTemp("/tmp", "mmserve-rights-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	shapes(t, dir, 2)
	closed := filepath.Join(dir, "closed")
	if err := errors.Join(os.Mkdir(closed, 0o700), os.Chmod(dir, 0o777),
		os.Chmod(filepath.Join(dir, "i00001.png"), 0o600)); err != nil {
		t.Fatal(err)
	}
	addr, _, _ := serveProcess(t)
	bin := filepath.Join(dir, "mmserve")
	b, err := os.ReadFile(os.Args[0])
	if err == nil {
		err = os.WriteFile(bin, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "o.jsonl")
	cmd := exec.Command(bin, "caption", dir, "--server", addr, "-o", out)
	cmd.Env = append(os.Environ(), asCommand+"=1", "HOME="+dir)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	text, _ := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != 1 ||
		strings.Count(strings.Join(sortedLines(t, out), "\n"), "PERMISSION_DENIED") != 2 ||
		len(sortedLines(t, out)) != 3 {
		t.Errorf("status %d, %s", code, text)
	}
}

// Memory does not grow with the number of images: from 1,000 rows on to 100,000 it stays within five percent.
func TestCaptionMemoryIsFlat(t *testing.T) {
	images := captioning(0, 100_000)
	if images == 0 {
		t.Skip("make test-captioning runs it")
	}
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "o.jsonl")
	shapes(t, dir, 1)
	one, err := os.ReadFile(filepath.Join(dir, "i00000.png"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range images {
		name := filepath.Join(dir, fmt.Sprintf("n%06d.png", i))
		// bytes after a PNG's end are ignored
		if err := os.WriteFile(name, fmt.Appendf(one[:len(one):len(one)], "%08d", i), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	addr, _, _ := serveProcess(t, "--pace", "0ms,0ms")
	p := startProcess(t, "caption", dir, "--server", addr, "--max-tokens", "1", "-o", out, "--progress", "none")
	var atStart, most float64
	for began := time.Now(); ; {
		select {
		case <-p.waited:
			if p.ProcessState.ExitCode() != 0 || rowsIn(out) != images+1 {
				t.Errorf("status %v, %d rows: %s", p.ProcessState, rowsIn(out), p.stderr.String())
			}
			t.Logf(
				"%d images in %v: resident %.1f MB after 1,000 rows, at most %.1f MB after",
				images,
				time.Since(began),
				atStart/1e3,
				most/1e3,
			)
			if most > 1.05*atStart {
				t.Errorf("memory grew by %.1f %%", 100*(most/atStart-1))
			}
			return
		case <-time.After(200 * time.Millisecond):
		}
		info, err := os.Stat(out)
		if err != nil || info.Size() < 1000*500 { // about 600 bytes a row
			continue
		}
		if rss := resident(p.Process.Pid); atStart == 0 {
			atStart = rss
		} else {
			most = max(most, rss)
		}
	}
}

// resident is the memory of a process in kB.
func resident(pid int) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	var kb float64
	_, _ = fmt.Sscan(rest, &kb)
	return kb
}

// A folder without images is said to have none: nothing would be told from everything going well.
func TestCaptionSaysThatNothingIsThere(t *testing.T) {
	c := exec.Command(os.Args[0], "caption", t.TempDir())
	c.Env = append(os.Environ(), asCommand+"=1")
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "there is no image") {
		t.Errorf("%v: %s", err, out)
	}
	cut := filepath.Join(t.TempDir(), "cut.png")
	if err := os.WriteFile(cut, sample(t, 0)[:1000], 0o600); err != nil {
		t.Fatal(err)
	}
	c = exec.Command(os.Args[0], "caption", cut)
	c.Env = append(os.Environ(), asCommand+"=1")
	out, err = c.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "cut.png: unusable image: png of 1000 bytes: truncated") {
		t.Errorf("%v: %s", err, out)
	}
}
