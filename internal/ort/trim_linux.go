package ort

/*
#include <malloc.h>
#include <features.h>

static void release_heap(void) {
#ifdef __GLIBC__
	malloc_trim(0);
#endif
}

static void return_freed(void) {
#ifdef __GLIBC__
	mallopt(M_MMAP_THRESHOLD, 1 << 20);
	mallopt(M_TRIM_THRESHOLD, 128 << 10);
#endif
}
*/
import "C"

// releaseHeap has the C library return free pages of its heaps to the system.
func releaseHeap() { C.release_heap() }

// returnFreed ends glibc's habit of raising the thresholds below which freed memory stays: malloc_trim does not reach
// what lies at the top of a thread's heap.
func returnFreed() { C.return_freed() }
