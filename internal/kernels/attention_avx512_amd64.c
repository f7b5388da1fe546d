//go:build !windows

#include <math.h>

#include "vector_avx512_amd64.h"

#include "attention_store.h"

TARGET void attention_store_avx512(const attention *a, int64_t row, int64_t kv_head, int64_t from, int64_t to) {
  store(a, row, kv_head, from, to);
}

// QUERIES by two panels of keys, and QUERIES by four vectors of values, are tiles whose sums stay in registers.
#define QUERIES 6

// scores_stride is the room for one query's scores over n keys.
static int64_t scores_stride(int64_t n) { return (n + 2 * PANEL - 1) / (2 * PANEL) * (2 * PANEL); }

// score computes QUERIES queries, N of them wanted, against two panels of keys.
INLINE void score(const attention *a, const float *q, const float *keys, int panels, float *to, int64_t to_stride, const int N) {
  const int64_t d = a->dim;
  __m512 x[QUERIES], y[QUERIES];
#pragma GCC unroll 6
  for (int i = 0; i < N; i++) x[i] = y[i] = _mm512_setzero_ps();
  const float *k0 = keys, *k1 = panels > 1 ? keys + PANEL * d : keys;
  for (int64_t j = 0; j < d; j++) {
    _mm_prefetch((const char *)(k0 + 2 * PANEL * d + j * PANEL), _MM_HINT_T0);
    _mm_prefetch((const char *)(k1 + 2 * PANEL * d + j * PANEL), _MM_HINT_T0);
    const __m512 a0 = _mm512_loadu_ps(k0 + j * PANEL), a1 = _mm512_loadu_ps(k1 + j * PANEL);
#pragma GCC unroll 6
    for (int i = 0; i < N; i++) {
      const __m512 b = _mm512_set1_ps(q[i * d + j]);
      x[i] = _mm512_fmadd_ps(b, a0, x[i]);
      y[i] = _mm512_fmadd_ps(b, a1, y[i]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < N; i++) {
    _mm512_storeu_ps(to + i * to_stride, x[i]);
    if (panels > 1) _mm512_storeu_ps(to + i * to_stride + PANEL, y[i]);
  }
}

// weigh turns the scores of one query over keys [from, n) into e^(score - max), zero before and up to the end of the
// padding, and gives their sum's inverse.
INLINE float weigh(float *s, int64_t from, int64_t n, int64_t padded, float softcap) {
  const __m512 lowest = _mm512_set1_ps(-INFINITY);
  if (softcap > 0)
    for (int64_t t = 0; t < n; t += 16) {
      const __m512 y = hyperbolic(_mm512_mul_ps(_mm512_loadu_ps(s + t), _mm512_set1_ps(1 / softcap)));
      _mm512_storeu_ps(s + t, _mm512_mul_ps(y, _mm512_set1_ps(softcap)));
    }
  __m512 most = lowest;
  for (int64_t t = 0; t < n; t += 16)
    most = _mm512_max_ps(_mm512_mask_loadu_ps(lowest, lanes(n - t) & ~lanes(from - t), s + t), most);
  const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(most));
  __m512 sum = _mm512_setzero_ps();
  int64_t t = 0;
  for (; t < n; t += 16) {
    const __mmask16 seen = lanes(n - t) & ~lanes(from - t);
    const __m512 e = _mm512_maskz_mov_ps(seen, exponential(_mm512_sub_ps(_mm512_loadu_ps(s + t), top)));
    _mm512_storeu_ps(s + t, e);
    sum = _mm512_add_ps(sum, e);
  }
  for (; t < padded; t += 16) _mm512_storeu_ps(s + t, _mm512_setzero_ps());
  return 1 / _mm512_reduce_add_ps(sum);
}

// mix adds up V vectors of n values under the weights of N queries.
INLINE void mix(const attention *a, const float *p, int64_t p_stride, const float *values, int64_t n, const float *inverse,
                float *const *out, const int N, const int V) {
  __m512 acc[QUERIES][4];
#pragma GCC unroll 6
  for (int i = 0; i < N; i++)
#pragma GCC unroll 4
    for (int j = 0; j < V; j++) acc[i][j] = _mm512_setzero_ps();
  for (int64_t t = 0; t < n; t++) {
    const float *v = values + t * a->dim;
    __m512 x[4];
#pragma GCC unroll 4
    for (int j = 0; j < V; j++) {
      _mm_prefetch((const char *)(v + 16 * a->dim + j * 16), _MM_HINT_T0);
      x[j] = _mm512_loadu_ps(v + j * 16);
    }
#pragma GCC unroll 6
    for (int i = 0; i < N; i++) {
      const __m512 w = _mm512_set1_ps(p[i * p_stride + t]);
#pragma GCC unroll 4
      for (int j = 0; j < V; j++) acc[i][j] = _mm512_fmadd_ps(w, x[j], acc[i][j]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < N; i++)
#pragma GCC unroll 4
    for (int j = 0; j < V; j++) _mm512_storeu_ps(out[i] + j * 16, _mm512_mul_ps(acc[i][j], _mm512_set1_ps(inverse[i])));
}

// attend does N queries of one row and key/value head.
INLINE void attend(const attention *a, int64_t row, int64_t kv_head, int64_t from, float *scores, const int N) {
  const int64_t d = a->dim, g = group(a), head = cache_head(a, row, kv_head);
  const int64_t first = panel_from(a, row, from, N), n = seen_last(a, row, from, N) - first; // keys that any of them sees
  const float *keys = a->keys + (head * a->max_len + first) * d, *values = a->values + (head * a->max_len + first) * d;
  const float *q = queries(a, row, kv_head) + from * d;
  const int64_t stride = scores_stride(n);
  for (int64_t t = 0; t < n; t += 2 * PANEL) score(a, q, keys + t * d, n - t > PANEL ? 2 : 1, scores + t, stride, N);
  float inverse[QUERIES], *out[QUERIES];
  for (int i = 0; i < N; i++) {
    const int64_t s = (from + i) / g;
    inverse[i] = weigh(scores + i * stride, seen_from(a, row, s) - first, seen_to(a, row, s) - first, n, a->softcap);
    out[i] = a->out + ((a->row[row].first + s) * a->heads + kv_head * g + (from + i) % g) * d;
  }
  int64_t j = 0;
  for (; j + 64 <= d; j += 64) {
    mix(a, scores, stride, values + j, n, inverse, out, N, 4);
    for (int i = 0; i < N; i++) out[i] += 64;
  }
  switch ((d - j) / 16) {
  case 3: mix(a, scores, stride, values + j, n, inverse, out, N, 3); break;
  case 2: mix(a, scores, stride, values + j, n, inverse, out, N, 2); break;
  case 1: mix(a, scores, stride, values + j, n, inverse, out, N, 1); break;
  }
}

TARGET void attention_attend_avx512(const attention *a, int64_t row, int64_t kv_head, int64_t from, int64_t to, float *scratch) {
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
