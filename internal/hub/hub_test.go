package hub

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"go.uber.org/goleak"

	"github.com/mmserve/mmserve/internal/hub/hubtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testID    = "org/model"
	testToken = "hf_SecretOfTheTests0123456789"
)

// content is n bytes that are always the same.
func content(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// testFiles are a repository with small files, large ones and such as nobody wants.
func testFiles() fstest.MapFS {
	return fstest.MapFS{
		"config.json":                          {Data: []byte(`{"model_type":"x"}`)},
		"tokenizer.json":                       {Data: content(1, 9_000)},
		"empty.json":                           {},
		"additional_chat_templates/tool.jinja": {Data: []byte("{{ x }}")},
		"model-00001.safetensors":              {Data: content(2, 300_000)},
		"model-00002.safetensors":              {Data: content(3, 123_457)},
		"pytorch_model.bin":                    {Data: content(4, 20_000)},
		"README.md":                            {Data: []byte("# read me")},
	}
}

// all wants everything but what nobody wants.
func all(repository fs.FS) (wanted, absent []string, err error) {
	err = fs.WalkDir(repository, ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && path.Ext(name) != ".bin" && path.Ext(name) != ".md" {
			wanted = append(wanted, name)
		}
		return err
	})
	return wanted, []string{"chat_template.json"}, err
}

// said collects what is logged and what errors say, in which the token must not be.
type said struct {
	sync.Mutex
	bytes.Buffer
}

func (s *said) Write(b []byte) (int, error) {
	s.Lock()
	defer s.Unlock()
	return s.Buffer.Write(b)
}

func (s *said) text() string {
	s.Lock()
	defer s.Unlock()
	return s.String()
}

// tested is a client of a stand-in.
type tested struct {
	*Client
	hub  *hubtest.Hub
	repo *hubtest.Repo
	said *said
}

func start(t *testing.T, change ...func(*Options)) *tested {
	t.Helper()
	h := hubtest.Start(t)
	x := &tested{hub: h, repo: h.Add(t, testID, testFiles()), said: new(said)}
	x.Client = x.client(t, t.TempDir(), change...)
	return x
}

// client is another one of the same hub.
func (x *tested) client(t *testing.T, cache string, change ...func(*Options)) *Client {
	t.Helper()
	token, err := NewToken(testToken, "HF_TOKEN")
	if err != nil {
		t.Fatal(err)
	}
	o := Options{
		Endpoint: x.hub.URL, Cache: cache, Token: token, Version: "test", Pause: time.Millisecond, Stall: 20 * time.Second,
		Logger: slog.New(slog.NewTextHandler(x.said, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&o)
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.http.CloseIdleConnections()
		if text := fmt.Sprintf("%s %v %+v %#v", x.said.text(), o, o, o); strings.Contains(text, testToken) ||
			strings.Contains(text, "secret-signature") {
			t.Errorf("a secret was said: %s", text)
		}
	})
	return c
}

// pull pulls the revision, and gives the error after a look at its text.
func (x *tested) pull(t *testing.T, revision string) (*Snapshot, error) {
	t.Helper()
	s, err := x.Pull(t.Context(), Repo{testID, revision}, all, nil)
	if err != nil {
		fmt.Fprintln(x.said, err)
	}
	return s, err
}

// mustPull pulls main, and compares what came.
func (x *tested) mustPull(t *testing.T) *Snapshot {
	t.Helper()
	s, err := x.pull(t, "main")
	if err != nil {
		t.Fatal(err)
	}
	x.compare(t, s)
	return s
}

