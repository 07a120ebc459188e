// Which rows a thread block multiplies, and sums over the splits of K. One launch, no zeroed output, no float atomics:
// the same bits in every run.
//
// Thread blocks of a cluster, where there are clusters, are neighbouring splits of one slice: each sends its sums to
// the shared memory of those that add them (`Cluster`). What is left of splits meets in the workspace: whoever finishes
// a block of 32 rows last adds all partial sums in their order (`Splits`).
//
// A workspace is counters [most_row_blocks], zero before and after a launch, then float partial[split][n][padded row].
#pragma once

#include "floats.cuh"

constexpr int most_row_blocks = 1 << 14;  // counters in a workspace, one a block of 32 rows
constexpr int most_parts = 16;            // of a weight: concatenated ones, with codebooks of their own
constexpr int in_flight = 16;             // loads of a lane that adds splits, of 16 bytes each: a round trip to L2
constexpr int counter_bytes = 128;        // of shared memory, before what a cluster's thread blocks send

// Rows of W that one thread block multiplies: blocks of 32 padded rows, all of one codebook, and their place in y.
struct Slice {
    int part;         // which of the concatenated weights' codebooks
    int first_block;  // of 32 padded rows
    int end_block;
    int first_row;  // of y, where first_block begins
    int end_row;    // of y, where the part ends
};

// The slices of a part: near-equal ones, the larger first.
struct Part {
    int first_slice;
    int first_block;
    int first_row;
    int blocks;  // of the smaller slices
    int larger;  // how many slices have one more
};

// All slices. Among a kernel's arguments: a table in memory would be read, from DRAM, before anything else could be.
struct Slices {
    Part parts[most_parts + 1];  // and what comes behind the last

    DEVICE Slice at(int index) const {
        int number = 0;
        Part part = parts[0];
        while (index >= parts[number + 1].first_slice) part = parts[++number];
        const int place = index - part.first_slice;
        const int first = place * part.blocks + min(place, part.larger);
        const int end = first + part.blocks + (place < part.larger ? 1 : 0);
        return {number, part.first_block + first, part.first_block + end, part.first_row + first * lanes,
                parts[number + 1].first_row};
    }

    // The thread block's, worked out anew: registers don't hold it through a loop.
    DEVICE Slice anew() const {
        u32 index = blockIdx.x;
        ptx::keep(index);
        return at(index);
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
        store_y<X>(y, is_float, size_t(n) * out_features + row, value);
    }

    // What a row's sum is still to be multiplied by.
    DEVICE float scale(int block, int place) const {
        if (row_scales == nullptr) return 1;
        return ptx::half_to_float(ptx::load(row_scales + (slice.first_block + block) * lanes + place));
    }

    // The same of four rows from `place` on, a multiple of four.
    DEVICE float4 four_scales(int block, int place) const {
        if (row_scales == nullptr) return make_float4(1, 1, 1, 1);
        const u16* from = row_scales + (slice.first_block + block) * lanes + place;
        const uint2 pairs = ptx::load(reinterpret_cast<const uint2*>(from));
        return make_float4(ptx::half_to_float(u16(pairs.x)), ptx::half_to_float(u16(pairs.x >> 16)),
                           ptx::half_to_float(u16(pairs.y)), ptx::half_to_float(u16(pairs.y >> 16)));
    }
};

// The thread blocks of a cluster, which have sums of the same rows. Block i of 32 rows of the slice belongs to the one
// of rank i % size, to whose shared memory all send what they have of it, each warp block by block and piece by piece:
// a T of each lane.
template <class T>
struct Cluster {
    static constexpr int piece_bytes = lanes * sizeof(T);

    ptx::Shared counter;  // then T [owned block of rows][piece][rank][lane]
    int pieces;           // of a block that there is room for
    int size = ptx::cluster_size(), rank = ptx::cluster_rank();
    // Where this warp sends next.
    ptx::Shared to = 0;
    int owner = 0;

    DEVICE void begin() const {
        if (size == 1) return;
        if (threadIdx.x == 0) ptx::make_counter(counter);
        ptx::cluster_arrive();
    }

    // Says how much will be sent here, in good time: so many pieces of each of the slice's blocks.
    DEVICE void expect(int sent, int blocks) const {
        if (size == 1 || threadIdx.x != 0) return;
        const u32 owned = u32(blocks - rank + size - 1) / u32(size);
        ptx::expect(counter, owned * u32(sent * size * piece_bytes));
    }

