//go:build !windows

#include "rowlinear.h"

#include "rowlinear_finish_avx2_amd64.h"

TARGET void rowlinear4_quantize_avx2(const rowlinear *l, int64_t from, int64_t to) {
  const int64_t k = l->k, blocks = k / ROWLINEAR4_BLOCK;
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  for (int64_t r = from; r < to; r++) {
    const float *x = l->x + r * k;
    int8_t *q = (int8_t *)l->q + r * k;
    int32_t *back = l->back + r * blocks;
    // As integers, magnitudes are ordered like the numbers, and NaN comes out on top instead of being lost.
    __m256i most = _mm256_setzero_si256();
    for (int64_t i = 0; i < k; i += 8)
      most = _mm256_max_epu32(most, _mm256_and_si256(magnitude, _mm256_loadu_si256((const __m256i *)(x + i))));
    uint32_t parts[8];
    union { uint32_t bits; float value; } m = {.bits = 0};
    _mm256_storeu_si256((__m256i *)parts, most);
    for (int i = 0; i < 8; i++)
      if (parts[i] > m.bits) m.bits = parts[i];
    if (m.value < 1e-10f) m.value = 1e-10f; // a row of zeros stays a row of zeros
    l->m[r] = m.value / 127;
    const __m256 inverse = _mm256_set1_ps(127 / m.value);
    for (int64_t b = 0; b < blocks; b++) {
      __m256i v[4], sum = _mm256_setzero_si256();
      for (int i = 0; i < 4; i++) {
        v[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + b * 32 + i * 8), inverse));
        sum = _mm256_add_epi32(sum, v[i]);
      }
      // Packing works within halves: the four-byte groups come out as 0 2 4 6 1 3 5 7.
      const __m256i narrow = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
      _mm256_storeu_si256((__m256i *)(q + b * 32), _mm256_permutevar8x32_epi32(narrow, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
      __m128i s = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
      s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
      back[b] = -8 * (_mm_cvtsi128_si32(s) + _mm_cvtsi128_si32(_mm_shuffle_epi32(s, 0x55)));
    }
  }
}

// MOST_ROWS rows by a panel is the largest tile whose sums over a block stay in registers: 8 of the 16.
#define MOST_ROWS 4

// sums multiplies ROWS rows by a panel of 16 channels, to[r] the sums of row r in steps of its m; ROWS is a constant wherever
// it is inlined. A block's sum is an integer, and blocks are added in their order: the shape of the tile does not show.
INLINE void sums(const rowlinear *l, int64_t row, int64_t panel, __m256 (*to)[2], const int ROWS) {
  const int64_t blocks = l->k / ROWLINEAR4_BLOCK;
  const uint8_t *w = (const uint8_t *)l->w + panel * blocks * 256;
  const uint16_t *scale = l->block_scale + panel * blocks * 16;
  const int32_t *q = (const int32_t *)l->q + row * (l->k / 4), *back = l->back + row * blocks;
  const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  for (int r = 0; r < ROWS; r++) to[r][0] = to[r][1] = _mm256_setzero_ps();
  for (int64_t b = 0; b < blocks; b++) {
    __m256i a[MOST_ROWS][2]; // sums of pairs in 16 bits: eight times 2·15·127 at most
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) a[r][0] = a[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      _mm_prefetch((const char *)(w + b * 256 + i * 64 + 1024), _MM_HINT_T0);
      const __m256i p0 = _mm256_loadu_si256((const __m256i *)(w + b * 256 + i * 64));
      const __m256i p1 = _mm256_loadu_si256((const __m256i *)(w + b * 256 + i * 64 + 32));
#pragma GCC unroll 2
      for (int h = 0; h < 2; h++) { // low halves of the bytes are step i of the block, high ones step i+4
        const __m256i w0 = _mm256_and_si256(h ? _mm256_srli_epi16(p0, 4) : p0, low);
        const __m256i w1 = _mm256_and_si256(h ? _mm256_srli_epi16(p1, 4) : p1, low);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
          const __m256i x = _mm256_set1_epi32(q[r * (l->k / 4) + b * 8 + h * 4 + i]);
          a[r][0] = _mm256_add_epi16(a[r][0], _mm256_maddubs_epi16(w0, x));
          a[r][1] = _mm256_add_epi16(a[r][1], _mm256_maddubs_epi16(w1, x));
        }
      }
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
      const __m128i stored = _mm_loadu_si128((const __m128i *)(scale + b * 16 + h * 8));
      const __m256 s = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(stored), 16));
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; r++) {
        const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(a[r][h], ones), _mm256_set1_epi32(back[r * blocks + b]));
        to[r][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), s, to[r][h]);
      }
    }
  }
}

INLINE __m256 value(const rowlinear *l, __m256 sum, int64_t row, int64_t channel) {
  return biased(l, _mm256_mul_ps(sum, _mm256_set1_ps(l->m[row])), channel);
}

// tile multiplies ROWS rows by a pair of panels.
INLINE void tile(const rowlinear *l, int64_t row, int64_t pair, const int ROWS) {
  const int gated = l->activation == ROWLINEAR_SILU_GATE;
  __m256 both[2][MOST_ROWS][2];
  for (int p = 0; p < 2; p++) {
    const int64_t channel = pair * 32 + p * 16;
    if (channel >= l->n) return; // the last pair has one panel only
    sums(l, row, pair * 2 + p, both[p], ROWS);
    if (gated && p == 0) continue;
    for (int r = 0; r < ROWS; r++)
      for (int h = 0; h < 2; h++) {
        const __m256 y = value(l, both[p][r][h], row + r, channel + h * 8);
        finish(l, y, gated ? value(l, both[0][r][h], row + r, channel - 16 + h * 8) : y, row + r, channel + h * 8);
      }
  }
}

TARGET void rowlinear4_multiply_avx2(const rowlinear *l, int64_t row_from, int64_t row_to, int64_t pair_from, int64_t pair_to) {
  for (int64_t pair = pair_from; pair < pair_to; pair++) {
    for (int64_t row = row_from, left; (left = row_to - row) > 0;) {
      // Five and six rows go in two halves: a tile of few rows costs nearly what a full one does.
      const int64_t rows = left < MOST_ROWS ? left : left == 5 || left == 6 ? 3 : MOST_ROWS;
      switch (rows) {
      case 1: tile(l, row, pair, 1); break;
      case 2: tile(l, row, pair, 2); break;
      case 3: tile(l, row, pair, 3); break;
      case 4: tile(l, row, pair, 4); break;
      }
      row += rows;
    }
  }
}
