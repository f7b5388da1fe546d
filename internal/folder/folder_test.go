package folder

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
)

func TestDir(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "a.txt"), []byte("a"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "sub", "b.txt"), []byte("b"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := fstest.TestFS(Dir(root), "a.txt", "sub/b.txt"); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"../x", "/etc/passwd", ""} {
		if _, err := Dir(root).Open(name); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// Open takes links to files, and nothing that is no file; it does not wait.
func TestOpen(t *testing.T) {
	root := t.TempDir()
	file := filepath.Join(root, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, make := range map[string]func(path string) error{
		"link":   func(path string) error { return os.Symlink(file, path) },
		"pipe":   func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"folder": func(path string) error { return os.Mkdir(path, 0o700) },
		"device": func(path string) error { return os.Symlink("/dev/zero", path) },
		"socket": func(path string) error {
			l, err := net.Listen("unix", path)
			if err == nil {
				t.Cleanup(func() { l.Close() })
			}
			return err
		},
	} {
		path := filepath.Join(root, name)
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		f, err := Open(path)
		if (err == nil) != (name == "link") {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			f.Close()
		}
	}
}

func TestRead(t *testing.T) {
	files := fstest.MapFS{
		"large.jinja": {Data: make([]byte, maxText+1)},
		"lfs.json":    {Data: []byte("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")},
		"page.json":   {Data: []byte("\n<!doctype HTML><p>")},
		"entry.json":  {Data: []byte("Entry not found")},
		"good.json":   {Data: []byte("{}")},
	}
	for name, want := range map[string]string{
		"large.jinja": "more than the 16777216 bytes", "lfs.json": "Git LFS pointer", "page.json": "web page",
		"entry.json": "entry not found",
		"none.json":  "not exist", "good.json": "",
	} {
		_, err := Read(files, name)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	if _, err := Read(files, "lfs.json"); !errors.Is(err, ErrLFS) {
		t.Errorf("%v is not ErrLFS", err)
	}
}

// Keys hold to the letter, of equal ones the last, and numbers keep their digits.
func TestJSON(t *testing.T) {
	for in, want := range map[string]string{
		`{"a": 1, "A": 2}`:                    `{"a":1}`,
		`{"a": 1, "a": 12345678901234567890}`: `{"a":12345678901234567890}`,
		`{"ſize": 1, "b": [{"Size": 2}]}`:     `{"b":[{}]}`,
		`{"auto_map": {"AutoModel": "x"}}`:    `{"auto_map":{"AutoModel":"x"}}`,
		`{"t": "<|im_start|> \"[[[\" {{"}`:    `{"t":"<|im_start|> \"[[[\" {{"}`,
		`{"a": Infinity}`:                     "error: line 1 has the number Infinity",
		`{"a": -Infinity}`:                    "error: line 1 has the number",
		"{\n\n\"a\": NaN}":                    "error: line 3 has the number NaN",
		"{\n\"a\" 1}":                         "error: line 2: ",
		`{} {}`:                               "error: something follows",
		`[]`:                                  "error: want a JSON object",
		` `:                                   "error: the file is empty",
		strings.Repeat(`{"a":`, 65):           "error: nest more than 64",
		strings.Repeat(`{"a":`, 64) + `1` + strings.Repeat("}", 64): strings.Repeat(`{"a":`, 64) + `1` +
			strings.Repeat("}", 64),
	} {
		got, err := JSON(fstest.MapFS{"x.json": {Data: []byte(in)}}, "x.json")
		if message, refused := strings.CutPrefix(want, "error: "); refused {
			if err == nil || !strings.Contains(err.Error(), message) {
				t.Errorf("%.40s: %v, want %q", in, err, message)
			}
			continue
		}
		if err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%.40s: %s %v, want %s", in, got, err, want)
		}
	}
}

func FuzzJSON(f *testing.F) {
	f.Add([]byte(`{"a": [1, {"B": NaN}], "c": "\"}"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if once, err := exactKeys(raw); err == nil {
			if twice, err := exactKeys(once); err != nil || string(twice) != string(once) {
				t.Errorf("%s gives %s %v", once, twice, err)
			}
		}
	})
}
