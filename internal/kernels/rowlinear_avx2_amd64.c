//go:build !windows

#include "rowlinear.h"

#include <math.h>

#include "rowlinear_finish_avx2_amd64.h"

TARGET void rowlinear_quantize_avx2(const rowlinear *l, int64_t from, int64_t to) {
  const int64_t k = l->k, width = (k + 3) / 4 * 4;
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  for (int64_t r = from; r < to; r++) {
    const float *x = l->x + r * k;
    int16_t *q = (int16_t *)l->q + r * width;
    // As integers, magnitudes are ordered like the numbers, and NaN comes out on top instead of being lost.
    __m256i most = _mm256_setzero_si256();
    for (int64_t i = 0; i < k; i += 8)
      most = _mm256_max_epu32(most, _mm256_and_si256(magnitude, _mm256_maskload_epi32((const int *)x + i, lanes(k - i))));
    uint32_t parts[8];
    union { uint32_t bits; float value; } m = {.bits = 0};
    _mm256_storeu_si256((__m256i *)parts, most);
    for (int i = 0; i < 8; i++)
      if (parts[i] > m.bits) m.bits = parts[i];
    if (m.value < 1e-10f) m.value = 1e-10f; // a row of zeros stays a row of zeros
    l->m[r] = m.value / 127;
    const __m256 inverse = _mm256_set1_ps(127 / m.value);
    for (int64_t i = 0; i < width; i += 8) {
      const __m256i v = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_maskload_ps(x + i, lanes(k - i)), inverse));
      const __m128i narrow = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
      if (width - i >= 8)
        _mm_storeu_si128((__m128i *)(q + i), narrow);
      else
        _mm_storel_epi64((__m128i *)(q + i), narrow); // four are left: width is a multiple of four
    }
  }
}

// value makes the output of eight channels, but for its activation, of their sums.
INLINE __m256 value(const rowlinear *l, __m256i sum, int64_t row, int64_t channel) {
  const __m256 scale = _mm256_mul_ps(_mm256_loadu_ps(l->scale + channel), _mm256_set1_ps(l->m[row]));
  return biased(l, _mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale), channel);
}

// MOST_ROWS rows by a panel is the largest tile whose sums stay in registers: 12 of the 16.
#define MOST_ROWS 3

// sums multiplies ROWS rows by a panel of 16 channels, to[r] the sums of row r; ROWS is a constant wherever it is inlined.
// They are integers and exact: the shape of the tile does not show in the result.
INLINE void sums(const rowlinear *l, int64_t row, int64_t panel, __m256i (*to)[2], const int ROWS) {
  const int64_t steps = (l->k + 3) / 4;
  const int8_t *w = l->w + panel * steps * 64;
  const int64_t *q = (const int64_t *)l->q + row * steps;
  __m256i a[MOST_ROWS][4]; // of four channels each, the sums over even and odd pairs side by side
#pragma GCC unroll 3
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) a[r][c] = _mm256_setzero_si256();
  for (int64_t i = 0; i < steps; i++) {
    _mm_prefetch((const char *)(w + i * 64 + 1024), _MM_HINT_T0);
    __m256i x[MOST_ROWS];
#pragma GCC unroll 3
    for (int r = 0; r < ROWS; r++) x[r] = _mm256_set1_epi64x(q[r * steps + i]);
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      const __m256i p = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + i * 64 + c * 16)));
#pragma GCC unroll 3
      for (int r = 0; r < ROWS; r++) a[r][c] = _mm256_add_epi32(a[r][c], _mm256_madd_epi16(x[r], p));
    }
  }
#pragma GCC unroll 3
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) // hadd works within halves: 0 1 4 5 | 2 3 6 7
      to[r][h] = _mm256_permute4x64_epi64(_mm256_hadd_epi32(a[r][2 * h], a[r][2 * h + 1]), 0xd8);
}

// tile multiplies ROWS rows by a pair of panels.
INLINE void tile(const rowlinear *l, int64_t row, int64_t pair, const int ROWS) {
  const int64_t channel = pair * 32;
  const int gated = l->activation == ROWLINEAR_SILU_GATE;
  __m256i first[MOST_ROWS][2], second[MOST_ROWS][2];
  sums(l, row, pair * 2, first, ROWS);
  if (!gated)
    for (int r = 0; r < ROWS; r++)
      for (int h = 0; h < 2; h++) {
        const __m256 y = value(l, first[r][h], row + r, channel + h * 8);
        finish(l, y, y, row + r, channel + h * 8);
      }
  if (channel + 16 >= l->n) return; // the last pair has one panel only
  sums(l, row, pair * 2 + 1, second, ROWS);
  for (int r = 0; r < ROWS; r++)
    for (int h = 0; h < 2; h++) {
      const int64_t at = channel + 16 + h * 8;
      const __m256 y = value(l, second[r][h], row + r, at);
      finish(l, y, gated ? value(l, first[r][h], row + r, at - 16) : y, row + r, at);
    }
}

TARGET void rowlinear_multiply_avx2(const rowlinear *l, int64_t row_from, int64_t row_to, int64_t pair_from, int64_t pair_to) {
  for (int64_t pair = pair_from; pair < pair_to; pair++) {
    for (int64_t row = row_from, left; (left = row_to - row) > 0;) {
      const int64_t rows = left == 4 ? 2 : left < MOST_ROWS ? left : MOST_ROWS;
      switch (rows) {
      case 1: tile(l, row, pair, 1); break;
      case 2: tile(l, row, pair, 2); break;
      case 3: tile(l, row, pair, 3); break;
      }
      row += rows;
    }
  }
}
