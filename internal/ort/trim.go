package ort

import "runtime/debug"

// ReleaseMemory returns to the system what closed sessions and the collector's dead objects leave behind. It takes as long as
// a collection.
func ReleaseMemory() {
	debug.FreeOSMemory()
	releaseHeap()
}
