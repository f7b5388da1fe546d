// Which of the kernels run: those of the best instructions that the processor has.
#ifndef MMSERVE_KERNELS_H
#define MMSERVE_KERNELS_H

// AVX512 has VNNI too, AVX2 has FMA; I8MM has DOTPROD too. All give the same bits.
#ifdef __aarch64__
enum { KERNELS_NONE, KERNELS_NEON, KERNELS_DOTPROD, KERNELS_I8MM, KERNELS_LEAST = KERNELS_NEON, KERNELS_BEST = KERNELS_I8MM };
#else
enum { KERNELS_NONE, KERNELS_AVX2, KERNELS_AVX512, KERNELS_LEAST = KERNELS_AVX2, KERNELS_BEST = KERNELS_AVX512 };
#endif

// kernels is the level that is used.
int kernels(void);
// kernels_name names the instructions of that level.
const char *kernels_name(void);
// kernels_limit has no level above the given one used. It is for tests, while no kernel runs.
void kernels_limit(int level);

#endif
