//go:build linux

#include "limits_amd64.h"

#include <immintrin.h>

__attribute__((target("avx2"))) uint64_t read_all(const uint64_t *from, int64_t n) {
  __m256i sum[8] = {0};
  for (int64_t i = 0; i + 32 <= n; i += 32)
    for (int j = 0; j < 8; j++)
      sum[j] = _mm256_add_epi64(sum[j], _mm256_loadu_si256((const __m256i *)(from + i + 4 * j)));
  for (int j = 1; j < 8; j++) sum[0] = _mm256_add_epi64(sum[0], sum[j]);
  return (uint64_t)_mm256_extract_epi64(sum[0], 0);
}

__attribute__((target("avx512f,avx512vnni"))) int32_t dot_all(int64_t rounds) {
  __m512i a = _mm512_set1_epi32(0x01020304), b = _mm512_set1_epi32(0x01010101), sum[DOTS];
  for (int j = 0; j < DOTS; j++) sum[j] = _mm512_setzero_si512();
  for (int64_t i = 0; i < rounds; i++) {
#pragma GCC unroll 12
    for (int j = 0; j < DOTS; j++) sum[j] = _mm512_dpbusd_epi32(sum[j], a, b);
    __asm__ volatile("" : "+v"(a), "+v"(b)); // or the compiler would do a round once
  }
  for (int j = 1; j < DOTS; j++) sum[0] = _mm512_add_epi32(sum[0], sum[j]);
  return _mm512_reduce_add_epi32(sum[0]);
}
