package hub

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const large = "model-00001.safetensors"

// fault has the hub answer some requests otherwise.
func (x *tested) fault(f func(w http.ResponseWriter, r *http.Request) bool) {
	x.hub.Lock()
	x.hub.Fault = f
	x.hub.Unlock()
}

// nothingKept says that no blob and no part of one is there that is not right.
func (x *tested) nothingKept(t *testing.T, name string) {
	t.Helper()
	blob := x.store(Repo{testID, "main"}).blob(x.repo.ETag(name))
	for _, path := range []string{blob, blob + ".incomplete"} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there (%v)", path, err)
		}
	}
}

// What comes with another digest is fetched anew once, and refused then.
func TestWrongContent(t *testing.T) {
	for _, c := range []struct {
		name  string
		times int
		ok    bool
	}{{large, 1, true}, {large, 100, false}, {"tokenizer.json", 1, true}, {"tokenizer.json", 100, false}} {
		t.Run(fmt.Sprint(c.name, c.times), func(t *testing.T) {
			x := start(t)
			left := c.times
			at := map[bool]string{true: x.repo.ETag(c.name), false: c.name}[c.name == large]
			x.fault(func(w http.ResponseWriter, r *http.Request) bool {
				if left == 0 || !strings.HasSuffix(r.URL.Path, at) {
					return false
				}
				left--
				_, _ = w.Write(make([]byte, len(x.repo.Files[c.name])))
				return true
			})
			if c.ok {
				x.mustPull(t)
				return
			}
			_, err := x.pull(t, "main")
			if !errors.Is(err, ErrDigest) || !strings.Contains(err.Error(), x.repo.ETag(c.name)) {
				t.Errorf("error %v", err)
			}
			x.nothingKept(t, c.name)
			x.fault(nil)
			x.mustPull(t)
		})
	}
}

