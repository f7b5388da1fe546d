// What the NEON kernels share. A group of 16 lanes is four vectors; sums and exponentials take the steps of x86's kernels in their
// order, with fused multiplications where those have them, so that all give the same bits.
#ifndef MMSERVE_VECTOR_NEON_H
#define MMSERVE_VECTOR_NEON_H

#pragma STDC FP_CONTRACT OFF // for clang; see operators.go

#include <arm_neon.h>
#include <stdint.h>

// Kernels of more instructions than every ARM64 processor has define TARGET first.
#ifndef TARGET
#define TARGET
#endif
#define INLINE static inline __attribute__((always_inline)) TARGET

// lanes has all bits set in the first n of four lanes.
INLINE uint32x4_t lanes(int64_t n) {
  const int32_t first = n >= 4 ? 4 : n <= 0 ? 0 : (int32_t)n;
  const int32x4_t numbers = {0, 1, 2, 3};
  return vcltq_s32(numbers, vdupq_n_s32(first));
}

// scaled is p·2^n for whole n from -126 to 127, and about zero below.
INLINE float32x4_t scaled(float32x4_t p, float32x4_t n) {
  const int32x4_t exponent = vmaxq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(-126));
  return vmulq_f32(p, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(exponent, vdupq_n_s32(127)), 23)));
}

#define VECTOR float32x4_t
#define V_SET(x) vdupq_n_f32(x)
#define V_ADD(x, y) vaddq_f32(x, y)
#define V_SUB(x, y) vsubq_f32(x, y)
#define V_MUL(x, y) vmulq_f32(x, y)
#define V_DIV(x, y) vdivq_f32(x, y)
#define V_MIN(x, y) vminq_f32(x, y) // of a NaN and a number, the NaN
#define V_MAX(x, y) vmaxq_f32(x, y)
#define V_FMADD(x, y, z) vfmaq_f32(z, x, y)
#define V_FNMADD(x, y, z) vfmsq_f32(z, x, y)
#define V_BELOW(x, y, yes, no) vbslq_f32(vcltq_f32(x, y), yes, no)
#define V_ROUND(x) vrndnq_f32(x)
#define V_SCALE(p, n) scaled(p, n)
#define ROOT(x) vget_lane_f32(vsqrt_f32(vdup_n_f32(x)), 0)

#include "exponential.h"

// reduce_add sums 16 lanes.
INLINE float reduce_add(float32x4_t a, float32x4_t b, float32x4_t c, float32x4_t d) {
  const float32x4_t s = vaddq_f32(vaddq_f32(a, c), vaddq_f32(b, d));
  const float32x2_t x = vadd_f32(vget_low_f32(s), vget_high_f32(s));
  return vget_lane_f32(x, 0) + vget_lane_f32(x, 1);
}

// larger is the larger magnitude. As integers magnitudes are ordered like the numbers, and NaN comes out on top instead of being lost.
INLINE uint32x4_t larger(uint32x4_t most, float32x4_t x) { return vmaxq_u32(most, vreinterpretq_u32_f32(vabsq_f32(x))); }

INLINE float largest(uint32x4_t most) {
  const union { uint32_t bits; float value; } m = {.bits = vmaxvq_u32(most)};
  return m.value;
}

#endif
