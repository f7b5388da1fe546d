//go:build !windows

#include "rowlinear.h"

#include "rowlinear_finish_avx512_amd64.h"

TARGET void rowlinear4_quantize_avx512(const rowlinear *l, int64_t from, int64_t to) {
  const int64_t k = l->k, blocks = k / ROWLINEAR4_BLOCK;
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int64_t r = from; r < to; r++) {
    const float *x = l->x + r * k;
    int8_t *q = (int8_t *)l->q + r * k;
    // As integers, magnitudes are ordered like the numbers, and NaN comes out on top instead of being lost.
    __m512i most = _mm512_setzero_si512();
    for (int64_t i = 0; i < k; i += 16) most = _mm512_max_epu32(most, _mm512_and_si512(magnitude, _mm512_loadu_si512(x + i)));
    union { uint32_t bits; float value; } m = {.bits = _mm512_reduce_max_epu32(most)};
    if (m.value < 1e-10f) m.value = 1e-10f; // a row of zeros stays a row of zeros
    l->m[r] = m.value / 127;
    const __m512 inverse = _mm512_set1_ps(127 / m.value);
    for (int64_t b = 0; b < blocks; b++) {
      const __m512i v0 = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + b * 32), inverse));
      const __m512i v1 = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + b * 32 + 16), inverse));
      _mm_storeu_si128((__m128i *)(q + b * 32), _mm512_cvtsepi32_epi8(v0));
      _mm_storeu_si128((__m128i *)(q + b * 32 + 16), _mm512_cvtsepi32_epi8(v1));
      l->back[r * blocks + b] = -8 * _mm512_reduce_add_epi32(_mm512_add_epi32(v0, v1));
    }
  }
}

// MOST_ROWS rows by a panel is the largest tile of which a block's sums and those of all blocks stay in registers: 24 of the
// 32. Unpacking takes ports that multiplying leaves free, so nothing is gained by unpacking for more rows at once.
#define MOST_ROWS 12

// AHEAD is how many bytes before their use weights are asked for. Few rows wait for nothing else, and one panel after the other
// comes faster than two in turns.
#define AHEAD 4096

// sums multiplies ROWS rows by a panel of 16 channels, to[r] the sums of row r in steps of its m; ROWS is a constant wherever it
// is inlined. A block's sum is an integer, and blocks are added in their order: the shape of the tile does not show.
INLINE void sums(const rowlinear *l, int64_t row, int64_t panel, __m512 *to, const int ROWS) {
  const int64_t blocks = l->k / ROWLINEAR4_BLOCK;
  const uint8_t *w = (const uint8_t *)l->w + panel * blocks * 256;
  const uint16_t *scale = l->block_scale + panel * blocks * 16;
  const int32_t *q = (const int32_t *)l->q + row * (l->k / 4), *back = l->back + row * blocks;
  const __m512i low = _mm512_set1_epi8(15);
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; r++) to[r] = _mm512_setzero_ps();
  for (int64_t b = 0; b < blocks; b++) {
    __m512i a[MOST_ROWS];
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) a[r] = _mm512_set1_epi32(back[r * blocks + b]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      _mm_prefetch((const char *)(w + b * 256 + i * 64 + AHEAD), _MM_HINT_T0);
      const __m512i p = _mm512_loadu_si512(w + b * 256 + i * 64);
#pragma GCC unroll 2
      for (int h = 0; h < 2; h++) { // low halves of the bytes are step i of the block, high ones step i+4
        const __m512i n = _mm512_and_si512(h ? _mm512_srli_epi16(p, 4) : p, low);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) ADD_BYTES(a[r], n, _mm512_set1_epi32(q[r * (l->k / 4) + b * 8 + h * 4 + i]));
      }
    }
    const __m256i stored = _mm256_loadu_si256((const __m256i *)(scale + b * 16));
    const __m512 s = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(stored), 16));
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) to[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(a[r]), s, to[r]);
  }
}

INLINE __m512 value(const rowlinear *l, __m512 sum, int64_t row, int64_t channel) {
  return biased(l, _mm512_mul_ps(sum, _mm512_set1_ps(l->m[row])), channel);
}

// tile multiplies ROWS rows by a pair of panels.
INLINE void tile(const rowlinear *l, int64_t row, int64_t pair, const int ROWS) {
  const int64_t channel = pair * 32;
  const int two = channel + 16 < l->n; // the last pair may have one panel only
  __m512 a[MOST_ROWS], b[MOST_ROWS];
  sums(l, row, pair * 2, a, ROWS);
  if (two) sums(l, row, pair * 2 + 1, b, ROWS);
  for (int r = 0; r < ROWS; r++) {
    const __m512 first = value(l, a[r], row + r, channel);
    finish(l, first, two ? value(l, b[r], row + r, channel + 16) : first, row + r, channel);
  }
}

TARGET void rowlinear4_multiply_avx512(const rowlinear *l, int64_t row_from, int64_t row_to, int64_t pair_from, int64_t pair_to) {
  for (int64_t pair = pair_from; pair < pair_to; pair++) {
    for (int64_t row = row_from, left; (left = row_to - row) > 0;) {
      // In tiles of about the same size: one of few rows costs nearly what a full one does.
      const int64_t tiles = (left + MOST_ROWS - 1) / MOST_ROWS, rows = (left + tiles - 1) / tiles;
      switch (rows) {
#define CASE(R) case R: tile(l, row, pair, R); break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#undef CASE
      }
      row += rows;
    }
  }
}
