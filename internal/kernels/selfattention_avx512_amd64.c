//go:build !windows

#include <math.h>
#include <string.h>

#include "vector_avx512_amd64.h"

#include "selfattention.h"

// QUERIES by four panels of keys, and QUERIES by four vectors of values, are tiles whose sums stay in registers.
#define QUERIES 6
// Positions whose products fit an int32 together: 32767 · 511 · 128 < 2^31.
#define FLUSH 128
#define MOST_SHARE 32767
#define MOST_VALUE 511

// part is where a head's part of position t begins in q, k and v.
INLINE int64_t part(const selfattention *a, int64_t head, int64_t t) {
  return (head / a->heads * a->n + t) * a->stride + head % a->heads * a->dim;
}

// larger is the larger magnitude. As integers magnitudes are ordered like the numbers, and NaN comes out on top instead of being lost.
INLINE __m512 larger(__m512 most, __m512 x) {
  return _mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(most), _mm512_castps_si512(_mm512_abs_ps(x))));
}

INLINE float largest(__m512 most) {
  const union { uint32_t bits; float value; } m = {.bits = _mm512_reduce_max_epu32(_mm512_castps_si512(most))};
  return m.value;
}

// inverse is most/x, 0 for 0, as what is scaled by it is all zeros then.
INLINE float inverse(float x, float most) { return x > 0 ? most / x : 0; }

static TARGET void prepare_keys(const selfattention *a, int64_t head) {
  const int64_t d = a->dim, room = selfattention_room(a->n);
  uint8_t *keys = a->keys + head * room * d;
  float *scale = a->key_scale + head * room, mean[d];
  memset(keys, 128, (size_t)(room * d));
  memset(scale, 0, (size_t)room * sizeof *scale);
  for (int64_t j = 0; j < d; j += 16) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t t = 0; t < a->n; t++) sum = _mm512_add_ps(sum, _mm512_loadu_ps(a->k + part(a, head, t) + j));
    _mm512_storeu_ps(mean + j, _mm512_div_ps(sum, _mm512_set1_ps((float)a->n)));
  }
  for (int64_t t = 0; t < a->n; t++) {
    const float *k = a->k + part(a, head, t);
    __m512 most = _mm512_setzero_ps();
    for (int64_t j = 0; j < d; j += 16)
      most = larger(most, _mm512_sub_ps(_mm512_loadu_ps(k + j), _mm512_loadu_ps(mean + j)));
    const float m = largest(most);
    const __m512 by = _mm512_set1_ps(inverse(m, 127));
    scale[t] = m / 127;
    uint8_t *to = keys + t / 16 * 16 * d + t % 16 * 4;
    for (int64_t j = 0; j < d; j += 16) {
      const __m512 x = _mm512_sub_ps(_mm512_loadu_ps(k + j), _mm512_loadu_ps(mean + j));
      uint8_t b[16];
      _mm_storeu_si128((__m128i *)b, _mm512_cvtepi32_epi8(_mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(x, by)), _mm512_set1_epi32(128))));
      for (int64_t i = 0; i < 4; i++) memcpy(to + (j / 4 + i) * 64, b + i * 4, 4);
    }
  }
}

static TARGET void prepare_values(const selfattention *a, int64_t head) {
  const int64_t d = a->dim, room = selfattention_room(a->n);
  for (int64_t j = 0; j < d; j += 16) {
    __m512 most = _mm512_setzero_ps();
    for (int64_t t = 0; t < a->n; t++) most = larger(most, _mm512_loadu_ps(a->v + part(a, head, t) + j));
    _mm512_storeu_ps(a->value_scale + head * d + j, _mm512_div_ps(most, _mm512_set1_ps(MOST_VALUE)));
    const __mmask16 some = _mm512_cmp_ps_mask(most, _mm512_setzero_ps(), _CMP_GT_OQ);
    const __m512 by = _mm512_maskz_div_ps(some, _mm512_set1_ps(MOST_VALUE), most);
    for (int64_t t = 0; t < room; t += 2) {
      __m512i x[2];
      for (int i = 0; i < 2; i++)
        x[i] = t + i < a->n ? _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(a->v + part(a, head, t + i) + j), by)) : _mm512_setzero_si512();
      const __m512i pair = _mm512_or_si512(_mm512_and_si512(x[0], _mm512_set1_epi32(0xffff)), _mm512_slli_epi32(x[1], 16));
      _mm512_storeu_si512(a->values + head * room * d + t * d + j * 2, pair);
    }
  }
}

