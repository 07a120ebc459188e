// Products with tables for 16 rows of x at once: an entry holds the products of one centroid with all of them, in words
// of 16 bits, so that a code looks them up with one load. For each row of x an entry is `least + word * step`: the
// least of its position, a step for the few positions that are looked up together. Words are added in pairs first,
// so a step is so large that the entries of two positions add up to 16 bits.
#pragma once

#include <cmath>

#include "lookup.hpp"
#include "psumbook.hpp"

namespace codegemm {

constexpr float pair_steps = 65530;  // of two entries together; rounding and the shift may add one each to both
constexpr int sweep_rows = 2048;     // whose sums stay in L2 while the tables of a tile go by

typedef uint16_t words __attribute__((vector_size(2 * batch), may_alias));
// The words of two rows of x: row i in the low half, row 8 + i in the high one.
typedef uint32_t pairs __attribute__((vector_size(2 * batch), may_alias));
typedef int32_t eight __attribute__((vector_size(2 * batch), may_alias));

// Entries that are looked up in one go over the rows, 64 KiB: more would leave L2 to no sums.
constexpr int chunk_entries = 2048;
template <int ENTRIES>
constexpr int chunk_positions = chunk_entries / ENTRIES;

// A value for each row of x.
struct Rows {
    vec<8> low{}, high{};  // rows 0 .. 7 and 8 .. 15
};

// What words stand for: steps above the least sum of entries.
struct Scale {
    Rows step, least;
};

// products[entry] of a position's centroids with 16 rows of x [in_features][16], and their extremes.
template <int ENTRIES>
inline void multiply_position(const PsumbookArgs& a, int part, int position, const float* x, float* products,
                              Rows& least, Rows& most) {
    const int v = a.v;
    const float* book = a.codebooks + (size_t(part) * a.m + position % a.m) * v * ENTRIES;
    x += size_t(position / a.m) * v * batch;
    least.low = least.high = vec<8>{} + HUGE_VALF;
    most.low = most.high = vec<8>{} - HUGE_VALF;
    for (int i = 0; i < ENTRIES; i += 4) {  // at once, since additions take their time
        vec<8> low[4]{}, high[4]{};
        for (int t = 0; t < v; ++t) {
            const auto x_low = load<8>(x + t * batch), x_high = load<8>(x + t * batch + 8);
            for (int e = 0; e < 4; ++e) {
                low[e] += x_low * book[t * ENTRIES + i + e];
                high[e] += x_high * book[t * ENTRIES + i + e];
            }
        }
        for (int e = 0; e < 4; ++e, products += batch) {
            least.low = smaller(low[e], least.low), least.high = smaller(high[e], least.high);
            most.low = larger(low[e], most.low), most.high = larger(high[e], most.high);
            store<8>(products, low[e]), store<8>(products + 8, high[e]);
        }
    }
}

// table[position][entry] of `count` positions, the first of all being `position`. x: [in_features][16]; scratch: as
// many floats as the table has words.
template <int ENTRIES>
Scale build_words(const PsumbookArgs& a, int part, int position, int count, const float* x, float* scratch,
                  words* table) {
    Rows least[chunk_positions<ENTRIES>], widest, before;
    Scale scale{};
    for (int p = 0; p < count; ++p) {
        Rows most;
        multiply_position<ENTRIES>(a, part, position + p, x, scratch + size_t(p) * ENTRIES * batch, least[p], most);
        const Rows range{most.low - least[p].low, most.high - least[p].high};
        const bool paired = p % 2;
        widest.low = larger(paired ? range.low + before.low : range.low, widest.low);
        widest.high = larger(paired ? range.high + before.high : range.high, widest.high);
        before = range;
    }
    const vec<8> zero{};
    const vec<8> low_steps = widest.low > zero ? pair_steps / widest.low : zero;
    const vec<8> high_steps = widest.high > zero ? pair_steps / widest.high : zero;
    scale.step = {widest.low / pair_steps, widest.high / pair_steps};
    for (int p = 0; p < count; ++p) {
        const float shifted = shift(position + p), rounding = shifted + 0.5f;
        scale.least.low += least[p].low - scale.step.low * shifted;
        scale.least.high += least[p].high - scale.step.high * shifted;
        for (int i = 0; i < ENTRIES; ++i, scratch += batch, ++table) {
            const auto low = (load<8>(scratch) - least[p].low) * low_steps + rounding;
            const auto high = (load<8>(scratch + 8) - least[p].high) * high_steps + rounding;
            *table =
                (words)((__builtin_convertvector(low, eight) & 0xffff) | __builtin_convertvector(high, eight) << 16);
        }
    }
    return scale;
}

// Sums of entries, the rows of x apart.
struct PairSums {
    pairs both{}, high{};

