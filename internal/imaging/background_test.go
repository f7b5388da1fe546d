package imaging

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A decoder that cannot be interrupted is not waited for by a caller who leaves; it keeps its share until it ends, and
// reads no more of the file.
func TestUninterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h Header
		ctx, leave := context.WithCancelCause(h.background.with(t.Context()))
		gone, read := errors.New("gone"), error(nil)
		var over atomic.Bool
		time.AfterFunc(time.Second, func() { leave(gone) })
		data := bytes.NewReader([]byte("a file"))
		_, err := uninterrupted(ctx, data, func(r io.Reader) (int, error) {
			time.Sleep(time.Minute)
			_, read = r.Read(make([]byte, 1))
			return 0, read
		})
		if !errors.Is(err, gone) {
			t.Errorf("the caller left: %v", err)
		}
		h.WhenOver(func() { over.Store(true) })
		if synctest.Wait(); over.Load() {
			t.Error("its share was given back while it works")
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if !over.Load() || read == nil || data.Len() != 6 {
			t.Errorf("afterwards: share back %v, read %v, %d bytes left", over.Load(), read, data.Len())
		}
		h.WhenOver(func() { over.Store(false) })
		if over.Load() {
			t.Error("where nothing works the share is not given back at once")
		}
	})
}

// A panic of a decoder's, on whatever goroutine, is the error of its image.
func TestPanics(t *testing.T) {
	for name, decode := range map[string]func(context.Context) (*RGB, error){
		"its own goroutine": func(context.Context) (*RGB, error) { panic("a secret") },
		"another": func(ctx context.Context) (*RGB, error) {
			return uninterrupted(ctx, nil, func(io.Reader) (*RGB, error) { panic("a secret") })
		},
		"one of many": func(ctx context.Context) (*RGB, error) {
			return nil, eachBand(ctx, 1000, 1<<20, func(lo, _ int) {
				if lo > 0 {
					panic("a secret")
				}
			})
		},
	} {
		h := &Header{Format: "png", source: &source{w: 8, h: 8, decode: decode}}
		_, err := h.Decode(t.Context())
		if !errors.Is(err, ErrImage) || bytes.Contains([]byte(err.Error()), []byte("secret")) {
			t.Errorf("%s: decoding gives %v", name, err)
		}
		if _, err := h.Scale(t.Context(), Filters[2].To(8, 8, 4, 4)); !errors.Is(err, ErrImage) {
			t.Errorf("%s: scaling gives %v", name, err)
		}
	}
}

// What takes longer than MaxTime is the caller's to change, and WebP, which cannot be interrupted, is left.
func TestMaxTime(t *testing.T) {
	for _, name := range []string{"photos/astronaut.png", "photos/rocket.jpg", "decode/blue-purple-pink.lossy.webp",
		"decode/blue-purple-pink.lossless.webp"} {
		data := readFile(t, name)
		budget := NewBudget(DefaultDecodeBytes)
		_, err := Decode(t.Context(), data, Limits{MaxTime: time.Nanosecond, Budget: budget})
		if !errors.Is(err, ErrImage) {
			t.Errorf("%s: %v, want an error of the image", name, err)
		}
		release, err := budget.Acquire(t.Context(), budget.Largest()) // waits until the share is back
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		release()
		if _, err := Decode(t.Context(), data, Limits{Budget: budget}); err != nil {
			t.Errorf("%s: within its time: %v", name, err)
		}
	}
}
