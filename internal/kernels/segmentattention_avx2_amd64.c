//go:build !windows

#include "vector_avx2_amd64.h"

#define LANES 8
#define PANELS 2
#define V_LOAD(p) _mm256_loadu_ps(p)
#define V_STORE(p, x) _mm256_storeu_ps(p, x)
#define V_ADD(x, y) _mm256_add_ps(x, y)
#define V_FIRST(x, n, other) _mm256_blendv_ps(other, x, _mm256_castsi256_ps(lanes(n)))
#define V_LARGEST(x) reduce_max(x)

INLINE float sum_lanes(const float *sums) { return reduce_add(_mm256_loadu_ps(sums), _mm256_loadu_ps(sums + 8)); }

#include "segmentattention_tile.h"

TARGET void segmentattention_attend_avx2(const segmentattention *a, int64_t head, int64_t from, int64_t to, float *scratch) {
  attend(a, head, from, to, scratch);
}
