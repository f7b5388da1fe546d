// Package hub fetches models from a model hub into the cache that the hub's own clients share, so that what one of them
// fetched no other fetches again.
//
// A pull asks for the commit that a revision names and for its files, fetches those that are wanted and not there, and
// then has the revision name the commit in the cache. Each file is fetched under its digest, resumed where an earlier
// attempt ended, verified, and only then given its name: whatever ends a process, what is left is resumed or whole.
//
// The code is our own: no Go client was found that resumes, verifies what came, bounds it and survives a kill.
// Layout of the cache: https://huggingface.co/docs/hub/local-cache; API: https://huggingface.co/docs/hub/api.
package hub

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/internal/host"
)

// DefaultEndpoint is the hub that is asked if no other is named.
const DefaultEndpoint = "https://huggingface.co"

// Errors that callers tell apart. What wraps them names the repository and what to do.
var (
	// ErrNotFound says that the hub knows no such repository or revision, or does not admit to it.
	ErrNotFound = errors.New("not found")
	// ErrDenied says that the hub refuses the token, or the lack of one.
	ErrDenied = errors.New("access denied")
	// ErrOffline says that something is not in the cache and that nothing may be asked.
	ErrOffline = errors.New("the hub is not asked (offline)")
	// ErrDigest says that what came is not what the hub says of it.
	ErrDigest = errors.New("wrong content")
	// ErrTooLarge says that a limit or the disk does not have the room.
	ErrTooLarge = errors.New("too large")
)

// Options say which hub is asked and where files are kept.
type Options struct {
	// Endpoint is the hub's address, https://host or http://host:port, with a path if need be. Default: DefaultEndpoint.
	Endpoint string
	// Cache is the folder of all repositories.
	Cache string
	// Token goes to the endpoint, and nowhere else.
	Token Token
	// Offline has nothing asked: what the cache has must do.
	Offline bool
	// MaxBytes is the most that the files of one pull may have together. Default: 1 TiB.
	MaxBytes int64
	// Version is what the program is called before the hub.
	Version string
	Logger  *slog.Logger
	// Pause is the first pause before something is tried again; each following one is twice as long. Default: 500 ms.
	Pause time.Duration
	// Stall is how long the hub may be silent. Default: 30 s.
	Stall time.Duration
}

// Client pulls repositories. Its methods may be called concurrently, also by several processes over one cache.
type Client struct {
	options  Options
	endpoint *url.URL
	http     *http.Client
	log      *slog.Logger
	tries    int
}

const (
	atOnce          = 4 // files that are fetched at once
	defaultMaxBytes = 1 << 40
	freeDisk        = 64 << 20 // bytes that a pull leaves of the disk
)

// New checks the options.
func New(o Options) (*Client, error) {
	u, err := parseEndpoint(cmp.Or(o.Endpoint, DefaultEndpoint))
	if err != nil {
		return nil, err
	}
	if o.Cache == "" {
		return nil, errors.New("the hub's cache has no folder: set HF_HOME")
	}
	if o.Cache, err = filepath.Abs(o.Cache); err != nil {
		return nil, err
	}
	o.MaxBytes = cmp.Or(o.MaxBytes, defaultMaxBytes)
	o.Pause = cmp.Or(o.Pause, 500*time.Millisecond)
	o.Stall = cmp.Or(o.Stall, 30*time.Second)
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	return &Client{options: o, endpoint: u, http: newHTTP(o.Stall), log: o.Logger, tries: tries}, nil
}

// Cache is the folder of all repositories.
func (c *Client) Cache() string { return c.options.Cache }

// Endpoint is the hub's address.
func (c *Client) Endpoint() string { return c.endpoint.String() }

// String tells which hub is asked, and with which token.
func (c *Client) String() string {
	if c.options.Offline {
		return "offline"
	}
	return fmt.Sprintf("%s with %s", c.endpoint, c.options.Token)
}

// A Want picks the files to fetch out of all that a repository has. A file of at most 64 MiB may be opened, and is
// fetched then. absent are names that it looked for and did not find. Its error ends the pull before anything large is
// fetched.
type Want func(repository fs.FS) (wanted, absent []string, err error)

// Snapshot is a repository at a commit, in the cache.
type Snapshot struct {
	Repo   Repo
	Commit string
	// Dir has the files, as links.
	Dir string
	// Fetched is how many bytes came over the network.
	Fetched int64
	// Asked tells whether the hub was asked.
	Asked bool
}

