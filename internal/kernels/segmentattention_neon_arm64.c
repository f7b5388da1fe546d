//go:build linux

#include "vector_arm64.h"

#define LANES 4
#define PANELS 4
#define V_LOAD(p) vld1q_f32(p)
#define V_STORE(p, x) vst1q_f32(p, x)
#define V_FIRST(x, n, other) vbslq_f32(lanes(n), x, other)
#define V_LARGEST(x) vmaxvq_f32(x)

INLINE float sum_lanes(const float *sums) {
  return reduce_add(vld1q_f32(sums), vld1q_f32(sums + 4), vld1q_f32(sums + 8), vld1q_f32(sums + 12));
}

#include "segmentattention_tile.h"

void segmentattention_attend_neon(const segmentattention *a, int64_t head, int64_t from, int64_t to, float *scratch) {
  attend(a, head, from, to, scratch);
}
