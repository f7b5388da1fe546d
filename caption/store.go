package caption

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/url"
	"strings"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/vision"
)

// IsStore tells whether a name is the URL of an object store rather than a path.
func IsStore(name string) bool {
	for _, scheme := range []string{"s3://", "gs://", "azblob://", "file://", "mem://"} {
		if strings.HasPrefix(name, scheme) {
			return true
		}
	}
	return false
}

// Location is a place in an object store: a bucket, and a key or the prefix of keys in it.
type Location struct {
	*blob.Bucket
	// Key is what follows the bucket in the URL.
	Key string
	// Name is the URL of the bucket without its parameters, as rows show it.
	Name string

	dir string // where the bucket is a folder
}

// OpenLocation opens the bucket of a URL such as s3://bucket/prefix?region=eu-west-1. Which schemes there are, and what
// parameters they have, depends on the drivers of gocloud.dev/blob that the program imports. Errors do not quote
// parameters.
func OpenLocation(ctx context.Context, text string) (*Location, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("not a URL of a store")
	}
	l := &Location{Key: strings.TrimPrefix(u.Path, "/"), Name: u.Scheme + "://" + u.Host}
	u.Path, u.RawPath = "", ""
	if u.Scheme == "file" { // the whole path is the folder; its last part may be a key
		l.Name, l.Key = "file://", ""
		u.Path = "/" + strings.TrimPrefix(strings.TrimPrefix(text[:len(text)-len(queryOf(text))], "file://"), "/")
		if !strings.HasSuffix(u.Path, "/") {
			at := strings.LastIndexByte(u.Path, '/')
			u.Path, l.Key = u.Path[:at+1], u.Path[at+1:]
		}
		l.Name, l.dir = l.Name+strings.TrimSuffix(u.Path, "/"), u.Path
		q := u.Query()
		q.Set("metadata", "skip") // no files beside the objects
		q.Set("no_tmp_dir", "true")
		u.RawQuery = q.Encode()
	}
	b, err := blob.OpenBucket(ctx, u.String())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.Name, err)
	}
	l.Bucket = b
	return l, nil
}

func queryOf(text string) string {
	if i := strings.IndexByte(text, '?'); i >= 0 {
		return text[i:]
	}
	return ""
}

// Store lists the images in an object store: all below a prefix that is empty or ends in /, or one object. Archives are
// read through. Listing streams: its memory does not grow with the number of keys.
func Store(text string, m Match) Source {
	return func(ctx context.Context) iter.Seq2[Item, error] {
		return func(yield func(Item, error) bool) {
			l, err := OpenLocation(ctx, text)
			if err != nil {
				yield(Item{}, err)
				return
			}
			defer l.keep(ctx)
			s := storeLister{l, m, yield}
			if l.Key == "" || strings.HasSuffix(l.Key, "/") {
				err = s.all(ctx)
			} else {
				err = s.one(ctx, l.Key)
			}
			if err != nil && !errors.Is(err, errStop) {
				yield(Item{}, fmt.Errorf("%s: %w", l.Name, err))
			}
		}
	}
}

// keep closes the bucket when the listing's context ends: items are read after the listing.
func (l *Location) keep(ctx context.Context) { context.AfterFunc(ctx, func() { _ = l.Close() }) }

type storeLister struct {
	*Location
	match Match
	yield func(Item, error) bool
}

func (s storeLister) all(ctx context.Context) error {
	objects := s.List(&blob.ListOptions{Prefix: s.Key})
	for {
		o, err := objects.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if o.IsDir || !s.match.has(o.Key) && !isArchive(o.Key) {
			continue
		}
		version := fmt.Sprintf("%d-%d", o.Size, o.ModTime.UnixNano())
		if len(o.MD5) > 0 {
			version = fmt.Sprintf("%d-%x", o.Size, o.MD5)
		}
		if err := s.give(ctx, o.Key, o.Size, version); err != nil {
			return err
		}
	}
}

func (s storeLister) one(ctx context.Context, key string) error {
	a, err := s.Attributes(ctx, key)
	if err != nil {
		return s.item(Item{Path: s.Name + "/" + key, Err: storeError(err)})
	}
	return s.give(ctx, key, a.Size, fmt.Sprintf("%d-%d", a.Size, a.ModTime.UnixNano()))
}