TARGET void selfattention_prepare_avx512(const selfattention *a, int64_t head) {
  prepare_keys(a, head);
  prepare_values(a, head);
}

// Of each query: scores, shares, the query in 8 bits.
int64_t selfattention_scratch(const selfattention *a) {
  return QUERIES * (selfattention_room(a->n) * (int64_t)(sizeof(float) + sizeof(int16_t)) + (a->dim + 63) / 64 * 64);
}

// quantize writes a query in 8 bits, gives what its products are to be multiplied by, for powers of two, and what is to be
// taken off them because keys are 128 too large.
static TARGET float quantize(const selfattention *a, const float *q, int8_t *to, int32_t *excess) {
  __m512 most = _mm512_setzero_ps();
  for (int64_t j = 0; j < a->dim; j += 16) most = larger(most, _mm512_loadu_ps(q + j));
  const float m = largest(most);
  const __m512 by = _mm512_set1_ps(inverse(m, 127));
  __m512i sum = _mm512_setzero_si512();
  for (int64_t j = 0; j < a->dim; j += 16) {
    const __m512i x = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(q + j), by));
    sum = _mm512_add_epi32(sum, x);
    _mm_storeu_si128((__m128i *)(to + j), _mm512_cvtepi32_epi8(x));
  }
  *excess = 128 * _mm512_reduce_add_epi32(sum);
  return m / 127 * a->scale * 1.44269504f;
}

INLINE __m512i spread(const void *four_bytes) {
  int32_t x;
  memcpy(&x, four_bytes, sizeof x);
  return _mm512_set1_epi32(x);
}

// score computes N queries' scores of all keys, as exponents of two, and the largest of each. Those of the padding, 0, may be
// looked at for it: scores are about their mean, so the largest is hardly below 0.
INLINE void score(const selfattention *a, int64_t head, const int8_t *q, int64_t q_stride, const float *factor, const int32_t *excess,
                  float *scores, float *top, const int N) {
  const int64_t d = a->dim, room = selfattention_room(a->n);
  const uint8_t *keys = a->keys + head * room * d;
  const float *scale = a->key_scale + head * room;
  __m512 most[QUERIES];
  for (int i = 0; i < N; i++) most[i] = _mm512_set1_ps(-INFINITY);
  for (int64_t t = 0; t < room; t += SELFATTENTION_KEYS) {
    __m512i acc[QUERIES][4];
#pragma GCC unroll 6
    for (int i = 0; i < N; i++)
#pragma GCC unroll 4
      for (int p = 0; p < 4; p++) acc[i][p] = _mm512_set1_epi32(-excess[i]);
    for (int64_t j = 0; j < d; j += 4) {
      __m512i x[4];
#pragma GCC unroll 4
      for (int p = 0; p < 4; p++) x[p] = _mm512_loadu_si512(keys + (t + p * 16) * d + j * 16);
#pragma GCC unroll 6
      for (int i = 0; i < N; i++) {
        const __m512i y = spread(q + i * q_stride + j);
#pragma GCC unroll 4
        for (int p = 0; p < 4; p++) ADD_BYTES(acc[i][p], x[p], y);
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < 4; p++) {
      const __m512 s = _mm512_loadu_ps(scale + t + p * 16);
#pragma GCC unroll 6
      for (int i = 0; i < N; i++) {
        const __m512 x = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(acc[i][p]), s), _mm512_set1_ps(factor[i]));
        most[i] = _mm512_max_ps(most[i], x);
        _mm512_storeu_ps(scores + i * room + t + p * 16, x);
      }
    }
  }
  for (int i = 0; i < N; i++) top[i] = _mm512_reduce_max_ps(most[i]);
}

