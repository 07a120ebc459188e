// Which rows a thread block multiplies, and sums over the splits of K: whoever finishes a block of 32 rows last adds
// all splits' partial sums in their order. One launch, no zeroed output, no float atomics: the same bits in every run.
//
// A workspace is counters [most_row_blocks], zero before and after a launch, then float partial[split][n][padded row].
#pragma once

#include "floats.cuh"

constexpr int lanes = 32;
constexpr int most_row_blocks = 1 << 14;  // counters in a workspace, one a block of 32 rows

// Rows of W that one thread block multiplies: blocks of 32 padded rows, all of one codebook, and their place in y.
struct Slice {
    int part;         // which of the concatenated weights' codebooks
    int first_block;  // of 32 padded rows
    int end_block;
    int first_row;  // of y, where first_block begins
    int end_row;    // of y, where the part ends
};

// Where a slice's rows go.
template <class X>
struct Output {
    void* y;  // [batch][out_features] in X or float32
    int batch;
    int is_float;
    int out_features;
    const u16* row_scales;  // fp16 [padded row], or nullptr
    const Slice& slice;

    // block: of the slice; place: the row's in it.
    DEVICE void write(int n, int block, int place, float value) const {
        const int row = slice.first_row + block * lanes + place;
        if (row >= slice.end_row) return;
        if (row_scales)
            value *= ptx::half_to_float(ptx::load(row_scales + (slice.first_block + block) * lanes + place));
        const size_t at = size_t(n) * out_features + row;
        if (is_float)
            ptx::store(static_cast<float*>(y) + at, value);
        else
            ptx::store(static_cast<typename X::storage*>(y) + at, X::narrow(value));
    }
};

struct Splits {
    u8* workspace;
    int count;
    int arrivals;  // of warps at each block of rows: one for every split, or several that have rows of x of their own
    int batch;
    int padded_rows;

    // A row's partial sum. block: of the whole matrix.
    DEVICE float* place(int split, int n, int block, int row) const {
        float* partial = reinterpret_cast<float*>(workspace) + most_row_blocks;
        return partial + (size_t(split) * batch + n) * padded_rows + block * lanes + row;
    }

    // After a warp has stored its partial sums of the slice's blocks first, first + stride, ...
    template <class X>
    DEVICE void finish(const Output<X>& out, int first, int stride) const {
        u32* counters = reinterpret_cast<u32*>(workspace) + out.slice.first_block;
        const int blocks = out.slice.end_block - out.slice.first_block;
        ptx::fence();
        ptx::sync_warp();
        for (int begin = first; begin < blocks; begin += lanes * stride) {
            const int mine = begin + ptx::lane() * stride;
            u32 last = ptx::ballot(mine < blocks && ptx::atomic_add(counters + mine, 1) == u32(arrivals - 1));
            if (!last) continue;
            ptx::sync_warp();  // what the counting lane saw, the others see too
            ptx::fence();
            for (; last; last &= last - 1) {
                const int block = begin + ptx::lowest_bit(last) * stride;
                for (int n = 0; n < batch; n++) {
                    float sum = 0;
#pragma unroll 8
                    for (int split = 0; split < count; split++)
                        sum += ptx::load_foreign(place(split, n, out.slice.first_block + block, ptx::lane()));
                    out.write(n, block, ptx::lane(), sum);
                }
                if (ptx::lane() == 0) ptx::store(counters + block, 0u);
            }
        }
    }
};
