// A table with copies for the lanes of a warp in shared memory: with one for each bank, whatever lanes look up is one
// wavefront.
#pragma once

#include "ptx.cuh"

constexpr int row_bytes = 128;  // a word for each bank

// Words of a table, each ROW_BYTES / 4 times. Neighbours begin with other banks.
template <int ROW_BYTES>
DEVICE void stage_table(const u32* table, int words, ptx::Shared to) {
    constexpr int pieces = ROW_BYTES / 16;
    for (int i = threadIdx.x; i < words; i += blockDim.x) {
        const u32 word = ptx::load(table + i);
#pragma unroll
        for (int piece = 0; piece < pieces; piece++)
            ptx::shared_store(to + i * ROW_BYTES + (piece + i * pieces / 8) % pieces * 16,
                              make_uint4(word, word, word, word));
    }
}
