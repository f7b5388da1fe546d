//go:build linux

#include "rowlinear.h"

#define TARGET __attribute__((target("arch=armv8.2-a+dotprod+i8mm")))

#include "vector_arm64.h"

#include "rowlinear_dotprod_arm64.h"

#define FORM(name) name##_i8mm
#define MOST_ROWS 6
#define MOST_ROWS4 4
#define WHOLE 2

// SMMLA multiplies eight values of two rows by those of two channels: [row, channel]. A row without another is taken twice, and
// what comes of it as the second left. Weights lie in steps of four values; two steps zipped are two channels of eight.

// two are eight values of each of two rows.
INLINE int8x16_t two(const int8_t *first, const int8_t *second) { return vcombine_s8(vld1_s8(first), vld1_s8(second)); }

// half_two are the four that are left, and zeros.
INLINE int8x16_t half_two(const int8_t *first, const int8_t *second) {
  const int32x2_t zero = vdup_n_s32(0);
  return vreinterpretq_s8_s32(vcombine_s32(vld1_lane_s32((const int32_t *)first, zero, 0), vld1_lane_s32((const int32_t *)second, zero, 0)));
}

// add_pairs multiplies pairs of rows by four channels, of which the first two are at c.
INLINE void add_pairs(int32x4_t (*a)[8], int c, const int8x16_t *x, int32x4_t w0, int32x4_t w1, const int PAIRS) {
  const int8x16_t p = vreinterpretq_s8_s32(vzip1q_s32(w0, w1)), q = vreinterpretq_s8_s32(vzip2q_s32(w0, w1));
#pragma GCC unroll 3
  for (int i = 0; i < PAIRS; i++) {
    a[i][c] = vmmlaq_s32(a[i][c], x[i], p);
    a[i][c + 1] = vmmlaq_s32(a[i][c + 1], x[i], q);
  }
}

// row_sums is a row's part of a pair's sums.
INLINE void row_sums(int32x4_t to[4], const int32x4_t a[8], const int SECOND) {
#pragma GCC unroll 4
  for (int c = 0; c < 4; c++) {
    const int64x2_t p = vreinterpretq_s64_s32(a[2 * c]), q = vreinterpretq_s64_s32(a[2 * c + 1]);
    to[c] = vreinterpretq_s32_s64(SECOND ? vzip2q_s64(p, q) : vzip1q_s64(p, q));
  }
}

INLINE void sums(const rowlinear *l, int64_t row, int64_t panel, int32x4_t (*to)[4], const int ROWS) {
  if (ROWS == 1) {
    dot_sums(l, row, panel, to, 1);
    return;
  }
  const int PAIRS = (ROWS + 1) / 2;
  const int64_t steps = (l->k + 3) / 4;
  const int8_t *w = l->w + panel * steps * 64, *q = (const int8_t *)l->q + row * steps * 4;
  int32x4_t a[3][8];
  int8x16_t x[3];
#define OF(i) (q + ((i) < ROWS ? (i) : ROWS - 1) * steps * 4 + s * 4)
#pragma GCC unroll 3
  for (int i = 0; i < PAIRS; i++)
#pragma GCC unroll 8
    for (int c = 0; c < 8; c++) a[i][c] = vdupq_n_s32(0);
  int64_t s = 0;
  for (; s + 2 <= steps; s += 2) {
    __builtin_prefetch(w + s * 64 + 1024);
#pragma GCC unroll 3
    for (int i = 0; i < PAIRS; i++) x[i] = two(OF(2 * i), OF(2 * i + 1));
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++)
      add_pairs(a, 2 * c, x, vld1q_s32((const int32_t *)(w + s * 64 + c * 16)), vld1q_s32((const int32_t *)(w + s * 64 + 64 + c * 16)), PAIRS);
  }
  if (s < steps) {
#pragma GCC unroll 3
    for (int i = 0; i < PAIRS; i++) x[i] = half_two(OF(2 * i), OF(2 * i + 1));
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) add_pairs(a, 2 * c, x, vld1q_s32((const int32_t *)(w + s * 64 + c * 16)), vdupq_n_s32(0), PAIRS);
  }
#undef OF
#pragma GCC unroll 6
  for (int r = 0; r < ROWS; r++) row_sums(to[r], a[r / 2], r % 2);
}

// add_block multiplies pairs of rows by a block of a panel; q are the values of the block.
INLINE void add_block(int32x4_t (*a)[8], const uint8_t *w, const int8_t *q, int64_t k, const int ROWS) {
  const int PAIRS = (ROWS + 1) / 2;
#define OF(i) (q + ((i) < ROWS ? (i) : ROWS - 1) * k)
#pragma GCC unroll 2
  for (int s = 0; s < 4; s += 2) { // low halves of the bytes are steps s and s+1 of the block, high ones s+4 and s+5
    int8x16_t x[2], y[2];
#pragma GCC unroll 2
    for (int i = 0; i < PAIRS; i++)
      x[i] = two(OF(2 * i) + s * 4, OF(2 * i + 1) + s * 4), y[i] = two(OF(2 * i) + s * 4 + 16, OF(2 * i + 1) + s * 4 + 16);
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      const uint8x16_t w0 = vld1q_u8(w + s * 64 + c * 16), w1 = vld1q_u8(w + s * 64 + 64 + c * 16), low = vdupq_n_u8(15);
      add_pairs(a, 2 * c, x, vreinterpretq_s32_u8(vandq_u8(w0, low)), vreinterpretq_s32_u8(vandq_u8(w1, low)), PAIRS);
      add_pairs(a, 2 * c, y, vreinterpretq_s32_u8(vshrq_n_u8(w0, 4)), vreinterpretq_s32_u8(vshrq_n_u8(w1, 4)), PAIRS);
    }
  }
#undef OF
}

INLINE void sums4(const rowlinear *l, int64_t row, int64_t panel, float32x4_t (*to)[4], const int ROWS) {
  if (ROWS == 1) {
    dot_sums4(l, row, panel, to, 1);
    return;
  }
  const int PAIRS = (ROWS + 1) / 2;
  const int64_t blocks = l->k / ROWLINEAR4_BLOCK;
  const uint8_t *w = (const uint8_t *)l->w + panel * blocks * 256;
  const uint16_t *scale = l->block_scale + panel * blocks * 16;
  const int8_t *q = (const int8_t *)l->q + row * l->k;
  const int32_t *back = l->back + row * blocks;
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) to[r][c] = vdupq_n_f32(0);
  for (int64_t b = 0; b < blocks; b++) {
    int32x4_t a[2][8];
    __builtin_prefetch(w + b * 256 + 1024);
#pragma GCC unroll 2
    for (int i = 0; i < PAIRS; i++) {
      const int second = 2 * i + 1 < ROWS ? 2 * i + 1 : ROWS - 1;
      const int32x4_t start = vcombine_s32(vdup_n_s32(back[2 * i * blocks + b]), vdup_n_s32(back[second * blocks + b]));
#pragma GCC unroll 8
      for (int c = 0; c < 8; c++) a[i][c] = start;
    }
    add_block(a, w + b * 256, q + b * ROWLINEAR4_BLOCK, l->k, ROWS);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
      int32x4_t sum[4];
      row_sums(sum, a[r / 2], r % 2);
      scaled_block(to[r], sum, scale + b * 16);
    }
  }
}

#include "rowlinear_tile_arm64.h"
