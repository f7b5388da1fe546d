// The threads that the kernels of all sessions share.
#ifndef MMSERVE_TEAM_H
#define MMSERVE_TEAM_H

#include <stddef.h>

// team_grow sees to it that n threads help those that call team_run.
void team_grow(int n);
// team_run calls task(arg, i) for each i below n, on the calling thread and on members that have nothing better to do,
// and returns when all calls have. Any number of threads may call it at once.
void team_run(void (*task)(void *, size_t), void *arg, size_t n);

#endif