    void add(words found) {
        both += (pairs)found;
        high += (pairs)found >> 16;
    }
};

// Adds `count` positions that share a scale to sums [row][16], for rows in the order of their codes [position][pitch].
template <int ENTRIES, int COUNT>
inline void add_words(const uint8_t* codes, size_t pitch, int rows, int run_time_count, const words* table,
                      const Scale& x_scale, const float* scale, float* sums) {
    const int count = COUNT ? COUNT : run_time_count;
    for (int row = 0; row < rows; ++row, ++codes, sums += batch) {
        auto entry = [&](int p) { return table[p * ENTRIES + codes[p * pitch]]; };
        PairSums found;
        int p = 0;
        for (; p + 2 <= count; p += 2) found.add(entry(p) + entry(p + 1));
        if (p < count) found.add(entry(p));
        const auto low = __builtin_convertvector((eight)(found.both - (found.high << 16)), vec<8>);
        const auto high = __builtin_convertvector((eight)found.high, vec<8>);
        store<8>(sums, load<8>(sums) + (low * x_scale.step.low + x_scale.least.low) * scale[row]);
        store<8>(sums + 8, load<8>(sums + 8) + (high * x_scale.step.high + x_scale.least.high) * scale[row]);
    }
}

// Scales [row] of `rows` rows in the order of their codes; see lookup.hpp.
inline void order_scales(const half* scales, int rows, float* ordered) {
    for (int group = 0; group < rows; group += group_rows, scales += 32)
        for (int i = 0; i < 32; i += 8, scales += 8, ordered += 16) {
            const auto even = widen<8>(scales), odd = widen<8>(scales + 32);
            store<8>(ordered, __builtin_shufflevector(even, odd, 0, 8, 1, 9, 2, 10, 3, 11));
            store<8>(ordered + 8, __builtin_shufflevector(even, odd, 4, 12, 5, 13, 6, 14, 7, 15));
        }
}

// y[row of x][row] = sums[row][row of x] of 64 rows whose sums are in the order of their codes.
inline void transpose_group(const float* sums, float* y) {
    for (int place = 0; place < group_rows; ++place, sums += batch)
        for (int i = 0; i < batch; ++i) y[i * group_rows + row_at(place)] = sums[i];
}

// run(first position, count, group): parts of a tile that are looked up in one go, none across groups.
template <int ENTRIES, class Run>
void for_chunks(const PsumbookArgs& a, const Tile& tile, Run&& run) {
    for_groups(a, tile, [&](int first, int end) {
        for (int p = first * a.m; p < end * a.m; p += chunk_positions<ENTRIES>) {
            const int left = end * a.m - p;
            run(p, left < chunk_positions<ENTRIES> ? left : chunk_positions<ENTRIES>, first / a.group_vectors);
        }
    });
}

// Adds a tile to sums [row][16] of the padded rows first_row .. end_row-1, rows in the order of their codes. squares
// [group]: of the slice. errors [16] += what the steps are expected to lose, squares summed over the rows.
template <int ENTRIES>
void add_tile_words(const PsumbookArgs& a, int part, const Tile& tile, int first_row, int end_row, const float* x,
                    const float* squares, float* scratch, words* tables, float* sums, double* errors) {
    struct Chunk {
        int position, count, group;
        Scale scale;
    };
    static thread_local Chunk chunks[max_positions];
    int chunk_count = 0;
    for_chunks<ENTRIES>(a, tile, [&](int position, int count, int group) {
        words* table = tables + size_t(position - tile.first * a.m) * ENTRIES;
        const Scale scale = build_words<ENTRIES>(a, part, position, count, x, scratch, table);
        for (int i = 0; i < batch; ++i)
            errors[i] += lost(i < 8 ? scale.step.low[i] : scale.step.high[i - 8], count) * squares[group];
        chunks[chunk_count++] = {position, count, group, scale};
    });
    for (int sweep = first_row; sweep < end_row; sweep += sweep_rows) {
        const int sweep_end = sweep + sweep_rows < end_row ? sweep + sweep_rows : end_row;
        static thread_local float scales[sweep_rows];
        for (int i = 0; i < chunk_count; ++i) {
            const Chunk& chunk = chunks[i];
            const int skipped = chunk.position - tile.first * a.m;
            if (i == 0 || chunk.group != chunks[i - 1].group)
                order_scales(a.scales + size_t(chunk.group) * a.padded_rows + sweep, sweep_end - sweep, scales);
            for (int row = sweep; row < sweep_end; row += block_rows) {
                const int rows = end_row - row < block_rows ? end_row - row : block_rows;
                const uint8_t* codes = codes_at(a, tile, row) + size_t(skipped) * rows;
                const float* scale = scales + (row - sweep);
                prefetch(codes + size_t(tile.end - tile.first) * a.m * rows, size_t(chunk.count) * rows);
                const words* table = tables + size_t(skipped) * ENTRIES;
                float* to = sums + size_t(row - first_row) * batch;
                if (chunk.count == chunk_positions<ENTRIES>)
                    add_words<ENTRIES, chunk_positions<ENTRIES>>(codes, rows, rows, 0, table, chunk.scale, scale, to);
                else
                    add_words<ENTRIES, 0>(codes, rows, rows, chunk.count, table, chunk.scale, scale, to);
            }
        }
    }
}

}  // namespace codegemm
