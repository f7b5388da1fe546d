package lineedit

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// keys writes events: typed text as it is, the others in brackets.
func keys(list []event) string {
	var b strings.Builder
	for _, e := range list {
		switch e.kind {
		case typed:
			b.Write(e.data)
		case pasted:
			fmt.Fprintf(&b, "<paste %s>", e.data)
		case newline:
			b.WriteString("<newline>")
		case interrupt:
			b.WriteString("<interrupt>")
		case editor:
			b.WriteString("<editor>")
		case suspend:
			b.WriteString("<suspend>")
		}
	}
	return b.String()
}

// What a terminal sends is understood the same however it is parted.
func TestDecoder(t *testing.T) {
	for in, want := range map[string]string{
		"hello\r":                              "hello\r",
		"a\x03b\x07c\x1ad":                     "a<interrupt>b<editor>c<suspend>d",
		"\x1b[A\x1b[1;5Cx":                     "\x1b[A\x1b[1;5Cx",
		"\x1b\rx":                              "<newline>x",
		"\x1bf\x1bb":                           "\x1bf\x1bb",
		"x\x1b[200~a\rb\x03\x1b[31m\x1b[201~y": "x<paste a\rb\x03\x1b[31m>y",
		"\x1b[200~\x1b[200~\x1b[20\x1b[201~":   "<paste \x1b[200~\x1b[20>",
		"\x1b[201~":                            "\x1b[201~",
		"ü你\x1b[200~👍\x1b[201~":                "ü你<paste 👍>",
	} {
		for size := 1; size <= len(in); size++ {
			var d decoder
			var list []event
			for at := 0; at < len(in); at += size {
				list = append(list, d.feed([]byte(in[at:min(at+size, len(in))]))...)
			}
			if got := keys(list); got != want {
				t.Errorf("%q by %d: %q, want %q", in, size, got, want)
				break
			}
		}
	}
}

// A paste without end takes no memory beyond its bound.
func TestDecoderPasteIsBounded(t *testing.T) {
	var d decoder
	d.feed([]byte("\x1b[200~"))
	block := bytes.Repeat([]byte("x"), 1<<20)
	for range 20 {
		d.feed(block)
	}
	list := d.feed([]byte("\x1b[201~"))
	if len(list) != 1 || len(list[0].data) != maxPaste {
		t.Errorf("%d events, %d bytes", len(list), len(list[0].data))
	}
}

func FuzzDecoder(f *testing.F) {
	f.Add([]byte("a\x1b[200~b\x1b[201~\x03"), 2)
	f.Add([]byte("\x1b\x1b\r\x1b"), 1)
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		size = 1 + max(size, -(size+1))%64
		var whole, parted decoder
		a := keys(whole.feed(bytes.Clone(in)))
		var list []event
		for at := 0; at < len(in); at += size {
			list = append(list, parted.feed(bytes.Clone(in[at:min(at+size, len(in))]))...)
		}
		if b := keys(list); a != b {
			t.Errorf("%q by %d: %q and %q", in, size, a, b)
		}
	})
}

func TestFolds(t *testing.T) {
	f := folds{}
	short := "one\ntwo"
	if got := string(paint([]rune(f.fold(short)), 0)); got != "one↵two" || f.unfold(f.fold(short)) != short {
		t.Errorf("%q", got)
	}
	long := strings.Repeat("line\n", 10_000)
	wide := strings.Repeat("w", 5000)
	line := "before " + f.fold(long) + " between " + f.fold(wide)
	if line != "before [paste 1: 10001 lines] between [paste 2: 5000 characters]" {
		t.Errorf("%q", line)
	}
	if f.unfold(line) != "before "+long+" between "+wide {
		t.Error("it is not what was pasted")
	}
	if got := f.unfold("[paste 9: 3 lines]"); got != "[paste 9: 3 lines]" {
		t.Errorf("%q", got)
	}
	if got := plainText([]byte("a\r\nb\rc\x1b[31m\xff" + string(returnMark))); got != "a\nb\nc␛[31m\uFFFD\uFFFD" {
		t.Errorf("%q", got)
	}
}

func TestHistory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "history")
	h, err := OpenHistory(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"one", "two\nlines", "two\nlines", "", "\xff", strings.Repeat("x", maxEntryBytes+1)} {
		if err := h.Add(text); err != nil {
			t.Fatal(err)
		}
	}
	if h, err = OpenHistory(path); err != nil || strings.Join(h.entries, "|") != "one|two\nlines|\uFFFD" {
		t.Errorf("%q %v", h.entries, err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	for i := range 2*maxEntries + 1 {
		if err := h.Add(fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	h, err = OpenHistory(path)
	if err != nil || len(h.entries) != maxEntries || h.entries[maxEntries-1] != fmt.Sprint(2*maxEntries) {
		t.Errorf("%d entries, %v", len(h.entries), err)
	}
	data, err := os.ReadFile(path)
	if err != nil || bytes.Count(data, []byte("\n")) != maxEntries {
		t.Errorf("%d lines, %v", bytes.Count(data, []byte("\n")), err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	if err := os.WriteFile(path, []byte("garbage\n\"ok\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if h, err = OpenHistory(path); err != nil || len(h.entries) != 1 {
		t.Errorf("%q %v", h.entries, err)
	}
	if _, err = OpenHistory(t.TempDir()); err == nil {
		t.Error("a folder is no history")
	}
	if err := new(History).Add("x"); err != nil {
		t.Error(err)
	}
}
