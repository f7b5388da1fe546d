package server

import (
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
