package serving

import (
	"context"
	"errors"
	"io"

	"github.com/mmserve/mmserve/internal/crew"
	"github.com/mmserve/mmserve/internal/fetch"
	"github.com/mmserve/mmserve/internal/media"
	"github.com/mmserve/mmserve/internal/socket"
)

// Fetcher gets files from other hosts; *fetch.Fetcher is one. Fetch writes the file at a URL, at most so many bytes, on
// behalf of a caller. Its errors are those of to, the context's cause, fetch.ErrBusy, or wrap fetch.ErrURL.
type Fetcher interface {
	Fetch(ctx context.Context, caller, url string, most int64, to io.Writer) error
}

// fetchesAtOnce is how many images of one request are fetched at once.
const fetchesAtOnce = 4

// fetch gives images that are at other hosts their bytes, which stay until release is called and are overwritten then.
// It comes after a tenant's quotas and before a slot is taken: a host that is slow must not keep those from running
// whose images are here. What is held meanwhile counts for the tenant's share of the media, as uploads do.
func (l *life) fetch(ctx context.Context, req *checked) (release func(), err error) {
	files := make([]*media.File, len(req.images))
	release = func() {
		for _, f := range files {
			if f != nil {
				f.Close()
			}
		}
	}
	g, ctx := crew.New(ctx)
	g.SetLimit(fetchesAtOnce)
	for i := range req.images {
		p := &req.images[i]
		if p.url == "" {
			continue
		}
		l.used.work()
		g.Go(func() (err error) {
			files[i], err = l.fetchOne(ctx, req, p)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		release()
		return func() {}, err
	}
	for i, f := range files {
		if f != nil {
			req.images[i].data = f.Data()
		}
	}
	return release, nil
}

func (l *life) fetchOne(ctx context.Context, req *checked, p *imagePart) (*media.File, error) {
	most := l.largestMedia()
	w, err := l.options.Media.Create(req.tenant, most)
	if err != nil {
		return nil, mediaError(p.field, err)
	}
	defer w.Abort()
	caller := req.tenant
	if caller == "" {
		caller = socket.Host(req.peer)
	}
	err = l.options.Fetcher.Fetch(ctx, caller, p.url, most, w)
	switch {
	case errors.Is(err, fetch.ErrURL):
		return nil, InvalidField(p.field, "%v", err)
	case errors.Is(err, fetch.ErrBusy):
		return nil, Overloaded("too many images are being fetched from other hosts: try again later, or send them as data")
	case err != nil:
		return nil, mediaError(p.field, err)
	case w.Size() == 0:
		return nil, InvalidField(p.field, "the file there is empty")
	}
	return w.Use(), nil
}