// give yields an object, or what an archive has in it.
func (s storeLister) give(ctx context.Context, key string, size int64, version string) error {
	path := s.Name + "/" + key
	if !isArchive(key) {
		return s.item(
			Item{Path: path, Size: size, Version: version, Open: func(ctx context.Context) (io.ReadCloser, error) {
				return s.open(ctx, key, vision.DefaultLimits().MaxBytes), nil
			}},
		)
	}
	r := s.open(ctx, key, 1<<62)
	defer r.Close()
	a := archive{path: path, version: version, match: s.match, yield: s.yield}
	err := a.list(ctx, r)
	if err == nil || errors.Is(err, errStop) || ctx.Err() != nil {
		return err
	}
	return s.item(Item{Path: path, Err: itemErrorf(codeRead, "archive: %w", err)})
}

func (s storeLister) item(it Item) error {
	if !s.yield(it, nil) {
		return errStop
	}
	return nil
}

// open reads an object, at most limit bytes of it and one more, and goes on where a connection broke off.
func (l *Location) open(ctx context.Context, key string, limit int64) io.ReadCloser {
	return &objectReader{ctx: ctx, bucket: l.Bucket, key: key, limit: limit + 1}
}

const readTries = 5

// objectReader reads an object by ranges from where the last one ended.
type objectReader struct {
	ctx    context.Context
	bucket *blob.Bucket
	key    string
	limit  int64
	at     int64
	r      *blob.Reader
	whole  int64 // the object's size, known after opening
}

// Read implements io.Reader.
func (o *objectReader) Read(b []byte) (int, error) {
	for try := 0; ; try++ {
		n, err := o.read(b)
		o.at += int64(n)
		if n > 0 || err == nil {
			return n, nil
		}
		if errors.Is(err, io.EOF) {
			return 0, io.EOF
		}
		if !transientStore(err) || try >= readTries || o.ctx.Err() != nil {
			return 0, storeError(err)
		}
		if err := sleep(o.ctx, client.BackOff(try)); err != nil {
			return 0, err
		}
	}
}

func (o *objectReader) read(b []byte) (int, error) {
	if o.r == nil {
		if o.at > 0 && o.at >= min(o.whole, o.limit) {
			return 0, io.EOF
		}
		r, err := o.bucket.NewRangeReader(o.ctx, o.key, o.at, o.limit-o.at, nil)
		if err != nil {
			return 0, err
		}
		if o.at > 0 && r.Size() != o.whole {
			r.Close()
			return 0, itemErrorf(codeChanged, "the object changed while it was read")
		}
		o.r, o.whole = r, r.Size()
	}
	n, err := o.r.Read(b)
	if err != nil && (!errors.Is(err, io.EOF) || o.at+int64(n) < min(o.whole, o.limit)) {
		o.r.Close()
		o.r = nil // the next Read goes on from here
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
	}
	return n, err
}

// Close implements io.Closer.
func (o *objectReader) Close() error {
	if o.r == nil {
		return nil
	}
	return o.r.Close()
}

// transientStore tells whether a store's error may go away.
func transientStore(err error) bool {
	var known *itemError
	if errors.As(err, &known) {
		return false
	}
	switch gcerrors.Code(err) {
	case gcerrors.NotFound,
		gcerrors.PermissionDenied,
		gcerrors.InvalidArgument,
		gcerrors.FailedPrecondition,
		gcerrors.Unimplemented,
		gcerrors.Canceled:
		return false
	}
	return true
}

// storeError gives a store's error the code of its row.
func storeError(err error) error {
	var known *itemError
	if errors.As(err, &known) {
		return err
	}
	switch gcerrors.Code(err) {
	case gcerrors.NotFound:
		return &itemError{codeNotFound, errors.New("no such object")}
	case gcerrors.PermissionDenied:
		return &itemError{codePermission, errors.New("the store refuses")}
	}
	return &itemError{codeRead, err}
}

// storePatience is how long one request to a store may take when results are committed.
const storePatience = 2 * time.Minute
