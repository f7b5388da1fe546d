package hub

import (
	"context"
	"crypto/sha1" // git names blobs by it
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// download fetches one file into its blob. The caller holds the blob's lock.
type download struct {
	*Client
	store    *store
	commit   string
	file     file
	progress *Progress
	out      *os.File
	at       int64 // bytes of out
	// whole has the next attempt ask without a condition: the server answers one with the whole file.
	whole bool
	// validator is the ETag of the place that the content comes from, if that is not the hub.
	validator string
}

// run fetches, resumes and verifies. What comes and is wrong is fetched anew once.
func (d *download) run(ctx context.Context) error {
	err := d.attempt(ctx)
	if errors.Is(err, errWrongContent) {
		d.log.Warn("what came is not what the hub says of it; it is fetched anew", "file", d.file.name, "error", err)
		err = d.attempt(ctx)
	}
	return d.explain(err, d.store.repo)
}

// attempt fetches what is not there yet, verifies the whole, and gives it its name. What an error leaves is resumed,
// but for wrong content.
func (d *download) attempt(ctx context.Context) (err error) {
	path := d.store.incomplete(d.file.etag)
	if d.out, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|noFollow, 0o666); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, d.out.Close())
		if errors.Is(err, errWrongContent) || err != nil && d.at == 0 {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	if err := d.resume(); err != nil {
		return err
	}
	if err := d.fetch(ctx); err != nil {
		_ = d.out.Sync()
		return err
	}
	if err := d.out.Sync(); err != nil {
		return err
	}
	if err := d.verify(ctx); err != nil {
		d.progress.add(-d.at, 0)
		return err
	}
	if err := os.Rename(path, d.store.blob(d.file.etag)); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

// resume goes to the end of what an earlier attempt left.
func (d *download) resume() error {
	st, err := d.out.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", d.out.Name())
	}
	d.at = st.Size()
	d.progress.add(d.at, 0)
	if d.file.size >= 0 && d.at > d.file.size {
		return d.restart()
	}
	_, err = d.out.Seek(d.at, io.SeekStart)
	return err
}

// restart throws away what is there.
func (d *download) restart() error {
	d.progress.add(-d.at, 0)
	d.at = 0
	if err := d.out.Truncate(0); err != nil {
		return err
	}
	_, err := d.out.Seek(0, io.SeekStart)
	return err
}

// fetch asks for the rest until all is there. Tries that bring something do not count.
func (d *download) fetch(ctx context.Context) error {
	furthest, try := d.at, 1
	for d.file.size < 0 || d.at < d.file.size {
		err := d.part(ctx)
		if err == nil {
			if d.file.size < 0 {
				return nil
			}
			continue
		}
		if !unreachable(err) || ctx.Err() != nil {
			return err
		}
		if d.at > furthest {
			furthest, try = d.at, 1
		}
		if err := d.pause(ctx, try, d.file.name, err); err != nil {
			return err
		}
		try++
	}
	return nil
}

// part asks for what is missing and writes what comes.
func (d *download) part(ctx context.Context) error {
	from := d.at
	a, err := d.do(ctx, http.MethodGet, d.fileURL(d.store.repo, d.commit, d.file.name), d.setRange)
	var s *statusError
	if errors.As(err, &s) && s.status == http.StatusRequestedRangeNotSatisfiable && from > 0 {
		return errors.Join(d.restart(), transientError{err})
	}
	if err != nil {
		return err
	}
	defer a.close()
	if err := a.check(d.commit, d.file); err != nil {
		return err
	}
	if enc := a.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return fmt.Errorf("%s sends the file in another encoding, %.40q", a.Request.URL.Host, enc)
	}
	if a.StatusCode == http.StatusPartialContent {
		if err := d.checkRange(a); err != nil {
			return err
		}
	} else if from > 0 { // no ranges there, or another content
		d.whole = true
		if err := d.restart(); err != nil {
			return err
		}
	}
	if a.elsewhere {
		d.validator = strongETag(a.Header.Get("Etag"))
	}
	return d.write(a)
}

