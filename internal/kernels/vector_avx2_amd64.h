// What the AVX2 kernels share. A group of 16 lanes is two vectors; sums and exponentials take the steps of the AVX-512
// kernels in their order, so that both give the same bits.
#ifndef MMSERVE_VECTOR_AVX2_H
#define MMSERVE_VECTOR_AVX2_H

#pragma STDC FP_CONTRACT OFF // for clang; see operators.go

#include <immintrin.h>
#include <stdint.h>

#define TARGET __attribute__((target("avx2,fma")))
#define INLINE static inline __attribute__((always_inline)) TARGET

// lanes has all bits set in the first n of 8 lanes.
INLINE __m256i lanes(int64_t n) {
  const int first = n >= 8 ? 8 : n <= 0 ? 0 : (int)n;
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// scaled is p·2^n for whole n from -126 to 127.
INLINE __m256 scaled(__m256 p, __m256 n) {
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(p, _mm256_castsi256_ps(power));
}

#define VECTOR __m256
#define V_SET(x) _mm256_set1_ps(x)
#define V_ADD(x, y) _mm256_add_ps(x, y)
#define V_SUB(x, y) _mm256_sub_ps(x, y)
#define V_MUL(x, y) _mm256_mul_ps(x, y)
#define V_DIV(x, y) _mm256_div_ps(x, y)
#define V_MIN(x, y) _mm256_min_ps(x, y)
#define V_MAX(x, y) _mm256_max_ps(x, y)
#define V_FMADD(x, y, z) _mm256_fmadd_ps(x, y, z)
#define V_FNMADD(x, y, z) _mm256_fnmadd_ps(x, y, z)
#define V_BELOW(x, y, yes, no) _mm256_blendv_ps(no, yes, _mm256_cmp_ps(x, y, _CMP_LT_OQ))
#define V_ROUND(x) _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define V_SCALE(p, n) scaled(p, n)
#define ROOT(x) _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x)))

#include "exponential.h"

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
