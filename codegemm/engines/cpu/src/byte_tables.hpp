// Products with tables of integers, one or two bytes an entry: for each row of x the entries of a tile become
// `least + integer * step`, from the least of their position on and with one step for all, so that they can be looked
// up by byte permutations (lookup.hpp) and added exactly. Half a step is all that an entry loses.
#pragma once

#include <algorithm>

#include "lookup.hpp"
#include "psumbook.hpp"

namespace codegemm {

constexpr int byte_steps = 253, word_steps = 65533;  // rounding and the shift may add one each
template <int PLANES>
constexpr float most_steps = PLANES == 2 ? word_steps : byte_steps;

// A tile for one row of x. least_before[p]: what entries of 0 stand for, summed over all positions before p.
struct Step {
    float step;
    float least_before[max_positions + 1];
};

// tables[position] of a tile for one row of x as lookup.hpp has them, zeros for k-vectors with marks if any are;
// scratch: room for it in float. Meanwhile `bytes` from `wanted` on are fetched.
template <int ENTRIES, int PLANES, int V>
void make_tables(const PsumbookArgs& a, int part, const Tile& tile, const float* x, const uint8_t* marks,
                 const uint8_t* wanted, size_t bytes, float* scratch, uint8_t* tables, Step& step) {
    const int positions = (tile.end - tile.first) * a.m;
    const uint8_t* last = wanted + bytes;
    const size_t bytes_each = bytes / positions + 64;
    Extremes found[max_positions];
    float widest = 0;
    for (int j = tile.first, p = 0; j < tile.end; ++j)
        for (int c = 0; c < a.m; ++c, ++p) {
            for (const uint8_t* end = wanted + std::min<size_t>(bytes_each, last - wanted); wanted < end; wanted += 64)
                fetch(wanted);
            if (marks && marks[j]) continue;
            found[p] = build(Products<ENTRIES, V>(a, part, c, x, j), scratch + size_t(p) * ENTRIES);
            const float range = found[p].most - found[p].least;
            widest = range > widest ? range : widest;
        }
    const float inverse = widest > 0 ? most_steps<PLANES> / widest : 0;
    step.step = widest / most_steps<PLANES>;
    step.least_before[0] = 0;
    for (int j = tile.first, p = 0; j < tile.end; ++j)
        for (int c = 0; c < a.m; ++c, ++p, tables += PLANES * ENTRIES) {
            if (marks && marks[j]) {
                step.least_before[p + 1] = step.least_before[p];
                store_entries<ENTRIES, PLANES>([&](int) { return ints{}; }, tables);
                continue;
            }
            const float least = found[p].least, shifted = shift(tile.first * a.m + p), added = shifted + 0.5f;
            step.least_before[p + 1] = step.least_before[p] + (least - shifted * step.step);
            const float* values = scratch + size_t(p) * ENTRIES;
            store_entries<ENTRIES, PLANES>(
                [&](int i) {
                    return __builtin_convertvector((load<wide>(values + i) - least) * inverse + added, ints);
                },
                tables);
        }
}

// sums[row] += scale[row] * (step * sum of entries + least) for 64 rows.
template <int PLANES>
inline void add_group(const uint16_t* entries, float step, float least, const half* scale, float* sums) {
    for (int i = 0; i < group_rows; i += wide) {
        ints total = __builtin_convertvector(*reinterpret_cast<const shorts*>(entries + i), ints);
        if constexpr (PLANES == 2)
            total += __builtin_convertvector(*reinterpret_cast<const shorts*>(entries + group_rows + i), ints) * 256;
        const auto sum = __builtin_convertvector(total, vec<wide>) * step + least;
        store<wide>(sums + i, load<wide>(sums + i) + sum * widen<wide>(scale + i));
    }
}

// Adds k-vectors that share a scale, for GROUPS * 64 rows.
template <int ENTRIES, int PLANES, int GROUPS>
inline void add_rows(const uint8_t* codes, size_t pitch, int count, const uint8_t* tables, ptrdiff_t ahead, float step,
                     float least, const half* scale, float* sums) {
    alignas(64) uint16_t entries[GROUPS * PLANES * group_rows];
    look_up<ENTRIES, PLANES, GROUPS>(codes, pitch, count, tables, ahead, entries);
    for (int g = 0; g < GROUPS; ++g)
        add_group<PLANES>(entries + g * PLANES * group_rows, step, least, scale + g * group_rows,
                          sums + g * group_rows);
}

// Bytes of codes that are on their way while others are looked up.
constexpr size_t ahead_bytes = 12 << 10;

// The codes of a tile's rows, those of the next tile or null, and how many bytes they are.
struct Sweep {
    const uint8_t *codes, *next;
    size_t bytes;

