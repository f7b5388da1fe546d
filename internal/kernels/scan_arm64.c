//go:build linux

#include "scan.h"

#include <math.h>

#include "vector_arm64.h"

// above is the larger of both, and b where a is NaN.
INLINE float32x4_t above(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }

void scan_peaks(float *peaks, const float *x, int64_t n) {
  for (int64_t from = 0; from < n; from += 64) {
    float peak = -INFINITY;
    if (from + 64 <= n) {
      float32x4_t a = vdupq_n_f32(-INFINITY), b = a;
      for (int64_t i = from; i < from + 64; i += 8) {
        a = above(vld1q_f32(x + i), a);
        b = above(vld1q_f32(x + i + 4), b);
      }
      peak = vmaxvq_f32(above(a, b));
    } else {
      for (int64_t i = from; i < n; i++)
        if (x[i] > peak) peak = x[i];
    }
    *peaks++ = peak;
  }
}

// sums holds eight lanes each, as x86's vectors do.
typedef struct {
  float32x4_t w[2], wd[2];
} sums;

INLINE double sum(const float32x4_t x[2]) {
  const float64x2_t low = vaddq_f64(vcvt_f64_f32(vget_low_f32(x[0])), vcvt_f64_f32(vget_low_f32(x[1])));
  const float64x2_t high = vaddq_f64(vcvt_high_f64_f32(x[0]), vcvt_high_f64_f32(x[1]));
  const float64x2_t s = vaddq_f64(low, high);
  return vgetq_lane_f64(s, 0) + vgetq_lane_f64(s, 1);
}

INLINE void add(sums *s, const float *x, float best, float scale, float least) {
  for (int i = 0; i < 2; i++) {
    float32x4_t d = vmulq_f32(vsubq_f32(vld1q_f32(x + i * 4), vdupq_n_f32(best)), vdupq_n_f32(scale));
    // What is not above least counts as 0, whatever exponential_near gives for it.
    const uint32x4_t counts = vcgtq_f32(d, vdupq_n_f32(least));
    const float32x4_t w = vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(exponential_near(d)), counts));
    d = above(d, vdupq_n_f32(-80)); // no 0·∞, no NaN
    s->w[i] = vaddq_f32(s->w[i], w);
    s->wd[i] = vfmaq_f32(s->wd[i], w, d);
  }
}

scan_sums scan_exp(const float *x, int64_t n, float best, float scale, float least) {
  scan_sums total = {0, 0};
  for (int64_t from = 0; from < n; from += 64) {
    const float32x4_t zero = vdupq_n_f32(0);
    sums s = {{zero, zero}, {zero, zero}};
    if (from + 64 <= n) {
      for (int64_t i = from; i < from + 64; i += 8) add(&s, x + i, best, scale, least);
    } else {
      for (int64_t i = from; i < n; i += 8) {
        float rest[8];
        for (int j = 0; j < 8; j++) rest[j] = i + j < n ? x[i + j] : -INFINITY;
        add(&s, rest, best, scale, least);
      }
    }
    total.weight += sum(s.w);
    total.weighted += sum(s.wd);
  }
  return total;
}