    // Until all thread blocks have begun: then they can be sent to. first: the warp's first block.
    DEVICE void wait_for_begin(int first) {
        ptx::cluster_wait();
        to = place(0, 0, rank);
        owner = 0;
        advance(first);
    }

    DEVICE void send(int piece, T sums) const { ptx::send(to + piece * size * piece_bytes, counter, owner, sums); }

    DEVICE void advance(int blocks) {
        for (owner += blocks; owner >= size; owner -= size) to += pieces * size * piece_bytes;
    }

    // Until all has come that is sent here.
    DEVICE void wait() const { ptx::wait_for_sent(counter); }

    // Over all ranks, in their order.
    DEVICE T sum(int piece, int owned) const {
        T sum = {};
#pragma unroll 8
        for (int from = 0; from < size; from++) add(sum, ptx::shared_load<T>(place(piece, owned, from)));
        return sum;
    }

    DEVICE static void add(float& sum, float more) { sum += more; }
    DEVICE static void add(float2& sum, float2 more) { sum.x += more.x, sum.y += more.y; }

    DEVICE ptx::Shared place(int piece, int owned, int from) const {
        return counter + counter_bytes + ((owned * pieces + piece) * size + from) * piece_bytes +
               ptx::lane() * int(sizeof(T));
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
        for (int begin = first; begin < blocks; begin += lanes * stride) {
            const int mine = begin + ptx::lane() * stride;
            ptx::sync_warp();  // what all lanes stored, the counting one releases
            const bool is_last = mine < blocks && ptx::arrive(counters + mine) == u32(arrivals - 1);
            const u32 last = ptx::ballot(is_last);
            if (!last) continue;
            ptx::sync_warp();  // what the counting lane acquired, the others see too
            // As many blocks at once as the warp has, four at most; rows of x fill what is left of its lanes.
            const int shift = begin + stride >= blocks ? 0 : begin + 2 * stride >= blocks ? 1 : 2;
            int block = begin;
            for (u32 rest = last; rest; rest >>= 1 << shift, block += stride << shift) {
                if (count > in_flight / 2)
                    add<1>(out, block, stride, rest, shift);
                else if (count > in_flight / 4)
                    add<2>(out, block, stride, rest, shift);
                else
                    add<4>(out, block, stride, rest, shift);
            }
            if (is_last) ptx::store(counters + mine, 0u);
        }
    }

    // y of the blocks first + i * stride for every bit i of `last`, i below 1 << shift. Eight lanes have 32 rows of a
    // block; ITEMS rows of x at a time.
    template <int ITEMS, class X>
    DEVICE void add(const Output<X>& out, int first, int stride, u32 last, int shift) const {
        constexpr int splits = in_flight / ITEMS;
        const int group = ptx::lane() / 8, row = ptx::lane() % 8 * 4;
        const int i = group & ((1 << shift) - 1), block = first + i * stride;
        const bool is_mine = last >> i & 1;
        float4 scale = make_float4(1, 1, 1, 1);
        if (is_mine) scale = out.four_scales(block, row);
        const int rows_of_x = 4 >> shift;  // that the warp's groups have beside each other
        for (int first_n = 0; first_n < batch; first_n += rows_of_x * ITEMS) {
            const int base = first_n + (group >> shift);
            const float* from[ITEMS];
            float4 sum[ITEMS];
#pragma unroll
            for (int k = 0; k < ITEMS; k++) {
                const int n = base + k * rows_of_x;
                from[k] = is_mine && n < batch ? place(0, n, out.slice.first_block + block, row) : nullptr;
                sum[k] = make_float4(0, 0, 0, 0);
            }
            for (int split = 0; split < count; split += splits) {
                float4 part[ITEMS][splits];
                ptx::load_foreign(part, from, size_t(batch) * padded_rows, split, count);
#pragma unroll
                for (int k = 0; k < ITEMS; k++)
#pragma unroll
                    for (int s = 0; s < splits; s++) {
                        const float4& more = part[k][s];
                        sum[k].x += more.x, sum[k].y += more.y, sum[k].z += more.z, sum[k].w += more.w;
                    }
            }
#pragma unroll
            for (int k = 0; k < ITEMS; k++) {
                if (from[k] == nullptr) continue;
                const int n = base + k * rows_of_x;
                out.write(n, block, row, sum[k].x * scale.x);
                out.write(n, block, row + 1, sum[k].y * scale.y);
                out.write(n, block, row + 2, sum[k].z * scale.z);
                out.write(n, block, row + 3, sum[k].w * scale.w);
            }
        }
    }
};
