//go:build linux

#include <math.h>
#include <string.h>

#define TARGET __attribute__((target("arch=armv8.2-a+dotprod")))

#include "vector_arm64.h"

#include "selfattention.h"

// QUERIES by a panel of keys, and QUERIES by 16 values, are tiles whose sums stay in registers: 24 and 16 of the 32.
#define QUERIES 6
#define MIXED 4
// Positions whose products fit an int32 together: 32767 · 511 · 128 < 2^31.
#define FLUSH 128
#define MOST_SHARE 32767
#define MOST_VALUE 511

// part is where a head's part of position t begins in q, k and v.
INLINE int64_t part(const selfattention *a, int64_t head, int64_t t) {
  return (head / a->heads * a->n + t) * a->stride + head % a->heads * a->dim;
}

// inverse is most/x, 0 for 0, as what is scaled by it is all zeros then.
INLINE float inverse(float x, float most) { return x > 0 ? most / x : 0; }

// narrowed writes 16 values that fit eight bits.
INLINE int8x16_t narrowed(const int32x4_t v[4]) {
  const int16x8_t low = vcombine_s16(vmovn_s32(v[0]), vmovn_s32(v[1])), high = vcombine_s16(vmovn_s32(v[2]), vmovn_s32(v[3]));
  return vcombine_s8(vmovn_s16(low), vmovn_s16(high));
}

static TARGET void prepare_keys(const selfattention *a, int64_t head) {
  const int64_t d = a->dim, room = selfattention_room(a->n);
  int8_t *keys = (int8_t *)a->keys + head * room * d;
  float *scale = a->key_scale + head * room, mean[d];
  memset(keys, 0, (size_t)(room * d));
  memset(scale, 0, (size_t)room * sizeof *scale);
  for (int64_t j = 0; j < d; j += 4) {
    float32x4_t sum = vdupq_n_f32(0);
    for (int64_t t = 0; t < a->n; t++) sum = vaddq_f32(sum, vld1q_f32(a->k + part(a, head, t) + j));
    vst1q_f32(mean + j, vdivq_f32(sum, vdupq_n_f32((float)a->n)));
  }
  for (int64_t t = 0; t < a->n; t++) {
    const float *k = a->k + part(a, head, t);
    uint32x4_t most = vdupq_n_u32(0);
    for (int64_t j = 0; j < d; j += 4) most = larger(most, vsubq_f32(vld1q_f32(k + j), vld1q_f32(mean + j)));
    const float m = largest(most), by = inverse(m, 127);
    scale[t] = m / 127;
    int8_t *to = keys + t / 16 * 16 * d + t % 16 * 4;
    for (int64_t j = 0; j < d; j += 16) {
      int32x4_t v[4];
      for (int c = 0; c < 4; c++) {
        const float32x4_t x = vsubq_f32(vld1q_f32(k + j + c * 4), vld1q_f32(mean + j + c * 4));
        v[c] = vcvtnq_s32_f32(vmulq_f32(x, vdupq_n_f32(by)));
      }
      int8_t b[16];
      vst1q_s8(b, narrowed(v));
      for (int64_t i = 0; i < 4; i++) memcpy(to + (j / 4 + i) * 64, b + i * 4, 4);
    }
  }
}

static TARGET void prepare_values(const selfattention *a, int64_t head) {
  const int64_t d = a->dim, room = selfattention_room(a->n);
  int16_t *values = a->values + head * room * d;
  for (int64_t j = 0; j < d; j += 4) {
    uint32x4_t bits = vdupq_n_u32(0);
    for (int64_t t = 0; t < a->n; t++) bits = larger(bits, vld1q_f32(a->v + part(a, head, t) + j));
    const float32x4_t most = vreinterpretq_f32_u32(bits), zero = vdupq_n_f32(0), full = vdupq_n_f32(MOST_VALUE);
    vst1q_f32(a->value_scale + head * d + j, vdivq_f32(most, full));
    const float32x4_t by = vbslq_f32(vcgtq_f32(most, zero), vdivq_f32(full, most), zero);
    for (int64_t t = 0; t < room; t++) {
      const float32x4_t v = t < a->n ? vmulq_f32(vld1q_f32(a->v + part(a, head, t) + j), by) : zero;
      vst1_s16(values + t * d + j, vmovn_s32(vcvtnq_s32_f32(v)));
    }
  }
}

TARGET void selfattention_prepare_dotprod(const selfattention *a, int64_t head) {
  prepare_keys(a, head);
  prepare_values(a, head);
}

