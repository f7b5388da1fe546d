package reload_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mmserve/mmserve/internal/reload"
)

// upper is what the value is made of: one word.
func upper(contents [][]byte) (string, error) {
	text := string(bytes.Join(contents, []byte("+")))
	if strings.Contains(text, "broken") {
		return "", errors.New("it is broken")
	}
	return strings.ToUpper(text), nil
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A volume of Kubernetes has its files behind two symbolic links, of which one is swapped. A broken file changes
// nothing and is logged once; when the old one comes back, the value is that of it again.
func TestFilesFollowSymlinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		swap := func(version, text string) {
			t.Helper()
			if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, version, "a"), text)
			if err := os.Symlink(version, filepath.Join(dir, "..new")); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(filepath.Join(dir, "..new"), filepath.Join(dir, "..data")); err != nil {
				t.Fatal(err)
			}
		}
		swap("1", "one")
		if err := os.Symlink(filepath.Join("..data", "a"), filepath.Join(dir, "a")); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "b"), "b")
		var log bytes.Buffer
		f, err := reload.Open("words", slog.New(slog.NewTextHandler(&log, nil)), upper,
			filepath.Join(dir, "a"), filepath.Join(dir, "b"))
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		go f.Run(ctx)
		pass := func() { time.Sleep(3 * reload.Interval); synctest.Wait() }
		for i, c := range []struct{ text, want string }{
			{"two", "TWO+B"}, {"broken", "TWO+B"}, {"two", "TWO+B"}, {"broken", "TWO+B"}, {"three", "THREE+B"},
		} {
			swap("v"+string(rune('a'+i)), c.text)
			pass()
			if got := f.Value(); got != c.want {
				t.Errorf("after %s the value is %s, want %s", c.text, got, c.want)
			}
		}
		if err := os.Remove(filepath.Join(dir, "b")); err != nil {
			t.Fatal(err)
		}
		pass()
		if got := f.Value(); got != "THREE+B" {
			t.Errorf("without a file the value is %s, want that of before", got)
		}
		write(t, filepath.Join(dir, "b"), "c")
		pass()
		if got := f.Value(); got != "THREE+C" {
			t.Errorf("the value is %s, want THREE+C", got)
		}
		told := log.String()
		pass()
		if more := log.String(); more != told {
			t.Errorf("files that stay as they are: %s", more[len(told):])
		}
		stop()
		synctest.Wait()
		if n := strings.Count(log.String(), "it is broken"); n != 2 {
			t.Errorf("the broken file is told of %d times, want once for each time it came:\n%s", n, log.String())
		}
	})
}

func TestOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	log := slog.New(slog.DiscardHandler)
	for name, set := range map[string]func(){
		"missing":  func() {},
		"broken":   func() { write(t, path, "broken") },
		"huge":     func() { write(t, path, strings.Repeat("x", 16<<20+1)) },
		"a pipe":   func() { _ = os.Remove(path); _ = syscall.Mkfifo(path, 0o600) },
		"a folder": func() { _ = os.Remove(path); _ = os.Mkdir(path, 0o700) },
	} {
		_ = os.Remove(path)
		set()
		if _, err := reload.Open("word", log, upper, path); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
