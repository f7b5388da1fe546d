// Package hubtest is a model hub over loopback HTTP: the endpoints that clients of a hub ask, in the words that the
// real one answers, and all that can go wrong with it.
package hubtest

import (
	"bytes"
	"crypto/sha1" // git names blobs by it
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Hub is the stand-in. Its fields may be changed under Lock between requests.
type Hub struct {
	sync.Mutex
	// URL is the endpoint, CDN another origin that large files come from.
	URL, CDN string
	Repos    map[string]*Repo
	// Fault, if it is there, may answer a request in place of the hub, or spoil what the hub answers.
	Fault func(w http.ResponseWriter, r *http.Request) (answered bool)
	// DropAfter breaks off each answer with content after so many bytes, if it is not 0.
	DropAfter int
	// Slow has answers with content pause before each 4 KiB.
	Slow time.Duration
	// NoRanges has content always come whole; NoTree has the hub know no trees; PageSize cuts listings into pages.
	NoRanges, NoTree bool
	PageSize         int
	// Requests are those that came: method, host, path with query, and the headers of interest.
	Requests []Request
}

// Request is one that came.
type Request struct{ Method, Host, URI, Authorization, Range, IfRange string }

// Repo is a repository with one commit.
type Repo struct {
	Commit string
	// Branches name the commit.
	Branches []string
	Files    map[string][]byte
	// Large are the names of files that are in large file storage.
	Large map[string]bool
	// Token has to come with each request, if it is there; Gated has the hub say that the licence is to be accepted.
	Token string
	Gated bool
}

// Start runs a hub until the test ends.
func Start(t testing.TB) *Hub {
	t.Helper()
	h := &Hub{Repos: map[string]*Repo{}}
	hub, cdn := httptest.NewServer(http.HandlerFunc(h.serve)), httptest.NewServer(http.HandlerFunc(h.serveCDN))
	t.Cleanup(func() { hub.Close(); cdn.Close() })
	h.URL, h.CDN = hub.URL, cdn.URL
	return h
}

// Add has the hub serve a tree of files; those above 10 kB are large ones.
func (h *Hub) Add(t testing.TB, id string, files fs.FS) *Repo {
	t.Helper()
	r := &Repo{Branches: []string{"main"}, Files: map[string][]byte{}, Large: map[string]bool{}}
	err := fs.WalkDir(files, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if r.Files[path], err = fs.ReadFile(files, path); len(r.Files[path]) > 10_000 {
			r.Large[path] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	r.Commit = r.commit()
	h.Lock()
	h.Repos[id] = r
	h.Unlock()
	return r
}

// commit is an id that changes with the files.
func (r *Repo) commit() string {
	sum := sha1.New() // as git does
	for _, name := range slices.Sorted(maps.Keys(r.Files)) {
		fmt.Fprintf(sum, "%s %s\n", name, r.ETag(name))
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}

// Set changes a file, and with it the commit.
func (r *Repo) Set(name string, content []byte) {
	r.Files[name] = content
	r.Commit = r.commit()
}

// ETag is the digest of a file, as the hub has it.
func (r *Repo) ETag(name string) string {
	if r.Large[name] {
		return fmt.Sprintf("%x", sha256.Sum256(r.Files[name]))
	}
	return BlobID(r.Files[name])
}

// BlobID is git's name of a content.
func BlobID(content []byte) string {
	return fmt.Sprintf("%x", sha1.Sum(fmt.Appendf(nil, "blob %d\x00%s", len(content), content))) // git's
}

func (h *Hub) record(r *http.Request) {
	h.Requests = append(h.Requests, Request{
		r.Method, r.Host, r.URL.RequestURI(), r.Header.Get("Authorization"), r.Header.Get("Range"), r.Header.Get("If-Range"),
	})
}

// Count is the number of requests whose address has a text in it.
func (h *Hub) Count(text string) (n int) {
	h.Lock()
	defer h.Unlock()
	for _, r := range h.Requests {
		if strings.Contains(r.Host+r.URI, text) {
			n++
		}
	}
	return n
}

// serve answers at the endpoint.
func (h *Hub) serve(w http.ResponseWriter, r *http.Request) {
	h.Lock()
	send := h.route(w, r)
	h.Unlock()
	if send != nil {
		send()
	}
}

// route answers, but for content, which what it gives sends. The caller holds the lock.
func (h *Hub) route(w http.ResponseWriter, r *http.Request) (send func()) {
	h.record(r)
	if h.Fault != nil && h.Fault(w, r) {
		return nil
	}
	path := strings.TrimPrefix(r.URL.EscapedPath(), "/")
	api, isAPI := strings.CutPrefix(path, "api/models/")
	if isAPI {
		path = api
	}
	parts := strings.SplitN(path, "/", 5)
	if len(parts) < 4 {
		http.NotFound(w, r)
		return nil
	}
	revision, err := url.PathUnescape(parts[3])
	repo := h.Repos[parts[0]+"/"+parts[1]]
	switch {
	case err != nil || repo == nil:
		// The real hub does not tell strangers whether a repository is there.
		status := http.StatusNotFound
		if r.Header.Get("Authorization") == "" {
			status = http.StatusUnauthorized
		}
		refuse(w, status, "RepoNotFound")
	case repo.Token != "" && r.Header.Get("Authorization") != "Bearer "+repo.Token && repo.Gated && !isAPI:
		status := http.StatusForbidden
		if r.Header.Get("Authorization") == "" {
			status = http.StatusUnauthorized
		}
		refuse(w, status, "GatedRepo")
	case repo.Token != "" && r.Header.Get("Authorization") != "Bearer "+repo.Token && !repo.Gated:
		refuse(w, http.StatusUnauthorized, "RepoNotFound")
	case revision != repo.Commit && !slices.Contains(repo.Branches, revision):
		refuse(w, http.StatusNotFound, "RevisionNotFound")
	case isAPI && parts[2] == "revision":
		h.info(w, parts[0]+"/"+parts[1], repo)
	case isAPI && parts[2] == "tree" && !h.NoTree:
		h.tree(w, r, repo)
	case !isAPI && parts[2] == "resolve" && len(parts) == 5:
		name, _ := url.PathUnescape(parts[4])
		return h.resolve(w, r, repo, name)
	default:
		http.NotFound(w, r)
	}
	return nil
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("X-Error-Code", code)
	w.Header().Set("X-Error-Message", "words of the hub")
	http.Error(w, `{"error":"words of the hub"}`, status)
}

func (h *Hub) info(w http.ResponseWriter, id string, r *Repo) {
	siblings := []any{}
	for _, name := range slices.Sorted(maps.Keys(r.Files)) {
		siblings = append(siblings, map[string]any{"rfilename": name})
	}
	writeJSON(w, map[string]any{"id": id, "modelId": id, "sha": r.Commit, "private": r.Token != "", "siblings": siblings})
}

func (h *Hub) tree(w http.ResponseWriter, r *http.Request, repo *Repo) {
	list := []any{}
	for _, name := range slices.Sorted(maps.Keys(repo.Files)) {
		e := map[string]any{"type": "file", "path": name, "size": len(repo.Files[name]), "oid": repo.ETag(name)}
		if repo.Large[name] {
			pointer := fmt.Appendf(nil, "version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n",
				repo.ETag(name), len(repo.Files[name]))
			e["oid"] = BlobID(pointer)
			e["lfs"] = map[string]any{
				"oid": repo.ETag(name), "size": len(repo.Files[name]), "pointerSize": len(pointer),
			}
		}
		list = append(list, e)
	}
	folder := map[string]any{"type": "directory", "path": "onnx", "oid": strings.Repeat("0", 40), "size": 0}
	list = append([]any{folder}, list...)
	if h.PageSize > 0 {
		from, _ := strconv.Atoi(r.URL.Query().Get("cursor"))
		to := min(from+h.PageSize, len(list))
		if to < len(list) {
			w.Header().Set("Link", fmt.Sprintf(`<%s%s?recursive=true&cursor=%d>; rel="next"`, h.URL, r.URL.Path, to))
		}
		list = list[from:to]
	}
	writeJSON(w, list)
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// resolve sends small files, and redirects to the CDN for large ones.
func (h *Hub) resolve(w http.ResponseWriter, r *http.Request, repo *Repo, name string) (send func()) {
	w.Header().Set("X-Repo-Commit", repo.Commit)
	content, ok := repo.Files[name]
	if !ok {
		refuse(w, http.StatusNotFound, "EntryNotFound")
		return nil
	}
	etag := `"` + repo.ETag(name) + `"`
	if repo.Large[name] {
		w.Header().Set("X-Linked-Etag", etag)
		w.Header().Set("X-Linked-Size", strconv.Itoa(len(content)))
		w.Header().Set("Location", h.CDN+"/"+repo.ETag(name)+"?X-Amz-Signature=secret-signature")
		w.WriteHeader(http.StatusFound)
		return nil
	}
	w.Header().Set("Etag", etag)
	return h.send(w, r, content)
}

// serveCDN sends large files by their digest, with an ETag of its own.
func (h *Hub) serveCDN(w http.ResponseWriter, r *http.Request) {
	h.Lock()
	send := h.routeCDN(w, r)
	h.Unlock()
	if send != nil {
		send()
	}
}

func (h *Hub) routeCDN(w http.ResponseWriter, r *http.Request) (send func()) {
	h.record(r)
	if h.Fault != nil && h.Fault(w, r) {
		return nil
	}
	for _, repo := range h.Repos {
		for name := range repo.Large {
			if etag := repo.ETag(name); etag == strings.TrimPrefix(r.URL.Path, "/") {
				w.Header().Set("Etag", `"cdn-`+etag[:8]+`"`)
				return h.send(w, r, repo.Files[name])
			}
		}
	}
	http.NotFound(w, r)
	return nil
}

// send sends a content, or the part of it that is asked for.
func (h *Hub) send(w http.ResponseWriter, r *http.Request, content []byte) func() {
	if h.NoRanges {
		r.Header.Del("Range")
	}
	if h.DropAfter > 0 {
		w = &dropping{ResponseWriter: w, left: h.DropAfter}
	}
	if h.Slow > 0 {
		w = &slow{ResponseWriter: w, pause: h.Slow}
	}
	return func() { http.ServeContent(w, r, "", time0, bytes.NewReader(content)) }
}
