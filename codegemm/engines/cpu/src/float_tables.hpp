// Products with tables of floats for several rows of x at once: an entry holds the products of one centroid with WIDTH
// rows, so that a code looks all of them up in one load.
#pragma once

#include "lookup.hpp"
#include "psumbook.hpp"

namespace codegemm {

// Positions whose tables are made at once.
template <int WIDTH, int ENTRIES>
constexpr int l1_positions = (WIDTH < 8 ? 32 : 64) * 1024 / (4 * ENTRIES * WIDTH);

// The sum of the entries of one row of W: codes [position][pitch].
template <int WIDTH>
inline vec<WIDTH> gather(const float* table, size_t entries, const uint8_t* codes, size_t pitch, int count) {
    const size_t stride = entries * WIDTH;
    vec<WIDTH> sum0{}, sum1{}, sum2{}, sum3{};
    auto entry = [&](int p) { return load<WIDTH>(table + p * stride + codes[p * pitch] * WIDTH); };
    int p = 0;
    for (; p + 4 <= count; p += 4) sum0 += entry(p), sum1 += entry(p + 1), sum2 += entry(p + 2), sum3 += entry(p + 3);
    for (; p < count; ++p) sum0 += entry(p);
    return (sum0 + sum1) + (sum2 + sum3);
}

// Adds the part of some k-vectors of a tile, of the padded rows first_row .. end_row-1, to sums [row][WIDTH].
template <int WIDTH, int ENTRIES>
void add_vectors(const PsumbookArgs& a, int part, const Vectors& k, int first_row, int end_row, const float* x,
                 float* table, float* sums) {
    build<WIDTH>(a, part, k.first, k.end, x, table);
    for (int row = first_row; row < end_row; row += block_rows) {
        const int rows = end_row - row < block_rows ? end_row - row : block_rows;
        const uint8_t* codes = codes_at(a, k, row, rows);
        prefetch(codes, size_t(k.end - k.first) * a.m * rows);
        for_groups(a, k.first, k.end, [&](int first, int end) {
            const size_t skipped = size_t(first - k.first) * a.m;
            const half* scale = a.scales + size_t(first / a.group_vectors) * a.padded_rows + row;
            for (int i = 0; i < rows; ++i) {  // the i-th code is of another row: lookup.hpp
                const int r = i / group_rows * group_rows + i % 2 * 32 + i % group_rows / 2;
                const auto sum = gather<WIDTH>(table + skipped * ENTRIES * WIDTH, ENTRIES, codes + skipped * rows + i,
                                               rows, (end - first) * a.m);
                float* to = sums + size_t(row - first_row + r) * WIDTH;
                store<WIDTH>(to, load<WIDTH>(to) + sum * float(scale[r]));
            }
        });
    }
}

}  // namespace codegemm
