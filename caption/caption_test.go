package caption

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hashServer answers with the hash of the image and the prompt, so that each answer shows what was asked. trouble,
// unless nil, fails calls before they count.
type hashServer struct {
	mu      sync.Mutex
	asked   map[string]int
	trouble func(call int64) error
	delay   time.Duration
	down    atomic.Bool
	calls   atomic.Int64
	open    atomic.Int64
	most    atomic.Int64
}

func (s *hashServer) Healthy(context.Context) error {
	if s.down.Load() {
		return status.Error(codes.Unavailable, "connection refused")
	}
	return nil
}

func (s *hashServer) Generate(ctx context.Context, in *pb.GenerateRequest) (*pb.GenerateResponse, error) {
	n := s.calls.Add(1)
	s.most.Store(max(s.most.Load(), s.open.Add(1)))
	defer s.open.Add(-1)
	if err := s.Healthy(ctx); err != nil {
		return nil, err
	}
	if s.trouble != nil {
		if err := s.trouble(n); err != nil {
			return nil, err
		}
	}
	if sleep(ctx, s.delay) != nil {
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	parts := in.GetChat().GetMessages()[0].GetParts()
	sum := sha256.Sum256(append(slices.Clone(parts[0].GetImage().GetData()), parts[1].GetText()...))
	text := hex.EncodeToString(sum[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked == nil {
		s.asked = map[string]int{}
	}
	s.asked[text]++
	return &pb.GenerateResponse{
		Text: " " + text + "\n", Model: "hash", ModelDigest: "d1", Seed: in.GetSampling().GetSeed(),
		FinishReason: pb.FinishReason_FINISH_REASON_STOP,
		Usage:        &pb.Usage{PromptTokens: 10, ImageTokens: 4, CompletionTokens: 3},
	}, nil
}

func testConfig() Config {
	return Config{
		Model:       "hash",
		ModelDigest: "d1",
		Questions:   []Question{{DefaultQuestion, "what is it?"}},
		MaxTokens:   8,
		Detail:      "auto",
	}
}

// pngFile writes an image whose bytes depend on n alone.
func pngFile(t testing.TB, path string, n int) {
	t.Helper()
	m := image.NewNRGBA(image.Rect(0, 0, 4, 3))
	for i := range 12 {
		m.Set(i%4, i/4, color.NRGBA{uint8(n), uint8(n >> 8), uint8(i), 255})
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(png.Encode(f, m), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func imageFolder(t testing.TB, n int) string {
	t.Helper()
	dir := t.TempDir()
	for i := range n {
		pngFile(t, filepath.Join(dir, fmt.Sprintf("i%05d.png", i)), i)
	}
	return dir
}

// captionInto runs over a folder with an output at path.
func captionInto(ctx context.Context, t testing.TB, dir, path string, change func(*Options)) (*Stats, error) {
	t.Helper()
	j, err := OpenJournal(path, false)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Source: Folder(dir, Match{}), Config: testConfig(), Output: j, InFlight: 8, Patience: time.Minute}
	if change != nil {
		change(&o)
	}
	if o.Server == nil {
		o.Server = &hashServer{}
	}
	var stats Stats
	err = Run(ctx, o, &stats)
	if cerr := j.Close(); cerr != nil {
		t.Errorf("close: %v", cerr)
	}
	return &stats, err
}

// rowsOf reads an output, without what differs from run to run. A row that stands twice is an error.
func rowsOf(t testing.TB, path string) map[string]Row {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]Row{}
	for line := range strings.Lines(string(b)) {
		r, err := parseRow([]byte(line))
		if err != nil || !strings.HasSuffix(line, "\n") {
			t.Fatalf("%q: %v", line, err)
		}
		r.Seconds, r.Attempts = 0, 0
		id := r.path() + "\x00" + r.Question + "\x00" + r.Prompt
		if _, ok := rows[id]; ok {
			t.Errorf("two rows for %q", r.path())
		}
		rows[id] = *r
	}
	return rows
}

func sameRows(t testing.TB, got, want map[string]Row) {
	t.Helper()
	for id, w := range want {
		g, ok := got[id]
		gl, _ := g.line()
		wl, _ := w.line()
		if !ok || string(gl) != string(wl) {
			t.Errorf("row of %q:\n%s%s", w.path(), gl, wl)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d rows, want %d", len(got), len(want))
	}
}

func TestRunWritesARowForEachImage(t *testing.T) {
	dir := imageFolder(t, 20)
	pngFile(t, filepath.Join(dir, "z-copy.png"), 3)
	if err := os.WriteFile(filepath.Join(dir, "bad.jpg"), []byte("no image"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out.jsonl")
	s := &hashServer{}
	stats, err := captionInto(t.Context(), t, dir, out, func(o *Options) { o.Server = s })
	if err != nil {
		t.Fatal(err)
	}
	rows := rowsOf(t, out)
	if n := stats.Snapshot(); len(rows) != 22 || n.Written != 22 || n.Failed != 1 || n.Duplicates != 1 ||
		len(s.asked) != 20 {
		t.Errorf("%d rows, %+v, %d asked", len(rows), n, len(s.asked))
	}
	r := rows[filepath.Join(dir, "i00003.png")+"\x00caption\x00"]
	if r.Text == "" || r.Text != strings.TrimSpace(r.Text) || r.Width != 4 || r.Height != 3 || r.Format != "png" ||
		r.FinishReason != "stop" ||
		r.PromptTokens != 10 {
		t.Errorf("%+v", r)
	}
	if c := rows[filepath.Join(dir, "z-copy.png")+"\x00caption\x00"]; c.DuplicateOf != r.ID || c.Text != r.Text ||
		c.SHA256 != r.SHA256 {
		t.Errorf("copy %+v", c)
	}
	if b := rows[filepath.Join(dir, "bad.jpg")+"\x00caption\x00"]; b.ErrorCode != codeInvalid || b.Error == "" ||
		b.Text != "" {
		t.Errorf("bad %+v", b)
	}
	// The same again asks nothing and changes nothing.
	before, _ := os.ReadFile(out)
	stats, err = captionInto(t.Context(), t, dir, out, func(o *Options) { o.Server = s })
	after, _ := os.ReadFile(out)
	if n := stats.Snapshot(); err != nil || n.Written != 0 || n.Skipped != 22 || n.FailedBefore != 1 ||
		string(before) != string(after) ||
		s.calls.Load() != 20 {
		t.Errorf("again: %v, %+v, %d calls", err, n, s.calls.Load())
	}
}

// A run that is cut off anywhere and begun again gives what one that was not cut off gives, and asks nothing twice but
// what was in flight.
func TestResumeEqualsUndisturbed(t *testing.T) {
	dir := imageFolder(t, 300)
	for i := range 30 {
		pngFile(t, filepath.Join(dir, fmt.Sprintf("z%d.png", i)), i*7)
	}
	tmp := t.TempDir()
	want, got := filepath.Join(tmp, "want.jsonl"), filepath.Join(tmp, "got.jsonl")
	if _, err := captionInto(t.Context(), t, dir, want, nil); err != nil {
		t.Fatal(err)
	}
	s := &hashServer{delay: time.Millisecond}
	cuts := 0
	for done := false; !done; cuts++ {
		ctx, cancel := context.WithCancel(t.Context())
		n := int64(rand.IntN(60))
		_, err := captionInto(ctx, t, dir, got, func(o *Options) {
			o.Server = s
			o.Written = func(*Row, []byte) {
				if n--; n < 0 {
					cancel()
				}
			}
		})
		cancel()
		if done = err == nil; !done {
			tear(t, got)
		}
	}
	sameRows(t, rowsOf(t, got), rowsOf(t, want))
	again := 0
	for _, n := range s.asked {
		again += n - 1
	}
	if len(s.asked) != 300 || again > cuts*(8+1) {
		t.Errorf("%d asked, %d again in %d cuts", len(s.asked), again, cuts)
	}
	t.Logf("%d cuts, %d asked again", cuts, again)
}

// tear cuts a part of the last line off, as a crash of the machine does, or leaves zeros.
func tear(t *testing.T, path string) {
	info, err := os.Stat(path)
	if err != nil || info.Size() == 0 {
		return
	}
	switch rand.IntN(3) {
	case 0:
		err = os.Truncate(path, info.Size()-1-rand.Int64N(min(info.Size()-1, 100)))
	case 1:
		err = os.Truncate(path, info.Size()+4096)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func full(delay time.Duration) error {
	st, _ := status.New(codes.ResourceExhausted, "every slot is taken").
		WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(delay)})
	return st.Err()
}

func TestTransientErrorsCostNoItem(t *testing.T) {
	dir := imageFolder(t, 60)
	out := filepath.Join(t.TempDir(), "out.jsonl")
	s := &hashServer{trouble: func(n int64) error {
		switch n % 5 {
		case 0:
			return full(time.Millisecond)
		case 2:
			return status.Error(codes.Internal, "a step failed")
		}
		return nil
	}}
	stats, err := captionInto(
		t.Context(),
		t,
		dir,
		out,
		func(o *Options) { o.Server, o.InFlight, o.MostInFlight = s, 0, 8 },
	)
	if n := stats.Snapshot(); err != nil || n.Failed != 0 || n.Written != 60 || n.Refused == 0 || n.Retried == 0 {
		t.Errorf("%v, %+v", err, n)
	}
}

func TestErrorsByKind(t *testing.T) {
	for _, c := range []struct {
		err  error
		want verdict
	}{
		{full(0), tryLater},
		{status.Error(codes.ResourceExhausted, "message too large"), itemFailed},
		{status.Error(codes.InvalidArgument, ""), itemFailed},
		{status.Error(codes.Unavailable, ""), tryAgain},
		{status.Error(codes.Internal, ""), tryAgain},
		{status.Error(codes.DeadlineExceeded, ""), tryAgain},
		{errServerStopped, tryAgain},
		{status.Error(codes.Unauthenticated, ""), runFailed},
		{status.Error(codes.PermissionDenied, ""), runFailed},
	} {
		if got := judge(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}

// Items whose errors stay are rows, and what is asked again follows --retry.
func TestRetryModes(t *testing.T) {
	dir := imageFolder(t, 40)
	out := filepath.Join(t.TempDir(), "out.jsonl")
	var down atomic.Bool
	down.Store(true)
	s := &hashServer{trouble: func(n int64) error {
		if down.Load() && n%4 == 0 {
			return status.Error(codes.Internal, "a step failed")
		}
		if down.Load() && n%4 == 1 {
			return status.Error(codes.InvalidArgument, "chat: no")
		}
		return nil
	}}
	run := func(mode Retry) Snapshot {
		stats, err := captionInto(
			t.Context(),
			t,
			dir,
			out,
			func(o *Options) { o.Server, o.Retry, o.Attempts, o.InFlight = s, mode, 1, 1 },
		)
		if err != nil {
			t.Fatal(err)
		}
		return stats.Snapshot()
	}
	if n := run(RetryTransient); n.Failed != 20 {
		t.Errorf("%+v", n)
	}
	down.Store(false)
	if n := run(RetryNone); n.Written != 0 || n.FailedBefore != 20 {
		t.Errorf("none: %+v", n)
	}
	if n := run(RetryTransient); n.Written != 10 || n.Failed != 0 || n.FailedBefore != 10 {
		t.Errorf("transient: %+v", n)
	}
	if n := run(RetryAll); n.Written != 10 || n.Failed != 0 || n.FailedBefore != 0 {
		t.Errorf("all: %+v", n)
	}
	for _, r := range rowsOf(t, out) {
		if !r.OK() {
			t.Errorf("%+v", r)
		}
	}
}

func TestMaxErrorsGivesUp(t *testing.T) {
	dir := imageFolder(t, 50)
	s := &hashServer{trouble: func(int64) error { return status.Error(codes.InvalidArgument, "no") }}
	_, err := captionInto(
		t.Context(),
		t,
		dir,
		filepath.Join(t.TempDir(), "out.jsonl"),
		func(o *Options) { o.Server, o.MaxErrors = s, 7 },
	)
	if !errors.Is(err, ErrTooManyErrors) {
		t.Errorf("%v", err)
	}
}

func TestAnotherModelEndsTheRun(t *testing.T) {
	dir := imageFolder(t, 5)
	_, err := captionInto(
		t.Context(),
		t,
		dir,
		filepath.Join(t.TempDir(), "out.jsonl"),
		func(o *Options) { o.Config.ModelDigest = "d0" },
	)
	if !errors.Is(err, ErrOtherModel) {
		t.Errorf("%v", err)
	}
}

// Stop ends a run when what is in flight is answered: no call is wasted.
func TestStopKeepsWhatIsInFlight(t *testing.T) {
	dir := imageFolder(t, 200)
	out := filepath.Join(t.TempDir(), "out.jsonl")
	s, stop := &hashServer{delay: 5 * time.Millisecond}, make(chan struct{})
	n := 0
	_, err := captionInto(t.Context(), t, dir, out, func(o *Options) {
		o.Server, o.Stop = s, stop
		o.Written = func(*Row, []byte) {
			if n++; n == 20 {
				close(stop)
			}
		}
	})
	if rows := rowsOf(t, out); !errors.Is(err, ErrInterrupted) || len(rows) != len(s.asked) || len(rows) > 60 {
		t.Errorf("%v: %d rows of %d calls", err, len(rows), len(s.asked))
	}
}

func TestOutputHeldByAnotherRun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.jsonl")
	j, err := OpenJournal(path, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenJournal(path, false); !errors.Is(err, ErrLocked) {
		t.Errorf("%v, want ErrLocked", err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if j, err = OpenJournal(path, false); err != nil {
		t.Fatal(err)
	}
	j.Close()
}

func TestConfigHeld(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.run.json")
	c := testConfig()
	hold := func(c Config) error { return holdConfig(path, runFile{Format: runFormat, Config: c}, false) }
	if err := hold(c); err != nil {
		t.Fatal(err)
	}
	if err := hold(c); err != nil {
		t.Errorf("same: %v", err)
	}
	other := testConfig()
	other.MaxTokens, other.Questions[0].Text, other.Choices = 9, "a secret?", []string{"secret"}
	err := hold(other)
	var differ *ConfigError
	if !errors.As(err, &differ) ||
		!slices.Equal(differ.Differ, []string{"max_tokens was 8, now 9", "question caption", "choices"}) ||
		strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
	more := testConfig()
	more.Questions = append(more.Questions, Question{"color", "which color?"})
	if err := errors.Join(hold(more), hold(c)); err != nil {
		t.Errorf("one more question: %v", err)
	}
	changed := testConfig()
	changed.Questions = []Question{{"color", "what color?"}}
	if err := hold(changed); !errors.As(err, &differ) {
		t.Errorf("changed: %v", err)
	}
}

func TestIndexAgainstMap(t *testing.T) {
	x, err := newIndex(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer x.close()
	want := map[hash16]int64{}
	for i := range 30_000 {
		h := half(hashOf(fmt.Sprint(rand.IntN(20_000))))
		want[h] = int64(i)
		if err := x.put(h, int64(i)); err != nil {
			t.Fatal(err)
		}
	}
	for h, w := range want {
		if v, ok, err := x.get(h); v != w || !ok || err != nil {
			t.Fatalf("%x: %d %v %v, want %d", h, v, ok, err, w)
		}
	}
	for i := range 1000 {
		if _, ok, err := x.get(half(hashOf("none", fmt.Sprint(i)))); ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	if n := uint64(len(want)); x.used != n {
		t.Errorf("%d used, want %d", x.used, n)
	}
}

// Names come in order from folders of every size around what fits into memory.
func TestSortedNames(t *testing.T) {
	defer func(n int) { namesInMemory = n }(namesInMemory)
	namesInMemory = 64
	for _, n := range []int{0, 1, 63, 64, 65, 3*64 + 17} {
		dir := t.TempDir()
		want := map[string]bool{}
		for i := range n {
			name := fmt.Sprintf("%x", hashOf(fmt.Sprint(i)))
			want[name[:20]] = true
			if f, err := os.Create(filepath.Join(dir, name[:20])); err != nil || f.Close() != nil {
				t.Fatal(err)
			}
		}
		names, err := sortedNames(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for {
			name, _, err := names.next()
			if errors.Is(err, io.EOF) {
				break
			}
			got = append(got, name)
		}
		names.close()
		if !slices.Equal(got, slices.Sorted(maps.Keys(want))) {
			t.Errorf("%d names: %d, sorted %v", n, len(got), slices.IsSorted(got))
		}
	}
}
