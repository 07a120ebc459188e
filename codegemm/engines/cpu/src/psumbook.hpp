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

// ENTRIES products with one k-vector: book [v][entries], several registers at once since additions take their time.
template <int REGISTERS>
inline void build_entries(const float* book, int entries, int v, const float* x, float* table) {
    for (int i = 0; i < entries; i += REGISTERS * wide) {
        vec<wide> sums[REGISTERS];
        for (int r = 0; r < REGISTERS; ++r) sums[r] = load<wide>(book + i + r * wide) * x[0];
        for (int t = 1; t < v; ++t)
            for (int r = 0; r < REGISTERS; ++r) sums[r] += load<wide>(book + t * entries + i + r * wide) * x[t];
        for (int r = 0; r < REGISTERS; ++r) store<wide>(table + i + r * wide, sums[r]);
    }
}

// table[position][entry] of a tile for one row of x; zeros for the k-vectors that are marked, if any are.
inline void build(const PsumbookArgs& a, int part, const Tile& tile, const float* x, float* table,
                  const uint8_t* marks = nullptr) {
    const float* books = a.codebooks + size_t(part) * a.m * a.v * a.entries;
    for (int j = tile.first; j < tile.end; ++j) {
        if (marks && marks[j]) {
            std::memset(table, 0, sizeof(float) * a.m * a.entries);
            table += a.m * a.entries;
            continue;
        }
        for (int c = 0; c < a.m; ++c, table += a.entries) {
            const float *book = books + size_t(c) * a.v * a.entries, *xj = x + size_t(j) * a.v;
            if (a.entries % (4 * wide) == 0)
                build_entries<4>(book, a.entries, a.v, xj, table);
            else
                build_entries<1>(book, a.entries, a.v, xj, table);
        }
    }
}

}  // namespace codegemm
