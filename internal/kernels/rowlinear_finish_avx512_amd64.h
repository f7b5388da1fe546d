// What an AVX-512 linear layer does with its sums.
#ifndef MMSERVE_ROWLINEAR_FINISH_AVX512_H
#define MMSERVE_ROWLINEAR_FINISH_AVX512_H

#include "rowlinear.h"
#include "vector_avx512_amd64.h"

// swish is x·σ(s·x).
INLINE __m512 swish(__m512 x, float s) {
  return _mm512_div_ps(x, _mm512_add_ps(exponential(_mm512_mul_ps(x, _mm512_set1_ps(-s))), _mm512_set1_ps(1)));
}

// gelu_tanh is x·(1 + tanh z)/2 with z = √(2/π)·(x + 0.044715·x³); (1 + tanh z)/2 is σ(2z).
INLINE __m512 gelu_tanh(__m512 x) {
  const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
  const __m512 z2 = _mm512_mul_ps(_mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x), _mm512_set1_ps(-1.59576912f));
  return _mm512_div_ps(x, _mm512_add_ps(exponential(z2), _mm512_set1_ps(1)));
}

// biased adds the bias of 16 channels.
INLINE __m512 biased(const rowlinear *l, __m512 y, int64_t channel) {
  return l->bias ? _mm512_add_ps(y, _mm512_maskz_loadu_ps(lanes(l->n - channel), l->bias + channel)) : y;
}

// finish stores a row's values of a pair of panels, bias included. Those of the second are not looked at where the last
// pair has one only.
INLINE void finish(const rowlinear *l, __m512 a, __m512 b, int64_t row, int64_t channel) {
  const __mmask16 first = lanes(l->n - channel), second = lanes(l->n - channel - 16);
  switch (l->activation) {
  case ROWLINEAR_SILU_GATE: // panels alternate: 16 gates, then the 16 values that they act on
    _mm512_mask_storeu_ps(l->y + row * (l->n / 2) + channel / 2, first, _mm512_mul_ps(swish(a, 1), b));
    return;
  case ROWLINEAR_GELU_TANH:
    a = gelu_tanh(a), b = gelu_tanh(b);
    break;
  case ROWLINEAR_QUICK_GELU:
    a = swish(a, 1.702f), b = swish(b, 1.702f);
    break;
  }
  _mm512_mask_storeu_ps(l->y + row * l->n + channel, first, a);
  if (second) _mm512_mask_storeu_ps(l->y + row * l->n + channel + 16, second, b);
}

#endif
