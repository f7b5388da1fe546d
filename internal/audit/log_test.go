package audit_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mmserve/mmserve/internal/audit"
)

// quiet are options of a log in dir.
func quiet(t testing.TB, dir string) audit.Options {
	t.Helper()
	keys, err := audit.OpenKeys(filepath.Join(dir, "audit.key"))
	if err != nil {
		t.Fatal(err)
	}
	return audit.Options{Path: filepath.Join(dir, "audit.jsonl"), Keys: keys, Logger: slog.New(slog.DiscardHandler)}
}

func open(t testing.TB, o audit.Options) *audit.Log {
	t.Helper()
	l, err := audit.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// event is one of those that a server writes most.
func event(i int) *audit.Event {
	return &audit.Event{
		Kind: audit.KindRequest, Action: "chat", Decision: "OK", ID: fmt.Sprint("request-", i), Tenant: "acme",
		Credential: "web-1", Generation: &audit.Generation{
			Model: "tiny", ModelDigest: strings.Repeat("ab", 32), Fingerprint: "fp_0123456789abcdef", Seed: uint64(i) << 40,
			Request: strings.Repeat("cd", 32), Input: strings.Repeat("ef", 32), PromptTokens: 120,
			Answers: []audit.Answer{{Finish: "stop", Tokens: 20, Digest: strings.Repeat("01", 32)}},
		},
	}
}

func record(t testing.TB, l *audit.Log, n int) {
	t.Helper()
	for i := range n {
		if err := l.Record(event(i)); err != nil {
			t.Fatal(err)
		}
	}
}

func closeLog(t testing.TB, l *audit.Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func verify(t testing.TB, path string) *audit.Report {
	t.Helper()
	r, err := audit.Verify(path, audit.VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// sound fails unless nothing is wrong with a log.
func sound(t testing.TB, path string) *audit.Report {
	t.Helper()
	r := verify(t, path)
	if len(r.Problems) > 0 {
		t.Fatalf("problems: %v", r.Problems)
	}
	return r
}

// A log that is opened again goes on, over several files.
func TestLog(t *testing.T) {
	o := quiet(t, t.TempDir())
	o.MaxBytes = 10 << 10
	for range 3 {
		l := open(t, o)
		record(t, l, 50)
		closeLog(t, l)
	}
	r := sound(t, o.Path)
	// 150 events; each open has a start and a stop, each file a first line.
	if want := uint64(150 + 2*3 + r.Files); r.Lines != want || r.Last != want || r.Signed != want || r.Files < 5 {
		t.Errorf("report %+v, want %d lines", r, want)
	}
	line, err := audit.FindLine(o.Path, "request-7")
	if err != nil || line.Generation.Seed != 7<<40 {
		t.Errorf("line of request-7: %+v, %v", line, err)
	}
	if _, err := audit.FindLine(o.Path, "request-"); err == nil {
		t.Error("a part of an id was found")
	}
	for _, name := range []string{o.Path, o.Path + ".heads", filepath.Join(filepath.Dir(o.Path), "audit.key")} {
		if st, err := os.Stat(name); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want 0600", name, st.Mode(), err)
		}
	}
}

func TestLogOfAnotherProcess(t *testing.T) {
	o := quiet(t, t.TempDir())
	l := open(t, o)
	defer closeLog(t, l)
	if _, err := audit.Open(o); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second log: %v", err)
	}
}

// Events of many goroutines, some of them synced, with heads and new files amid them.
func TestLogConcurrently(t *testing.T) {
	o := quiet(t, t.TempDir())
	o.MaxBytes, o.HeadLines = 20<<10, 10
	l := open(t, o)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 50 {
				write := l.Record
				if i%10 == 0 {
					write = l.RecordSync
				}
				if err := write(event(g*100 + i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	closeLog(t, l)
	if r := sound(t, o.Path); r.Lines != uint64(400+2+r.Files) {
		t.Errorf("report %+v", r)
	}
}

// A head is signed a while after the last line, without a new one.
func TestHeadInTime(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		o := quiet(t, dir)
		l := open(t, o)
		record(t, l, 5)
		before := verify(t, o.Path)
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		after := sound(t, o.Path)
		if before.Signed != 2 || after.Signed != 7 || after.Last != 7 {
			t.Errorf("signed through %d, then %d of %d", before.Signed, after.Signed, after.Last)
		}
		closeLog(t, l)
	})
}

// What a killed process left of a line is cut off and said, at whatever byte it was.
func TestTornLine(t *testing.T) {
	o := quiet(t, t.TempDir())
	l := open(t, o)
	closeLog(t, l)
	whole, err := os.ReadFile(o.Path)
	if err != nil {
		t.Fatal(err)
	}
	last := whole[bytes.LastIndexByte(whole[:len(whole)-1], '\n')+1:]
	for cut := 1; cut < len(last); cut += 43 {
		dir := t.TempDir()
		to := quiet(t, dir)
		l := open(t, to)
		record(t, l, 3)
		closeLog(t, l)
		f, err := os.OpenFile(to.Path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.Write(last[:cut])
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		if r := verify(t, to.Path); r.Torn != int64(cut) || len(r.Problems) != 1 {
			t.Errorf("%d bytes of a line: %+v", cut, r)
		}
		closeLog(t, open(t, to))
		sound(t, to.Path)
		text, err := os.ReadFile(to.Path)
		if want := fmt.Sprintf(`"kind":"repair","details":{"bytes":%d}`, cut); err != nil || !strings.Contains(string(text), want) {
			t.Errorf("the log does not say %s: %v", want, err)
		}
	}
}

// A log whose end is gone is not gone on with.
func TestOpenRefusesWhatWasCut(t *testing.T) {
	o := quiet(t, t.TempDir())
	l := open(t, o)
	record(t, l, 3)
	closeLog(t, l)
	whole, err := os.ReadFile(o.Path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(whole, []byte("\n"))
	for name, text := range map[string][]byte{
		"the last line": slices.Concat(lines[:len(lines)-2]...), "all": nil, "rubbish": []byte("rubbish\n"),
	} {
		if err := os.WriteFile(o.Path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if l, err := audit.Open(o); err == nil {
			closeLog(t, l)
			t.Errorf("%s: a log that was cut is gone on with", name)
		}
	}
}

// full is a file on a disk with room for some bytes.
type full struct {
	audit.Output
	room *int
}

var errFull = syscall.ENOSPC

func (f full) Write(p []byte) (int, error) {
	n := min(len(p), *f.room)
	*f.room -= n
	n, err := f.Output.Write(p[:n])
	if err == nil && n < len(p) {
		err = errFull
	}
	return n, err
}

// A full disk leaves no torn line, and what was lost is said once there is room again.
func TestDiskFull(t *testing.T) {
	o := quiet(t, t.TempDir())
	l := open(t, o)
	room := 1000
	l.Break(func(f audit.Output) audit.Output { return full{f, &room} })
	failed := 0
	for i := range 10 {
		if err := l.Record(event(i)); err != nil {
			failed++
			if !errors.Is(err, audit.ErrNotWritten) || !errors.Is(err, errFull) {
				t.Errorf("error %v", err)
			}
		}
		room = min(room, 100) // never enough for another
	}
	if failed < 8 || l.Lost() != uint64(failed) {
		t.Errorf("%d events failed, %d are said to be lost", failed, l.Lost())
	}
	sound(t, o.Path)
	room = 1 << 20
	record(t, l, 2)
	closeLog(t, l)
	if r := sound(t, o.Path); r.Lost != uint64(failed) {
		t.Errorf("the log says that %d were lost, want %d", r.Lost, failed)
	}
}

// The same with the system's own limit, which a write meets amid a line.
func TestFileSizeLimit(t *testing.T) {
	dir := t.TempDir()
	out := child(t, "limit", dir)
	if text, err := out.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if r := sound(t, filepath.Join(dir, "audit.jsonl")); r.Lost == 0 {
		t.Errorf("nothing was lost: %+v", r)
	}
}

// A process that is killed amid its writing loses no event that Record has returned of.
func TestKilled(t *testing.T) {
	for range 5 {
		dir := t.TempDir()
		cmd := child(t, "write", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		written := 0
		for lines := bufio.NewScanner(out); lines.Scan(); {
			written, err = strconv.Atoi(lines.Text())
			if err != nil {
				t.Fatalf("child says %q", lines.Text())
			}
			if written == 200 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait()
		o := quiet(t, dir)
		closeLog(t, open(t, o))
		if r := sound(t, o.Path); written < 200 || r.Lines < uint64(written) {
			t.Errorf("%d events were acknowledged, the log has %d lines", written, r.Lines)
		}
	}
}

// child runs this test binary as another process.
func child(t *testing.T, what, dir string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run", "^$")
	cmd.Env = append(os.Environ(), "AUDIT_CHILD="+what, "AUDIT_DIR="+dir)
	return cmd
}

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv("AUDIT_CHILD") {
	case "":
		os.Exit(m.Run())
	case "write":
		err = writeForever(os.Getenv("AUDIT_DIR"))
	case "limit":
		err = writeBeyondLimit(os.Getenv("AUDIT_DIR"))
	}
	fmt.Fprintln(os.Stderr, err)
	if err != nil {
		os.Exit(1)
	}
}

func childLog(dir string) (*audit.Log, error) {
	keys, err := audit.OpenKeys(filepath.Join(dir, "audit.key"))
	if err != nil {
		return nil, err
	}
	return audit.Open(audit.Options{
		Path: filepath.Join(dir, "audit.jsonl"), Keys: keys, Logger: slog.New(slog.DiscardHandler), HeadLines: 50,
		MaxBytes: 100 << 10,
	})
}

func writeForever(dir string) error {
	l, err := childLog(dir)
	if err != nil {
		return err
	}
	for i := 1; ; i++ {
		if err := l.Record(event(i)); err != nil {
			return err
		}
		if _, err := fmt.Println(i); err != nil {
			return err
		}
	}
}

func writeBeyondLimit(dir string) error {
	signal.Ignore(syscall.SIGXFSZ)
	l, err := childLog(dir)
	if err != nil {
		return err
	}
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		return err
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 10 << 10, Max: before.Max}); err != nil {
		return err
	}
	failed := 0
	for i := range 50 {
		if l.Record(event(i)) != nil {
			failed++
		}
	}
	if failed == 0 {
		return errors.New("the limit was not met")
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		return err
	}
	return l.Close()
}

// Files whose time is over go, each with a line that says so.
func TestExpiry(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		o := quiet(t, dir)
		o.MaxBytes, o.Keep = 10<<10, 24*time.Hour
		l := open(t, o)
		record(t, l, 60)
		full := sound(t, o.Path)
		time.Sleep(25 * time.Hour)
		record(t, l, 60)
		closeLog(t, l)
		r := sound(t, o.Path)
		if full.First != 1 || r.First < 30 || r.Files < 3 {
			t.Errorf("from line %d in %d files, then from %d in %d", full.First, full.Files, r.First, r.Files)
		}
		old, err := filepath.Glob(o.Path + ".0*")
		if err != nil || len(old) == 0 {
			t.Fatal(old, err)
		}
		if err := os.Remove(old[0]); err != nil {
			t.Fatal(err)
		}
		if r := verify(t, o.Path); len(r.Problems) == 0 {
			t.Error("a file that was removed too early is not found")
		}
	})
}

func TestKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	a, err := audit.OpenKeys(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := audit.OpenKeys(path)
	if err != nil || a.ID() != b.ID() {
		t.Fatalf("another key, %v", err)
	}
	text := []byte("text")
	s := a.Sign("receipt", text)
	if !audit.CheckSignature(b.Public(), "receipt", text, s) || audit.CheckSignature(b.Public(), "head", text, s) {
		t.Error("a signature counts for another purpose, or not for its own")
	}
	digest := func(id string) string {
		h := a.Digest(id)
		h.Write(text)
		return fmt.Sprintf("%x", h.Sum(nil))
	}
	if one, again := digest("1"), digest("1"); one == digest("2") || one != again {
		t.Error("digests are not salted by the request")
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := audit.OpenKeys(path); err == nil || !strings.Contains(err.Error(), "0600") {
		t.Errorf("a key that others may read: %v", err)
	}
	if err := os.WriteFile(path, []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := audit.OpenKeys(path); err == nil {
		t.Error("a file without a key was read")
	}
}
