package audit_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/mmserve/mmserve/internal/audit"
)

// tampered is a log, line by line, to be changed and held against its heads.
type tampered struct {
	t     testing.TB
	path  string
	files []string   // oldest first
	lines [][][]byte // of each file
}

func tamper(t testing.TB) *tampered {
	t.Helper()
	o := quiet(t, t.TempDir())
	o.MaxBytes, o.HeadLines = 3<<10, 5
	l := open(t, o)
	record(t, l, 12)
	closeLog(t, l)
	sound(t, o.Path)
	old, err := filepath.Glob(o.Path + ".0*")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(old)
	x := &tampered{t: t, path: o.Path, files: append(old, o.Path)}
	for _, name := range x.files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		lines := bytes.SplitAfter(text, []byte("\n"))
		x.lines = append(x.lines, lines[:len(lines)-1])
	}
	return x
}

// found fails unless Verify finds that a file has other lines, with the hashes they had or, as whoever has no key could
// write them, with new ones.
func (x *tampered) found(what string, file int, lines [][]byte) {
	x.t.Helper()
	for _, rehash := range []bool{false, true} {
		to := lines
		if rehash && len(lines) > 0 && bytes.Contains(lines[0], []byte(`"kind":"file"`)) && wellFormed(lines) {
			if to = audit.Rehash(lines); bytes.Equal(slices.Concat(to...), slices.Concat(x.lines[file]...)) {
				continue // the hash alone was edited
			}
		}
		x.write(file, to)
		if r := verify(x.t, x.path); len(r.Problems) == 0 {
			x.t.Errorf("%s in file %d is not found (new hashes: %v)", what, file, rehash)
		}
	}
	x.write(file, x.lines[file])
}

func wellFormed(lines [][]byte) bool {
	for _, l := range lines {
		if _, err := audit.ParseLine(l); err != nil || l[len(l)-1] != '\n' {
			return false
		}
	}
	return true
}

func (x *tampered) write(file int, lines [][]byte) {
	if err := os.WriteFile(x.files[file], slices.Concat(lines...), 0o600); err != nil {
		x.t.Fatal(err)
	}
}

// Every line that is edited, removed, put elsewhere, doubled or cut off is found, in whatever file.
func TestVerify(t *testing.T) {
	x := tamper(t)
	if len(x.files) < 3 {
		t.Fatalf("%d files only", len(x.files))
	}
	for f, lines := range x.lines {
		for i, line := range lines {
			for _, at := range []int{0, 8, len(line) / 2, len(line) - 20, len(line) - 1} {
				edited := slices.Clone(line)
				edited[at] ^= 1
				x.found("an edit", f, replaced(lines, i, edited))
			}
			x.found("an edit of a name", f, replaced(lines, i, bytes.Replace(line, []byte(`"time":"2`), []byte(`"time":"1`), 1)))
			x.found("a space", f, replaced(lines, i, bytes.Replace(line, []byte(`,"time"`), []byte(`, "time"`), 1)))
			x.found("a removal", f, slices.Concat(lines[:i], lines[i+1:]))
			x.found("a double", f, slices.Concat(lines[:i], lines[i:i+1], lines[i:]))
			x.found("a cut", f, lines[:i])
			if i+1 < len(lines) {
				x.found("an exchange", f, slices.Concat(lines[:i], lines[i+1:i+2], lines[i:i+1], lines[i+2:]))
			}
		}
		for i := range 5 {
			last := lines[len(lines)-1]
			x.found("half a line", f, replaced(lines, len(lines)-1, last[:len(last)*(i+1)/6]))
		}
	}
	for f, name := range x.files {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		if r := verify(t, x.path); len(r.Problems) == 0 {
			t.Errorf("the removal of file %d is not found", f)
		}
		x.write(f, x.lines[f])
	}
	sound(t, x.path)
}

func replaced(lines [][]byte, i int, line []byte) [][]byte {
	return slices.Concat(lines[:i], [][]byte{line}, lines[i+1:])
}

