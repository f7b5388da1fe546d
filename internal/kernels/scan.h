// Passes over logits. x is [n]; NaN counts as -Inf.
#ifndef MMSERVE_SCAN_H
#define MMSERVE_SCAN_H

#include <stdint.h>

// scan_peaks writes the largest of each 64 of x, [(n+63)/64]; -Inf where there is none.
void scan_peaks(float *peaks, const float *x, int64_t n);

typedef struct {
  double weight;   // Σ w
  double weighted; // Σ w·d
} scan_sums;

// scan_exp sums over d = (x - best)·scale that are above least, which is -80 or more; w = exp(d). No x is above best.
// 64 of x are summed in single precision, their sums in double.
scan_sums scan_exp(const float *x, int64_t n, float best, float scale, float least);

#endif
