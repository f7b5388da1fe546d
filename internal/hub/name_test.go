package hub

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]Repo{
		"Qwen/Qwen3-VL-2B-Instruct":             {"Qwen/Qwen3-VL-2B-Instruct", "main"},
		"hf://Qwen/Qwen3-VL-2B-Instruct":        {"Qwen/Qwen3-VL-2B-Instruct", "main"},
		"a/b@v1.0":                              {"a/b", "v1.0"},
		"a/b@refs/pr/1":                         {"a/b", "refs/pr/1"},
		"hf://gpt2":                             {"gpt2", "main"},
		"a_b/c.d-e@" + strings.Repeat("a1", 20): {"a_b/c.d-e", strings.Repeat("a1", 20)},
	} {
		got, err := Parse(text)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
		again, err := Parse(Scheme + got.String())
		if err != nil || again != got {
			t.Errorf("%s: %s reads as %+v, %v", text, got, again, err)
		}
	}
	for _, text := range []string{
		"", "a", "/", "a/", "/a", "a/b/c", "../b", "a/..", "./b", "a/./b", "a/b@", "a/b@..", "a/b@../x", "a/b@/x", "a/b@x/",
		"a/b@x//y", "a/b@-x", "a/b@x.lock", "a/b@x y", "a/b@x\x00", "a--b/c", "a/b--c", "-a/b", "a/b-", ".a/b", "a/b.",
		"a b/c",
		"a/b\n", `a\b`, "hf://", "hf://a/b/c", "https://huggingface.co/a/b", "a/" + strings.Repeat("b", 96),
		"a/b@" + strings.Repeat("x", 256), "ä/b", "a/b@.x", "a/b@x/.y", "/home/me/model", "~/model", "C:/model",
		"a/b?x=1", "a/b#c",
	} {
		if r, err := Parse(text); err == nil {
			t.Errorf("%q reads as %+v", text, r)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{"a/b", "hf://a/b@c", "hf://x", "a/b@refs/pr/1", "a--b/c", "../x", "a/b@../../c"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := Parse(text)
		if err != nil {
			return
		}
		if id, ok := fromFolder(r.folder()); !ok || id != r.ID {
			t.Errorf("%q: folder %s is of %q", text, r.folder(), id)
		}
		s := &store{r, "/cache", filepath.Join("/cache", r.folder())}
		if dir := filepath.Dir(s.dir); dir != "/cache" || !strings.HasPrefix(s.ref(r.Revision), s.dir+"/refs/") {
			t.Errorf("%q leads to %s, %s", text, s.dir, s.ref(r.Revision))
		}
	})
}

func FuzzFileName(f *testing.F) {
	for _, name := range []string{"config.json", "a/b", "../a", "/a", "a//b", "a\x00", "onnx/x.onnx_data"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if checkFileName(name) != nil {
			return
		}
		s := &store{Repo{"a/b", "main"}, "/cache", "/cache/models--a--b"}
		commit := strings.Repeat("a", 40)
		if p := s.pointer(commit, name); !strings.HasPrefix(p, s.snapshot(commit)+"/") || filepath.Clean(p) != p {
			t.Errorf("%q leads to %s", name, p)
		}
	})
}

