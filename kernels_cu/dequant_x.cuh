// Fragments of x in shared memory: what mma's A wants (of eight rows of x: its B), in the order in which lanes hold k
// (dequant_layout.cuh).
//
//   fragment[k block of the chunk][step][piece][quarter][x tile][lane], then unscale[k block of the chunk][n]
//
// A warp makes a k block of one x tile: its largest |x| in each row gives the power of two that brings the row into
// fp16's range. fp16 x is taken as it is.
#pragma once

#include "dequant_layout.cuh"

// Where a lane's components of a k block are in a row of x, step by step; negative for what was filled up.
template <class S>
DEVICE void find_columns(int (&columns)[steps], const Dequant& w, int k_block) {
    const u32 first = k_block * block_vectors, padded = w.padded_vectors;
    int group = first / padded, inside = first - group * padded + (ptx::lane() & 3);
#pragma unroll
    for (int step = 0; step < steps; step++) {
        const int column = (group * w.group_vectors + inside) * S::v;
        columns[step] = inside < w.group_vectors && column < w.in_features ? column : -1;
        inside += 4;                                        // a group has whole steps
        if (S::phases > 1 && inside >= w.padded_vectors) {  // else whole k blocks
            inside -= w.padded_vectors;
            group++;
        }
    }
}

// The largest magnitude as the bits of a float32: they compare as the numbers do. Of bfloat16 they are found where they
// lie, in both halves of a register: widened here, the numbers would be kept in twice the registers until they are
// packed.
DEVICE u32 largest(const Four<Bfloat>& four) {
    const uint2 pairs = four.words;
    return larger(larger(pairs.x & 0x7fff0000u, pairs.y & 0x7fff0000u), larger(pairs.x & 0x7fffu, pairs.y & 0x7fffu)
                                                                            << 16);
}
DEVICE u32 largest(const Four<Float>& four) {
    const float4 f = four.words;
    return larger(larger(magnitude(f.x), magnitude(f.y)), larger(magnitude(f.z), magnitude(f.w)));
}

// A lane's components of a k block of one row of x.
template <class S>
struct RowOfX {
    using X = typename S::x_type;
    static constexpr int fours = S::v / 4;

    Four<X> values[steps][fours];

    DEVICE void load_row(const typename X::storage* row, const int (&columns)[steps], bool inside) {
#pragma unroll
        for (int step = 0; step < steps; step++)
#pragma unroll
            for (int h = 0; h < fours; h++)
                values[step][h] =
                    inside && columns[step] >= 0 ? Four<X>::load(row + columns[step] + 4 * h) : Four<X>::zeros();
    }

    // Of the row: the four lanes that share it agree.
    DEVICE u32 exponent() const {
        u32 most = 0;
#pragma unroll
        for (int step = 0; step < steps; step++)
#pragma unroll
            for (int h = 0; h < fours; h++) most = larger(most, largest(values[step][h]));
        most = larger(most, ptx::shuffle_xor(most, 1));
        most = larger(most, ptx::shuffle_xor(most, 2));
        return half_exponent(most);
    }

    DEVICE uint2 pairs(int step, int h, float scale) const {
        if constexpr (X::is_half) {
            return values[step][h].words;
        } else {
            const float4 f = values[step][h].widen();
            return make_uint2(ptx::pack_half2(f.x * scale, f.y * scale), ptx::pack_half2(f.z * scale, f.w * scale));
        }
    }
};

// What a warp makes at a time, as it comes from memory: a k block of one x tile. Items of a chunk are numbered k block
// by k block.
template <class S>
struct ItemOfX {
    // Whether registers hold one while tables are filled.
    static constexpr bool ahead = S::x_type::is_half && S::v == 4 && S::code_bits == 8;

    int columns[steps];
    RowOfX<S> rows[S::x_tile_rows / 8];  // r and r + 8 of the tile

    DEVICE static bool exists(int item, int blocks) { return item < blocks * S::x_tiles; }
    DEVICE static int row(int item, int i) { return item % S::x_tiles * S::x_tile_rows + 8 * i + (ptx::lane() >> 2); }

    DEVICE void find_item(const Dequant& w, int first_block, int item) {
        find_columns<S>(columns, w, first_block + item / S::x_tiles);
    }

    DEVICE void load_item(const Dequant& w, const typename S::x_type::storage* x, int batch, int item) {
#pragma unroll
        for (int i = 0; i < S::x_tile_rows / 8; i++)
            rows[i].load_row(x + size_t(row(item, i)) * w.in_features, columns, row(item, i) < batch);
    }

    DEVICE void store_item(ptx::Shared fragments, ptx::Shared unscale, int item) const {
        const int block = item / S::x_tiles, tile = item % S::x_tiles, lane = ptx::lane();
        float scale[2] = {1, 1};
        if constexpr (S::scaled) {
#pragma unroll
            for (int i = 0; i < S::x_tile_rows / 8; i++) {
                const u32 exponent = rows[i].exponent();
                scale[i] = power_of_two(exponent);
                if ((lane & 3) == 0)
                    ptx::shared_store(unscale + 4 * (block * S::n + row(item, i)), inverse_power(exponent));
            }
        }
#pragma unroll
        for (int step = 0; step < steps; step++)
#pragma unroll
            for (int h = 0; h < S::v / 4; h++) {
                const int place = (step * (S::v / 4) + h) * S::x_tiles + tile;
                const ptx::Shared to =
                    fragments + block * S::x_bytes + place * S::fragment_bytes + lane * (S::fragment_bytes / lanes);
                const uint2 upper = rows[0].pairs(step, h, scale[0]);
                if constexpr (S::narrow) {
                    ptx::shared_store(to, upper);
                } else {
                    const uint2 lower = rows[1].pairs(step, h, scale[1]);
                    ptx::shared_store(to, make_uint4(upper.x, lower.x, upper.y, lower.y));
                }
            }
    }
};

// The fragments of `blocks` k blocks from `first_block` on. All threads take part; who reads synchronises first.
// there: how many items, the first of each warp, are there already.
template <class S>
DEVICE void build_x(ptx::Shared fragments, ptx::Shared unscale, const Dequant& w, const typename S::x_type::storage* x,
                    int batch, int first_block, int blocks, int there) {
    for (int number = ptx::warp() + there; ItemOfX<S>::exists(number, blocks); number += ptx::warps()) {
        ItemOfX<S> item;
        item.find_item(w, first_block, number);
        item.load_item(w, x, batch, number);
        item.store_item(fragments, unscale, number);
    }
}
