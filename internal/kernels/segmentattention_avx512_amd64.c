//go:build !windows

#include "vector_avx512_amd64.h"

#define LANES 16
#define PANELS 4
#define V_LOAD(p) _mm512_loadu_ps(p)
#define V_STORE(p, x) _mm512_storeu_ps(p, x)
#define V_ADD(x, y) _mm512_add_ps(x, y)
#define V_FIRST(x, n, other) _mm512_mask_mov_ps(other, lanes(n), x)
#define V_LARGEST(x) _mm512_reduce_max_ps(x)

INLINE float sum_lanes(const float *sums) { return _mm512_reduce_add_ps(_mm512_loadu_ps(sums)); }

#include "segmentattention_tile.h"

TARGET void segmentattention_attend_avx512(const segmentattention *a, int64_t head, int64_t from, int64_t to, float *scratch) {
  attend(a, head, from, to, scratch);
}
