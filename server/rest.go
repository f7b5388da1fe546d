package server

import (
	"runtime"
	"runtime/metrics"
	"time"

	"github.com/mmserve/mmserve/serving"
)

const (
	// restTime is how long no call has run when memory is given back.
	restTime = time.Second
	// worthReclaiming is how many bytes have to have been allocated since the last time: a collection takes processor
	// time, and what is given back costs page faults later.
	worthReclaiming = 32 << 20
)

// close counts a call less, and has memory given back if none comes for a while. f.mu is held.
func (f *inflight) close() {
	if f.open--; f.open == 0 && !f.resting {
		f.resting = true
		time.AfterFunc(restTime, f.rest)
	}
}

// rest gives back to the system what calls have left on an idle server, where the collector would keep it for minutes.
func (f *inflight) rest() {
	allocated := allocatedBytes()
	f.mu.Lock()
	worth := f.open == 0 && allocated-f.reclaimedAt > worthReclaiming
	if worth {
		f.reclaimedAt = allocated
	}
	f.resting = false
	f.mu.Unlock()
	if worth {
		runtime.GC() // what pools keep goes with the second collection
		serving.ReleaseMemory()
	}
}

// allocatedBytes is how much the heap has ever been asked for.
func allocatedBytes() uint64 {
	list := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(list)
	if list[0].Value.Kind() != metrics.KindUint64 { // another version of Go has another name for it
		return 0
	}
	return list[0].Value.Uint64()
}
