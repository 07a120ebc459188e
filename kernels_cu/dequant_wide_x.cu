// Arranges x for the dequantising kernel's form for Hopper, once for all its thread blocks: a warp has a k block of
// eight rows of x.
#include "dequant_wide_x.cuh"

constexpr int most_threads = 256;

// x: [batch][in_features], slabs: of all k blocks.
template <class S>
DEVICE void dequant_wide_x(const void* x, u8* slabs, int batch, const Dequant& w) {
    ptx::let_next_start();
    constexpr int tiles = S::n / 8;  // of a k block
    const int item = blockIdx.x * ptx::warps() + ptx::warp(), block = item / tiles, tile = item % tiles;
    const int lane = ptx::lane(), n = tile * 8 + lane / 4;
    int columns[steps];
    find_columns<S>(columns, w, block);
    ptx::wait_for_previous();
    if (block >= w.k_blocks) return;
    RowOfX<S> row;
    row.load_row(static_cast<const typename S::x_type::storage*>(x) + size_t(n) * w.in_features, columns, n < batch);
    u8* to = slabs + size_t(block) * S::x_bytes;
    float scale = 1;
    if constexpr (S::scaled) {
        const u32 exponent = row.exponent();
        scale = power_of_two(exponent);
        if (lane % 4 == 0) ptx::store(reinterpret_cast<float*>(to + S::slabs_bytes) + n, inverse_power(exponent));
    }
    to += tile * 256 + lane * 4;
#pragma unroll
    for (int step = 0; step < steps; step++)
#pragma unroll
        for (int h = 0; h < S::v / 4; h++) {
            const uint2 pairs = row.pairs(step, h, scale);
            u8* slab = to + (step * (S::v / 4) + h) * S::slab_bytes;
            ptx::store(reinterpret_cast<u32*>(slab), pairs.x);
            ptx::store(reinterpret_cast<u32*>(slab + 128), pairs.y);
        }
}

#define ENTRY(name, ...)                                                \
    using name##_shape = __VA_ARGS__;                                   \
    extern "C" KERNEL void __launch_bounds__(most_threads, 1)           \
        name(const void* x, void* y, u8*, int batch, int, Dequant w) {  \
        dequant_wide_x<name##_shape>(x, static_cast<u8*>(y), batch, w); \
    }