// weigh turns a query's scores into shares of 15 bits, 0 beyond the last key, and gives their sum: NaN if a score is.
INLINE float weigh(const selfattention *a, const float *scores, float top, int16_t *shares) {
  const __m512 shift = _mm512_set1_ps(top - 14.9999f); // so that the largest becomes MOST_SHARE
  __m512i sum = _mm512_setzero_si512();
  __mmask16 lost = 0;
  for (int64_t t = 0; t < selfattention_room(a->n); t += 16) {
    const __m512 y = power(_mm512_sub_ps(_mm512_loadu_ps(scores + t), shift));
    lost |= _mm512_mask_cmp_ps_mask(lanes(a->n - t), y, y, _CMP_UNORD_Q);
    const __m512i x = _mm512_maskz_cvtps_epi32(lanes(a->n - t), y);
    const __m512i share = _mm512_min_epi32(x, _mm512_set1_epi32(MOST_SHARE));
    sum = _mm512_add_epi32(sum, share);
    _mm256_storeu_si256((__m256i *)(shares + t), _mm512_cvtepi32_epi16(share));
  }
  return lost ? NAN : (float)_mm512_reduce_add_epi32(sum);
}

// mix adds up V vectors of all values, from channel j on, under the shares of N queries.
INLINE void mix(const selfattention *a, int64_t head, int64_t j, const int16_t *shares, const float *sum, float *out, int64_t out_stride,
                const int N, const int V) {
  const int64_t d = a->dim, room = selfattention_room(a->n);
  const int16_t *values = a->values + head * room * d + j * 2;
  float total[QUERIES][64];
  memset(total, 0, sizeof total);
  for (int64_t from = 0; from < room; from += FLUSH) {
    const int64_t to = from + FLUSH < room ? from + FLUSH : room;
    __m512i acc[QUERIES][4];
#pragma GCC unroll 6
    for (int i = 0; i < N; i++)
#pragma GCC unroll 4
      for (int c = 0; c < V; c++) acc[i][c] = _mm512_setzero_si512();
    for (int64_t t = from; t < to; t += 2) {
      __m512i x[4];
#pragma GCC unroll 4
      for (int c = 0; c < V; c++) x[c] = _mm512_loadu_si512(values + t * d + c * 32);
#pragma GCC unroll 6
      for (int i = 0; i < N; i++) {
        const __m512i w = spread(shares + i * room + t);
#pragma GCC unroll 4
        for (int c = 0; c < V; c++) ADD_WORDS(acc[i][c], x[c], w);
      }
    }
#pragma GCC unroll 6
    for (int i = 0; i < N; i++)
#pragma GCC unroll 4
      for (int c = 0; c < V; c++)
        _mm512_storeu_ps(total[i] + c * 16, _mm512_add_ps(_mm512_loadu_ps(total[i] + c * 16), _mm512_cvtepi32_ps(acc[i][c])));
  }
  for (int i = 0; i < N; i++)
    for (int c = 0; c < V; c++) {
      const __m512 scale = _mm512_div_ps(_mm512_loadu_ps(a->value_scale + head * d + j + c * 16), _mm512_set1_ps(sum[i]));
      _mm512_storeu_ps(out + i * out_stride + j + c * 16, _mm512_mul_ps(_mm512_loadu_ps(total[i] + c * 16), scale));
    }
}

INLINE void attend(const selfattention *a, int64_t head, int64_t from, void *scratch, const int N) {
  const int64_t d = a->dim, room = selfattention_room(a->n), q_stride = (d + 63) / 64 * 64, stride = a->heads * d;
  float *scores = scratch, factor[QUERIES], top[QUERIES], sum[QUERIES];
  int16_t *shares = (int16_t *)(scores + QUERIES * room);
  int8_t *q = (int8_t *)(shares + QUERIES * room);
  int32_t excess[QUERIES];
  for (int i = 0; i < N; i++) factor[i] = quantize(a, a->q + part(a, head, from + i), q + i * q_stride, &excess[i]);
  score(a, head, q, q_stride, factor, excess, scores, top, N);
  for (int i = 0; i < N; i++) sum[i] = weigh(a, scores + i * room, top[i], shares + i * room);
  float *out = a->out + (head / a->heads * a->n + from) * stride + head % a->heads * d;
  int64_t j = 0;
  for (; j + 64 <= d; j += 64) mix(a, head, j, shares, sum, out, stride, N, 4);
  switch ((d - j) / 16) {
  case 3: mix(a, head, j, shares, sum, out, stride, N, 3); break;
  case 2: mix(a, head, j, shares, sum, out, stride, N, 2); break;
  case 1: mix(a, head, j, shares, sum, out, stride, N, 1); break;
  }
}

TARGET void selfattention_attend_avx512(const selfattention *a, int64_t head, int64_t from, int64_t to, void *scratch) {
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
