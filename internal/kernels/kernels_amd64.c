//go:build !windows

#include "kernels.h"

#include "attention.h"
#include "rowlinear.h"
#include "segmentattention.h"
#include "selfattention.h"

static int best(void) {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return KERNELS_NONE;
  if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return KERNELS_AVX512;
  return KERNELS_AVX2;
}

static int most = KERNELS_AVX512;

int kernels(void) {
  static int found = -1;
  if (found < 0) found = best();
  return found < most ? found : most;
}

void kernels_limit(int level) { most = level; }

const char *kernels_name(void) {
  static const char *const names[] = {"none", "AVX2 with FMA", "AVX-512 with VNNI"};
  return names[kernels()];
}

int64_t rowlinear_width(void) { return kernels() == KERNELS_AVX512 ? 1 : 2; }

void rowlinear_quantize(const rowlinear *l, int64_t from, int64_t to) {
  (kernels() == KERNELS_AVX512 ? rowlinear_quantize_avx512 : rowlinear_quantize_avx2)(l, from, to);
}

void rowlinear_multiply(const rowlinear *l, int64_t row_from, int64_t row_to, int64_t pair_from, int64_t pair_to) {
  (kernels() == KERNELS_AVX512 ? rowlinear_multiply_avx512 : rowlinear_multiply_avx2)(l, row_from, row_to, pair_from, pair_to);
}

void rowlinear4_quantize(const rowlinear *l, int64_t from, int64_t to) {
  (kernels() == KERNELS_AVX512 ? rowlinear4_quantize_avx512 : rowlinear4_quantize_avx2)(l, from, to);
}

void rowlinear4_multiply(const rowlinear *l, int64_t row_from, int64_t row_to, int64_t pair_from, int64_t pair_to) {
  (kernels() == KERNELS_AVX512 ? rowlinear4_multiply_avx512 : rowlinear4_multiply_avx2)(l, row_from, row_to, pair_from, pair_to);
}

void attention_store(const attention *a, int64_t row, int64_t kv_head, int64_t from, int64_t to) {
  (kernels() == KERNELS_AVX512 ? attention_store_avx512 : attention_store_avx2)(a, row, kv_head, from, to);
}

int64_t attention_scratch(const attention *a, int64_t row) { return 6 * ((a->row[row].last + 32) / 32 * 32); }

void attention_attend(const attention *a, int64_t row, int64_t kv_head, int64_t from, int64_t to, float *scratch) {
  (kernels() == KERNELS_AVX512 ? attention_attend_avx512 : attention_attend_avx2)(a, row, kv_head, from, to, scratch);
}

// The parts that segmentattention_tile.h divides it into, each of whole vectors.
int64_t segmentattention_scratch(const segmentattention *a) {
  const int64_t width = (a->dim + 15) / 16 * 16;
  return SEGMENTATTENTION_QUERIES * (a->dim + width + 16 + 1) + 64 * (a->dim + width) + 6 * 64 + width;
}

void segmentattention_attend(const segmentattention *a, int64_t head, int64_t from, int64_t to, float *scratch) {
  (kernels() == KERNELS_AVX512 ? segmentattention_attend_avx512 : segmentattention_attend_avx2)(a, head, from, to, scratch);
}

int selfattention_here(void) { return kernels() == KERNELS_AVX512; }

void selfattention_prepare(const selfattention *a, int64_t head) { selfattention_prepare_avx512(a, head); }

void selfattention_attend(const selfattention *a, int64_t head, int64_t from, int64_t to, void *scratch) {
  selfattention_attend_avx512(a, head, from, to, scratch);
}