// Heads that are gone, edited or signed by another are found. A log and its heads that are both cut agree with each
// other, but not with a head that was kept elsewhere.
func TestVerifyHeads(t *testing.T) {
	x := tamper(t)
	whole := verify(t, x.path)
	heads, err := os.ReadFile(x.path + ".heads")
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(heads, []byte("\n"))
	lines = lines[:len(lines)-1]
	write := func(text []byte) {
		if err := os.WriteFile(x.path+".heads", text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i, line := range lines {
		for at := range line {
			edited := slices.Clone(line)
			edited[at] ^= 2
			write(slices.Concat(replaced(lines, i, edited)...))
			if r := verify(t, x.path); len(r.Problems) == 0 {
				t.Fatalf("byte %d of head %d: an edit is not found: %s", at, i, edited)
			}
		}
	}
	write(nil)
	if r := verify(t, x.path); len(r.Problems) == 0 {
		t.Error("no heads are as good as some")
	}
	other := tamper(t)
	foreign, err := os.ReadFile(other.path + ".heads")
	if err != nil {
		t.Fatal(err)
	}
	write(foreign)
	if r := verify(t, x.path); len(r.Problems) == 0 {
		t.Error("heads of another log count")
	}

	write(lines[0])
	for i := range x.files[1:] {
		if err := os.Remove(x.files[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(x.path, slices.Concat(x.lines[0]...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(x.files[0]); err != nil {
		t.Fatal(err)
	}
	sound(t, x.path) // nothing here says that there was more
	kept := &audit.Head{Seq: whole.Last, Hash: whole.Hash}
	if r, err := audit.Verify(x.path, audit.VerifyOptions{Expect: kept}); err != nil || len(r.Problems) == 0 {
		t.Errorf("a log that is cut with its heads agrees with a head kept elsewhere: %v", err)
	}
	if r, err := audit.Verify(x.path, audit.VerifyOptions{KeyID: "0000000000000000"}); err != nil || len(r.Problems) == 0 {
		t.Errorf("a log of another key than the one that counts is sound: %v", err)
	}
}

// EachOf ends with its context, and with the first line that is not taken.
func TestEachOfEnds(t *testing.T) {
	o := quiet(t, t.TempDir())
	l := open(t, o)
	defer closeLog(t, l)
	for range 100 {
		if err := l.RecordSync(&audit.Event{Kind: audit.KindSubject, Subject: "p"}); err != nil {
			t.Fatal(err)
		}
	}
	full, lines := errors.New("full"), 0
	err := l.EachOf(t.Context(), "p", func([]byte) error { lines++; return full })
	if !errors.Is(err, full) || lines != 1 {
		t.Errorf("%d lines, %v", lines, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	lines = 0
	err = l.EachOf(ctx, "p", func([]byte) error { lines++; cancel(); return nil })
	if !errors.Is(err, context.Canceled) || lines != 1 {
		t.Errorf("%d lines, %v", lines, err)
	}
	// Where no line is about the person, the log is not read through either.
	if err = l.EachOf(ctx, "q", func([]byte) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	lines = 0
	if err = l.EachOf(t.Context(), "p", func([]byte) error { lines++; return nil }); err != nil || lines != 100 {
		t.Errorf("%d lines, %v", lines, err)
	}
}

// FuzzVerify holds that nothing that stands in a log's files ends the program, and that no other log is sound.
func FuzzVerify(f *testing.F) {
	x := tamper(f)
	newest := slices.Concat(x.lines[len(x.lines)-1]...)
	f.Add(newest)
	f.Add(newest[:len(newest)/2])
	f.Add([]byte("{\"seq\":1,\"hash\":\"\"}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(x.path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := audit.Verify(x.path, audit.VerifyOptions{})
		if err == nil && len(r.Problems) == 0 && !bytes.Equal(text, newest) {
			t.Errorf("another log is sound: %q", text)
		}
		_, _ = audit.ParseLine(text)
	})
}

// BenchmarkVerify is of 100,000 lines.
func BenchmarkVerify(b *testing.B) {
	o := quiet(b, b.TempDir())
	l := open(b, o)
	record(b, l, 100_000)
	closeLog(b, l)
	st, err := os.Stat(o.Path)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(st.Size())
	for b.Loop() {
		sound(b, o.Path)
	}
}

// BenchmarkRecord is what a request's line costs it.
func BenchmarkRecord(b *testing.B) {
	l := open(b, quiet(b, b.TempDir()))
	defer closeLog(b, l)
	e := event(1)
	for b.Loop() {
		if err := l.Record(e); err != nil {
			b.Fatal(err)
		}
	}
}
