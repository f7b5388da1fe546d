package serving

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func quietly() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// pacedRegistry has models that only take their time, one for each name.
func pacedRegistry(t *testing.T, o RegistryOptions, names ...string) *Registry {
	t.Helper()
	o.Config.Pace, o.Config.Logger = "0s,0s", quietly()
	r := NewRegistry(o)
	for _, name := range names {
		if _, err := r.Load(t.Context(), name, ""); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := r.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
	return r
}

// A request goes on with the model that it took, whatever becomes of the name.
func TestRegistrySwap(t *testing.T) {
	r := pacedRegistry(t, RegistryOptions{}, "a", "b")
	old, found, release := r.Take("a")
	if !found || old.Model.Name != "a" {
		t.Fatal(old.Model.Name, found)
	}
	fresh, err := r.Load(t.Context(), "a", "")
	if err != nil {
		t.Fatal(err)
	}
	now, _, releaseNow := r.Take("")
	if now != fresh || strings.Join(r.Names(), " ") != "a b" {
		t.Errorf("the default is %p, want %p; %v", now, fresh, r.Names())
	}
	select {
	case <-old.Ended():
		t.Error("the old one has ended amid a request")
	case <-old.Cutting().Done():
		t.Error("the old one was cut amid a request")
	case <-time.After(20 * time.Millisecond): // nothing tells that nothing happens
	}
	release()
	<-old.Ended()
	releaseNow()
	fallback, found, release := r.Take("c")
	if found || fallback != fresh {
		t.Errorf("what is not there: found %t", found)
	}
	release()
}

// Unload waits for requests; those that do not end within the drain time are cut.
func TestRegistryUnload(t *testing.T) {
	r := pacedRegistry(t, RegistryOptions{DrainTime: time.Millisecond}, "a", "b")
	d, _, release := r.Take("b")
	go func() {
		<-d.Cutting().Done()
		release()
	}()
	if err := r.Unload(t.Context(), "b"); err != nil {
		t.Error(err)
	}
	if err := r.Unload(t.Context(), "b"); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "there are a") {
		t.Errorf("unloaded twice: %v", err)
	}
	if err := r.Unload(t.Context(), "a"); !errors.Is(err, ErrLast) {
		t.Errorf("the last: %v", err)
	}
}

// A caller that leaves does not stop what it began, and one that waits for another's Load leaves at once.
func TestRegistryContext(t *testing.T) {
	r := pacedRegistry(t, RegistryOptions{}, "a", "b")
	d, _, release := r.Take("b")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Unload(ctx, "b"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if len(r.Names()) != 1 {
		t.Errorf("names %v", r.Names())
	}
	release()
	<-d.Ended()
	r.opening <- struct{}{}
	if _, err := r.Load(ctx, "c", ""); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	<-r.opening
}

// What does not fit beside the others is refused, counts nothing, and fits once there is room.
func TestRegistryMemory(t *testing.T) {
	if err := StartRuntime(""); err != nil {
		t.Skip(err)
	}
	c := Config{Logger: quietly(), Slots: 2, NoSelfTest: true}
	r := NewRegistry(RegistryOptions{Config: c, Memory: Memory{Host: 1}})
	defer r.Close(t.Context())
	a, err := r.Load(t.Context(), "a", "") // alone it is not measured
	if err != nil {
		t.Fatal(err)
	}
	if a.Memory.Host < 4*1_800_000 {
		t.Errorf("planned %d bytes, fewer than the weights have", a.Memory.Host)
	}
	if _, err := r.Load(t.Context(), "b", ""); !errors.Is(err, ErrMemory) ||
		!strings.Contains(err.Error(), "--kv-cache-bytes") {
		t.Errorf("a second: %v", err)
	}
	if r.held.Host != a.Memory.Host || len(r.Names()) != 1 {
		t.Errorf("held %+v by %v", r.held, r.Names())
	}
	r.budget.Host = 2 * a.Memory.Host
	if _, err := r.Load(t.Context(), "b", ""); err != nil {
		t.Error(err)
	}
	if _, err := r.Load(t.Context(), "b", ""); !errors.Is(err, ErrMemory) {
		t.Errorf("a swap has both for a while: %v", err)
	}
	if err := r.Unload(t.Context(), "b"); err != nil || r.held.Host != a.Memory.Host {
		t.Errorf("%v, held %+v", err, r.held)
	}
	if _, err := r.Load(t.Context(), "c", "none"); err == nil || r.held.Host != a.Memory.Host {
		t.Errorf("%v, held %+v", err, r.held)
	}
}

// What is held is counted of both memories, and given back.
func TestRegistryHolds(t *testing.T) {
	r := NewRegistry(RegistryOptions{Config: Config{Logger: quietly()}, Memory: Memory{Host: 10, Device: 20}})
	small, large := Memory{Host: 4, Device: 9}, Memory{Host: 6, Device: 30}
	for _, m := range []Memory{small, large} {
		if err := r.reserve(m); err != nil {
			t.Errorf("%+v: %v", m, err)
		}
	}
	if err := r.reserve(Memory{Host: 1}); !errors.Is(err, ErrMemory) {
		t.Errorf("a byte more than there is: %v", err)
	}
	if r.held != (Memory{Host: 10, Device: 39}) {
		t.Errorf("held %+v", r.held)
	}
	r.release(large)
	if r.held != small {
		t.Errorf("held %+v after a release, want %+v", r.held, small)
	}
	r.release(small)
	if err := r.reserve(Memory{Host: 1 << 40}); err != nil {
		t.Errorf("alone: %v", err)
	}
	if err := r.reserve(Memory{Host: 1}); err == nil || !strings.Contains(err.Error(), "0 B of ") {
		t.Errorf("beside more than there is: %v", err)
	}
}

// A registry that is closed takes nothing.
func TestRegistryClose(t *testing.T) {
	r := pacedRegistry(t, RegistryOptions{}, "a")
	d, _, release := r.Take("a")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	go func() {
		<-d.Cutting().Done()
		release()
	}()
	if err := r.Close(ctx); err != nil {
		t.Error(err)
	}
	if d, _, _ := r.Take(""); d != nil {
		t.Error("took a model after the end")
	}
	if _, err := r.Load(t.Context(), "b", ""); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

func TestValidModelName(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "SmolVLM-256M.v2:q8@x": true, strings.Repeat("a", 128): true,
		"~!": true, "": false, ".": false, "..": false, "a b": false, "a\x7f": false, "a/b": false, `a\b`: false,
		"a=b": false, "ä": false,
		"a\x00": false, strings.Repeat("a", 129): false,
	} {
		if ValidModelName(name) != want {
			t.Errorf("%q: %t", name, !want)
		}
	}
}
