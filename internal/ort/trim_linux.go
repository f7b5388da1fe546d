package ort

/*
#include <malloc.h>
#include <features.h>

static void release_heap(void) {
#ifdef __GLIBC__
	malloc_trim(0);
#endif
}
*/
import "C"

// releaseHeap has the C library return free pages of its heaps to the system: glibc keeps those below the highest block in
// use.
func releaseHeap() { C.release_heap() }