// Of each query: scores, shares, the query in 8 bits.
int64_t selfattention_scratch(const selfattention *a) {
  return QUERIES * (selfattention_room(a->n) * (int64_t)(sizeof(float) + sizeof(int16_t)) + (a->dim + 63) / 64 * 64);
}

// quantize writes a query in 8 bits, and gives what its products are to be multiplied by, for powers of two.
static TARGET float quantize(const selfattention *a, const float *q, int8_t *to) {
  uint32x4_t most = vdupq_n_u32(0);
  for (int64_t j = 0; j < a->dim; j += 4) most = larger(most, vld1q_f32(q + j));
  const float m = largest(most);
  const float32x4_t by = vdupq_n_f32(inverse(m, 127));
  for (int64_t j = 0; j < a->dim; j += 16) {
    int32x4_t v[4];
    for (int c = 0; c < 4; c++) v[c] = vcvtnq_s32_f32(vmulq_f32(vld1q_f32(q + j + c * 4), by));
    vst1q_s8(to + j, narrowed(v));
  }
  return m / 127 * a->scale * 1.44269504f;
}

// score computes N queries' scores of all keys, as exponents of two, and the largest of each. Those of the padding, 0, may be
// looked at for it: scores are about their mean, so the largest is hardly below 0.
INLINE void score(const selfattention *a, int64_t head, const int8_t *q, int64_t q_stride, const float *factor, float *scores,
                  float *top, const int N) {
  const int64_t d = a->dim, room = selfattention_room(a->n);
  const int8_t *keys = (const int8_t *)a->keys + head * room * d;
  const float *scale = a->key_scale + head * room;
  float32x4_t most[QUERIES];
  for (int i = 0; i < N; i++) most[i] = vdupq_n_f32(-INFINITY);
  for (int64_t t = 0; t < room; t += 16) {
    int32x4_t acc[QUERIES][4];
#pragma GCC unroll 6
    for (int i = 0; i < N; i++)
#pragma GCC unroll 4
      for (int p = 0; p < 4; p++) acc[i][p] = vdupq_n_s32(0);
    for (int64_t j = 0; j < d; j += 4) {
      int8x16_t x[4];
#pragma GCC unroll 4
      for (int p = 0; p < 4; p++) x[p] = vld1q_s8(keys + t * d + j * 16 + p * 16);
#pragma GCC unroll 6
      for (int i = 0; i < N; i++) {
        const int8x16_t y = vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t *)(q + i * q_stride + j)));
#pragma GCC unroll 4
        for (int p = 0; p < 4; p++) acc[i][p] = vdotq_s32(acc[i][p], x[p], y);
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < 4; p++) {
      const float32x4_t s = vld1q_f32(scale + t + p * 4);
#pragma GCC unroll 6
      for (int i = 0; i < N; i++) {
        const float32x4_t x = vmulq_f32(vmulq_f32(vcvtq_f32_s32(acc[i][p]), s), vdupq_n_f32(factor[i]));
        most[i] = vmaxq_f32(most[i], x);
        vst1q_f32(scores + i * room + t + p * 4, x);
      }
    }
  }
  for (int i = 0; i < N; i++) top[i] = vmaxvq_f32(most[i]);
}

// weigh turns a query's scores into shares of 15 bits, 0 beyond the last key, and gives their sum: NaN if a score is.
INLINE float weigh(const selfattention *a, const float *scores, float top, int16_t *shares) {
  const float32x4_t shift = vdupq_n_f32(top - 14.9999f); // so that the largest becomes MOST_SHARE
  int32x4_t sum = vdupq_n_s32(0);
  uint32x4_t lost = vdupq_n_u32(0);
  for (int64_t t = 0; t < selfattention_room(a->n); t += 4) {
    const uint32x4_t there = lanes(a->n - t);
    const float32x4_t y = power(vsubq_f32(vld1q_f32(scores + t), shift));
    lost = vorrq_u32(lost, vbicq_u32(there, vceqq_f32(y, y)));
    const int32x4_t x = vandq_s32(vcvtnq_s32_f32(y), vreinterpretq_s32_u32(there));
    const int32x4_t share = vminq_s32(x, vdupq_n_s32(MOST_SHARE));
    sum = vaddq_s32(sum, share);
    vst1_s16(shares + t, vmovn_s32(share));
  }
  return vmaxvq_u32(lost) ? NAN : (float)vaddvq_s32(sum);
}

