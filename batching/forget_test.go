package batching

import (
	"context"
	"testing"

	"github.com/mmserve/mmserve/decoder/decodertest"
	"github.com/mmserve/mmserve/fusion"
)

// Forget waits for the sequences that have the image, and for the step that wipes what they held.
func TestForget(t *testing.T) {
	r := decodertest.NewHash(2, 40, 40)
	e := New(r, Options{})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	image := [32]byte{7: 1}
	in := fusion.Input{IDs: []int32{1, 2, 3, 4}, Spans: []fusion.Span{{Start: 1, Len: 2, File: image, Digest: image}}}
	ask := func(n int) *Stream {
		t.Helper()
		return mustSubmit(t, t.Context(), e, Request{ID: "a", Tenant: "t", Input: in, MaxTokens: n})
	}
	for range 3 {
		read(t, ask(3))
	}
	<-e.Forget("u", image)
	if n := e.Stats().CachedSlots; n == 0 {
		t.Error("another tenant's is forgotten")
	}
	<-e.Forget("t", image)
	if r.Holds(in) {
		t.Error("the image is in the KV cache")
	}
	s := ask(30)
	gone := e.Forget("t", image)
	read(t, s)
	<-gone
	if r.Holds(in) {
		t.Error("the image of a request that was open is in the KV cache")
	}
	open, late := ask(30), e.Forget("t", image)
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	<-late
	<-e.Forget("t", image)
	read(t, open)
}
