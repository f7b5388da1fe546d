package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of what a hub may say of a repository.
const (
	maxFiles    = 50_000
	maxPages    = 1_000
	maxAnswer   = 32 << 20 // bytes
	maxFileName = 1_024    // bytes
	maxNamePart = 240      // bytes; a file system takes 255, and names that are not whole yet are longer
	maxFileSize = 1 << 44  // bytes
)

// file is a file of a repository at a commit.
type file struct {
	// name is its path in the repository, which checkFileName has passed.
	name string
	// size is in bytes; -1 where the hub did not say.
	size int64
	// etag is what its blob is called: the SHA-256 of a large file's content, the SHA-1 of a small one's as git has it.
	// It is empty where only a HEAD tells.
	etag string
	// digest is what its content is verified by; empty where etag is no digest.
	digest string
	// entry is what the hub's listing says.
	entry treeEntry
}

// listing is what a repository has at a commit.
type listing struct {
	commit string
	files  map[string]file
}

// names are those of the files, in order.
func (l *listing) names() []string { return slices.Sorted(maps.Keys(l.files)) }

var (
	sha1Text   = regexp.MustCompile(`^[0-9a-f]{40}$`)
	sha256Text = regexp.MustCompile(`^[0-9a-f]{64}$`)
	// etagText is what may become a file's name.
	etagText = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9_.+-]{0,127}$`)
)

// add takes an entry of a listing.
func (l *listing) add(name string, e treeEntry) error {
	if err := checkFileName(name); err != nil {
		return err
	}
	if _, twice := l.files[name]; twice {
		return fmt.Errorf("file %q is listed twice", name)
	}
	if len(l.files) >= maxFiles {
		return fmt.Errorf("%w: more than %d files", ErrTooLarge, maxFiles)
	}
	f := file{name: name, size: e.Size, etag: e.BlobID, entry: e}
	if e.LFSSHA256 != "" {
		f.size, f.etag = e.LFSSize, e.LFSSHA256
		if !sha256Text.MatchString(f.etag) {
			return fmt.Errorf("file %q: want a SHA-256", name)
		}
	} else if !sha1Text.MatchString(f.etag) {
		return fmt.Errorf("file %q: want the id of a blob", name)
	}
	if f.size < 0 || f.size > maxFileSize {
		return fmt.Errorf("file %q: %w: %d bytes", name, ErrTooLarge, f.size)
	}
	f.digest = f.etag
	l.files[name] = f
	return nil
}

// checkFileName refuses what is no plain relative path: names that lead out of a folder, that a terminal acts on, or
// that a file system does not take.
func checkFileName(name string) error {
	bad := name == "" || len(name) > maxFileName || !utf8.ValidString(name) || path.Clean(name) != name ||
		path.IsAbs(name) || strings.ContainsAny(name, `\:*?"<>|`)
	for part := range strings.SplitSeq(name, "/") {
		bad = bad || part == ".." || part == "." || len(part) > maxNamePart
	}
	for _, r := range name {
		bad = bad || unicode.IsControl(r) || !unicode.IsPrint(r)
	}
	if bad {
		return fmt.Errorf("file name %.120q: want a plain path within the repository", name)
	}
	return nil
}

// list asks for the commit of a revision and for its files.
func (c *Client) list(ctx context.Context, s *store) (*listing, error) {
	var info struct {
		SHA      string
		Siblings []struct {
			Name string `json:"rfilename"`
		}
	}
	at := c.at("api", "models", s.repo.ID, "revision", s.repo.Revision)
	if _, err := c.askJSON(ctx, at, &info); err != nil {
		return nil, c.explain(err, s.repo)
	}
	if !commitTxt.MatchString(info.SHA) {
		return nil, fmt.Errorf("%s names no commit for the revision: is it a hub?", c.endpoint.Host)
	}
	if s.repo.pinned() && info.SHA != s.repo.Revision {
		return nil, fmt.Errorf("%w: the hub has commit %s for the commit that was asked for", ErrDigest, info.SHA)
	}
	if l := s.readTree(info.SHA); l != nil {
		return l, nil
	}
	l, err := c.listTree(ctx, s.repo, info.SHA)
	if err == nil {
		if err := s.writeTree(l); err != nil { // a cache that cannot be written may have all that is wanted
			c.log.Warn("the listing of the commit is not kept", "error", err)
		}
		return l, nil
	}
	var answer *statusError
	if !errors.As(err, &answer) || !slices.Contains([]int{http.StatusNotFound, http.StatusMethodNotAllowed,
		http.StatusNotImplemented}, answer.status) {
		return nil, c.explain(err, s.repo)
	}
	l = &listing{commit: info.SHA, files: map[string]file{}} // a hub without trees; HEAD tells the rest
	for _, f := range info.Siblings {
		if err := checkFileName(f.Name); err != nil {
			return nil, err
		}
		if l.files[f.Name] = (file{name: f.Name, size: -1}); len(l.files) > maxFiles {
			return nil, fmt.Errorf("%w: more than %d files", ErrTooLarge, maxFiles)
		}
	}
	return l, nil
}

