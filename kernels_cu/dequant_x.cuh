// Fragments of x in shared memory: what mma's A wants, in the order in which lanes hold k (dequant_layout.cuh).
//
//   fragment[k block of the chunk][step][piece][quarter][x tile][lane], then unscale[k block of the chunk][n]
//
// A warp makes a k block of one x tile: its largest |x| in each row gives the power of two that brings the row into
// fp16's range. fp16 x is taken as it is.
#pragma once

#include "dequant_layout.cuh"

// The bits of a power of two that brings `largest` (bits of a magnitude) to 2^13 .. 2^14, and of its inverse.
struct PowerOfTwo {
    u32 exponent;

    DEVICE static PowerOfTwo of(u32 largest) {
        const u32 field = largest >> 23;
        return {267u - (field < 14u ? 14u : field)};  // so that both are normal numbers
    }
    DEVICE float value() const { return ptx::bits_to_float(exponent << 23); }
    DEVICE float inverse() const { return ptx::bits_to_float((254 - exponent) << 23); }
};

// Where a padded k-vector's components are in x; negative for what was filled up.
template <class S>
DEVICE int x_column(const Dequant& w, int padded) {
    const int group = padded / w.padded_vectors, inside = padded - group * w.padded_vectors;
    const int column = (group * w.group_vectors + inside) * S::v;
    return inside < w.group_vectors && column < w.in_features ? column : -1;
}

template <class S>
DEVICE float4 load_x(const typename S::x_type::storage* row, int column, bool inside) {
    return inside && column >= 0 ? load_four<typename S::x_type>(row + column) : make_float4(0, 0, 0, 0);
}

DEVICE u32 larger(u32 a, u32 b) {
    return a > b ? a : b;
}
DEVICE u32 magnitude(float value) {
    return ptx::float_to_bits(value) & 0x7fffffffu;
}

// The power of two of one row in a k block; the four lanes of a row agree.
template <class S>
DEVICE PowerOfTwo row_power(const typename S::x_type::storage* row, const int (&columns)[steps], bool inside) {
    u32 largest = 0;  // magnitudes compare as their bits do
#pragma unroll
    for (int step = 0; step < steps; step++)
#pragma unroll
        for (int h = 0; h < S::v / 4; h++) {
            const float4 f = load_x<S>(row + 4 * h, columns[step], inside);
            largest =
                larger(largest, larger(larger(magnitude(f.x), magnitude(f.y)), larger(magnitude(f.z), magnitude(f.w))));
        }
    largest = larger(largest, ptx::shuffle_xor(largest, 1));
    largest = larger(largest, ptx::shuffle_xor(largest, 2));
    return PowerOfTwo::of(largest);
}

template <class S>
DEVICE uint2 load_pairs(const typename S::x_type::storage* row, int column, bool inside, float scale) {
    if constexpr (S::x_type::is_half) {
        return inside && column >= 0 ? ptx::load(reinterpret_cast<const uint2*>(row + column)) : make_uint2(0, 0);
    } else {
        const float4 f = load_x<S>(row, column, inside);
        return make_uint2(ptx::pack_half2(f.x * scale, f.y * scale), ptx::pack_half2(f.z * scale, f.w * scale));
    }
}

// The fragments of `blocks` k blocks from `first_block` on. All threads take part; who reads synchronises first.
template <class S>
DEVICE void build_x(ptx::Shared fragments, ptx::Shared unscale, const Dequant& w, const typename S::x_type::storage* x,
                    int batch, int first_block, int blocks) {
    const int lane = ptx::lane(), r = lane >> 2, q = lane & 3;
    for (int item = ptx::warp(); item < blocks * S::x_tiles; item += ptx::warps()) {
        const int block = item / S::x_tiles, tile = item % S::x_tiles;
        const int n[2] = {tile * 16 + r, tile * 16 + r + 8};
        const typename S::x_type::storage* row[2] = {x + size_t(n[0]) * w.in_features,
                                                     x + size_t(n[1]) * w.in_features};
        int columns[steps];
#pragma unroll
        for (int step = 0; step < steps; step++)
            columns[step] = x_column<S>(w, (first_block + block) * block_vectors + 4 * step + q);
        float scale[2] = {1, 1};
        if constexpr (S::scaled) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const PowerOfTwo power = row_power<S>(row[i], columns, n[i] < batch);
                scale[i] = power.value();
                if (q == 0) ptx::shared_store(unscale + 4 * (block * S::n + n[i]), power.inverse());
            }
        }
#pragma unroll
        for (int step = 0; step < steps; step++)
#pragma unroll
            for (int h = 0; h < S::v / 4; h++) {
                const ptx::Shared to = fragments + block * S::x_bytes +
                                       (((step * (S::v / 4) + h) * S::x_tiles + tile) * lanes + lane) * 16;
                const uint2 upper = load_pairs<S>(row[0] + 4 * h, columns[step], n[0] < batch, scale[0]);
                const uint2 lower = load_pairs<S>(row[1] + 4 * h, columns[step], n[1] < batch, scale[1]);
                ptx::shared_store(to, make_uint4(upper.x, lower.x, upper.y, lower.y));
            }
    }
}
