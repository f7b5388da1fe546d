package serving_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/internal/fetch"
	"github.com/mmserve/mmserve/internal/media"
	"github.com/mmserve/mmserve/serving"
)

// hosts is a fetcher of files by URL.
type hosts struct {
	files map[string]string
	open  atomic.Int32
	wait  chan struct{} // unless nil, a fetch waits for it

	mu      sync.Mutex
	callers []string
}

func (h *hosts) Fetch(ctx context.Context, caller, url string, most int64, to io.Writer) error {
	h.mu.Lock()
	h.callers = append(h.callers, caller)
	h.mu.Unlock()
	h.open.Add(1)
	defer h.open.Add(-1)
	if h.wait != nil {
		select {
		case <-h.wait:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	file, ok := h.files[url]
	switch {
	case url == "busy":
		return fetch.ErrBusy
	case !ok:
		return fmt.Errorf("%w: its host answered with status 404", fetch.ErrURL)
	case int64(len(file)) > most:
		return fmt.Errorf("%w: too large", fetch.ErrURL)
	}
	_, err := io.WriteString(to, file)
	return err
}

func byURL(url string) serving.Part { return serving.Part{Image: &serving.Image{URL: url}} }

func withHosts(t *testing.T, h *hosts) (*serving.Service, *batching.Engine, *media.Store) {
	store := media.New(media.Options{Bytes: 1 << 20, TTL: time.Hour})
	t.Cleanup(store.Close)
	s, e := tinyOptions(t, serving.ServiceOptions{Media: store, Fetcher: h})
	return s, e, store
}

// What is fetched stands for its bytes and is not kept.
func TestRemote(t *testing.T) {
	h := &hosts{files: map[string]string{"red": "red file", "green": "green file", "empty": ""}}
	s, _, store := withHosts(t, h)
	var want, got kept
	text := serving.Part{Text: "a small"}
	if err := s.Generate(t.Context(), prompt(image("red file"), image("green file"), text), &want); err != nil {
		t.Fatal(err)
	}
	if err := s.Generate(t.Context(), prompt(byURL("red"), byURL("green"), text), &got); err != nil {
		t.Fatal(err)
	}
	if got.text != want.text || got.finish.Usage.Image != 2*imageTokens {
		t.Errorf("by URL %q, with the bytes %q", got.text, want.text)
	}
	if u := store.Usage(); u.Bytes != 0 || u.Files != 0 {
		t.Errorf("%+v is kept", u)
	}
	off, _ := tiny(t)
	for name, c := range map[string]struct {
		s     *serving.Service
		parts []serving.Part
		kind  serving.Kind
		field string
		text  string
	}{
		"where they are off": {off, []serving.Part{byURL("red")}, serving.Invalid,
			"prompt.parts[0].image.url", "--media-allow-urls"},
		"one that is not there": {s, []serving.Part{byURL("red"), byURL("blue")}, serving.Invalid,
			"prompt.parts[1].image.url", "status 404"},
		"an empty file":    {s, []serving.Part{byURL("empty")}, serving.Invalid, "prompt.parts[0].image.url", "empty"},
		"too many at once": {s, []serving.Part{byURL("red"), byURL("busy")}, serving.Exhausted, "", "fetched"},
		"a URL and a digest": {s, []serving.Part{{Image: &serving.Image{URL: "red", Digest: digestOf(nil)}}},
			serving.Invalid, "prompt.parts[0].image", "one"},
	} {
		err := c.s.Generate(t.Context(), prompt(c.parts...), &kept{})
		wantError(t, name, err, c.kind, c.field)
		if err == nil || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "blue") ||
			strings.Contains(err.Error(), "upload") { // HTTP has no uploads
			t.Errorf("%s: %v, want one with %q", name, err, c.text)
		}
		if u := store.Usage(); u.Bytes != 0 {
			t.Errorf("%s: %+v is left", name, u)
		}
	}
}

// A host that is slow takes no slot, and is waited for as long as the caller waits.
func TestRemoteTakesNoSlot(t *testing.T) {
	h := &hosts{files: map[string]string{"red": "red file"}, wait: make(chan struct{})}
	s, e, store := withHosts(t, h)
	ctx, leave := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Generate(ctx, prompt(byURL("red")), &kept{}) }()
	for h.open.Load() == 0 {
		select {
		case err := <-done:
			t.Fatal(err)
		default:
		}
	}
	if n := e.Stats().Accepted; n != 0 {
		t.Errorf("%d slots are taken", n)
	}
	if err := s.Generate(t.Context(), prompt(image("red file")), &kept{}); err != nil {
		t.Errorf("beside a fetch: %v", err)
	}
	leave()
	var told *serving.Error
	if err := <-done; !errors.As(err, &told) || told.Kind != serving.Canceled || store.Usage().Bytes != 0 {
		t.Errorf("%v, with %+v held", err, store.Usage())
	}
}

// A host is asked on behalf of the tenant, or of the host that the request comes from.
func TestRemoteCallers(t *testing.T) {
	h := &hosts{files: map[string]string{"red": "red file"}}
	s, _, _ := withHosts(t, h)
	for _, tenant := range []string{"acme", ""} {
		in := prompt(byURL("red"))
		in.Tenant, in.Peer = tenant, "10.0.0.1:999"
		if err := s.Generate(t.Context(), in, &kept{}); err != nil {
			t.Error(err)
		}
	}
	if !slices.Equal(h.callers, []string{"acme", "10.0.0.1"}) {
		t.Errorf("asked on behalf of %v", h.callers)
	}
}