// Sizes, digests and commits that do not agree are refused, without a byte more than was announced.
func TestLies(t *testing.T) {
	set := func(name, value string) func(w http.ResponseWriter, r *http.Request, x *tested) bool {
		return func(w http.ResponseWriter, _ *http.Request, _ *tested) bool {
			w.Header().Set(name, value)
			return false
		}
	}
	for name, c := range map[string]struct {
		at   string
		lie  func(w http.ResponseWriter, r *http.Request, x *tested) bool
		want string
	}{
		"more than the size": {"tokenizer.json", func(w http.ResponseWriter, _ *http.Request, _ *tested) bool {
			w.Header().Set("Transfer-Encoding", "chunked")
			for range 1_000 {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					break
				}
			}
			return true
		}, "more than 9000 bytes came"},
		"another length": {"tokenizer.json", func(w http.ResponseWriter, _ *http.Request, _ *tested) bool {
			w.Header().Set("Content-Length", "9001")
			_, _ = w.Write(make([]byte, 9_001))
			return true
		}, "has 9000 bytes by the hub's listing and 9001 now"},
		"another digest": {"tokenizer.json", func(w http.ResponseWriter, _ *http.Request, _ *tested) bool {
			w.Header().Set("Etag", `"`+strings.Repeat("a", 40)+`"`)
			_, _ = w.Write(make([]byte, 9_000))
			return true
		}, "by the hub's listing and " + strings.Repeat("a", 40)},
		"another linked digest": {"resolve/COMMIT/" + large, func(w http.ResponseWriter, _ *http.Request, x *tested) bool {
			w.Header().Set("X-Linked-Etag", `"`+strings.Repeat("b", 64)+`"`)
			w.Header().Set("Location", x.hub.CDN+"/"+x.repo.ETag(large))
			w.WriteHeader(http.StatusFound)
			return true
		}, "by the hub's listing and " + strings.Repeat("b", 64)},
		"another linked size": {"resolve/COMMIT/" + large, func(w http.ResponseWriter, _ *http.Request, x *tested) bool {
			w.Header().Set("X-Linked-Size", "7")
			w.Header().Set("Location", x.hub.CDN+"/"+x.repo.ETag(large))
			w.WriteHeader(http.StatusFound)
			return true
		}, "has 300000 bytes by the hub's listing and 7 now"},
		"another commit": {"tokenizer.json", func(w http.ResponseWriter, _ *http.Request, _ *tested) bool {
			w.Header().Set("X-Repo-Commit", strings.Repeat("c", 40))
			_, _ = w.Write(make([]byte, 9_000))
			return true
		}, "it is of another commit"},
		"an encoding": {"tokenizer.json", set("Content-Encoding", "gzip"), "in another encoding"},
		"no commit": {"revision/main", func(w http.ResponseWriter, _ *http.Request, _ *tested) bool {
			fmt.Fprint(w, `{"sha":"../../evil","siblings":[]}`)
			return true
		}, "names no commit"},
		"no JSON": {"revision/main", func(w http.ResponseWriter, _ *http.Request, _ *tested) bool {
			fmt.Fprint(w, "<html>log in</html>")
			return true
		}, "does not answer as a hub does"},
		"a listing without end": {"revision/main", func(w http.ResponseWriter, _ *http.Request, _ *tested) bool {
			for range 1 << 20 {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					break
				}
			}
			return true
		}, "an answer of more than 33554432 bytes"},
		"pages without end": {"tree/", func(w http.ResponseWriter, _ *http.Request, x *tested) bool {
			w.Header().Set("Link", `<?cursor=1>; rel="next"`)
			fmt.Fprint(w, "[]")
			return true
		}, "more than 1000 pages"},
		"a page elsewhere": {"tree/", func(w http.ResponseWriter, _ *http.Request, x *tested) bool {
			w.Header().Set("Link", `<`+x.hub.CDN+`/next>; rel="next"`)
			fmt.Fprint(w, "[]")
			return true
		}, "is not the hub's"},
		"redirects without end": {"revision/main", func(w http.ResponseWriter, r *http.Request, _ *tested) bool {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
			return true
		}, "redirects more than 8 times"},
		"a redirect to a file": {"tokenizer.json", func(w http.ResponseWriter, _ *http.Request, _ *tested) bool {
			w.Header().Set("Location", "file:///etc/passwd")
			w.WriteHeader(http.StatusFound)
			return true
		}, "redirects to no address"},
		"another part": {x0, func(w http.ResponseWriter, r *http.Request, x *tested) bool {
			if r.Header.Get("Range") == "" {
				return false
			}
			w.Header().Set("Content-Range", "bytes 5-9/300000")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write([]byte("12345"))
			return true
		}, "sends another part than was asked for"},
		"a part of another size": {x0, func(w http.ResponseWriter, r *http.Request, x *tested) bool {
			if r.Header.Get("Range") == "" {
				return false
			}
			from := strings.Trim(r.Header.Get("Range"), "bytes=-")
			w.Header().Set("Content-Range", "bytes "+from+"-300004/300005")
			w.WriteHeader(http.StatusPartialContent)
			return true
		}, "the hub says 300000 bytes and sends 300005"},
	} {
		t.Run(name, func(t *testing.T) {
			x := start(t)
			x.hub.DropAfter = 200_000 // so that parts are asked for
			at := strings.NewReplacer("COMMIT", x.repo.Commit, x0, x.repo.ETag(large)).Replace(c.at)
			x.fault(func(w http.ResponseWriter, r *http.Request) bool {
				return strings.Contains(r.URL.Path, at) && c.lie(w, r, x)
			})
			if _, err := x.pull(t, "main"); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v\nwant %q", err, c.want)
			}
			if _, err := os.Stat(x.store(Repo{testID, "main"}).ref("main")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the revision names something: %v", err)
			}
		})
	}
}

// x0 stands for the digest of the large file in the table above.
const x0 = "DIGEST"

