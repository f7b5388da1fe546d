package server

import (
	"errors"
	"testing"
	"time"
)

// TestResets holds that a connection may take back maxResets calls in a second, and again as many in the next.
func TestResets(t *testing.T) {
	c := &connection{}
	now := time.Now()
	for second := range 2 {
		for i := range maxResets {
			if !c.reset(now) {
				t.Fatalf("second %d: call %d may not be taken back", second, i)
			}
		}
		if c.reset(now.Add(time.Second / 2)) {
			t.Errorf("second %d: more than %d calls are taken back", second, maxResets)
		}
		now = now.Add(time.Second)
	}
}

// TestResetFrames holds that the frames of a connection are counted as they are read, in whatever pieces they come.
func TestResetFrames(t *testing.T) {
	c := &connection{listener: &listener{inflight: newInflight(1 << 20)}, streams: map[uint32]*inbound{}}
	frame := []byte{0, 0, 4, frameReset, 0, 0, 0, 0, 1, 0, 0, 0, 8}
	for i := range maxResets {
		if err := errors.Join(c.observe(frame[:5]), c.observe(frame[5:])); err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
	}
	if err := c.observe(frame); !errors.Is(err, errResets) {
		t.Errorf("%d frames in a second: %v", maxResets+1, err)
	}
}
