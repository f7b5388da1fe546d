package ort

import (
	"testing"

	"golang.org/x/sys/unix"
)

// What runs in the background has a lower priority; what runs afterwards, on whatever thread, has not.
func TestBackground(t *testing.T) {
	nice := func() int {
		n, err := unix.Getpriority(unix.PRIO_PROCESS, 0) // the system call gives 20 less the niceness
		if err != nil {
			t.Error(err)
		}
		return 20 - n
	}
	before := nice()
	b := newBackground()
	for range 2 {
		b.do(func() {
			if got := nice(); got != min(before+nicer, 19) {
				t.Errorf("niceness %d in the background, %d before", got, before)
			}
		})
	}
	b.close()
	var none *background
	none.do(func() {
		if got := nice(); got != before {
			t.Errorf("niceness %d afterwards, %d before", got, before)
		}
	})
	none.close()
}
