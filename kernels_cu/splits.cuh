// Which rows a thread block multiplies, and sums over the splits of K: whoever finishes a block of 32 rows last adds
// all splits' partial sums in their order. One launch, no zeroed output, no float atomics: the same bits in every run.
//
// A workspace is counters [most_row_blocks], zero before and after a launch, then float partial[split][n][padded row].
#pragma once

#include "floats.cuh"

constexpr int lanes = 32;
constexpr int most_row_blocks = 1 << 14;  // counters in a workspace, one a block of 32 rows
constexpr int most_parts = 16;            // of a weight: concatenated ones, with codebooks of their own

// Rows of W that one thread block multiplies: blocks of 32 padded rows, all of one codebook, and their place in y.
struct Slice {
    int part;         // which of the concatenated weights' codebooks
    int first_block;  // of 32 padded rows
    int end_block;
    int first_row;  // of y, where first_block begins
    int end_row;    // of y, where the part ends
};

// All slices: of each part near-equal ones, the larger first. Among a kernel's arguments: a table in memory would be
// read, from DRAM, before anything else could be.
struct Slices {
    int first_slice[most_parts + 1];  // of each part, and of what comes behind the last
    int first_block[most_parts + 1];
    int first_row[most_parts + 1];
    int blocks[most_parts + 1];  // of the smaller slices
    int larger[most_parts + 1];  // how many slices have one more

    DEVICE Slice at(int index) const {
        int part = 0;
        while (index >= first_slice[part + 1]) part++;
        const int place = index - first_slice[part];
        const int first = place * blocks[part] + min(place, larger[part]);
        const int end = first + blocks[part] + (place < larger[part] ? 1 : 0);
        return {part, first_block[part] + first, first_block[part] + end, first_row[part] + first * lanes,
                first_row[part + 1]};
    }
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
    static constexpr int in_flight = 16;  // loads of a lane, of 16 bytes each: a round trip to L2

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
        for (int begin = first; begin < blocks; begin += lanes * stride) {
            const int mine = begin + ptx::lane() * stride;
            ptx::sync_warp();  // what all lanes stored, the counting one releases
            const bool is_last = mine < blocks && ptx::arrive(counters + mine) == u32(arrivals - 1);
            const u32 last = ptx::ballot(is_last);
            if (!last) continue;
            ptx::sync_warp();  // what the counting lane acquired, the others see too
            if (count > in_flight / 2)
                add<1>(out, begin, stride, last);
            else if (count > in_flight / 4)
                add<2>(out, begin, stride, last);
            else
                add<4>(out, begin, stride, last);
            if (is_last) ptx::store(counters + mine, 0u);
        }
    }

    // y of the blocks begin + i * stride for every bit i of `last`: eight lanes for 32 rows and a row of x, an *item*;
    // four ITEMS a warp at a time.
    template <int ITEMS, class X>
    DEVICE void add(const Output<X>& out, int begin, int stride, u32 last) const {
        constexpr int splits = in_flight / ITEMS, groups = lanes / 8;
        const int items = ptx::count_bits(last) * batch, row = ptx::lane() % 8 * 4;
        for (int base = 0; base < items; base += groups * ITEMS) {
            int n[ITEMS], block[ITEMS];
            const float* from[ITEMS];
            float4 sum[ITEMS];
#pragma unroll
            for (int i = 0; i < ITEMS; i++) {
                const int item = base + i * groups + ptx::lane() / 8;
                u32 bits = last;
                for (int skipped = item / batch; skipped > 0; skipped--) bits &= bits - 1;
                n[i] = item % batch;
                block[i] = begin + ptx::lowest_bit(bits) * stride;
                from[i] = item < items ? place(0, n[i], out.slice.first_block + block[i], row) : nullptr;
                sum[i] = make_float4(0, 0, 0, 0);
            }
            for (int first = 0; first < count; first += splits) {
                float4 part[ITEMS][splits];
                ptx::load_foreign(part, from, size_t(batch) * padded_rows, first, count);
#pragma unroll
                for (int i = 0; i < ITEMS; i++)
#pragma unroll
                    for (int s = 0; s < splits; s++) {
                        sum[i].x += part[i][s].x;
                        sum[i].y += part[i][s].y;
                        sum[i].z += part[i][s].z;
                        sum[i].w += part[i][s].w;
                    }
            }
#pragma unroll
            for (int i = 0; i < ITEMS; i++) {
                if (from[i] == nullptr) continue;
                out.write(n[i], block[i], row, sum[i].x);
                out.write(n[i], block[i], row + 1, sum[i].y);
                out.write(n[i], block[i], row + 2, sum[i].z);
                out.write(n[i], block[i], row + 3, sum[i].w);
            }
        }
    }
};
