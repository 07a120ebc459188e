// Products with tables of floats, for what tables of integers can't hold: k-vectors of x that are so much larger than
// the others of their row that a step for all of them would leave the others none, and rows of x whose products come
// out so small that the steps show.
#pragma once

#include "word_tables.hpp"

namespace codegemm {

constexpr float outlying = 12;  // an element of x, in mean magnitudes of its row: beyond what Laplace's law brings

// Marks with 1 the k-vectors of a row of x that have an outlying element, with 0 the others. False, and no marks, where
// there are none, or a NaN. most: no element is larger.
[[gnu::noinline]] inline bool mark_outliers(const float* x, int in_features, int v, float most, uint8_t* marks) {
    vec<lanes> sums{};
    int k = 0;
    for (; k + lanes <= in_features; k += lanes) {
        const auto some = load<lanes>(x + k);
        sums += some < 0 ? -some : some;
    }
    float sum = 0;
    for (int lane = 0; lane < lanes; ++lane) sum += sums[lane];
    for (; k < in_features; ++k) sum += x[k] < 0 ? -x[k] : x[k];
    const float bound = outlying * (sum / in_features);
    if (!(most > bound)) return false;
    bool any = false;
    for (int j = 0; j < in_features / v; ++j, x += v, ++marks) {
        *marks = 0;
        for (int t = 0; t < v; ++t) *marks |= x[t] > bound || -x[t] > bound;
        any |= *marks;
    }
    return any;
}

// Adds the marked k-vectors of a tile for one row of x to sums of the padded rows first_row .. end_row-1: PITCH floats
// apart, in the order of their codes if ORDERED. table: room for the tile's.
template <int ENTRIES, int PITCH, bool ORDERED>
[[gnu::noinline]] void add_marked(const PsumbookArgs& a, int part, const Tile& tile, int first_row, int end_row,
                                  const float* x, const uint8_t* marks, float* table, float* sums) {
    for_groups(a, tile, [&](int first, int end) {
        int positions[max_positions], count = 0;  // of the tile
        for (int j = first; j < end; ++j)
            if (marks[j]) {
                for (int c = 0; c < a.m; ++c) {
                    build(Products<ENTRIES, 0>(a, part, c, x, j), table + size_t(count) * ENTRIES);
                    positions[count++] = (j - tile.first) * a.m + c;
                }
            }
        const half* scales = a.scales + size_t(first / a.group_vectors) * a.padded_rows;
        for (int row = count ? first_row : end_row; row < end_row; row += group_rows) {
            const int block = first_row + (row - first_row) / block_rows * block_rows;
            const int pitch = end_row - block < block_rows ? end_row - block : block_rows;
            const uint8_t* codes = codes_at(a, tile, block) + (row - block);
            float found[group_rows] = {};
            for (int p = 0; p < count; ++p) {
                const float* entries = table + size_t(p) * ENTRIES;
                const uint8_t* code = codes + size_t(positions[p]) * pitch;
                for (int place = 0; place < group_rows; ++place) found[place] += entries[code[place]];
            }
            float* to = sums + size_t(row - first_row) * PITCH;
            for (int place = 0; place < group_rows; ++place)
                to[(ORDERED ? place : row_at(place)) * PITCH] += found[place] * float(scales[row + row_at(place)]);
        }
    });
}

// Adds a tile for 16 rows of x [in_features][16] to sums [row][16] of the padded rows first_row .. end_row-1, rows in
// the order of their codes. table: room for a chunk.
template <int ENTRIES>
[[gnu::noinline]] void add_tile_floats(const PsumbookArgs& a, int part, const Tile& tile, int first_row, int end_row,
                                       const float* x, float* table, float* sums) {
    for_chunks<ENTRIES>(a, tile, [&](int position, int count, int group) {
        Rows least, most;
        for (int p = 0; p < count; ++p)
            multiply_position<ENTRIES>(a, part, position + p, x, table + size_t(p) * ENTRIES * batch, least, most);
        for (int row = first_row; row < end_row; row += block_rows) {
            const int rows = end_row - row < block_rows ? end_row - row : block_rows;
            const uint8_t* codes = codes_at(a, tile, row) + size_t(position - tile.first * a.m) * rows;
            float scales[block_rows];
            order_scales(a.scales + size_t(group) * a.padded_rows + row, rows, scales);
            float* to = sums + size_t(row - first_row) * batch;
            for (int r = 0; r < rows; ++r, to += batch) {
                vec<8> low{}, high{};
                for (int p = 0; p < count; ++p) {
                    const float* entry = table + (size_t(p) * ENTRIES + codes[size_t(p) * rows + r]) * batch;
                    low += load<8>(entry), high += load<8>(entry + 8);
                }
                store<8>(to, load<8>(to) + low * scales[r]);
                store<8>(to + 8, load<8>(to + 8) + high * scales[r]);
            }
        }
    });
}

}  // namespace codegemm
