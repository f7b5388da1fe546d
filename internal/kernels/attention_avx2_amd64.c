//go:build !windows

#include <math.h>

#include "vector_avx2_amd64.h"

#include "attention_store.h"

TARGET void attention_store_avx2(const attention *a, int64_t row, int64_t kv_head, int64_t from, int64_t to) {
  store(a, row, kv_head, from, to);
}

// QUERIES by a panel of keys, and QUERIES by 16 values, are tiles whose sums stay in registers: 12 of the 16.
#define QUERIES 6

// padded is the room for one query's scores over n keys.
static int64_t padded(int64_t n) { return (n + PANEL - 1) / PANEL * PANEL; }

// score computes N queries against a panel of keys.
INLINE void score(const attention *a, const float *q, const float *keys, float *to, int64_t to_stride, const int N) {
  const int64_t d = a->dim;
  __m256 x[QUERIES], y[QUERIES];
#pragma GCC unroll 6
  for (int i = 0; i < N; i++) x[i] = y[i] = _mm256_setzero_ps();
  for (int64_t j = 0; j < d; j++) {
    _mm_prefetch((const char *)(keys + PANEL * d + j * PANEL), _MM_HINT_T0);
    const __m256 k0 = _mm256_loadu_ps(keys + j * PANEL), k1 = _mm256_loadu_ps(keys + j * PANEL + 8);
#pragma GCC unroll 6
    for (int i = 0; i < N; i++) {
      const __m256 b = _mm256_broadcast_ss(q + i * d + j);
      x[i] = _mm256_fmadd_ps(b, k0, x[i]);
      y[i] = _mm256_fmadd_ps(b, k1, y[i]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < N; i++) {
    _mm256_storeu_ps(to + i * to_stride, x[i]);
    _mm256_storeu_ps(to + i * to_stride + 8, y[i]);
  }
}

// weigh turns the scores of one query over keys [from, n) into e^(score - max), zero before and up to the end of the
// padding, and gives their sum's inverse.
INLINE float weigh(float *s, int64_t from, int64_t n, int64_t end, float softcap) {
  const __m256 lowest = _mm256_set1_ps(-INFINITY);
  if (softcap > 0)
    for (int64_t t = 0; t < n; t += 8) {
      const __m256 y = hyperbolic(_mm256_mul_ps(_mm256_loadu_ps(s + t), _mm256_set1_ps(1 / softcap)));
      _mm256_storeu_ps(s + t, _mm256_mul_ps(y, _mm256_set1_ps(softcap)));
    }
  __m256 most = lowest;
  for (int64_t t = 0; t < n; t += 8) {
    const __m256 seen = _mm256_castsi256_ps(_mm256_andnot_si256(lanes(from - t), lanes(n - t)));
    most = _mm256_max_ps(_mm256_blendv_ps(lowest, _mm256_loadu_ps(s + t), seen), most);
  }
  const __m256 top = _mm256_set1_ps(reduce_max(most));
  __m256 sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (int64_t t = 0; t < end; t += 8) {
    const __m256 seen = _mm256_castsi256_ps(_mm256_andnot_si256(lanes(from - t), lanes(n - t)));
    const __m256 e = _mm256_and_ps(exponential(_mm256_sub_ps(_mm256_loadu_ps(s + t), top)), seen);
    _mm256_storeu_ps(s + t, e);
    sum[t / 8 % 2] = _mm256_add_ps(sum[t / 8 % 2], e);
  }
  return 1 / reduce_add(sum[0], sum[1]);
}

// mix adds up 16 of each of n vectors of values under the weights of N queries.
INLINE void mix(const attention *a, const float *p, int64_t p_stride, const float *values, int64_t n, const float *inverse,
                float *const *out, const int N) {
  __m256 x[QUERIES], y[QUERIES];
#pragma GCC unroll 6
  for (int i = 0; i < N; i++) x[i] = y[i] = _mm256_setzero_ps();
  for (int64_t t = 0; t < n; t++) {
    const float *v = values + t * a->dim;
    _mm_prefetch((const char *)(v + 16 * a->dim), _MM_HINT_T0);
    const __m256 v0 = _mm256_loadu_ps(v), v1 = _mm256_loadu_ps(v + 8);
#pragma GCC unroll 6
    for (int i = 0; i < N; i++) {
      const __m256 w = _mm256_broadcast_ss(p + i * p_stride + t);
      x[i] = _mm256_fmadd_ps(w, v0, x[i]);
      y[i] = _mm256_fmadd_ps(w, v1, y[i]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < N; i++) {
    const __m256 w = _mm256_set1_ps(inverse[i]);
    _mm256_storeu_ps(out[i], _mm256_mul_ps(x[i], w));
    _mm256_storeu_ps(out[i] + 8, _mm256_mul_ps(y[i], w));
  }
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

TARGET void attention_attend_avx2(const attention *a, int64_t row, int64_t kv_head, int64_t from, int64_t to, float *scratch) {
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
