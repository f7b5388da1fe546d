// What the AVX2 kernels share. A group of 16 lanes is two vectors; sums and exponentials take the steps of the AVX-512
// kernels in their order, so that both give the same bits.
#ifndef MMSERVE_VECTOR_AVX2_H
#define MMSERVE_VECTOR_AVX2_H

#pragma STDC FP_CONTRACT OFF // for clang; see operators_amd64.go

#include <immintrin.h>
#include <stdint.h>

#define TARGET __attribute__((target("avx2,fma")))
#define INLINE static inline __attribute__((always_inline)) TARGET

// lanes has all bits set in the first n of 8 lanes.
INLINE __m256i lanes(int64_t n) {
  const int first = n >= 8 ? 8 : n <= 0 ? 0 : (int)n;
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// exponential is e^x to 3e-7 of its value, for x from -87 to 88 and clamped to those; NaN stays NaN. Cody and Waite's
// reduction x = n·ln 2 + r, Taylor's polynomial for e^r up to r⁶.
INLINE __m256 exponential(__m256 x) {
  x = _mm256_max_ps(_mm256_set1_ps(-87), _mm256_min_ps(_mm256_set1_ps(88), x)); // of a NaN, the second operand is given
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.f / 720);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.f / 120));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.f / 24));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.f / 6));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1));
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(p, _mm256_castsi256_ps(power)); // n is -126 to 127
}

// reduce_add sums 16 lanes, reduce_max finds the largest of 8.
INLINE float reduce_add(__m256 a, __m256 b) {
  const __m256 s = _mm256_add_ps(b, a);
  __m128 x = _mm_add_ps(_mm256_extractf128_ps(s, 1), _mm256_castps256_ps128(s));
  x = _mm_add_ps(x, _mm_shuffle_ps(x, x, 0x4e));
  return _mm_cvtss_f32(x) + _mm_cvtss_f32(_mm_shuffle_ps(x, x, 0x55));
}
INLINE float reduce_max(__m256 s) {
  __m128 x = _mm_max_ps(_mm256_extractf128_ps(s, 1), _mm256_castps256_ps128(s));
  x = _mm_max_ps(x, _mm_shuffle_ps(x, x, 0x4e));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 0x55)));
}

#endif
