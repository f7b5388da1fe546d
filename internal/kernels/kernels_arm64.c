//go:build linux

#include "kernels.h"

#include <sys/auxv.h>

#include "attention.h"
#include "rowlinear.h"
#include "segmentattention.h"
#include "selfattention.h"

// Of Linux's asm/hwcap.h, which older systems have without the second.
#define DOTPROD (1ul << 20)
#define I8MM (1ul << 13)

static int best(void) {
  if (!(getauxval(AT_HWCAP) & DOTPROD)) return KERNELS_NEON;
  return getauxval(AT_HWCAP2) & I8MM ? KERNELS_I8MM : KERNELS_DOTPROD;
}

static int most = KERNELS_BEST;

int kernels(void) {
  static int found = -1;
  if (found < 0) found = best();
  return found < most ? found : most;
}

void kernels_limit(int level) { most = level; }

const char *kernels_name(void) {
  static const char *const names[] = {"none", "NEON", "NEON with dotprod", "NEON with dotprod and i8mm"};
  return names[kernels()];
}

int64_t rowlinear_width(void) { return 1; }

void rowlinear_quantize(const rowlinear *l, int64_t from, int64_t to) { rowlinear_quantize_neon(l, from, to); }

void rowlinear4_quantize(const rowlinear *l, int64_t from, int64_t to) { rowlinear4_quantize_neon(l, from, to); }

typedef void multiply(const rowlinear *l, int64_t row_from, int64_t row_to, int64_t pair_from, int64_t pair_to);

void rowlinear_multiply(const rowlinear *l, int64_t row_from, int64_t row_to, int64_t pair_from, int64_t pair_to) {
  static multiply *const forms[] = {0, rowlinear_multiply_neon, rowlinear_multiply_dotprod, rowlinear_multiply_i8mm};
  forms[kernels()](l, row_from, row_to, pair_from, pair_to);
}

void rowlinear4_multiply(const rowlinear *l, int64_t row_from, int64_t row_to, int64_t pair_from, int64_t pair_to) {
  static multiply *const forms[] = {0, rowlinear4_multiply_neon, rowlinear4_multiply_dotprod, rowlinear4_multiply_i8mm};
  forms[kernels()](l, row_from, row_to, pair_from, pair_to);
}

void attention_store(const attention *a, int64_t row, int64_t kv_head, int64_t from, int64_t to) {
  attention_store_neon(a, row, kv_head, from, to);
}

int64_t attention_scratch(const attention *a, int64_t row) { return 6 * ((a->row[row].last + 32) / 32 * 32); }

void attention_attend(const attention *a, int64_t row, int64_t kv_head, int64_t from, int64_t to, float *scratch) {
  attention_attend_neon(a, row, kv_head, from, to, scratch);
}

// The parts that segmentattention_tile.h divides it into, each of whole vectors.
int64_t segmentattention_scratch(const segmentattention *a) {
  const int64_t width = (a->dim + 15) / 16 * 16;
  return SEGMENTATTENTION_QUERIES * (a->dim + width + 16 + 1) + 64 * (a->dim + width) + 6 * 64 + width;
}

void segmentattention_attend(const segmentattention *a, int64_t head, int64_t from, int64_t to, float *scratch) {
  segmentattention_attend_neon(a, head, from, to, scratch);
}

int selfattention_here(void) { return kernels() >= KERNELS_DOTPROD; }

void selfattention_prepare(const selfattention *a, int64_t head) { selfattention_prepare_dotprod(a, head); }

void selfattention_attend(const selfattention *a, int64_t head, int64_t from, int64_t to, void *scratch) {
  selfattention_attend_dotprod(a, head, from, to, scratch);
}
