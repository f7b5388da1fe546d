package audit_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/mmserve/mmserve/internal/audit"
)

// A flood makes few lines, which count every event.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, lines, events := audit.NewFlood(5, 10), 0, 0
		for range 10_000 {
			f.Add(func(n int) { lines, events = lines+1, events+n })
			time.Sleep(time.Millisecond)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if events != 10_000 || lines < 10 || lines > 10+5*12 {
			t.Errorf("%d lines stand for %d events", lines, events)
		}
	})
}
