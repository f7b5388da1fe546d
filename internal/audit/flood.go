package audit

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Flood has one line of the log stand for several events where very many come, so that strangers cannot fill the disk.
// No event is left out of the counts. Its methods may be called concurrently.
type Flood struct {
	mu      sync.Mutex
	lines   *rate.Limiter
	pending int         // events that no line stands for yet
	later   *time.Timer // writes a line for them; nil if there are none
}

// floodDelay is how long a line waits that stands for events which had none of their own.
const floodDelay = time.Second

// NewFlood allows so many lines a second, and at once.
func NewFlood(perSecond float64, burst int) *Flood {
	return &Flood{lines: rate.NewLimiter(rate.Limit(perSecond), burst)}
}

// Add counts an event, and has write called with the number of events that the line stands for: now or a little later.
func (f *Flood) Add(write func(n int)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch f.pending++; {
	case f.later != nil: // its line counts this one
	case f.lines.Allow():
		write(f.pending)
		f.pending = 0
	default:
		f.later = time.AfterFunc(floodDelay, func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			write(f.pending)
			f.pending, f.later = 0, nil
		})
	}
}