// FuzzTree reads what is in a cache as a listing: it is refused, or names plain files with digests.
func FuzzTree(f *testing.F) {
	f.Add([]byte(`{"format_version":1,"files":{"a":{"size":1,"blob_id":"` + strings.Repeat("a", 40) + `"}}}`))
	f.Add([]byte(`{"format_version":1,"files":{"../a":{"size":-1,"blob_id":"x","lfs_sha256":"y"}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := &store{Repo{"a/b", "main"}, t.TempDir(), t.TempDir()}
		commit := strings.Repeat("a", 40)
		err := errors.Join(os.MkdirAll(filepath.Join(s.dir, "trees"), 0o700), os.WriteFile(s.tree(commit), raw, 0o600))
		if err != nil {
			t.Fatal(err)
		}
		l := s.readTree(commit)
		if l == nil {
			return
		}
		for name, x := range l.files {
			if checkFileName(name) != nil || x.size < 0 || !sha1Text.MatchString(x.digest) && !sha256Text.MatchString(x.digest) {
				t.Errorf("%q: %+v", name, x)
			}
		}
	})
}

// The variables count as for the hub's own clients.
func TestReadEnvironment(t *testing.T) {
	home := t.TempDir()
	file := filepath.Join(home, "secret")
	if err := os.WriteFile(file, []byte("  hf_fromFile\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(home, "broken")
	if err := os.WriteFile(broken, []byte("two words"), 0o600); err != nil {
		t.Fatal(err)
	}
	usual := home + "/.cache/huggingface/hub"
	for _, c := range []struct {
		name    string
		vars    map[string]string
		cache   string
		offline bool
		token   string
		from    string
		err     string
	}{
		{"none", nil, usual, false, "", "", ""},
		{"XDG", map[string]string{"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub", false, "", "", ""},
		{"home", map[string]string{"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/h/hub", false, "", "", ""},
		{"tilde", map[string]string{"HF_HOME": "~/h"}, home + "/h/hub", false, "", "", ""},
		{"variable", map[string]string{"HF_HOME": "$BASE/h", "BASE": "/b"}, "/b/h/hub", false, "", "", ""},
		{"cache", map[string]string{"HF_HUB_CACHE": "/c", "HF_HOME": "/h"}, "/c", false, "", "", ""},
		{"old cache", map[string]string{"HUGGINGFACE_HUB_CACHE": "/c"}, "/c", false, "", "", ""},
		{"offline", map[string]string{"HF_HUB_OFFLINE": "1"}, usual, true, "", "", ""},
		{"offline, too", map[string]string{"TRANSFORMERS_OFFLINE": "yes"}, usual, true, "", "", ""},
		{"not offline", map[string]string{"HF_HUB_OFFLINE": "0"}, usual, false, "", "", ""},
		{"token", map[string]string{"HF_TOKEN": "hf_a", "HF_TOKEN_PATH": file}, usual, false, "hf_a", "HF_TOKEN", ""},
		{"old token", map[string]string{"HUGGING_FACE_HUB_TOKEN": "hf_b"}, usual, false, "hf_b", "HUGGING_FACE_HUB_TOKEN", ""},
		{"file", map[string]string{"HF_TOKEN_PATH": file}, usual, false, "hf_fromFile", file, ""},
		{"no token", map[string]string{"HF_TOKEN": "hf_a", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}, usual, false, "", "", ""},
		{"broken file", map[string]string{"HF_TOKEN_PATH": broken}, "", false, "", "", broken + ": want one token"},
		{"broken", map[string]string{"HF_TOKEN": "hf\nsecret"}, "", false, "", "", "HF_TOKEN: want one token"},
		{"a folder", map[string]string{"HF_TOKEN_PATH": home}, "", false, "", "", "a folder"},
	} {
		e, err := ReadEnvironment(func(name string) string { return c.vars[name] }, home)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), "secret\n") ||
				strings.Contains(err.Error(), "two words") {
				t.Errorf("%s: error %v, want %q", c.name, err, c.err)
			}
			continue
		}
		if err != nil || e.Cache != c.cache || e.Offline != c.offline || e.Token.value != c.token || e.Token.From != c.from {
			t.Errorf("%s: %+v %q, %v", c.name, e, e.Token.value, err)
		}
	}
}

func TestEndpoints(t *testing.T) {
	for _, text := range []string{
		"hub.example.com", "ftp://hub", "https://", "https://user:hf_pass@hub", "https://hub?x=1", "https://hub#x", "%",
	} {
		_, err := New(Options{Endpoint: text, Cache: "/c"})
		if err == nil || !strings.Contains(err.Error(), "--hub-endpoint") || strings.Contains(err.Error(), "hf_pass") {
			t.Errorf("%s: %v", text, err)
		}
	}
	c, err := New(Options{Endpoint: "https://hub.example.com/sub/", Cache: "/c"})
	if err != nil {
		t.Fatal(err)
	}
	r := Repo{"a/b", "refs/pr/1"}
	for got, want := range map[string]string{
		c.at("api", "models", r.ID, "revision", r.Revision).String(): "/api/models/a/b/revision/refs%2Fpr%2F1",
		c.fileURL(r, "abc", "x/a b#?%.json").String():                "/a/b/resolve/abc/x/a%20b%23%3F%25.json",
	} {
		if want = "https://hub.example.com/sub" + want; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