// compare looks at all files of a snapshot, and for what is left over.
func (x *tested) compare(t *testing.T, s *Snapshot) {
	t.Helper()
	got := map[string]string{}
	err := fs.WalkDir(os.DirFS(s.Dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(filepath.Join(s.Dir, name))
		got[name] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for name, b := range x.repo.Files {
		if path.Ext(name) != ".bin" && path.Ext(name) != ".md" {
			want[name] = string(b)
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("the snapshot has %v, want %v, or their content differs", slices.Sorted(maps.Keys(got)),
			slices.Sorted(maps.Keys(want)))
	}
	left, err := filepath.Glob(filepath.Join(s.Dir, "..", "..", "blobs", "*.incomplete"))
	if err != nil || len(left) > 0 {
		t.Errorf("%v is left (%v)", left, err)
	}
}

// A pull leaves the layout that the hub's own clients have, link by link.
func TestPullLayout(t *testing.T) {
	x := start(t)
	s := x.mustPull(t)
	root := filepath.Join(x.Cache(), "models--org--model")
	if want := filepath.Join(root, "snapshots", x.repo.Commit); s.Dir != want || s.Commit != x.repo.Commit || !s.Asked {
		t.Errorf("%+v, want folder %s", s, want)
	}
	for name, want := range map[string]string{
		"config.json":                          "../../blobs/" + x.repo.ETag("config.json"),
		"model-00001.safetensors":              "../../blobs/" + x.repo.ETag("model-00001.safetensors"),
		"additional_chat_templates/tool.jinja": "../../../blobs/" + x.repo.ETag("additional_chat_templates/tool.jinja"),
	} {
		if got, err := os.Readlink(filepath.Join(s.Dir, name)); err != nil || got != want {
			t.Errorf("%s leads to %q, want %q (%v)", name, got, want, err)
		}
	}
	for name, want := range map[string]string{
		"refs/main": x.repo.Commit, "../CACHEDIR.TAG": cacheTag,
		".no_exist/" + x.repo.Commit + "/chat_template.json": "",
	} {
		if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(got) != want {
			t.Errorf("%s has %q, want %q (%v)", name, got, want, err)
		}
	}
	tree := (&store{Repo{testID, "main"}, x.Cache(), root}).readTree(x.repo.Commit)
	if tree == nil || len(tree.files) != len(x.repo.Files) ||
		tree.files["pytorch_model.bin"].digest != fmt.Sprintf("%x", sha256.Sum256(x.repo.Files["pytorch_model.bin"])) {
		t.Errorf("the tree is %+v", tree)
	}
	if blobs, err := os.ReadDir(filepath.Join(root, "blobs")); err != nil || len(blobs) != 6 {
		t.Errorf("blobs %v (%v)", blobs, err)
	}
	if n := x.hub.Count("pytorch_model.bin"); n > 0 {
		t.Errorf("the file that nobody wants was asked for %d times", n)
	}
	before := x.hub.Count("/resolve/") // all is there: nothing of it comes again
	if s := x.mustPull(t); x.hub.Count("/resolve/") != before || s.Fetched != 0 {
		t.Errorf("a second pull asked for files")
	}
	all := x.hub.Count("") // a commit never changes: the hub is not asked at all
	if s, err := x.pull(t, x.repo.Commit); err != nil || s.Asked || x.hub.Count("") != all {
		t.Errorf("a commit that is there: %+v, %v", s, err)
	}
}

// A cache that a client of the hub in another language has written is used as it is: by name, offline, and as the start
// of a newer commit. It was laid out by the documentation of the hub's cache.
func TestReferenceCache(t *testing.T) {
	x := start(t)
	root := filepath.Join(x.Cache(), "models--org--model")
	x.layOut(t, root, "README.md")
	for _, offline := range []bool{true, false} {
		c := x.client(t, x.Cache(), func(o *Options) { o.Offline = offline })
		s, err := c.Pull(t.Context(), Repo{testID, "main"}, all, nil)
		if err != nil || s.Fetched != 0 || x.hub.Count("/resolve/") != 0 || s.Asked == offline {
			t.Fatalf("offline %t: %+v, %v", offline, s, err)
		}
		if b, err := os.ReadFile(filepath.Join(s.Dir, "config.json")); err != nil || string(b) != `{"model_type":"x"}` {
			t.Errorf("%s, %v", b, err)
		}
	}
	x.hub.Lock()
	x.repo.Set("tokenizer.json", content(9, 8_000))
	x.hub.Unlock()
	if s := x.mustPull(t); s.Fetched != 8_000 {
		t.Errorf("%d bytes came of a commit that shares all but one file", s.Fetched)
	}
}

// layOut writes the repository as the hub's own clients do, but for some files.
func (x *tested) layOut(t *testing.T, root string, without ...string) {
	t.Helper()
	write := func(name string, b []byte) {
		name = filepath.Join(root, filepath.FromSlash(name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	write("refs/main", []byte(x.repo.Commit))
	for name, b := range x.repo.Files {
		if slices.Contains(without, name) {
			continue
		}
		write("blobs/"+x.repo.ETag(name), b)
		link := filepath.Join(root, "snapshots", x.repo.Commit, filepath.FromSlash(name))
		up := strings.Repeat("../", strings.Count(name, "/"))
		if err := errors.Join(os.MkdirAll(filepath.Dir(link), 0o700),
			os.Symlink(up+"../../blobs/"+x.repo.ETag(name), link)); err != nil {
			t.Fatal(err)
		}
	}
}

// Connections that break are resumed where they ended, at the hub and at another host; so is what a process left.
func TestResume(t *testing.T) {
	for _, drop := range []int{3_000, 16_384, 65_537, 250_000} {
		t.Run(fmt.Sprint(drop), func(t *testing.T) {
			x := start(t)
			x.hub.DropAfter = drop
			s := x.mustPull(t)
			var wanted int64
			for name, b := range x.repo.Files {
				if path.Ext(name) != ".bin" && path.Ext(name) != ".md" {
					wanted += int64(len(b))
				}
			}
			if s.Fetched != wanted {
				t.Errorf("%d bytes came of %d", s.Fetched, wanted)
			}
			conditions := 0
			for _, r := range x.hub.Requests {
				if r.Range != "" && strings.HasPrefix(x.hub.CDN, "http://"+r.Host) && r.IfRange != "" {
					conditions++
				}
			}
			if conditions == 0 {
				t.Error("no part was asked for on condition that the content is the same")
			}
		})
	}
	for _, left := range []int{1, 100_000, 299_999, 300_000, 300_001, 400_000} {
		t.Run(fmt.Sprint("left ", left), func(t *testing.T) {
			x := start(t)
			s := x.store(Repo{testID, "main"})
			name := "model-00001.safetensors"
			had := append(slices.Clone(x.repo.Files[name]), make([]byte, 200_000)...)[:left]
			if err := errors.Join(s.make(), os.WriteFile(s.incomplete(x.repo.ETag(name)), had, 0o600)); err != nil {
				t.Fatal(err)
			}
			x.mustPull(t)
		})
	}
}

// What a loss of power left has the right length and the wrong content: it is thrown away, and all is fetched anew.
func TestResumeOfWrongContent(t *testing.T) {
	x := start(t)
	s := x.store(Repo{testID, "main"})
	name := "model-00001.safetensors"
	part := s.incomplete(x.repo.ETag(name))
	if err := errors.Join(s.make(), os.WriteFile(part, make([]byte, 200_000), 0o600)); err != nil {
		t.Fatal(err)
	}
	if x.mustPull(t); !strings.Contains(x.said.text(), "fetched anew") {
		t.Errorf("nothing was said of it: %s", x.said.text())
	}
}

// A server without ranges is asked for the whole again, but not for ever.
func TestNoRanges(t *testing.T) {
	x := start(t)
	x.hub.NoRanges = true
	s := x.store(Repo{testID, "main"})
	name := "model-00001.safetensors"
	had := x.repo.Files[name][:100_000]
	if err := errors.Join(s.make(), os.WriteFile(s.incomplete(x.repo.ETag(name)), had, 0o600)); err != nil {
		t.Fatal(err)
	}
	x.mustPull(t)
	x = start(t)
	x.hub.NoRanges, x.hub.DropAfter = true, 50_000
	_, err := x.pull(t, "main")
	if err == nil || !strings.Contains(err.Error(), "breaks off after 50000 bytes") ||
		!strings.Contains(err.Error(), "tried 6 times") {
		t.Errorf("error %v", err)
	}
	if n := x.hub.Count(x.repo.ETag(name)); n > 20 {
		t.Errorf("the file was asked for %d times", n)
	}
}

// A hub that knows no trees tells by HEAD; one that cuts its listing is asked for all pages.
func TestListings(t *testing.T) {
	x := start(t)
	x.hub.NoTree = true
	x.mustPull(t)
	for _, size := range []int{1, 3, 100} {
		x := start(t)
		x.hub.PageSize = size
		x.mustPull(t)
	}
}

// Two clients over one cache fetch each file once, and both have it.
func TestTwoPulls(t *testing.T) {
	x := start(t)
	x.hub.Slow = time.Millisecond
	other := x.client(t, x.Cache())
	var wg sync.WaitGroup
	for _, c := range []*Client{x.Client, other} {
		wg.Go(func() {
			s, err := c.Pull(t.Context(), Repo{testID, "main"}, all, nil)
			if err != nil {
				t.Error(err)
				return
			}
			x.compare(t, s)
		})
	}
	wg.Wait()
	for name := range x.repo.Large {
		if n := strings.Count(fmt.Sprint(x.hub.Requests), "/"+x.repo.ETag(name)); name != "pytorch_model.bin" && n != 1 {
			t.Errorf("%s was fetched %d times", name, n)
		}
	}
}

// A pull that is given up leaves what came, and says why it ended.
func TestPullCanceled(t *testing.T) {
	x := start(t)
	x.hub.Slow = 5 * time.Millisecond
	ctx, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("stopped")
	p := new(Progress)
	done := make(chan error, 1)
	go func() {
		_, err := x.Pull(ctx, Repo{testID, "main"}, all, p)
		done <- err
	}()
	for p.Count().Received < 50_000 {
		<-time.After(time.Millisecond) // nothing tells of bytes but the count
	}
	cancel(stopped)
	if err := <-done; !errors.Is(err, stopped) {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(filepath.Join(x.Cache(), "models--org--model", "refs", "main")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the revision names a snapshot that is not whole: %v", err)
	}
	x.hub.Lock()
	x.hub.Slow = 0
	x.hub.Unlock()
	if s := x.mustPull(t); s.Fetched > 400_000 {
		t.Errorf("%d bytes came again", s.Fetched)
	}
}

// Progress counts the bytes that are missing, those that were left, and those that came.
func TestProgress(t *testing.T) {
	x := start(t)
	x.hub.DropAfter = 70_000
	p := new(Progress)
	if _, err := x.Pull(t.Context(), Repo{testID, "main"}, all, p); err != nil {
		t.Fatal(err)
	}
	if n := p.Count(); n.Total != n.Done || n.Received != n.Total || n.Files != 6 || n.FilesDone != 6 {
		t.Errorf("%+v", n)
	}
}

// A file that is opened by a Want is fetched then, a large one is not.
func TestWantReads(t *testing.T) {
	x := start(t)
	x.hub.Lock()
	x.hub.Fault = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/tree/") {
			fmt.Fprintf(w, `[{"type":"file","path":"huge.json","size":1099511627776,"oid":%q},
				{"type":"file","path":"config.json","size":18,"oid":%q}]`, strings.Repeat("a", 40), x.repo.ETag("config.json"))
			return true
		}
		return false
	}
	x.hub.Unlock()
	_, err := x.Pull(t.Context(), Repo{testID, "main"}, func(repository fs.FS) (wanted, absent []string, err error) {
		if b, err := fs.ReadFile(repository, "config.json"); err != nil || string(b) != `{"model_type":"x"}` {
			t.Errorf("%s, %v", b, err)
		}
		_, err = fs.ReadFile(repository, "huge.json")
		return nil, nil, err
	}, nil)
	if !errors.Is(err, ErrTooLarge) || x.hub.Count("huge") > 0 {
		t.Errorf("error %v", err)
	}
	l := &listing{files: map[string]file{"a": {name: "a", size: 3}, "b/c": {name: "b/c", size: 3}}}
	content := &fstest.MapFile{Data: []byte("123"), Mode: 0o444}
	shown := files{l, func(name string) (fs.File, error) { return fstest.MapFS{"a": content, "b/c": content}.Open(name) }}
	if err := fstest.TestFS(shown, "a", "b/c"); err != nil {
		t.Error(err)
	}
}