// A hub that has other content under the same commit is found out in the middle of a file; one whose branch moves
// meanwhile gives the files of the commit that was asked for, or none.
func TestChangedMeanwhile(t *testing.T) {
	x := start(t)
	x.hub.DropAfter = 100_000
	etag := x.repo.ETag(large)
	x.fault(func(w http.ResponseWriter, r *http.Request) bool { // the commit and the ETag stay
		if r.Header.Get("Range") == "" || !strings.Contains(r.URL.Path, etag) {
			return false
		}
		w.Header().Set("Etag", `"cdn-`+etag[:8]+`"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content(77, 300_000)))
		return true
	})
	if _, err := x.pull(t, "main"); !errors.Is(err, ErrDigest) || !strings.Contains(err.Error(), etag) {
		t.Errorf("error %v", err)
	}
	x.nothingKept(t, large)
	x = start(t)
	x.fault(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/resolve/") {
			x.repo.Set("tokenizer.json", content(78, 9_000))
		}
		return false
	})
	if _, err := x.pull(t, "main"); !errors.Is(err, ErrNotFound) {
		t.Errorf("error %v", err)
	}
	x.fault(nil)
	x.mustPull(t)
}

// What the hub refuses is said in words that name the token, the licence's page, or what is not there.
func TestRefusals(t *testing.T) {
	none := func(o *Options) { o.Token = Token{} }
	gated := func(x *tested) { x.repo.Token, x.repo.Gated = "other", true }
	for name, c := range map[string]struct {
		change   func(x *tested)
		options  []func(*Options)
		revision string
		is       error
		want     []string
	}{
		"gated, no token": {gated, []func(*Options){none}, "main", ErrDenied,
			[]string{"accept its licence at URL/org/model", "HF_TOKEN"}},
		"gated, no access": {gated, nil, "main", ErrDenied,
			[]string{"accept its licence at URL/org/model", "the account of the token of HF_TOKEN"}},
		"private, no token": {func(x *tested) { x.repo.Token = "other" }, []func(*Options){none}, "main", ErrNotFound,
			[]string{"has no such model", "HF_TOKEN has to have a token"}},
		"private, no access": {func(x *tested) { x.repo.Token = "other" }, nil, "main", ErrNotFound,
			[]string{"the token of HF_TOKEN may not read it"}},
		"no revision": {func(*tested) {}, nil, "v9", ErrNotFound, []string{`the hub has the model, and no revision "v9"`}},
		"no commit":   {func(*tested) {}, nil, strings.Repeat("a", 40), ErrNotFound, []string{"no revision"}},
		"no model": {func(x *tested) { delete(x.hub.Repos, testID) }, nil, "main", ErrNotFound,
			[]string{"has no such model"}},
		"taken down": {status(http.StatusForbidden, "X-Error-Code", "DisabledRepo"), nil, "main", ErrDenied,
			[]string{"taken the model down"}},
		"401": {status(http.StatusUnauthorized), nil, "main", ErrDenied, []string{"is not accepted"}},
		"403": {status(http.StatusForbidden), []func(*Options){none}, "main", ErrDenied, []string{"set HF_TOKEN"}},
		"400": {status(http.StatusBadRequest), nil, "main", nil, []string{"answers 400 Bad Request"}},
		"503": {status(http.StatusServiceUnavailable), nil, "main", nil, []string{"answers 503", "tried 6 times"}},
		"429": {status(http.StatusTooManyRequests, "Retry-After", "3600"), nil, "main", nil,
			[]string{"answers 429", "come back in 1h"}},
	} {
		t.Run(name, func(t *testing.T) {
			x := start(t, c.options...)
			x.hub.Lock()
			c.change(x)
			x.hub.Unlock()
			_, err := x.pull(t, c.revision)
			if err == nil || c.is != nil && !errors.Is(err, c.is) {
				t.Fatalf("error %v, want %v", err, c.is)
			}
			for _, want := range c.want {
				if want = strings.Replace(want, "URL", x.hub.URL, 1); !strings.Contains(err.Error(), want) {
					t.Errorf("error %v\nwant %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "words of the hub") {
				t.Errorf("the error repeats what the hub wrote: %v", err)
			}
		})
	}
}

// status has the hub answer everything so.
func status(code int, header ...string) func(x *tested) {
	return func(x *tested) {
		x.hub.Fault = func(w http.ResponseWriter, r *http.Request) bool {
			for i := 0; i+1 < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			// The real hub has been seen to repeat what it was sent.
			http.Error(w, "words of the hub "+r.Header.Get("Authorization"), code)
			return true
		}
	}
}

// What passes is tried again, after the time that the hub asks for.
func TestTransient(t *testing.T) {
	x := start(t)
	seen := map[string]int{}
	x.fault(func(w http.ResponseWriter, r *http.Request) bool {
		seen[r.URL.Path]++
		codes := []int{http.StatusBadGateway, http.StatusTooManyRequests}
		if seen[r.URL.Path] > len(codes) {
			return false
		}
		w.WriteHeader(codes[seen[r.URL.Path]-1])
		return true
	})
	x.mustPull(t)
	x = start(t)
	asked := time.Time{}
	x.fault(func(w http.ResponseWriter, r *http.Request) bool {
		if asked.IsZero() {
			asked = time.Now()
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		if waited := time.Since(asked); waited < time.Second {
			t.Errorf("it came back after %v", waited)
		}
		x.hub.Fault = nil
		return false
	})
	x.mustPull(t)
	x = start(t) // a signed address that has expired: the hub gives another one
	expired := 2
	x.fault(func(w http.ResponseWriter, r *http.Request) bool {
		if expired == 0 || !strings.HasSuffix(x.hub.CDN, r.Host) {
			return false
		}
		expired--
		w.WriteHeader(http.StatusForbidden)
		return true
	})
	x.mustPull(t)
}

// A hub that falls silent is given up after a while, and asked again.
func TestStall(t *testing.T) {
	x := start(t, func(o *Options) { o.Stall = 300 * time.Millisecond })
	stalls := 2
	x.fault(func(w http.ResponseWriter, r *http.Request) bool {
		if stalls == 0 || !strings.HasPrefix(r.URL.Path, "/"+x.repo.ETag(large)) {
			return false
		}
		stalls--
		w.Header().Set("Content-Length", "300000")
		_, _ = w.Write(x.repo.Files[large][:70_000])
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		return true
	})
	if x.mustPull(t); !strings.Contains(x.said.text(), "silent for too long") {
		t.Errorf("nothing was said of it: %s", x.said.text())
	}
}

// The token goes to the endpoint's own scheme, host and port, and in plaintext to this machine only.
func TestTokenStaysAtHome(t *testing.T) {
	x := start(t)
	x.mustPull(t)
	at, cdn := 0, 0
	for _, r := range x.hub.Requests {
		switch {
		case strings.HasSuffix(x.hub.CDN, r.Host) && r.Authorization != "":
			t.Errorf("the other host got the token: %+v", r)
		case strings.HasSuffix(x.hub.CDN, r.Host):
			cdn++
		case r.Authorization != "Bearer "+testToken:
			t.Errorf("the hub did not get the token: %+v", r)
		default:
			at++
		}
	}
	if at != 7 || cdn != 2 {
		t.Errorf("%d requests at the hub, %d at the other host", at, cdn)
	}
	for _, c := range []struct {
		endpoint, to string
		want         bool
	}{
		{"https://hub.example", "https://hub.example/x", true},
		{"https://hub.example", "https://HUB.example:443/x", true},
		{"https://hub.example", "https://hub.example:8443/x", false},
		{"https://hub.example", "http://hub.example/x", false},
		{"https://hub.example", "https://hub.example.evil/x", false},
		{"https://hub.example", "https://cdn.hub.example/x", false},
		{"http://hub.example", "http://hub.example/x", false},
		{"http://127.0.0.1:5", "http://127.0.0.1:5/x", true},
		{"http://127.0.0.1:5", "http://127.0.0.1:6/x", false},
		{"http://localhost:5", "http://localhost:5/x", true},
		{"http://127.0.0.1.evil.example:5", "http://127.0.0.1.evil.example:5/x", false},
	} {
		k, err := New(Options{Endpoint: c.endpoint, Cache: t.TempDir(), Token: x.options.Token})
		if err != nil {
			t.Fatal(err)
		}
		to, err := k.endpoint.Parse(c.to)
		if err != nil {
			t.Fatal(err)
		}
		if got := k.mayCarry(to); got != c.want {
			t.Errorf("a token of %s goes to %s: %t, want %t", c.endpoint, c.to, got, c.want)
		}
	}
}

// From https nothing leads to plaintext, and a certificate that is not known is an error at once.
func TestTLS(t *testing.T) {
	x := start(t)
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, x.hub.URL+r.URL.Path, http.StatusFound)
	}))
	defer secure.Close()
	c := x.client(t, t.TempDir(), func(o *Options) { o.Endpoint = secure.URL })
	began := x.hub.Count("")
	_, err := c.Pull(t.Context(), Repo{testID, "main"}, all, nil)
	if err == nil || !strings.Contains(err.Error(), "certificate") || strings.Contains(err.Error(), "tried") {
		t.Errorf("error %v", err)
	}
	c.http.Transport = secure.Client().Transport
	_, err = c.Pull(t.Context(), Repo{testID, "main"}, all, nil)
	if err == nil || !strings.Contains(err.Error(), "in plaintext, which is not followed") || x.hub.Count("") != began {
		t.Errorf("error %v", err)
	}
}

// A repository that has another name now is found under the old one.
func TestRenamed(t *testing.T) {
	x := start(t)
	x.fault(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "old/name") {
			return false
		}
		w.Header().Set("Location", strings.Replace(r.URL.Path, "old/name", testID, 1))
		w.WriteHeader(http.StatusTemporaryRedirect)
		return true
	})
	s, err := x.Pull(t.Context(), Repo{"old/name", "main"}, all, nil)
	if err != nil {
		t.Fatal(err)
	}
	x.compare(t, s)
}

// Where nothing may be asked, the cache has it or an error says what to do; where the hub cannot be asked, it has it.
func TestOffline(t *testing.T) {
	x := start(t)
	cache := t.TempDir()
	offline := x.client(t, cache, func(o *Options) { o.Offline = true })
	pull := func(c *Client, revision string) error {
		_, err := c.Pull(t.Context(), Repo{testID, revision}, all, nil)
		return err
	}
	if err := pull(offline, "main"); !errors.Is(err, ErrOffline) || !strings.Contains(err.Error(), "is not in the cache") {
		t.Errorf("an empty cache: %v", err)
	}
	online := x.client(t, cache)
	if err := pull(online, "main"); err != nil {
		t.Fatal(err)
	}
	asked := x.hub.Count("")
	for _, revision := range []string{"main", x.repo.Commit} {
		if err := pull(offline, revision); err != nil || x.hub.Count("") != asked {
			t.Errorf("%s: %v", revision, err)
		}
	}
	if err := pull(offline, "v2"); !errors.Is(err, ErrOffline) {
		t.Errorf("another revision: %v", err)
	}
	x.hub.Lock()
	status(http.StatusBadGateway)(x)
	x.hub.Unlock()
	if err := pull(online, "main"); err != nil || !strings.Contains(x.said.text(), "the cache has the revision as it was last") {
		t.Errorf("a hub that is ill: %v", err)
	}
	x.hub.Lock()
	x.hub.Fault = func(w http.ResponseWriter, r *http.Request) bool { // it falls ill amid a newer commit
		if strings.Contains(r.URL.Path, "/resolve/") {
			w.WriteHeader(http.StatusBadGateway)
			return true
		}
		return false
	}
	before := x.repo.Files["tokenizer.json"]
	x.repo.Set("tokenizer.json", content(9, 8_000))
	x.hub.Unlock()
	if s, err := online.Pull(t.Context(), Repo{testID, "main"}, all, nil); err != nil || s.Commit == x.repo.Commit {
		t.Errorf("a hub that falls ill: %+v, %v", s, err)
	}
	x.hub.Lock()
	x.repo.Set("tokenizer.json", before)
	status(http.StatusUnauthorized)(x)
	x.hub.Unlock()
	if err := pull(online, "main"); !errors.Is(err, ErrDenied) {
		t.Errorf("a hub that refuses: %v", err)
	}
	// What is not whole is no snapshot.
	if err := os.Remove(filepath.Join(offline.store(Repo{testID, "main"}).snapshot(x.repo.Commit), large)); err != nil {
		t.Fatal(err)
	}
	if err := pull(offline, "main"); !errors.Is(err, ErrOffline) || !strings.Contains(err.Error(), large) ||
		!strings.Contains(err.Error(), "mmserve model pull org/model") {
		t.Errorf("a part: %v", err)
	}
}

// A pull that is larger than its limit, or than the disk, fetches nothing.
func TestRoom(t *testing.T) {
	x := start(t, func(o *Options) { o.MaxBytes = 400_000 })
	_, err := x.pull(t, "main")
	if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "--hub-max-size") || x.hub.Count("/resolve/") > 0 {
		t.Errorf("error %v", err)
	}
	x = start(t, func(o *Options) { o.MaxBytes = 1 << 62 })
	x.fault(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/tree/") {
			fmt.Fprintf(w, `[{"type":"file","path":"a.safetensors","size":%d,"oid":%q}]`, int64(1)<<43, strings.Repeat("a", 40))
			return true
		}
		return false
	})
	_, err = x.pull(t, "main")
	if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "the disk of") || x.hub.Count("/resolve/") > 0 {
		t.Errorf("error %v", err)
	}
}

// Names that lead out of the folder, or that are none, have the repository refused: in the tree and among the siblings.
func TestHostileNames(t *testing.T) {
	for _, name := range []string{
		"../evil", "/etc/evil", "a/../../evil", "..", ".", "", "a//b", "a/", "/", `a\..\evil`, `C:\evil`, "C:evil", "a\x00b",
		"a\nb",
		"a\x1b[2Jb", "a\u202eb", "\xff\xfe", strings.Repeat("a", 241), strings.Repeat("a/", 600) + "a", "./a", "a/./b",
	} {
		if err := checkFileName(name); err == nil {
			t.Errorf("%q passes", name)
		}
		x := start(t)
		quoted := strconv.QuoteToASCII(name)
		if strings.Contains(quoted, `\x`) {
			continue // no JSON
		}
		x.fault(func(w http.ResponseWriter, r *http.Request) bool {
			switch {
			case strings.Contains(r.URL.Path, "/revision/"):
				fmt.Fprintf(w, `{"sha":%q,"siblings":[{"rfilename":%s}]}`, x.repo.Commit, quoted)
			case strings.Contains(r.URL.Path, "/tree/") && !x.hub.NoTree:
				fmt.Fprintf(w, `[{"type":"file","path":%s,"size":1,"oid":%q}]`, quoted, strings.Repeat("a", 40))
			default:
				return false
			}
			return true
		})
		for _, x.hub.NoTree = range []bool{false, true} {
			if _, err := x.pull(t, "main"); err == nil || !strings.Contains(err.Error(), "want a plain path") {
				t.Errorf("%q: error %v", name, err)
			}
		}
		if _, err := os.Stat(filepath.Join(x.Cache(), "models--org--model", "blobs")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%q: something was made (%v)", name, err)
		}
	}
	for _, name := range []string{
		"config.json", ".gitattributes", "a/b/c.json", "ünïcode.json", "a b.json", "...x", "a..b",
	} {
		if err := checkFileName(name); err != nil {
			t.Error(err)
		}
	}
}

// Listings that are wrong otherwise.
func TestHostileTrees(t *testing.T) {
	id, sum := strings.Repeat("a", 40), strings.Repeat("b", 64)
	many := "[" + strings.Repeat(`{"type":"file","path":"a","size":1,"oid":"`+id+`"},`, 2) + "{}]"
	for tree, want := range map[string]string{
		many: "is listed twice",
		`[{"type":"file","path":"a","size":-5,"oid":"` + id + `"}]`:                                      "too large",
		`[{"type":"file","path":"a","size":9223372036854775807,"oid":"` + id + `"}]`:                     "too large",
		`[{"type":"file","path":"a","size":1,"oid":"../../../evil"}]`:                                    "want the id of a blob",
		`[{"type":"file","path":"a","size":1}]`:                                                          "want the id of a blob",
		`[{"type":"file","path":"a","size":1,"oid":"` + id + `","lfs":{"oid":"../evil","size":1}}]`:      "want a SHA-256",
		`[{"type":"file","path":"a","size":1,"oid":"` + id + `","lfs":{"oid":"` + sum + `","size":-1}}]`: "too large",
		`{"error":"x"}`: "does not answer as a hub does",
	} {
		x := start(t)
		x.fault(func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/tree/") {
				fmt.Fprint(w, tree)
				return true
			}
			return false
		})
		if _, err := x.pull(t, "main"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v\nwant %q", tree, err, want)
		}
	}
	// ETags of a hub without trees become names of files.
	long := `"` + strings.Repeat("a", 200) + `"`
	for _, etag := range []string{"", `"../../evil"`, `"a/b"`, `"."`, `".."`, long, `"a b"`} {
		x := start(t)
		x.hub.NoTree = true
		x.fault(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodHead {
				w.Header().Set("Etag", etag)
				w.Header().Set("Content-Length", "18")
				return true
			}
			return false
		})
		if _, err := x.pull(t, "main"); err == nil || !strings.Contains(err.Error(), "no ETag that can be kept") {
			t.Errorf("ETag %s: error %v", etag, err)
		}
	}
}
