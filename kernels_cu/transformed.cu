// What comes before and after the product with a transformed weight's core: x in the core's order, times signs and
// through a Hadamard transform of every block, once for each term; its sums over groups; their products with what is
// added to the weights of a group.
//
//     rotate_x     x [n][K] --> x' [n][term][K]          a thread holds 1, 2 or 4 numbers, a thread block one block of
//                                                        the rotation or several whole ones
//     sum_groups   x or x' --> sums float [n][group]     a warp adds a group
//     finish       y' [n][M] + sums A^T --> y [n][M]     a thread block has 32 rows of W and up to 8 rows of x; a warp
//                                                        takes every 8th group, then the warps' parts are added
//
// Of few rows of x, x' is float. Of many it is fp16 times a power of two, the same for the whole row, that leaves
// nothing above 2^15: no number of x' is larger than the largest of x times the root of the rotation's block.
//
// No atomics: the same bits in every run.
#include "hadamard.cuh"

constexpr int most_threads = 1024;
constexpr int finish_rows = 8;  // of x, and warps of a block

struct Transformed {
    const float* factors;  // [K] signs over the root of the rotation's block, or nullptr
    const float* addends;  // [group][M], or nullptr
    const int* order;      // [K] the place in x of each number of x', or nullptr
    int batch;             // n
    int columns;           // K
    int rows;              // M
    int block;             // of the rotation, 1 without one
    int terms;
    int groups;   // of a row of W, 0 without offsets
    int changed;  // whether sum_groups takes x' instead of x
    int scaled;   // whether x' is fp16, its rows under powers of two
    int y_is_float;
    u64 x;       // where in the workspace: float or fp16 [n][term][K]
    u64 y;       // float [n][M]
    u64 sums;    // float [n][group]
    u64 scales;  // float [n], powers of two that bring rows back
};

// What of them comes in pieces of 16 bytes; the first is aligned to such a piece.
DEVICE void prefetch_words(const void* from, int count) {
    ptx::prefetch(from, 4 * (count & ~3));
}

// The power of two, as its biased exponent, that x' of a row is multiplied by. shared: a word a warp.
template <class X>
DEVICE int row_exponent(const typename X::storage* row, const Transformed& w, ptx::Shared shared) {
    u32 largest = 0;
    for (int at = threadIdx.x; at < w.columns; at += blockDim.x)
        largest = larger(magnitude(X::widen(ptx::load(row + at))), largest);  // NaN is larger than all
    int root = 0;  // of the block, as a power of two, rounded up
    while (1 << 2 * root < w.block) root++;
    return normal_exponent(268 - int(largest_of_block(largest, shared) >> 23) - root);
}

// EACH * blockDim.x numbers of a row are whole blocks of the rotation, except where the row ends.
template <class X, class Y, int EACH>
DEVICE void rotate_x(const void* x, void*, u8* workspace, const Transformed& w) {
    const int wide = EACH * blockDim.x, row_blocks = (w.columns + wide - 1) / wide;
    const int row = blockIdx.x / row_blocks, first = blockIdx.x % row_blocks * wide + threadIdx.x;
    const auto* from = static_cast<const typename X::storage*>(x) + size_t(row) * w.columns;
    if (threadIdx.x == 0) {
        const int count = min(wide, w.columns - first);
        if (w.factors) prefetch_words(w.factors + first, count);
        if (w.order) prefetch_words(w.order + first, count);
    }
    ptx::wait_for_previous();
    float value[EACH];
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        const int at = first + e * blockDim.x;
        value[e] = 0;
        if (at < w.columns)
            value[e] = X::widen(ptx::load(from + (w.order ? ptx::load(w.order + at) : at))) *
                       (w.factors ? ptx::load(w.factors + at) : 1);
    }
    const ptx::Shared shared = ptx::shared_memory();
    walsh_hadamard(value, w.block, shared);
    float scale = 1;
    if constexpr (Y::is_half) {
        const int exponent = row_exponent<X>(from, w, shared + EACH * blockDim.x * 8);
        scale = power_of_two(exponent);
        if (blockIdx.x % row_blocks == 0 && threadIdx.x == 0)
            ptx::store(reinterpret_cast<float*>(workspace + w.scales) + row, inverse_power(exponent));
    }
    auto* to = reinterpret_cast<typename Y::storage*>(workspace + w.x) + size_t(row) * w.terms * w.columns;
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        const int at = first + e * blockDim.x;
        if (at < w.columns)
            for (int term = 0; term < w.terms; term++)
                ptx::store(to + size_t(term) * w.columns + at, Y::narrow(value[e] * scale));
    }
}

