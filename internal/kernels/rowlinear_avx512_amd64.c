//go:build !windows

#include "rowlinear.h"

#include "rowlinear_finish_avx512_amd64.h"

TARGET void rowlinear_quantize_avx512(const rowlinear *l, int64_t from, int64_t to) {
  const int64_t k = l->k, width = (k + 3) / 4 * 4;
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), middle = _mm512_set1_epi32(128);
  for (int64_t r = from; r < to; r++) {
    const float *x = l->x + r * k;
    uint8_t *q = l->q + r * width;
    // As integers, magnitudes are ordered like the numbers, and NaN comes out on top instead of being lost.
    __m512i most = _mm512_setzero_si512();
    for (int64_t i = 0; i < k; i += 16)
      most = _mm512_max_epu32(most, _mm512_and_si512(magnitude, _mm512_maskz_loadu_epi32(lanes(k - i), x + i)));
    union { uint32_t bits; float value; } m = {.bits = _mm512_reduce_max_epu32(most)};
    if (m.value < 1e-10f) m.value = 1e-10f; // a row of zeros stays a row of zeros
    l->m[r] = m.value / 127;
    const __m512 inverse = _mm512_set1_ps(127 / m.value);
    for (int64_t i = 0; i < width; i += 16) {
      __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(lanes(k - i), x + i), inverse));
      _mm_mask_storeu_epi8(q + i, lanes(width - i), _mm512_cvtepi32_epi8(_mm512_add_epi32(v, middle)));
    }
  }
}

// value makes the output of 16 channels, but for its activation, of their sums.
INLINE __m512 value(const rowlinear *l, __m512i sum, int64_t row, int64_t channel) {
  const __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(l->scale + channel), _mm512_set1_ps(l->m[row]));
  return biased(l, _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale), channel);
}

// MOST_ROWS rows by two panels is the largest tile whose sums stay in registers: 24 of the 32.
#define MOST_ROWS 12
// Up to FEW_ROWS wait for little but weights, which come faster one panel after the other than two in turns, and asked for
// AHEAD bytes before their use. Of more rows, two panels in turns share the loads.
#define FEW_ROWS 24
#define AHEAD 4096

// add multiplies ROWS rows by a panel, sums[r] those of row r.
INLINE void add(const int32_t *q, const int8_t *w, int64_t steps, __m512i *sums, const int ROWS) {
  for (int64_t i = 0; i < steps; i++) {
    _mm_prefetch((const char *)(w + i * 64 + AHEAD), _MM_HINT_T0);
    const __m512i p = _mm512_loadu_si512(w + i * 64);
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) ADD_BYTES(sums[r], _mm512_set1_epi32(q[r * steps + i]), p);
  }
}

// tile multiplies ROWS rows by a pair of panels; ROWS is a constant wherever it is inlined. A row's sums are integers
// and exact: the shape of the tile does not show in the result.
INLINE void tile(const rowlinear *l, int64_t row, int64_t pair, const int ROWS) {
  const int64_t steps = (l->k + 3) / 4, channel = pair * 32;
  const int8_t *w0 = l->w + pair * 2 * steps * 64, *w1 = w0 + steps * 64;
  const int32_t *start1 = l->start + channel + 16;
  if (channel + 16 >= l->n) w1 = w0, start1 -= 16; // the last pair has one panel only
  const int32_t *q = (const int32_t *)(l->q + row * steps * 4);
  __m512i a[MOST_ROWS], b[MOST_ROWS];
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; r++) a[r] = _mm512_loadu_si512(l->start + channel), b[r] = _mm512_loadu_si512(start1);
  const int few = ROWS < MOST_ROWS || l->rows <= FEW_ROWS;
  if (few) {
    add(q, w0, steps, a, ROWS);
    add(q, w1, steps, b, ROWS);
  }
  for (int64_t i = few ? steps : 0; i < steps; i++) {
    const __m512i p0 = _mm512_loadu_si512(w0 + i * 64), p1 = _mm512_loadu_si512(w1 + i * 64);
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) {
      const __m512i x = _mm512_set1_epi32(q[r * steps + i]);
      ADD_BYTES(a[r], x, p0);
      ADD_BYTES(b[r], x, p1);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; r++) {
    const __m512 first = value(l, a[r], row + r, channel);
    finish(l, first, channel + 16 < l->n ? value(l, b[r], row + r, channel + 16) : first, row + r, channel);
  }
}

TARGET void rowlinear_multiply_avx512(const rowlinear *l, int64_t row_from, int64_t row_to, int64_t pair_from, int64_t pair_to) {
  for (int64_t pair = pair_from; pair < pair_to; pair++) {
    for (int64_t row = row_from, left; (left = row_to - row) > 0;) {
      // 13 to 23 rows go in two halves: a tile of few rows costs nearly what a full one does.
      int64_t rows = left < MOST_ROWS ? left : left < 2 * MOST_ROWS && left > MOST_ROWS ? (left + 1) / 2 : MOST_ROWS;
      switch (rows) {
#define CASE(R) case R: tile(l, row, pair, R); break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#undef CASE
      }
      row += rows;
    }
  }
}
