// Package media keeps image files that callers uploaded, in memory: each under its SHA-256 and its tenant, until it
// expires or others need the room. Bytes that it lets go of are overwritten with zeros first.
package media

import (
	"container/list"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"
)

// Digest is the SHA-256 of a file.
type Digest [sha256.Size]byte

// digestPrefix names the function in a written digest.
const digestPrefix = "sha256:"

// String is the digest as callers write it: "sha256:" and 64 hexadecimal digits in lower case.
func (d Digest) String() string { return digestPrefix + hex.EncodeToString(d[:]) }

// ParseDigest reads what String writes. Digits may be in upper case, and the prefix may be missing.
func ParseDigest(s string) (d Digest, err error) {
	digits := strings.TrimPrefix(s, digestPrefix)
	if len(digits) == hex.EncodedLen(len(d)) {
		if _, err := hex.Decode(d[:], []byte(digits)); err == nil {
			return d, nil
		}
	}
	return Digest{}, fmt.Errorf("%d bytes; want sha256: and %d hexadecimal digits", len(s), hex.EncodedLen(len(d)))
}

var (
	// ErrFull says that the files in use and on their way leave no room now.
	ErrFull = errors.New("no room for more media now")
	// ErrTooLarge marks a file that will never fit its tenant's share.
	ErrTooLarge = errors.New("too large to be kept")
)

// Options bound a Store.
type Options struct {
	// Bytes bounds all files together, those that are still being received among them. A file counts Overhead as well.
	Bytes int64
	// TenantBytes bounds the same for one tenant; 0 stands for Bytes.
	TenantBytes int64
	// TTL is how long a file is kept after it was last uploaded or used.
	TTL time.Duration
}

// Overhead is what a file counts beside its bytes: entries of maps and lists.
const Overhead = 512

// Store keeps files. Its methods may be called concurrently.
//
// It is our own because caches in libraries share entries between keys of different callers, drop entries that are in
// use, and leave the bytes to the collector.
type Store struct {
	options Options

	mu      sync.Mutex
	files   map[key]*file
	tenants map[string]*tenant
	recent  *list.List // *file, those that nobody uses, the least recently used first
	expiry  *list.List // *file, the next to expire first
	bytes   int64
	evicted int64
	timer   *time.Timer // runs while a file is kept
	closed  bool
}

type key struct {
	tenant string
	digest Digest
}

// tenant is what one caller's files take. It is forgotten when that is nothing.
type tenant struct {
	bytes  int64
	recent *list.List // as Store.recent
}

// file is guarded by Store.mu, but for the bytes in data while it has users.
type file struct {
	key           key
	data          []byte
	counted       int64
	users         int
	expires       time.Time
	kept          bool          // it is in files and expiry
	recent, among *list.Element // in Store.recent and tenant.recent; nil while it has users
	expiresAt     *list.Element
}

// New returns an empty store.
func New(o Options) *Store {
	if o.TenantBytes == 0 {
		o.TenantBytes = o.Bytes
	}
	return &Store{
		options: o, files: map[key]*file{}, tenants: map[string]*tenant{}, recent: list.New(), expiry: list.New(),
	}
}

// TTL is how long a file is kept after it was last uploaded or used.
func (s *Store) TTL() time.Duration { return s.options.TTL }

// Largest is the most bytes that one file may have.
func (s *Store) Largest() int64 { return min(s.options.Bytes, s.options.TenantBytes) - Overhead }

// Usage is what a store holds.
type Usage struct {
	// Bytes counts files that are kept, in use or on their way, with Overhead; Files those that are kept.
	Bytes, Files int64
	// Evicted counts the files that gave room to others.
	Evicted int64
}

// Usage gives what is held now.
func (s *Store) Usage() Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Usage{Bytes: s.bytes, Files: int64(len(s.files)), Evicted: s.evicted}
}

// Info is what a store tells of a file.
type Info struct {
	Digest  Digest
	Size    int64
	Expires time.Time
}

// Has tells of a tenant's file. It counts as no use of it.
func (s *Store) Has(tenant string, d Digest) (Info, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.live(tenant, d)
	if f == nil {
		return Info{}, false
	}
	return f.info(), true
}

func (f *file) info() Info {
	return Info{Digest: f.key.digest, Size: int64(len(f.data)), Expires: f.expires}
}

// live is a file that has not expired, also where the timer is late. s.mu is held.
func (s *Store) live(tenant string, d Digest) *file {
	f := s.files[key{tenant, d}]
	if f == nil || !time.Now().Before(f.expires) {
		return nil
	}
	return f
}

// Open gives a tenant's file for use, until Close is called: it is neither evicted nor overwritten meanwhile.
func (s *Store) Open(tenant string, d Digest) (*File, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.live(tenant, d)
	if f == nil {
		return nil, false
	}
	s.renew(f)
	return s.use(f), true
}

// renew starts a kept file's time anew. s.mu is held.
func (s *Store) renew(f *file) {
	f.expires = time.Now().Add(s.options.TTL)
	s.expiry.MoveToBack(f.expiresAt)
}

// use is s.mu held.
func (s *Store) use(f *file) *File {
	if f.users++; f.users == 1 && f.recent != nil {
		s.recent.Remove(f.recent)
		s.tenants[f.key.tenant].recent.Remove(f.among)
		f.recent, f.among = nil, nil
	}
	return &File{store: s, file: f}
}

