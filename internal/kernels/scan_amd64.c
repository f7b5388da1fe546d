//go:build !windows

#include "scan.h"

#include <math.h>

#include "vector_avx2_amd64.h"

// Of a NaN and another number, _mm256_max_ps gives its second operand.
TARGET void scan_peaks(float *peaks, const float *x, int64_t n) {
  for (int64_t from = 0; from < n; from += 64) {
    float peak = -INFINITY;
    if (from + 64 <= n) {
      __m256 a = _mm256_set1_ps(-INFINITY), b = a;
      for (int64_t i = from; i < from + 64; i += 16) {
        a = _mm256_max_ps(_mm256_loadu_ps(x + i), a);
        b = _mm256_max_ps(_mm256_loadu_ps(x + i + 8), b);
      }
      a = _mm256_max_ps(a, b);
      __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
      m = _mm_max_ps(m, _mm_movehl_ps(m, m));
      peak = _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
    } else {
      for (int64_t i = from; i < n; i++)
        if (x[i] > peak) peak = x[i];
    }
    *peaks++ = peak;
  }
}

INLINE double sum(__m256 x) {
  __m256d d = _mm256_add_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)));
  __m128d s = _mm_add_pd(_mm256_castpd256_pd128(d), _mm256_extractf128_pd(d, 1));
  return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
}

typedef struct {
  __m256 w, wd;
} sums;

INLINE sums add(sums s, __m256 x, __m256 best, __m256 scale, __m256 least) {
  __m256 d = _mm256_mul_ps(_mm256_sub_ps(x, best), scale);
  // What is not above least counts as 0, whatever exponential_near gives for it.
  const __m256 w = _mm256_and_ps(exponential_near(d), _mm256_cmp_ps(d, least, _CMP_GT_OQ));
  d = _mm256_max_ps(d, _mm256_set1_ps(-80)); // no 0·∞, no NaN
  return (sums){_mm256_add_ps(s.w, w), _mm256_fmadd_ps(w, d, s.wd)};
}

TARGET scan_sums scan_exp(const float *x, int64_t n, float best, float scale, float least) {
  const __m256 vbest = _mm256_set1_ps(best), vscale = _mm256_set1_ps(scale), vleast = _mm256_set1_ps(least);
  scan_sums total = {0, 0};
  for (int64_t from = 0; from < n; from += 64) {
    sums s = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    if (from + 64 <= n) {
      for (int64_t i = from; i < from + 64; i += 8) s = add(s, _mm256_loadu_ps(x + i), vbest, vscale, vleast);
    } else {
      for (int64_t i = from; i < n; i += 8) {
        float rest[8];
        for (int j = 0; j < 8; j++) rest[j] = i + j < n ? x[i + j] : -INFINITY;
        s = add(s, _mm256_loadu_ps(rest), vbest, vscale, vleast);
      }
    }
    total.weight += sum(s.w);
    total.weighted += sum(s.wd);
  }
  return total;
}