// mix adds up 16 channels of all values, from channel j on, under the shares of N queries.
INLINE void mix(const selfattention *a, int64_t head, int64_t j, const int16_t *shares, const float *sum, float *out, const int N) {
  const int64_t d = a->dim, room = selfattention_room(a->n);
  const int16_t *values = a->values + head * room * d + j;
  float32x4_t total[MIXED][4];
  for (int i = 0; i < N; i++)
    for (int c = 0; c < 4; c++) total[i][c] = vdupq_n_f32(0);
  for (int64_t from = 0; from < room; from += FLUSH) {
    const int64_t to = from + FLUSH < room ? from + FLUSH : room;
    int32x4_t acc[MIXED][4];
#pragma GCC unroll 4
    for (int i = 0; i < N; i++)
#pragma GCC unroll 4
      for (int c = 0; c < 4; c++) acc[i][c] = vdupq_n_s32(0);
    for (int64_t t = from; t < to; t += 4) {
      int16x4_t w[MIXED];
#pragma GCC unroll 4
      for (int i = 0; i < N; i++) w[i] = vld1_s16(shares + i * room + t);
#define POSITION(L)                                                                      \
  {                                                                                      \
    const int16x8_t x = vld1q_s16(values + (t + L) * d), y = vld1q_s16(values + (t + L) * d + 8); \
    _Pragma("GCC unroll 4") for (int i = 0; i < N; i++) {                                \
      acc[i][0] = vmlal_lane_s16(acc[i][0], vget_low_s16(x), w[i], L);                   \
      acc[i][1] = vmlal_high_lane_s16(acc[i][1], x, w[i], L);                            \
      acc[i][2] = vmlal_lane_s16(acc[i][2], vget_low_s16(y), w[i], L);                   \
      acc[i][3] = vmlal_high_lane_s16(acc[i][3], y, w[i], L);                            \
    }                                                                                    \
  }
      POSITION(0) POSITION(1) POSITION(2) POSITION(3)
#undef POSITION
    }
#pragma GCC unroll 4
    for (int i = 0; i < N; i++)
#pragma GCC unroll 4
      for (int c = 0; c < 4; c++) total[i][c] = vaddq_f32(total[i][c], vcvtq_f32_s32(acc[i][c]));
  }
  for (int i = 0; i < N; i++)
    for (int c = 0; c < 4; c++) {
      const float32x4_t scale = vdivq_f32(vld1q_f32(a->value_scale + head * d + j + c * 4), vdupq_n_f32(sum[i]));
      vst1q_f32(out + i * a->heads * d + j + c * 4, vmulq_f32(total[i][c], scale));
    }
}

// mix_all does all channels of N queries.
INLINE void mix_all(const selfattention *a, int64_t head, const int16_t *shares, const float *sum, float *out, const int N) {
  for (int64_t j = 0; j < a->dim; j += 16) mix(a, head, j, shares, sum, out, N);
}

INLINE void attend(const selfattention *a, int64_t head, int64_t from, void *scratch, const int N) {
  const int64_t d = a->dim, room = selfattention_room(a->n), q_stride = (d + 63) / 64 * 64, stride = a->heads * d;
  float *scores = scratch, factor[QUERIES], top[QUERIES], sum[QUERIES];
  int16_t *shares = (int16_t *)(scores + QUERIES * room);
  int8_t *q = (int8_t *)(shares + QUERIES * room);
  for (int i = 0; i < N; i++) factor[i] = quantize(a, a->q + part(a, head, from + i), q + i * q_stride);
  score(a, head, q, q_stride, factor, scores, top, N);
  for (int i = 0; i < N; i++) sum[i] = weigh(a, scores + i * room, top[i], shares + i * room);
  float *out = a->out + (head / a->heads * a->n + from) * stride + head % a->heads * d;
  const int half = N > MIXED ? N / 2 : N; // six in two halves
  mix_all(a, head, shares, sum, out, half);
  if (half < N) mix_all(a, head, shares + half * room, sum + half, out + half * stride, N - half);
}

TARGET void selfattention_attend_dotprod(const selfattention *a, int64_t head, int64_t from, int64_t to, void *scratch) {
  while (from < to) {
    const int64_t n = to - from < QUERIES ? to - from : QUERIES;
    switch (n) {
#define CASE(N) case N: attend(a, head, from, scratch, N); break;
      CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#undef CASE
    }
    from += n;
  }
}
