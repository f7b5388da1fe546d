#include <stdint.h>

// DOTS are independent sums in flight, enough to hide the latency of one.
#define DOTS 12

uint64_t read_all(const uint64_t *from, int64_t n);
int32_t dot_all(int64_t rounds);