// File is a file in use.
type File struct {
	store *Store
	file  *file
	once  sync.Once
}

// Data are the file's bytes, not to be changed, nor read after Close.
func (f *File) Data() []byte { return f.file.data }

// Info tells of the file.
func (f *File) Info() Info {
	f.store.mu.Lock()
	defer f.store.mu.Unlock()
	return f.file.info()
}

// Close ends the use. It may be called more than once.
func (f *File) Close() { f.once.Do(func() { f.store.leave(f.file) }) }

func (s *Store) leave(f *file) {
	s.mu.Lock()
	f.users--
	idle := f.users == 0
	switch {
	case idle && f.kept:
		s.idle(f)
	case idle:
		defer overwrite(f.data)
		defer s.mu.Unlock()
		s.count(f.key.tenant, -f.counted)
		return
	}
	s.mu.Unlock()
}

// idle makes f one that may be evicted, the last. s.mu is held.
func (s *Store) idle(f *file) {
	f.recent, f.among = s.recent.PushBack(f), s.tenants[f.key.tenant].recent.PushBack(f)
}

// Delete lets go of a tenant's file; who uses it may finish. It tells whether there was one.
func (s *Store) Delete(tenant string, d Digest) bool {
	s.mu.Lock()
	f := s.live(tenant, d)
	if f == nil {
		s.mu.Unlock()
		return false
	}
	gone := s.drop(f)
	s.mu.Unlock()
	overwrite(gone)
	return true
}

// drop forgets a file that is kept, and gives its bytes if they are to be overwritten now: nobody uses it. s.mu is
// held.
func (s *Store) drop(f *file) []byte {
	delete(s.files, f.key)
	s.expiry.Remove(f.expiresAt)
	f.kept = false
	if f.users > 0 {
		return nil
	}
	s.recent.Remove(f.recent)
	s.tenants[f.key.tenant].recent.Remove(f.among)
	s.count(f.key.tenant, -f.counted)
	return f.data
}

// count adds n bytes to what a tenant takes. s.mu is held.
func (s *Store) count(name string, n int64) {
	t := s.tenants[name]
	if t == nil {
		t = &tenant{recent: list.New()}
		s.tenants[name] = t
	}
	t.bytes += n
	s.bytes += n
	if t.bytes == 0 {
		delete(s.tenants, name)
	}
}

// reserve counts n more bytes for a tenant, and lets go of what that needs of the files that nobody uses: of the
// tenant's where its share is full, then of all. Those that were used least recently go first.
func (s *Store) reserve(name string, n int64) error {
	var gone [][]byte
	defer func() {
		for _, data := range gone {
			overwrite(data)
		}
	}()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrFull
	}
	s.count(name, n) // the tenant stays known while its files go
	for t := s.tenants[name]; t.bytes > s.options.TenantBytes || s.bytes > s.options.Bytes; {
		from := s.recent
		if t.bytes > s.options.TenantBytes {
			from = t.recent
		}
		oldest := from.Front()
		if oldest == nil {
			s.count(name, -n)
			return ErrFull
		}
		gone = append(gone, s.drop(oldest.Value.(*file)))
		s.evicted++
	}
	return nil
}

// release gives back what reserve counted.
func (s *Store) release(name string, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count(name, -n)
}

// keep takes f over, which is reserved for. Where the tenant has the same file already, that is kept longer instead,
// and the bytes of f are the caller's to overwrite.
func (s *Store) keep(f *file) (info Info, fresh bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return Info{}, false, ErrFull
	}
	if old := s.files[f.key]; old != nil {
		s.renew(old)
		if old.users == 0 {
			s.recent.MoveToBack(old.recent)
			s.tenants[old.key.tenant].recent.MoveToBack(old.among)
		}
		return old.info(), false, nil
	}
	f.kept = true
	s.files[f.key] = f
	f.expiresAt = s.expiry.PushBack(f)
	s.renew(f)
	s.idle(f)
	if s.timer == nil {
		s.timer = time.AfterFunc(s.options.TTL, s.expire)
	}
	return f.info(), true, nil
}

// expire lets go of the files whose time has come, and comes again for the next.
func (s *Store) expire() {
	var gone [][]byte
	s.mu.Lock()
	now := time.Now()
	for next := s.expiry.Front(); next != nil && !now.Before(next.Value.(*file).expires); next = s.expiry.Front() {
		gone = append(gone, s.drop(next.Value.(*file)))
	}
	s.timer = nil
	if next := s.expiry.Front(); next != nil && !s.closed {
		s.timer = time.AfterFunc(next.Value.(*file).expires.Sub(now), s.expire)
	}
	s.mu.Unlock()
	for _, data := range gone {
		overwrite(data)
	}
}

// Close lets go of all files and takes no more. Who uses one may finish.
func (s *Store) Close() {
	var gone [][]byte
	s.mu.Lock()
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
	}
	for next := s.expiry.Front(); next != nil; next = s.expiry.Front() {
		gone = append(gone, s.drop(next.Value.(*file)))
	}
	s.mu.Unlock()
	for _, data := range gone {
		overwrite(data)
	}
}

// overwrite puts zeros over bytes that nothing reads any more.
func overwrite(data []byte) {
	data = data[:cap(data)]
	clear(data)
	runtime.KeepAlive(data)
}
