// e^x and 2^x of a vector, written once for the kernels of all widths. Who includes it has defined VECTOR and the V_ operations.
#ifndef MMSERVE_EXPONENTIAL_H
#define MMSERVE_EXPONENTIAL_H

// exponential_near is e^x to 3e-7 of its value, for x from -87 to 88; of others it is anything. Cody and Waite's
// reduction x = n·ln 2 + r, Taylor's polynomial for e^r up to r⁶.
INLINE VECTOR exponential_near(VECTOR x) {
  const VECTOR n = V_ROUND(V_MUL(x, V_SET(1.44269504f)));
  VECTOR r = V_FNMADD(n, V_SET(0.693359375f), x);
  r = V_FNMADD(n, V_SET(-2.12194440e-4f), r);
  VECTOR p = V_SET(1.f / 720);
  p = V_FMADD(p, r, V_SET(1.f / 120));
  p = V_FMADD(p, r, V_SET(1.f / 24));
  p = V_FMADD(p, r, V_SET(1.f / 6));
  p = V_FMADD(p, r, V_SET(0.5f));
  p = V_FMADD(p, r, V_SET(1));
  p = V_FMADD(p, r, V_SET(1));
  return V_SCALE(p, n);
}

// exponential is exponential_near with x clamped to where that holds; NaN stays NaN.
INLINE VECTOR exponential(VECTOR x) {
  return exponential_near(V_MAX(V_SET(-87), V_MIN(V_SET(88), x))); // of a NaN, the second operand is given
}

// hyperbolic is tanh(x) to 4e-7 of its value: below 1 by the first terms of Lambert's continued fraction, above it from
// e^2x. NaN stays NaN.
INLINE VECTOR hyperbolic(VECTOR x) {
  const VECTOR y = V_MUL(x, x);
  const VECTOR top = V_FMADD(y, V_FMADD(y, V_ADD(y, V_SET(378)), V_SET(17325)), V_SET(135135));
  const VECTOR bottom = V_FMADD(y, V_FMADD(y, V_FMADD(y, V_SET(28), V_SET(3150)), V_SET(62370)), V_SET(135135));
  const VECTOR far = V_SUB(V_SET(1), V_DIV(V_SET(2), V_ADD(exponential(V_ADD(x, x)), V_SET(1))));
  return V_BELOW(y, V_SET(1), V_DIV(V_MUL(x, top), bottom), far);
}

// power is 2^x to 3e-6 of its value, for shares of 15 bits: about the nearest integer, which needs no reduction, with Taylor's
// polynomial up to r⁵. Where V_SCALE takes any n, it is 0 far below zero.
INLINE VECTOR power(VECTOR x) {
  const VECTOR n = V_ROUND(x), r = V_SUB(x, n);
  VECTOR p = V_SET(1.3333558e-3f); // ln(2)^5/5!
  p = V_FMADD(p, r, V_SET(9.6181291e-3f));
  p = V_FMADD(p, r, V_SET(5.5504109e-2f));
  p = V_FMADD(p, r, V_SET(2.4022651e-1f));
  p = V_FMADD(p, r, V_SET(6.9314718e-1f));
  p = V_FMADD(p, r, V_SET(1));
  return V_SCALE(p, n);
}

#endif
