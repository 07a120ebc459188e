// What a Psumbook product is told, and what all of its parts share.
#pragma once

#include "floats.hpp"

namespace codegemm {

struct PsumbookArgs {
    const void* x;           // [n, in_features], x_dtype
    void* out;               // [n, rows], out_dtype
    void* workspace;         // psumbook.cpp says what is in it
    const float* bias;       // [rows], or null
    const float* squares;    // [slice][groups] sums of the squares of a slice's scales
    const uint8_t* codes;    // [tile][block of rows][position of the tile][row of the block], rows as lookup.hpp says
    const float* codebooks;  // [parts][m][v][entries]: component t of all centroids side by side
    const half* scales;      // [groups][padded rows]
    const int32_t* tiles;    // [tile_count + 1] first k-vector of each tile
    const int32_t* pieces;   // [piece_count + 1] first tile of each piece
    const int32_t* slices;   // [slice_count][5] part, first row, end row, first padded row, end padded row
    int32_t piece_count, slice_count;
    int32_t x_dtype, out_dtype;
    int32_t bias_pitch;  // from one row of x to the next; 0: one bias for all
    int32_t n, rows, padded_rows, in_features;
    int32_t v, m, entries;  // entries: of a table, 16, 64 or 256
    int32_t group_vectors;  // k-vectors that share a scale
    float margin;           // the square of an error may be so many times what is expected
};

constexpr int block_rows = 256;
constexpr int max_positions = 256;         // of a tile
constexpr int max_table_bytes = 32 << 10;  // of a tile in float, for one row of x
constexpr int batch = 16;                  // rows of x at a time

// K-vectors first .. end-1.
struct Tile {
    int first, end;
};

// The tile's codes for a block that begins at padded row `row`.
inline const uint8_t* codes_at(const PsumbookArgs& a, const Tile& tile, int row) {
    const size_t positions = size_t(tile.end - tile.first) * a.m;
    return a.codes + size_t(tile.first) * a.m * a.padded_rows + row * positions;
}

// Codes of the next rows: without it the hardware's prefetchers stop where another block begins.
inline void prefetch(const uint8_t* codes, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(codes + i);
}

// The square that a sum of `count` entries is expected to lose by their rounding to whole steps. As a double: tables
// may be as small beside the largest number in x as floats are.
inline double lost(double step, int count) {
    return step * step * count / 12;
}

// A part of a step by which the steps of a position (of all in a row of W) are shifted, each time another: tables that
// are alike, as those of a constant x are, would round alike and lose as much as all of them together.
inline float shift(int position) {
    return float(uint32_t(position) * 2654435769u >> 8) * 0x1p-24f;
}

// run(first, end) for the parts of a tile that share a scale each.
template <class Run>
void for_groups(const PsumbookArgs& a, const Tile& tile, Run&& run) {
    for (int j = tile.first; j < tile.end;) {
        const int group_end = (j / a.group_vectors + 1) * a.group_vectors;
        const int next = group_end < tile.end ? group_end : tile.end;
        run(j, next);
        j = next;
    }
}

// The smaller and the larger numbers of two registers, lane by lane.
template <class Vector>
inline Vector smaller(Vector a, Vector b) {
    return a < b ? a : b;
}
template <class Vector>
inline Vector larger(Vector a, Vector b) {
    return a > b ? a : b;
}

// The least and the largest of some values.
struct Extremes {
    float least = 0, most = 0;
};

// The choice of all lanes, halves first.
template <class Choose>
inline float fold(vec<wide> values, Choose&& choose) {
    vec<8> eight;
    if constexpr (wide == 16)
        eight = choose(__builtin_shufflevector(values, values, 0, 1, 2, 3, 4, 5, 6, 7),
                       __builtin_shufflevector(values, values, wide - 8, wide - 7, wide - 6, wide - 5, wide - 4,
                                               wide - 3, wide - 2, wide - 1));
    else
        eight = __builtin_shufflevector(values, values, 0, 1, 2, 3, 4, 5, 6, 7);
    vec<4> four =
        choose(__builtin_shufflevector(eight, eight, 0, 1, 2, 3), __builtin_shufflevector(eight, eight, 4, 5, 6, 7));
    four = choose(four, __builtin_shufflevector(four, four, 2, 3, 0, 1));
    four = choose(four, __builtin_shufflevector(four, four, 1, 0, 3, 2));
    return four[0];
}

// The products of the centroids of a codebook [v][ENTRIES] with a k-vector of x. V: v, or 0 where it is known at run
// time alone.
template <int ENTRIES, int V>
struct Products {
    const float *book, *x;
    int v;
    vec<wide> spread[V ? V : 1];  // x, an element in all lanes each: for all that is known, a store may change x

    Products(const PsumbookArgs& a, int part, int c, const float* row, int j)
        : book(a.codebooks + (size_t(part) * a.m + c) * a.v * ENTRIES), x(row + size_t(j) * a.v), v(a.v) {
        for (int t = 0; t < V; ++t) spread[t] = vec<wide>{} + x[t];
    }
    // Those of centroids i .. i + wide - 1.
    vec<wide> operator()(int i) const {
        vec<wide> sum = load<wide>(book + i) * (V ? spread[0] : vec<wide>{} + x[0]);
        for (int t = 1; t < (V ? V : v); ++t)
            sum += load<wide>(book + t * ENTRIES + i) * (V ? spread[V ? t : 0] : vec<wide>{} + x[t]);
        return sum;
    }
};

// table[ENTRIES] of them all, and the least and the largest.
template <int ENTRIES, int V>
inline Extremes build(const Products<ENTRIES, V>& products, float* table) {
    constexpr int some = ENTRIES / wide < 4 ? ENTRIES / wide : 4;  // at once, since each waits for the one before it
    vec<wide> least[some], most[some];
    for (int r = 0; r < some; ++r) {
        least[r] = most[r] = products(r * wide);
        store<wide>(table + r * wide, least[r]);
    }
    for (int i = some * wide; i < ENTRIES; i += some * wide)
        for (int r = 0; r < some; ++r) {
            const vec<wide> values = products(i + r * wide);
            store<wide>(table + i + r * wide, values);
            least[r] = smaller(values, least[r]), most[r] = larger(values, most[r]);
        }
    for (int r = 1; r < some; ++r) least[0] = smaller(least[r], least[0]), most[0] = larger(most[r], most[0]);
    return {fold(least[0], [](auto a, auto b) { return smaller(a, b); }),
            fold(most[0], [](auto a, auto b) { return larger(a, b); })};
}

// run(v as a constant), or a 0 for those that are rare.
template <class Run>
void for_v(int v, Run&& run) {
    switch (v) {
        case 4: return run(std::integral_constant<int, 4>());
        case 8: return run(std::integral_constant<int, 8>());
        default: return run(std::integral_constant<int, 0>());
    }
}

}  // namespace codegemm
