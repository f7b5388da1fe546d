//go:build linux

#include <math.h>

#include "vector_arm64.h"

#include "attention_store.h"

void attention_store_neon(const attention *a, int64_t row, int64_t kv_head, int64_t from, int64_t to) {
  store(a, row, kv_head, from, to);
}

// QUERIES by a panel of keys, and QUERIES by 16 values, are tiles whose sums stay in registers: 24 of the 32.
#define QUERIES 6
// PARTS vectors are a panel.
#define PARTS 4

// padded is the room for one query's scores over n keys.
static int64_t padded(int64_t n) { return (n + PANEL - 1) / PANEL * PANEL; }

// score computes N queries against a panel of keys.
INLINE void score(const attention *a, const float *q, const float *keys, float *to, int64_t to_stride, const int N) {
  const int64_t d = a->dim;
  float32x4_t x[QUERIES][PARTS];
#pragma GCC unroll 6
  for (int i = 0; i < N; i++)
#pragma GCC unroll 4
    for (int c = 0; c < PARTS; c++) x[i][c] = vdupq_n_f32(0);
  for (int64_t j = 0; j < d; j++) {
    __builtin_prefetch(keys + PANEL * d + j * PANEL);
    float32x4_t k[PARTS];
#pragma GCC unroll 4
    for (int c = 0; c < PARTS; c++) k[c] = vld1q_f32(keys + j * PANEL + c * 4);
#pragma GCC unroll 6
    for (int i = 0; i < N; i++) {
      const float32x4_t b = vld1q_dup_f32(q + i * d + j);
#pragma GCC unroll 4
      for (int c = 0; c < PARTS; c++) x[i][c] = vfmaq_f32(x[i][c], b, k[c]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < N; i++)
#pragma GCC unroll 4
    for (int c = 0; c < PARTS; c++) vst1q_f32(to + i * to_stride + c * 4, x[i][c]);
}

// weigh turns the scores of one query over keys [from, n) into e^(score - max), zero before and up to the end of the
// padding, and gives their sum's inverse.
INLINE float weigh(float *s, int64_t from, int64_t n, int64_t end, float softcap) {
  const float32x4_t lowest = vdupq_n_f32(-INFINITY);
  if (softcap > 0)
    for (int64_t t = 0; t < n; t += 4) {
      const float32x4_t y = hyperbolic(vmulq_f32(vld1q_f32(s + t), vdupq_n_f32(1 / softcap)));
      vst1q_f32(s + t, vmulq_f32(y, vdupq_n_f32(softcap)));
    }
  float32x4_t most = lowest;
  for (int64_t t = 0; t < n; t += 4) {
    const uint32x4_t seen = vbicq_u32(lanes(n - t), lanes(from - t));
    most = vmaxq_f32(vbslq_f32(seen, vld1q_f32(s + t), lowest), most);
  }
  const float32x4_t top = vdupq_n_f32(vmaxvq_f32(most));
  float32x4_t sum[PARTS] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
  for (int64_t panel = 0; panel < end; panel += PANEL)
#pragma GCC unroll 4
    for (int c = 0; c < PARTS; c++) {
      const int64_t t = panel + c * 4;
      const uint32x4_t seen = vbicq_u32(lanes(n - t), lanes(from - t));
      const float32x4_t e = vbslq_f32(seen, exponential(vsubq_f32(vld1q_f32(s + t), top)), vdupq_n_f32(0));
      vst1q_f32(s + t, e);
      sum[c] = vaddq_f32(sum[c], e);
    }
  return 1 / reduce_add(sum[0], sum[1], sum[2], sum[3]);
}

// mix adds up 16 of each of n vectors of values under the weights of N queries.
INLINE void mix(const attention *a, const float *p, int64_t p_stride, const float *values, int64_t n, const float *inverse,
                float *const *out, const int N) {
  float32x4_t x[QUERIES][PARTS];
#pragma GCC unroll 6
  for (int i = 0; i < N; i++)
#pragma GCC unroll 4
    for (int c = 0; c < PARTS; c++) x[i][c] = vdupq_n_f32(0);
  for (int64_t t = 0; t < n; t++) {
    const float *v = values + t * a->dim;
    __builtin_prefetch(v + 16 * a->dim);
    float32x4_t y[PARTS];
#pragma GCC unroll 4
    for (int c = 0; c < PARTS; c++) y[c] = vld1q_f32(v + c * 4);
#pragma GCC unroll 6
    for (int i = 0; i < N; i++) {
      const float32x4_t w = vld1q_dup_f32(p + i * p_stride + t);
#pragma GCC unroll 4
      for (int c = 0; c < PARTS; c++) x[i][c] = vfmaq_f32(x[i][c], w, y[c]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < N; i++)
#pragma GCC unroll 4
    for (int c = 0; c < PARTS; c++) vst1q_f32(out[i] + c * 4, vmulq_f32(x[i][c], vdupq_n_f32(inverse[i])));
}

// attend does N queries of one row and key/value head.
INLINE void attend(const attention *a, int64_t row, int64_t kv_head, int64_t from, float *scores, const int N) {
  const int64_t d = a->dim, g = group(a), head = cache_head(a, row, kv_head);
  const int64_t first = panel_from(a, row, from, N), n = seen_last(a, row, from, N) - first; // keys that any of them sees
  const float *keys = a->keys + (head * a->max_len + first) * d, *values = a->values + (head * a->max_len + first) * d;
  const float *q = queries(a, row, kv_head) + from * d;
  const int64_t stride = padded(n);
  for (int64_t t = 0; t < n; t += PANEL) score(a, q, keys + t * d, scores + t, stride, N);
  float inverse[QUERIES], *out[QUERIES];
  for (int i = 0; i < N; i++) {
    const int64_t s = (from + i) / g;
    inverse[i] = weigh(scores + i * stride, seen_from(a, row, s) - first, seen_to(a, row, s) - first, stride, a->softcap);
    out[i] = a->out + ((a->row[row].first + s) * a->heads + kv_head * g + (from + i) % g) * d;
  }
  for (int64_t j = 0; j < d; j += 16) {
    mix(a, scores, stride, values + j, n, inverse, out, N);
    for (int i = 0; i < N; i++) out[i] += 16;
  }
}

void attention_attend_neon(const attention *a, int64_t row, int64_t kv_head, int64_t from, int64_t to, float *scratch) {
  while (from < to) {
    const int64_t n = to - from < QUERIES ? to - from : QUERIES;
    switch (n) {
#define CASE(N) case N: attend(a, row, kv_head, from, scratch, N); break;
      CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#undef CASE
    }
    from += n;
  }
}
