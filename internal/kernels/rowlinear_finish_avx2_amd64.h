// What an AVX2 linear layer does with its sums.
#ifndef MMSERVE_ROWLINEAR_FINISH_H
#define MMSERVE_ROWLINEAR_FINISH_H

#include "rowlinear.h"
#include "vector_avx2_amd64.h"

// swish is x·σ(s·x).
INLINE __m256 swish(__m256 x, float s) {
  return _mm256_div_ps(x, _mm256_add_ps(exponential(_mm256_mul_ps(x, _mm256_set1_ps(-s))), _mm256_set1_ps(1)));
}

// gelu_tanh is x·(1 + tanh z)/2 with z = √(2/π)·(x + 0.044715·x³); (1 + tanh z)/2 is σ(2z).
INLINE __m256 gelu_tanh(__m256 x) {
  const __m256 cube = _mm256_mul_ps(_mm256_mul_ps(x, x), x);
  const __m256 z2 = _mm256_mul_ps(_mm256_fmadd_ps(cube, _mm256_set1_ps(0.044715f), x), _mm256_set1_ps(-1.59576912f));
  return _mm256_div_ps(x, _mm256_add_ps(exponential(z2), _mm256_set1_ps(1)));
}

// biased adds the bias of eight channels.
INLINE __m256 biased(const rowlinear *l, __m256 y, int64_t channel) {
  return l->bias ? _mm256_add_ps(y, _mm256_maskload_ps(l->bias + channel, lanes(l->n - channel))) : y;
}

// finish stores a row's values of eight channels, bias included; for a gate, gates are the values of the eight of the
// panel before.
INLINE void finish(const rowlinear *l, __m256 y, __m256 gates, int64_t row, int64_t channel) {
  switch (l->activation) {
  case ROWLINEAR_SILU_GATE: { // panels alternate: 16 gates, then the 16 values that they act on
    const int64_t gate = channel - 16, half = gate / 32 * 16 + gate % 16;
    _mm256_storeu_ps(l->y + row * (l->n / 2) + half, _mm256_mul_ps(swish(gates, 1), y));
    return;
  }
  case ROWLINEAR_GELU_TANH:
    y = gelu_tanh(y);
    break;
  case ROWLINEAR_QUICK_GELU:
    y = swish(y, 1.702f);
    break;
  }
  _mm256_maskstore_ps(l->y + row * l->n + channel, lanes(l->n - channel), y);
}

#endif
