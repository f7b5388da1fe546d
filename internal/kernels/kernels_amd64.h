// Which of the kernels run: those of the best instructions that the processor has.
#ifndef MMSERVE_KERNELS_H
#define MMSERVE_KERNELS_H

// AVX512 has VNNI too, AVX2 has FMA. Both give the same bits.
enum { KERNELS_NONE, KERNELS_AVX2, KERNELS_AVX512 };

// kernels is the level that is used.
int kernels(void);
// kernels_limit has no level above the given one used. It is for tests, while no kernel runs.
void kernels_limit(int level);

#endif