// Pull has the wanted files of a repository in the cache. A commit that is there whole is not asked for; a revision
// that the hub cannot be asked about is what it was last.
func (c *Client) Pull(ctx context.Context, r Repo, want Want, p *Progress) (*Snapshot, error) {
	if p == nil {
		p = new(Progress)
	}
	s := c.store(r)
	last, missed := s.cached(want)
	if c.options.Offline || r.pinned() && missed == nil {
		return last, missed
	}
	asking := *c
	if missed == nil {
		asking.tries = quickTries
	}
	l, err := asking.list(ctx, s)
	if err == nil {
		now := &pull{Client: c, store: s, listing: l, progress: p}
		var snap *Snapshot
		if snap, err = now.run(ctx, want); err == nil {
			return snap, nil
		}
	}
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case unreachable(err) && missed == nil:
		c.log.Warn("the hub cannot be asked; the cache has the revision as it was last", "model", r.ID,
			"revision", r.Revision, "commit", last.Commit, "error", err)
		return last, nil
	}
	return nil, fmt.Errorf("%s: %w", r, err)
}

// pull is one Pull that the hub has answered.
type pull struct {
	*Client
	store    *store
	listing  *listing
	progress *Progress
}

func (t *pull) run(ctx context.Context, want Want) (*Snapshot, error) {
	wanted, absent, err := want(files{t.listing, func(name string) (fs.File, error) { return t.open(ctx, name) }})
	if err != nil {
		return nil, err
	}
	list, err := t.missing(ctx, wanted)
	if err != nil {
		return nil, err
	}
	if err := t.room(list); err != nil {
		return nil, err
	}
	t.progress.begin(list)
	g, within := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for _, f := range list {
		g.Go(func() error {
			if err := t.fetch(within, f); err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if err := t.store.finish(t.listing, absent); err != nil {
		if len(list) > 0 {
			return nil, err
		}
		t.log.Warn("the hub's cache has all files, and does not take what is known of them", "error", err)
	}
	return &Snapshot{
		Repo: t.store.repo, Commit: t.listing.commit, Dir: t.store.snapshot(t.listing.commit),
		Fetched: t.progress.received.Load(), Asked: true,
	}, nil
}

// maxRead bounds a file that a Want opens.
const maxRead = 64 << 20

// open fetches a small file and opens it.
func (t *pull) open(ctx context.Context, name string) (fs.File, error) {
	list, err := t.missing(ctx, []string{name})
	if err != nil {
		return nil, err
	}
	for _, f := range list {
		if f.size > maxRead {
			return nil, fmt.Errorf("%w: %d bytes, want at most %d", ErrTooLarge, f.size, maxRead)
		}
		if err := t.fetch(ctx, f); err != nil {
			return nil, err
		}
	}
	return folder.Open(t.store.pointer(t.listing.commit, name))
}

// missing are those of the named files that the snapshot does not have. What the listing left open of them is asked.
func (t *pull) missing(ctx context.Context, names []string) (list []file, err error) {
	for _, name := range names {
		f, ok := t.listing.files[name]
		if !ok {
			return nil, fmt.Errorf("there is no file %q", name)
		}
		if t.store.has(t.listing.commit, f) {
			continue
		}
		if f.etag == "" {
			if f, err = t.head(ctx, t.store.repo, t.listing.commit, f); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			t.listing.files[name] = f
		}
		list = append(list, f)
	}
	return list, nil
}

// room says whether files fit the limit and the disk.
func (t *pull) room(list []file) error {
	var all, left int64
	for _, f := range list {
		size := max(f.size, 0)
		if size > t.options.MaxBytes-all {
			return fmt.Errorf("%w: its files have more than the %s of --hub-max-size", ErrTooLarge,
				host.FormatBytes(t.options.MaxBytes))
		}
		all += size
		if st, err := os.Stat(t.store.incomplete(f.etag)); err == nil {
			size -= min(size, st.Size())
		}
		left += size
	}
	if free := int64(host.FreeDisk(t.store.dir)); left > 0 && free > 0 && free-freeDisk < left {
		return fmt.Errorf("%w: %s are still to be fetched, and the disk of %s has %s", ErrTooLarge,
			host.FormatBytes(left), t.options.Cache, host.FormatBytes(free))
	}
	return nil
}

// fetch has a file in the snapshot.
func (t *pull) fetch(ctx context.Context, f file) error {
	if err := t.store.make(); err != nil {
		return err
	}
	unlock, err := t.store.lock(ctx, f.etag, t.log)
	if err != nil {
		return err
	}
	defer unlock()
	if !t.store.hasBlob(f) { // an earlier pull or another process may have fetched it
		d := &download{Client: t.Client, store: t.store, commit: t.listing.commit, file: f, progress: t.progress}
		if err := d.run(ctx); err != nil {
			return err
		}
	} else {
		t.progress.add(max(f.size, 0), 0)
	}
	if err := t.store.link(t.listing.commit, f); err != nil {
		return err
	}
	t.progress.filesDone.Add(1)
	return nil
}
