package media_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mmserve/mmserve/internal/media"
)

// put uploads a file of n bytes in pieces.
func put(t testing.TB, s *media.Store, tenant string, data []byte) media.Info {
	t.Helper()
	w, err := s.Create(tenant, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for rest := data; len(rest) > 0; {
		n := min(len(rest), 1000)
		if _, err := w.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	info, err := w.Keep()
	if err != nil {
		t.Fatal(err)
	}
	if info.Digest != sha256.Sum256(data) || info.Size != int64(len(data)) {
		t.Fatalf("kept %v of %d bytes, not what was sent", info.Digest, info.Size)
	}
	return info
}

func file(n int, fill byte) []byte { return bytes.Repeat([]byte{fill}, n) }

func check(t testing.TB, s *media.Store) {
	t.Helper()
	if wrong := s.Check(); wrong != "" {
		t.Fatal(wrong)
	}
}

func has(s *media.Store, tenant string, d media.Digest) bool {
	_, ok := s.Has(tenant, d)
	return ok
}

func zeros(data []byte) bool { return len(bytes.Trim(data, "\x00")) == 0 }

func newStore(t testing.TB, o media.Options) *media.Store {
	if o.TTL == 0 {
		o.TTL = time.Hour
	}
	s := media.New(o)
	t.Cleanup(s.Close)
	return s
}

// A file is one tenant's, is there once however often it is sent, and can be read until it is deleted.
func TestStore(t *testing.T) {
	s := newStore(t, media.Options{Bytes: 1 << 20})
	data := file(5000, 'a')
	d := put(t, s, "a", data).Digest
	one := s.Usage()
	if put(t, s, "a", data); s.Usage() != one {
		t.Errorf("sent twice it takes %+v, once %+v", s.Usage(), one)
	}
	if has(s, "b", d) || has(s, "", d) || s.Delete("b", d) {
		t.Error("another tenant finds it")
	}
	if _, ok := s.Open("b", d); ok {
		t.Error("another tenant opens it")
	}
	f, ok := s.Open("a", d)
	if !ok || !bytes.Equal(f.Data(), data) {
		t.Fatal("it is not what was sent")
	}
	f.Close()
	f.Close()
	put(t, s, "b", data)
	if !s.Delete("a", d) || has(s, "a", d) || !has(s, "b", d) || s.Delete("a", d) {
		t.Error("deleting it is not the end of it alone")
	}
	check(t, s)
	if s.Delete("b", d); s.Usage().Bytes != 0 {
		t.Errorf("nothing is kept, and takes %+v", s.Usage())
	}
}

// Whatever ends a file, its bytes are zeros then; while it is used they are not, and it is overwritten after that.
func TestOverwritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, end := range map[string]func(s *media.Store, d media.Digest){
			"deletion": func(s *media.Store, d media.Digest) { s.Delete("a", d) },
			"expiry":   func(*media.Store, media.Digest) { time.Sleep(time.Hour); synctest.Wait() },
			"closing":  func(s *media.Store, _ media.Digest) { s.Close() },
		} {
			for _, used := range []bool{false, true} {
				s := newStore(t, media.Options{Bytes: 1 << 20})
				d := put(t, s, "a", file(5000, 'a')).Digest
				f, _ := s.Open("a", d)
				data := f.Data()
				if !used {
					f.Close()
				}
				end(s, d)
				if has(s, "a", d) {
					t.Errorf("%s: it is still there", name)
				}
				if zeros(data) == used {
					t.Errorf("%s, in use %v: zeros %v", name, used, zeros(data))
				}
				check(t, s)
				if f.Close(); !zeros(data[:cap(data)]) || s.Usage().Bytes != 0 {
					t.Errorf("%s, in use %v: not overwritten, or %+v taken", name, used, s.Usage())
				}
			}
		}
	})
}

