package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"github.com/mmserve/mmserve/internal/racetest"
	"github.com/mmserve/mmserve/internal/socket/sockettest"
)

func writeConfig(t testing.TB, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "mmserve.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// The command line goes before variables, those before the file, and that before defaults.
func TestConfigPrecedence(t *testing.T) {
	t.Setenv("MMSERVE_MAX_IMAGES", "3")
	t.Setenv("MMSERVE_GRACE", "3s")
	t.Setenv("MMSERVE_LOG_LEVEL", "error")
	file := writeConfig(t, `
log-level: debug
log-format: json
max-images: 2
grace: 2s
slots: 2 # a comment
drain-delay: 2s
prefix-cache: false
share-prefixes: yes
kv-cache-bytes: 2GiB
prefill-share: 0.25
model: [a=/models/a, "/models/b"]
tenant-weight: {alice: 4, "b:ob": 0.5}
admin-address: ""
`)
	t.Setenv("MMSERVE_CONFIG", file)
	code, out, errs := mmserve(t, "serve", "--grace", "4s", "--slots=4", "--print-config")
	if code != 0 {
		t.Fatalf("status %d: %s", code, errs)
	}
	for _, want := range []string{
		"log-level: error", "log-format: json", "max-images: 3", "grace: 4s", "slots: 4", "drain-delay: 2s",
		"prefix-cache: false", "share-prefixes: true", "kv-cache-bytes: 2147483648", "prefill-share: 0.25",
		"model:\n  - a=/models/a\n  - /models/b", "tenant-weight:\n  alice: 4\n  b:ob: 0.5", `admin-address: ""`,
		"max-waiting: 64",
	} {
		if !strings.Contains("\n"+out, "\n"+want+"\n") {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	// What is printed is a file that means the same.
	for _, name := range []string{"MMSERVE_CONFIG", "MMSERVE_MAX_IMAGES", "MMSERVE_GRACE", "MMSERVE_LOG_LEVEL"} {
		if err := os.Unsetenv(name); err != nil { // t.Setenv restores it
			t.Fatal(err)
		}
	}
	if code, again, errs := mmserve(t, "serve", "--config", writeConfig(t, out), "--print-config"); code != 0 ||
		again != out {
		t.Errorf("status %d, %s\n%s\nwant\n%s", code, errs, again, out)
	}
}

// What a file cannot mean is refused by name and line.
func TestConfigRefuses(t *testing.T) {
	bomb := "a: &a [x, x]\nb: &b [*a, *a]\nmodel: *b\n"
	for i, c := range []struct{ name, text, want string }{
		{"unknown key", "grace: 1s\nmax_images: 3\n", `line 2: no flag is called "max_images"; the nearest is "max-images"`},
		{"another command's flag", "rate: 3\n", `no flag is called "rate"`},
		{"negation", "no-prefix-cache: true\n", `the nearest is "prefix-cache"`},
		{"the file itself", "config: x\n", `"config" belongs on the command line`},
		{"twice", "slots: 1\ngrace: 1s\nslots: 2\n", `line 3: "slots" is set in line 1 already`},
		{"tenant twice", "tenant-weight:\n  a: 1\n  a: 2\n", `line 3: "a" is set in line 2 already`},
		{"bomb", bomb, "line 1: anchors and aliases are not taken"},
		{"alias alone", "slots: *a\n", "unknown anchor"},
		{"merge", "<<: {slots: 1}\n", `no flag is called "<<"`},
		{"type", "slots: !!binary aGVsbG8=\n", "line 1: types such as"},
		{"own type", "model: !x [a]\n", "line 1: types such as"},
		{"missing", "slots:\n", "line 1: a value is missing"},
		{"null", "slots: ~\n", "line 1: a value is missing"},
		{"empty", "listen: ''\n", "line 1: listen: it is empty"},
		{"list for one", "slots: [1, 2]\n", "line 1: slots: want one value, not a list"},
		{"map for one", "slots: {a: 1}\n", "line 1: slots: want one value, not a map"},
		{"map for a list", "model: {a: b}\n", "line 1: model: want one value, not a map"},
		{"too deep", "tenant-weight: {a: {b: [c]}}\n", "lists and maps hold single values only"},
		{"deep", strings.Repeat("[", 200_000), "mmserve: --config"},
		{"no map", "- slots\n", "line 1: want the names of flags"},
		{"a word", "slots\n", "line 1: want the names of flags"},
		{"two documents", "slots: 1\n---\nslots: 2\n", "more than one document"},
		{"large", "# " + strings.Repeat("x", maxConfigBytes), "want at most 1048576 bytes"},
		{"no number", "grace: 1s\nslots: many\n", "; --slots is from "},
		{"out of range", "slots: 100000\n", "--slots 100000: want 1"},
		{"out of range, where", "\nslots: 100000\n", "mmserve.yaml line 2\n"},
		{"no duration", "grace: 30\n", "mmserve.yaml line 1\n"},
		{"no choice", "slots: 2\nlog-level: loud\n", "mmserve.yaml line 2\n"},
		{"no file", "quotas: /nowhere/q\nlog-format: text\nslots: 0\n", "mmserve.yaml line 3\n"},
		{"no weight", "tenant-weight: {a: heavy}\n", "tenant-weight"},
		{"control characters", "slots: \"\\x00\"\n", "--slots"},
		{"no text", "\xff\xfe\x00", "mmserve: --config"},
	} {
		t.Run(c.name, func(t *testing.T) {
			racetest.Sample(t, i)
			code, out, errs := mmserve(t, "serve", "--config", writeConfig(t, c.text), "--print-config")
			if code == 0 || out != "" || !strings.Contains(errs, c.want) || len(errs) > 4096 {
				t.Errorf("status %d, %.200s%.1000s; want %q", code, out, errs, c.want)
			}
		})
	}
	for name, want := range map[string]string{
		filepath.Join(t.TempDir(), "none"): "no such file", t.TempDir(): "not a regular file",
		os.DevNull: "not a regular file",
	} {
		if code, _, errs := mmserve(t, "serve", "--config", name, "--print-config"); code == 0 ||
			!strings.Contains(errs, want) {
			t.Errorf("%s: status %d, %s; want %q", name, code, errs, want)
		}
	}
	// What the command line says is not the file's.
	if _, _, errs := mmserve(t, "serve", "--config", writeConfig(t, "slots: 2\n"),
		"--slots=100000"); strings.Contains(errs, "line 1") {
		t.Error(errs)
	}
	if code, _, errs := mmserve(t, "serve", "--config", writeConfig(t, ""), "--print-config"); code != 0 {
		t.Errorf("an empty file: status %d, %s", code, errs)
	}
}

// A secret is neither printed nor told of but by name.
func TestPrintConfigLeavesSecretsOut(t *testing.T) {
	var c struct {
		Password     string `secret:""`
		PasswordFile string
		Other        string `secret:""`
	}
	p, err := kong.New(&c)
	if err != nil {
		t.Fatal(err)
	}
	k, err := p.Parse([]string{"--password=canary", "--password-file=/etc/p"})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := printConfig(&out, k.Flags()); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); strings.Contains(got, "canary") || !strings.Contains(got, "password-file: /etc/p\n") ||
		!strings.Contains(got, "# password is set") || strings.Contains(got, "other") {
		t.Error(got)
	}
}

// Flags that are called like secrets are marked as such, or name a file.
func TestSecretFlags(t *testing.T) {
	like := regexp.MustCompile(`(^|-)(keys?|secrets?|passwords?|credentials?|tokens?)$`)
	for _, n := range newParser(&cli{}).Model.Children {
		for _, f := range n.Flags {
			if n.Name != "serve" || !like.MatchString(f.Name) || f.IsBool() || f.PlaceHolder == "FILE" ||
				f.PlaceHolder == "DIR" ||
				f.Target.CanInt() || f.Target.CanUint() {
				continue
			}
			if !f.Tag.Has(secretTag) {
				t.Errorf("--%s sounds secret: give it the tag %s, or the placeholder FILE", f.Name, secretTag)
			}
		}
	}
}

// SIGHUP reads the file again: the log level changes, what else differs is named, and a file that is wrong changes
// nothing.
func TestConfigReload(t *testing.T) {
	t.Parallel() // it runs in processes of its own
	file := writeConfig(t, "log-level: info\nslots: 2\npace: 1ms,1ms\n")
	p := startServe(t, sockettest.FreeAddress(t), nil, "--config", file)
	p.logged("msg=serving")
	for _, step := range []struct{ text, logged string }{
		{"log-level: loud\n", `level=ERROR msg="SIGHUP: not read again; the former stays in effect" what=config`},
		{"log-level: debug\nslots: 100000\n", `error="--slots 100000: want`},
		{"log-level: debug\nslots: 3\npace: 1ms,1ms\n", `take effect at the next start" flags=[slots]`},
		{"log-level: warn\npace: 1ms,1ms\n", "flags=[slots]"},
	} {
		before := len(p.log.String())
		if err := os.WriteFile(file, []byte(step.text), 0o600); err != nil {
			t.Fatal(err)
		}
		p.signal(syscall.SIGHUP)
		eventually(t, step.logged, func() bool { return strings.Contains(p.log.String()[before:], step.logged) })
	}
	p.signal(syscall.SIGTERM)
	if code, _ := p.wait(10 * time.Second); code != 0 {
		t.Errorf("status %d:\n%s", code, p.log)
	}
	if strings.Contains(p.log.String(), "msg=stopped") {
		t.Errorf("a line of level info after the level became warn:\n%s", p.log)
	}
}

// One that fails or panics keeps no other from being read again.
func TestReloaders(t *testing.T) {
	var log bytes.Buffer
	r := &reloaders{log: slog.New(slog.NewTextHandler(&log, nil))}
	var called []string
	r.add("keys", func() error { called = append(called, "keys"); return fmt.Errorf("no such file") })
	r.add("certificates", func() error { called = append(called, "certificates"); panic("broken") })
	r.add("quotas", func() error { called = append(called, "quotas"); return nil })
	r.reload()
	if got := strings.Join(called, " "); got != "keys certificates quotas" {
		t.Error(got)
	}
	for _, want := range []string{`what=keys error="no such file"`, `what=certificates error="panic: broken"`, `msg="SIGHUP: read again" what=quotas`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %s in\n%s", want, log.String())
		}
	}
}

// FuzzConfig: whatever a file holds is read or refused, in time that its size bounds.
func FuzzConfig(f *testing.F) {
	for _, seed := range []string{"slots: 1\n", "model: [a, b]\n", "tenant-weight: {a: 1}\n", "a: &a [*a]\n",
		"? [x]\n: y\n", "---\n...\n", "\t"} {
		f.Add([]byte(seed))
	}
	k, err := newParser(&cli{}).Parse([]string{"serve"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 1<<16 {
			return
		}
		c, err := parseConfig(text, k.Flags())
		if err != nil && len(err.Error()) > 1024 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
		for name := range c {
			if name == "config" || name == "" {
				t.Errorf("set %q", name)
			}
		}
	})
}
