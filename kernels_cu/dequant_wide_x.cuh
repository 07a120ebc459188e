// x as the form for Hopper multiplies it (dequant_wide.cu): fp16 slabs of 16 k in wgmma's order.
//
//   [k block][slab][N / 8][two halves of k][eight rows][eight k], then of each k block unscale[row] where x is scaled
//
// Four components of a k-vector are in one slab, two in each half of k, so that what a lookup brings is A's words.
#pragma once

#include "dequant_x.cuh"

// V: vector length, N: rows of x, X: their type.
template <int V, int N, class X>
struct WideX {
    static constexpr int v = V, n = N, phases = 1;  // at most
    using x_type = X;

    static constexpr bool scaled = !X::is_half;                         // under a power of two each row and k block
    static constexpr int slab_bytes = N * 32;                           // x by 16 k
    static constexpr int slabs_bytes = V * slab_bytes;                  // of a k block
    static constexpr int x_bytes = slabs_bytes + (scaled ? 4 * N : 0);  // the same with inverses of those powers
};