// Eviction overwrites as well, and so do buffers that a file outgrew, was aborted in or was sent in again.
func TestOverwrittenBuffers(t *testing.T) {
	s := newStore(t, media.Options{Bytes: 300_000})
	d := put(t, s, "a", file(200_000, 'a')).Digest
	f, _ := s.Open("a", d)
	old := f.Data()
	f.Close()
	w, err := s.Create("b", 200_000)
	if err != nil {
		t.Fatal(err)
	}
	var buffers [][]byte
	for range 200 {
		if _, err := w.Write(file(1000, 'b')); err != nil {
			t.Fatal(err)
		}
		buffers = append(buffers, w.Data())
	}
	if has(s, "a", d) || !zeros(old) || s.Usage().Evicted != 1 {
		t.Error("the evicted file's bytes are there")
	}
	last := w.Data()
	for _, b := range buffers {
		if &b[0] != &last[0] && !zeros(b) {
			t.Fatal("a buffer that was outgrown holds bytes")
		}
	}
	w.Abort()
	w.Abort()
	if !zeros(last) || s.Usage().Bytes != 0 {
		t.Errorf("aborted, it leaves bytes, or takes %+v", s.Usage())
	}
	put(t, s, "a", file(100_000, 'c'))
	again, _ := s.Create("a", 100_000)
	_, _ = again.Write(file(100_000, 'c'))
	twice := again.Data()
	if _, err := again.Keep(); err != nil || !zeros(twice) {
		t.Errorf("%v; the second copy holds bytes", err)
	}
	check(t, s)
}

// The least recently used file that nobody uses goes first: the tenant's own where its share is full.
func TestEviction(t *testing.T) {
	const size = 10_000
	each := int64(size + media.Overhead)
	s := newStore(t, media.Options{Bytes: 6 * each, TenantBytes: 3 * each})
	var a, b []media.Digest
	for i := range 3 {
		a = append(a, put(t, s, "a", file(size, byte(i))).Digest)
		b = append(b, put(t, s, "b", file(size, byte(i))).Digest)
	}
	f, _ := s.Open("a", a[0]) // in use
	if u, ok := s.Open("a", a[1]); ok {
		u.Close() // used last
	}
	put(t, s, "a", file(size, 10))
	if !has(s, "a", a[0]) || !has(s, "a", a[1]) || has(s, "a", a[2]) || !has(s, "b", b[0]) {
		t.Error("beyond its share a tenant does not lose its own least recently used file")
	}
	put(t, s, "c", file(size, 10))
	if has(s, "b", b[0]) || !has(s, "b", b[1]) || !has(s, "a", a[1]) {
		t.Error("beyond the budget not the least recently used file of all goes")
	}
	check(t, s)
	f.Close()
	check(t, s)
}

// What is in use or on its way is never taken from: who comes then hears so.
func TestFull(t *testing.T) {
	s := newStore(t, media.Options{Bytes: 300_000, TenantBytes: 150_000})
	if _, err := s.Create("a", 150_000); !errors.Is(err, media.ErrTooLarge) {
		t.Errorf("a file that never fits: %v", err)
	}
	d := put(t, s, "a", file(140_000, 'a')).Digest
	f, _ := s.Open("a", d)
	w, err := s.Create("a", 140_000)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(file(20_000, 'b')); !errors.Is(err, media.ErrFull) {
		t.Errorf("beside a file in use: %v", err)
	}
	if _, err := w.Write(file(140_001, 'b')); !errors.Is(err, media.ErrTooLarge) {
		t.Errorf("beyond what was declared: %v", err)
	}
	w.Abort()
	other, err := s.Create("b", 100_000)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Write(file(100_000, 'b')); err != nil {
		t.Errorf("another tenant has no room: %v", err)
	}
	other.Abort()
	check(t, s)
	f.Close()
}

// A tenant's many tiny files are bounded too.
func TestTinyFiles(t *testing.T) {
	s := newStore(t, media.Options{Bytes: 100 * (media.Overhead + 2)})
	for i := range 1000 {
		put(t, s, "a", []byte{byte(i), byte(i >> 8)})
	}
	if u := s.Usage(); u.Files != 100 {
		t.Errorf("%d files are kept", u.Files)
	}
	check(t, s)
}

