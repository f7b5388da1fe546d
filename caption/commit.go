package caption

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"

	"github.com/mmserve/mmserve/client"
)

// ErrOvertaken is the error of a worker whose part another worker has committed: both were given the same shard. The
// run that follows goes on from what is committed.
var ErrOvertaken = errors.New("another worker committed this part")

// Parts writes rows to an object store, exactly once however many workers are given the same shard and wherever they
// die.
//
// Rows are put as an object of JSON lines, whose name has the digest of its content; then a manifest with the part's
// number is put on condition that there is none. A row is part of the output when a manifest names its object. A worker
// counts its parts from those that were committed when it began, so that of two workers with one shard only one commits
// a number, and the other stops.
type Parts struct {
	*Journal // on this machine, and gone with it: what is committed, and what is to be
	l        *Location
	ctx      context.Context
	prefix   string

	mu      sync.Mutex
	number  int
	pending bytes.Buffer
	rows    int
	since   time.Time // of the first pending row
}

// manifest is what commits a part.
type manifest struct {
	Object string `json:"object"`
	SHA256 string `json:"sha256"`
	Rows   int    `json:"rows"`
	Bytes  int    `json:"bytes"`
}

const (
	partRows  = 1000
	partBytes = 64 << 20
	partAge   = time.Minute
)

// OpenParts goes on with shard i of n of the output at l, a prefix. ctx ends requests to the store.
func OpenParts(ctx context.Context, l *Location, run runFile, i, n int) (*Parts, error) {
	if err := holdStoreConfig(ctx, l, run); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp("", "mmserve-captions-")
	if err != nil {
		return nil, err
	}
	f.Close()
	defer os.Remove(f.Name()) // the open file stays
	j, err := OpenJournal(f.Name(), true)
	if err != nil {
		return nil, err
	}
	p := &Parts{Journal: j, l: l, ctx: ctx, prefix: fmt.Sprintf("%sshard-%05d-of-%05d/", l.Key, i, n)}
	if err := p.load(); err != nil {
		return nil, errors.Join(err, j.release())
	}
	return p, nil
}

// holdStoreConfig is holdConfig for a store.
func holdStoreConfig(ctx context.Context, l *Location, now runFile) error {
	key := l.Key + "run.json"
	b, err := json.MarshalIndent(now, "", "  ")
	if err != nil {
		return err
	}
	err = putOnce(ctx, l, key, b)
	if err == nil || !errors.Is(err, errThere) {
		return err
	}
	there, err := get(ctx, l, key, maxLine)
	if err != nil {
		return err
	}
	var had runFile
	if err := json.Unmarshal(there, &had); err != nil {
		return fmt.Errorf("%s/%s: %w", l.Name, key, err)
	}
	if differ := differences(had.Config, now.Config); len(differ) > 0 {
		return &ConfigError{l.Name + "/" + key, differ}
	}
	return nil
}

var partName = regexp.MustCompile(`part-(\d{5,9})\.json$`)

// load reads what is committed. Parts are listed in the order of their numbers.
func (p *Parts) load() error {
	objects := p.l.List(&blob.ListOptions{Prefix: p.prefix + "part-"})
	for {
		o, err := objects.Next(p.ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if !partName.MatchString(o.Key) {
			continue
		}
		if want := p.manifestKey(); o.Key != want {
			return fmt.Errorf("%s/%s: want %s next: a part is missing", p.l.Name, o.Key, want)
		}
		if err := p.loadPart(o.Key); err != nil {
			return fmt.Errorf("%s/%s: %w", p.l.Name, o.Key, err)
		}
		p.number++
	}
}

func (p *Parts) manifestKey() string { return fmt.Sprintf("%spart-%05d.json", p.prefix, p.number) }

func (p *Parts) loadPart(key string) error {
	b, err := get(p.ctx, p.l, key, maxLine)
	if err != nil {
		return err
	}
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	rows, err := get(p.ctx, p.l, p.prefix+m.Object, partBytes+maxLine)
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(rows); hex.EncodeToString(sum[:]) != m.SHA256 {
		return fmt.Errorf("%s is not what was committed", m.Object)
	}
	for line := range bytes.Lines(rows) {
		r, err := parseRow(line)
		if err != nil {
			return err
		}
		if err := p.Journal.Append(r, nil); err != nil {
			return err
		}
	}
	return nil
}

// Append implements Output.
func (p *Parts) Append(r *Row, _ []byte) error {
	line, err := r.line()
	if err != nil {
		return err
	}
	if err := p.Journal.Append(r, nil); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rows == 0 {
		p.since = time.Now()
	}
	p.pending.Write(line)
	p.rows++
	if p.rows >= partRows || p.pending.Len() >= partBytes {
		return p.commit()
	}
	return nil
}

// Sync implements Output: it commits what has waited for a minute.
func (p *Parts) Sync() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rows > 0 && time.Since(p.since) >= partAge {
		return p.commit()
	}
	return nil
}

