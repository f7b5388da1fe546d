package ort

import (
	"runtime/debug"
	"sync"
)

// ReleaseMemory returns to the system what closed sessions and the collector's dead objects leave behind. It takes as
// long as a collection.
func ReleaseMemory() {
	debug.FreeOSMemory()
	releaseHeap()
}

// ReturnFreed has the C library return large freed blocks at once, from now on. It is for processes that open and close
// sessions as they go: elsewhere the kept memory saves page faults.
var ReturnFreed = sync.OnceFunc(returnFreed)