// A file goes TTL after it was last sent or used; to be asked after is no use.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t, media.Options{Bytes: 1 << 20, TTL: time.Hour})
		sent := put(t, s, "a", file(1000, 'a'))
		used := put(t, s, "a", file(1000, 'b'))
		asked := put(t, s, "a", file(1000, 'c'))
		time.Sleep(30 * time.Minute)
		if put(t, s, "a", file(1000, 'a')).Expires.Sub(sent.Expires) != 30*time.Minute {
			t.Error("sent again it is not kept longer")
		}
		f, _ := s.Open("a", used.Digest)
		f.Close()
		if info, ok := s.Has("a", asked.Digest); !ok || !info.Expires.Equal(asked.Expires) {
			t.Errorf("asked after it expires at %v instead of %v", info.Expires, asked.Expires)
		}
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		if s.Usage().Files != 2 || has(s, "a", asked.Digest) || !has(s, "a", used.Digest) || !has(s, "a", sent.Digest) {
			t.Error("not the one goes that was neither sent nor used")
		}
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		if u := s.Usage(); u.Files != 0 || u.Bytes != 0 || has(s, "a", used.Digest) {
			t.Errorf("after its time: %+v", u)
		}
		check(t, s)
	})
}

// A fetched file is used without being kept.
func TestUse(t *testing.T) {
	s := newStore(t, media.Options{Bytes: 1 << 20})
	w, err := s.Create("a", 1<<20-media.Overhead)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(file(5000, 'a'))
	f := w.Use()
	w.Abort()
	data := f.Data()
	if has(s, "a", w.Digest()) || zeros(data) || s.Usage().Bytes == 0 {
		t.Error("it is found, overwritten or does not count")
	}
	if f.Close(); !zeros(data) || s.Usage().Bytes != 0 {
		t.Error("it was let go of, and holds bytes")
	}
	check(t, s)
}

func TestDigest(t *testing.T) {
	d := media.Digest(sha256.Sum256([]byte("x")))
	digits := strings.TrimPrefix(d.String(), "sha256:")
	for _, good := range []string{d.String(), digits, "sha256:" + strings.ToUpper(digits)} {
		if got, err := media.ParseDigest(good); err != nil || got != d {
			t.Errorf("%s: %v, %v", good, got, err)
		}
	}
	odd := strings.Repeat("g", 64)
	for _, bad := range []string{"", "sha256:", d.String()[:70], d.String() + "0", "sha512:" + digits, "sha256:" + odd} {
		if _, err := media.ParseDigest(bad); err == nil || strings.Contains(err.Error(), odd) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// Many callers at once leave the books in order and nothing behind.
func TestConcurrent(t *testing.T) {
	s := newStore(t, media.Options{Bytes: 400_000, TenantBytes: 200_000, TTL: 5 * time.Millisecond})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			tenant := fmt.Sprint(i % 3)
			for range 300 {
				data := file(r.IntN(20_000), byte(r.IntN(4)))
				w, err := s.Create(tenant, int64(len(data)))
				if err != nil {
					continue
				}
				_, err = w.Write(data)
				switch n := r.IntN(4); {
				case err != nil || n == 0:
				case n == 1:
					f := w.Use()
					if !bytes.Equal(f.Data(), data) {
						t.Error("other bytes than were sent")
					}
					f.Close()
				default:
					info, err := w.Keep()
					if f, ok := s.Open(tenant, info.Digest); err == nil && ok {
						if !bytes.Equal(f.Data(), data) {
							t.Error("other bytes than were sent")
						}
						f.Close()
					}
					if n == 2 {
						s.Delete(tenant, info.Digest)
					}
				}
				w.Abort()
				check(t, s)
			}
		})
	}
	wg.Wait()
	s.Close()
	if u := s.Usage(); u.Bytes != 0 || u.Files != 0 {
		t.Errorf("%+v is left", u)
	}
}