// commit puts the pending rows, then the manifest. The caller holds mu.
func (p *Parts) commit() error {
	if p.rows == 0 {
		return nil
	}
	sum := sha256.Sum256(p.pending.Bytes())
	digest := hex.EncodeToString(sum[:])
	m := manifest{
		Object: fmt.Sprintf("rows-%05d-%s.jsonl", p.number, digest[:16]),
		SHA256: digest,
		Rows:   p.rows,
		Bytes:  p.pending.Len(),
	}
	err := retryStore(p.ctx, func(ctx context.Context) error {
		return p.l.WriteAll(
			ctx,
			p.prefix+m.Object,
			p.pending.Bytes(),
			&blob.WriterOptions{ContentType: "application/x-ndjson"},
		)
	})
	if err != nil {
		return err
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	key := p.manifestKey()
	err = putOnce(p.ctx, p.l, key, b)
	if errors.Is(err, errThere) {
		return fmt.Errorf("%s/%s: %w", p.l.Name, key, ErrOvertaken)
	}
	if err != nil {
		return err
	}
	p.number++
	p.rows = 0
	p.pending.Reset()
	return nil
}

// Close commits what is pending. complete leaves a mark that every item of the shard has a row.
func (p *Parts) Close(complete bool) error {
	p.mu.Lock()
	err := p.commit()
	parts := p.number
	p.mu.Unlock()
	if err == nil && complete {
		err = retryStore(p.ctx, func(ctx context.Context) error {
			return p.l.WriteAll(ctx, p.prefix+"_SUCCESS", fmt.Appendf(nil, "{\"parts\":%d}\n", parts), nil)
		})
	}
	return errors.Join(err, p.release(), p.l.Close())
}

// errThere is the error of putOnce where there is an object already.
var errThere = errors.New("it is there")

// putOnce puts an object on condition that there is none. An answer that was lost is recognised by the object's
// content.
func putOnce(ctx context.Context, l *Location, key string, data []byte) error {
	var err error
	if l.dir != "" {
		err = linkOnce(filepath.Join(l.dir, key), data)
	} else {
		err = retryStore(ctx, func(ctx context.Context) error {
			return l.WriteAll(ctx, key, data, &blob.WriterOptions{IfNotExist: true, ContentType: "application/json"})
		})
	}
	if code := gcerrors.Code(err); code != gcerrors.FailedPrecondition && code != gcerrors.AlreadyExists &&
		!errors.Is(err, fs.ErrExist) {
		return err
	}
	there, err := get(ctx, l, key, maxLine)
	if err != nil {
		return err
	}
	if bytes.Equal(there, data) {
		return nil
	}
	return errThere
}

// linkOnce makes a file that appears whole, on condition that there is none. The library's own condition for folders
// looks first and renames then, between which another process may do the same.
func linkOnce(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".put-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Link(f.Name(), path)
}

func get(ctx context.Context, l *Location, key string, limit int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, storePatience)
	defer cancel()
	r := l.open(ctx, key, limit)
	defer r.Close()
	return readLimited(r, nil, limit)
}

// retryStore makes a request to a store until it succeeds or fails for good.
func retryStore(ctx context.Context, f func(context.Context) error) error {
	for try := 0; ; try++ {
		once, cancel := context.WithTimeout(ctx, storePatience)
		err := f(once)
		cancel()
		if err == nil || ctx.Err() != nil || !transientStore(err) || gcerrors.Code(err) == gcerrors.AlreadyExists ||
			try >= readTries {
			return err
		}
		if err := sleep(ctx, client.BackOff(try)); err != nil {
			return err
		}
	}
}