template <class X>
DEVICE void sum_groups(const void* x, void*, u8* workspace, const Transformed& w) {
    ptx::wait_for_previous();  // all that it reads is x
    const int task = blockIdx.x * ptx::warps() + ptx::warp(), row = task / w.groups, group = task % w.groups;
    if (row >= w.batch) return;
    const int width = w.columns / w.groups;
    const void* source = w.changed ? workspace + w.x : x;
    const auto* from = static_cast<const typename X::storage*>(source) +
                       size_t(row) * (w.changed ? w.terms : 1) * w.columns + size_t(group) * width;
    float sum = 0;
    for (int i = ptx::lane(); i < width; i += lanes) sum += X::widen(ptx::load(from + i));
    sum = sum_of_warp(sum);
    if (ptx::lane() == 0) ptx::store(reinterpret_cast<float*>(workspace + w.sums) + task, sum);
}

template <class X>
DEVICE void finish(const void*, void* y, u8* workspace, const Transformed& w) {
    const ptx::Shared shared = ptx::shared_memory();  // float [warp][row of x][lane]
    const int column = blockIdx.x * lanes + ptx::lane(), first = blockIdx.y * finish_rows;
    const bool inside = column < w.rows;
    const float* sums = reinterpret_cast<const float*>(workspace + w.sums) + size_t(first) * w.groups;
    const int mine = ptx::warp();
    float parts[finish_rows] = {};
    if (w.rows % 4 == 0)  // as a prefetch has to be aligned
        for (int group = threadIdx.x; group < w.groups; group += blockDim.x)
            prefetch_words(w.addends + size_t(group) * w.rows + blockIdx.x * lanes,
                           min(lanes, w.rows - int(blockIdx.x) * lanes));
    ptx::wait_for_previous();
    for (int group = mine; group < w.groups; group += finish_rows) {
        const float addend = inside ? ptx::load(w.addends + size_t(group) * w.rows + column) : 0;
#pragma unroll
        for (int i = 0; i < finish_rows; i++)
            if (first + i < w.batch) parts[i] += ptx::load(sums + size_t(i) * w.groups + group) * addend;
    }
#pragma unroll
    for (int i = 0; i < finish_rows; i++)
        ptx::shared_store(shared + ((mine * finish_rows + i) * lanes + ptx::lane()) * 4, parts[i]);
    ptx::sync_block();
    const int row = first + mine;
    if (!inside || row >= w.batch) return;
    const size_t at = size_t(row) * w.rows + column;
    float sum = ptx::load(reinterpret_cast<const float*>(workspace + w.y) + at);
    for (int warp = 0; warp < finish_rows; warp++)
        sum += ptx::shared_load<float>(shared + ((warp * finish_rows + mine) * lanes + ptx::lane()) * 4);
    if (w.scaled) sum *= ptx::load(reinterpret_cast<const float*>(workspace + w.scales) + row);
    store_y<X>(y, w.y_is_float, at, sum);
}

#define ENTRY(name, ...)                                             \
    extern "C" KERNEL void __launch_bounds__(most_threads, 1)        \
        name(const void* x, void* y, u8* workspace, Transformed w) { \
        ptx::let_next_start();                                       \
        __VA_ARGS__(x, y, workspace, w);                             \
    }
