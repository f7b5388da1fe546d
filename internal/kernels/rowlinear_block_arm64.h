// What the NEON forms of int4 share.
#ifndef MMSERVE_ROWLINEAR_BLOCK_ARM64_H
#define MMSERVE_ROWLINEAR_BLOCK_ARM64_H

// scaled_block adds a row's sums of a block to those of the blocks before it. scale are the block's 16, bfloat16.
INLINE void scaled_block(float32x4_t to[4], const int32x4_t sum[4], const uint16_t *scale) {
#pragma GCC unroll 4
  for (int c = 0; c < 4; c++) {
    const float32x4_t s = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(scale + c * 4), 16));
    to[c] = vfmaq_f32(to[c], vcvtq_f32_s32(sum[c]), s);
  }
}

#endif