    // How much further what is to be fetched lies than codes from `offset` on: at the end it is the next tile's.
    ptrdiff_t ahead(size_t offset) const {
        const size_t wanted = offset + ahead_bytes;
        if (wanted < bytes) return ahead_bytes;
        return next ? next + (wanted - bytes) - (codes + offset) : 0;
    }
};

// Adds a tile's part of the padded rows first_row .. end_row-1 to sums [row of x][row], `sums_pitch` from one row of x
// to the next, but for k-vectors with marks. x, marks: of row i from of.x(i), of.marks(i) on; squares [group]: of the
// slice; scratch: a tile's table in float; tables: [row of x] of them in bytes; next: the codes that are read after
// these, or null. errors [row of x] += what the steps are expected to lose, squares summed over the rows.
template <int ENTRIES, int PLANES, class OfRow>
void add_tile(const PsumbookArgs& a, int part, const Tile& tile, const uint8_t* next, int first_row, int end_row,
              const OfRow& of, const float* squares, float* scratch, uint8_t* tables, float* sums, size_t sums_pitch,
              double* errors) {
    const int positions = (tile.end - tile.first) * a.m;
    const size_t table_bytes = size_t(positions) * PLANES * ENTRIES;
    const Sweep sweep{codes_at(a, tile, first_row), next, size_t(positions) * (end_row - first_row)};
    Step steps[batch];
    const size_t few = sweep.bytes < ahead_bytes ? sweep.bytes : ahead_bytes;
    for (int i = 0; i < a.n; ++i)
        for_v(a.v, [&](auto v) {
            make_tables<ENTRIES, PLANES, v>(a, part, tile, of.x(i), of.marks(i), sweep.codes, i ? 0 : few, scratch,
                                            tables + i * table_bytes, steps[i]);
        });
    for_groups(a, tile, [&](int first, int end) {
        for (int i = 0; i < a.n; ++i)
            errors[i] += lost(steps[i].step, (end - first) * a.m) * squares[first / a.group_vectors];
    });
    for (int row = first_row; row < end_row; row += block_rows) {
        const int rows = end_row - row < block_rows ? end_row - row : block_rows;
        const uint8_t* codes = codes_at(a, tile, row);
        const ptrdiff_t further = sweep.ahead(codes - sweep.codes);
        for (int i = 0; i < a.n; ++i)
            for_groups(a, tile, [&](int first, int end) {
                const size_t skipped = size_t(first - tile.first) * a.m;
                const uint8_t* from = codes + skipped * rows;
                const uint8_t* table = tables + i * table_bytes + skipped * PLANES * ENTRIES;
                const half* scale = a.scales + size_t(first / a.group_vectors) * a.padded_rows + row;
                float* to = sums + i * sums_pitch + (row - first_row);
                const int count = (end - first) * a.m;
                const float step = steps[i].step, *before = steps[i].least_before + skipped;
                const float least = before[count] - before[0];
                const ptrdiff_t ahead = i ? 0 : further;
                if (rows == block_rows)
                    return add_rows<ENTRIES, PLANES, block_rows / group_rows>(from, rows, count, table, ahead, step,
                                                                              least, scale, to);
                for (int r = 0; r < rows; r += group_rows)
                    add_rows<ENTRIES, PLANES, 1>(from + r, rows, count, table, ahead, step, least, scale + r, to + r);
            });
    }
}

}  // namespace codegemm
