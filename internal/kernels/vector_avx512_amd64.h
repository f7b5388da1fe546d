// What the AVX-512 kernels share.
#ifndef MMSERVE_VECTOR_H
#define MMSERVE_VECTOR_H

#pragma STDC FP_CONTRACT OFF // for clang; see operators.go

#include <immintrin.h>
#include <stdint.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")))
#define INLINE static inline __attribute__((always_inline)) TARGET

// ADD_BYTES and ADD_WORDS add the products of x's and y's bytes (x unsigned, y signed), or signed words, to the lane they lie in. They
// are assembly because GCC 12 moves the sums of its intrinsics from register to register, and to memory, in every round.
#define ADD_BYTES(sum, x, y) __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(y))
#define ADD_WORDS(sum, x, y) __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(y))

// lanes is the mask of the first n of 16 lanes.
INLINE __mmask16 lanes(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }

#define VECTOR __m512
#define V_SET(x) _mm512_set1_ps(x)
#define V_ADD(x, y) _mm512_add_ps(x, y)
#define V_SUB(x, y) _mm512_sub_ps(x, y)
#define V_MUL(x, y) _mm512_mul_ps(x, y)
#define V_DIV(x, y) _mm512_div_ps(x, y)
#define V_MIN(x, y) _mm512_min_ps(x, y)
#define V_MAX(x, y) _mm512_max_ps(x, y)
#define V_FMADD(x, y, z) _mm512_fmadd_ps(x, y, z)
#define V_FNMADD(x, y, z) _mm512_fnmadd_ps(x, y, z)
#define V_BELOW(x, y, yes, no) _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_LT_OQ), no, yes)
#define V_ROUND(x) _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define V_SCALE(p, n) _mm512_scalef_ps(p, n) // p·2^n
#define ROOT(x) _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x)))

#include "exponential.h"

#endif