// listTree asks for all files of a commit, page by page.
func (c *Client) listTree(ctx context.Context, r Repo, commit string) (*listing, error) {
	l := &listing{commit: commit, files: map[string]file{}}
	at := c.at("api", "models", r.ID, "tree", commit)
	at.RawQuery = "recursive=true"
	for range maxPages {
		var page []struct {
			Type, Path, OID string
			Size            int64
			XetHash         string
			LFS             *struct {
				OID  string
				Size int64
			}
		}
		header, err := c.askJSON(ctx, at, &page)
		if err != nil {
			return nil, err
		}
		for _, e := range page {
			if e.Type != "file" {
				continue
			}
			entry := treeEntry{Size: e.Size, BlobID: e.OID, XetHash: e.XetHash}
			if e.LFS != nil {
				entry.LFSSHA256, entry.LFSSize = strings.TrimPrefix(e.LFS.OID, "sha256:"), e.LFS.Size
			}
			if err := l.add(e.Path, entry); err != nil {
				return nil, err
			}
		}
		next := nextPage(header)
		if next == "" {
			return l, nil
		}
		if at, err = at.Parse(next); err != nil || !c.own(at) {
			return nil, errors.New("the next page of the listing is not the hub's")
		}
	}
	return nil, fmt.Errorf("%w: a listing of more than %d pages", ErrTooLarge, maxPages)
}

var nextLink = regexp.MustCompile(`<([^<>]*)>\s*;[^,]*\brel="?next"?`)

// nextPage is the link of that name; empty if there is none. Reference: RFC 8288.
func nextPage(h http.Header) string {
	for _, v := range h.Values("Link") {
		if m := nextLink.FindStringSubmatch(v); m != nil {
			return m[1]
		}
	}
	return ""
}

// askJSON reads an answer of the hub.
func (c *Client) askJSON(ctx context.Context, at *url.URL, into any) (h http.Header, err error) {
	err = c.retry(ctx, at.Path, func(ctx context.Context) error {
		a, err := c.do(ctx, http.MethodGet, at, nil)
		if err != nil {
			return err
		}
		defer a.close()
		raw, err := a.readAll(maxAnswer)
		if err != nil {
			return err
		}
		h = a.Header
		if err := json.Unmarshal(raw, into); err != nil {
			return fmt.Errorf("%s does not answer as a hub does: %w", c.endpoint.Host, err)
		}
		return nil
	})
	return h, err
}

// head asks for what the listing does not say of a file.
func (c *Client) head(ctx context.Context, r Repo, commit string, f file) (file, error) {
	err := c.retry(ctx, f.name, func(ctx context.Context) error {
		a, err := c.do(ctx, http.MethodHead, c.fileURL(r, commit, f.name), nil)
		if err != nil {
			return err
		}
		defer a.close()
		if err := a.check(commit, f); err != nil {
			return err
		}
		f.etag, f.size = a.etag(), a.size()
		if !etagText.MatchString(f.etag) || strings.HasSuffix(f.etag, ".incomplete") {
			return errors.New("the hub gives no ETag that can be kept")
		}
		if sha256Text.MatchString(f.etag) || sha1Text.MatchString(f.etag) {
			f.digest = f.etag
		}
		return nil
	})
	if err != nil {
		return f, c.explain(err, r)
	}
	return f, nil
}

// at is an address of the hub. Parts are escaped each, but for the slash of an ID.
func (c *Client) at(parts ...string) *url.URL {
	u := *c.endpoint
	escaped := []string{strings.TrimSuffix(u.EscapedPath(), "/")}
	plain := []string{strings.TrimSuffix(u.Path, "/")}
	for i, p := range parts {
		plain = append(plain, p)
		if p = url.PathEscape(p); i < 3 {
			p = strings.ReplaceAll(p, "%2F", "/")
		}
		escaped = append(escaped, p)
	}
	u.Path, u.RawPath = strings.Join(plain, "/"), strings.Join(escaped, "/")
	return &u
}

// fileURL is where a file's content is asked for.
func (c *Client) fileURL(r Repo, commit, name string) *url.URL {
	return c.at(append([]string{r.ID, "resolve", commit}, strings.Split(name, "/")...)...)
}