// setRange asks for what follows what is there, on condition that it is of the same content. At another place than the
// hub the condition is that place's own ETag.
func (d *download) setRange(h http.Header, elsewhere bool) {
	if d.at == 0 {
		return
	}
	h.Set("Range", fmt.Sprintf("bytes=%d-", d.at))
	condition := `"` + d.file.etag + `"`
	if elsewhere {
		condition = d.validator
	}
	if condition != "" && !d.whole {
		h.Set("If-Range", condition)
	}
}

// strongETag is an ETag that holds byte for byte; empty if it does not.
func strongETag(v string) string {
	if len(v) < 2 || len(v) > 256 || v[0] != '"' || v[len(v)-1] != '"' {
		return ""
	}
	return v
}

// checkRange refuses a part that does not go on where the file ends.
func (d *download) checkRange(a *answer) error {
	text, ok := strings.CutPrefix(a.Header.Get("Content-Range"), "bytes ")
	span, total, ok2 := strings.Cut(text, "/")
	first, _, ok3 := strings.Cut(span, "-")
	from, err := strconv.ParseInt(first, 10, 64)
	if !ok || !ok2 || !ok3 || err != nil || from != d.at {
		return fmt.Errorf("%s sends another part than was asked for", a.Request.URL.Host)
	}
	if n, err := strconv.ParseInt(total, 10, 64); err == nil && d.file.size >= 0 && n != d.file.size {
		return fmt.Errorf("%w: the hub says %d bytes and sends %d", ErrDigest, d.file.size, n)
	}
	return nil
}

// write appends a body, and not a byte more than the file has.
func (d *download) write(a *answer) error {
	left := int64(maxRead)
	if d.file.size >= 0 {
		left = d.file.size - d.at
	} else {
		left -= d.at
	}
	buf := make([]byte, 256<<10)
	for {
		n, err := a.Read(buf)
		if int64(n) > left {
			return fmt.Errorf("%w: more than %d bytes came", ErrDigest, d.at+left)
		}
		if n > 0 {
			if _, werr := d.out.Write(buf[:n]); werr != nil {
				return werr
			}
			left -= int64(n)
			d.at += int64(n)
			d.progress.add(int64(n), int64(n))
		}
		if errors.Is(err, io.EOF) && (d.file.size < 0 || left == 0) {
			return nil
		}
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			if cause := context.Cause(a.watch.parent); cause != nil {
				return cause
			}
			return transientError{fmt.Errorf("%s breaks off after %d bytes: %w", a.Request.URL.Host, d.at, plainRead(err))}
		}
	}
}

// errWrongContent is ErrDigest of content that came whole.
var errWrongContent = fmt.Errorf("%w", ErrDigest)

// verify compares the content with its digest, of what the disk has now.
func (d *download) verify(ctx context.Context) error {
	if d.file.digest == "" {
		d.log.Warn("the hub gives no digest of the file: its size alone was checked", "file", d.file.name)
		return nil
	}
	got, err := digestOf(ctx, d.out, d.file.digest)
	if err != nil {
		return err
	}
	if got != d.file.digest {
		return fmt.Errorf("%w: its digest is %s, the hub says %s; nothing of it was kept", errWrongContent, got, d.file.digest)
	}
	return nil
}

// digestOf is the digest of a file of the kind that want is: SHA-256, or SHA-1 as git makes it of a blob.
func digestOf(ctx context.Context, f *os.File, want string) (string, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	var h hash.Hash = sha256.New()
	if len(want) == hex.EncodedLen(sha1.Size) {
		st, err := f.Stat()
		if err != nil {
			return "", err
		}
		h = sha1.New() // git names blobs by it
		fmt.Fprintf(h, "blob %d\x00", st.Size())
	}
	buf := make([]byte, 1<<20)
	for {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		n, err := f.Read(buf)
		h.Write(buf[:n])
		if errors.Is(err, io.EOF) {
			return hex.EncodeToString(h.Sum(nil)), nil
		}
		if err != nil {
			return "", err
		}
	}
}
