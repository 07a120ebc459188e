// Products with tables of integers, one or two bytes an entry: for each row of x the entries of a tile become
// `least + integer * step`, from the least of their position on and with one step for all, so that they can be looked
// up by byte permutations (lookup.hpp) and added exactly. Half a step is all that an entry loses.
#pragma once

#include "lookup.hpp"
#include "psumbook.hpp"

namespace codegemm {

typedef int32_t ints __attribute__((vector_size(4 * wide)));
typedef uint16_t shorts __attribute__((vector_size(2 * wide)));
typedef uint8_t bytes __attribute__((vector_size(wide)));

template <int PLANES>
constexpr float most_steps = PLANES == 2 ? 65533 : 253;  // rounding and the shift may add one each

// The least and the largest of `count` values.
inline void extremes(const float* values, int count, float& least, float& most) {
    vec<wide> low = load<wide>(values), high = low;
    for (int i = wide; i < count; i += wide) {
        const auto value = load<wide>(values + i);
        low = value < low ? value : low;
        high = value > high ? value : high;
    }
    least = low[0], most = high[0];
    for (int i = 1; i < wide; ++i) {
        least = low[i] < least ? low[i] : least;
        most = high[i] > most ? high[i] : most;
    }
}

// The low bytes of `values` (16-bit numbers) to `low` and the high ones to `high`, if there are such.
template <int PLANES>
inline void store_planes(ints values, uint8_t* low, uint8_t* high) {
#if defined(__AVX512F__)
    const __m512i all = (__m512i)values;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm512_cvtepi32_epi8(all));
    if (PLANES == 2)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(high), _mm512_cvtepi32_epi8(_mm512_srli_epi32(all, 8)));
#elif defined(__AVX2__)
    const __m256i all = (__m256i)values;
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    const __m128i low_words = _mm_and_si128(words, _mm_set1_epi16(0xff));
    const __m128i planes = _mm_packus_epi16(low_words, _mm_srli_epi16(words, 8));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(low), planes);
    if (PLANES == 2) _mm_storeh_pd(reinterpret_cast<double*>(high), _mm_castsi128_pd(planes));
#else
    const shorts words = __builtin_convertvector(values, shorts);
    const bytes first = __builtin_convertvector(words & 0xff, bytes),
                second = __builtin_convertvector(words >> 8, bytes);
    std::memcpy(low, &first, sizeof first);
    if (PLANES == 2) std::memcpy(high, &second, sizeof second);
#endif
}

// A tile for one row of x. least_before[p]: what entries of 0 stand for, summed over all positions before p.
struct Step {
    float step;
    float least_before[max_positions + 1];
};

// tables[position][plane][entry] from `table` [position][entry], of which the first position is `first`.
template <int PLANES>
void quantise(const float* table, int first, int positions, int entries, uint8_t* tables, Step& step) {
    float least[max_positions], widest = 0;
    for (int p = 0; p < positions; ++p) {
        float most;
        extremes(table + size_t(p) * entries, entries, least[p], most);
        widest = most - least[p] > widest ? most - least[p] : widest;
    }
    const float inverse = widest > 0 ? most_steps<PLANES> / widest : 0;
    step.step = widest / most_steps<PLANES>;
    step.least_before[0] = 0;
    for (int p = 0; p < positions; ++p, tables += (PLANES - 1) * entries) {
        const float shifted = shift(first + p);
        step.least_before[p + 1] = step.least_before[p] + (least[p] - shifted * step.step);
        for (int i = 0; i < entries; i += wide, table += wide, tables += wide) {
            const auto scaled = (load<wide>(table) - least[p]) * inverse + (shifted + 0.5f);
            store_planes<PLANES>(__builtin_convertvector(scaled, ints), tables, tables + entries);
        }
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
inline void add_rows(const uint8_t* codes, size_t pitch, int count, const uint8_t* tables, float step, float least,
                     const half* scale, float* sums) {
    alignas(64) uint16_t entries[GROUPS * PLANES * group_rows];
    look_up<ENTRIES, PLANES, GROUPS>(codes, pitch, count, tables, entries);
    for (int g = 0; g < GROUPS; ++g)
        add_group<PLANES>(entries + g * PLANES * group_rows, step, least, scale + g * group_rows,
                          sums + g * group_rows);
}

// Adds a tile's part of the padded rows first_row .. end_row-1 to sums [row of x][row], `sums_pitch` from one row of x
// to the next, but for k-vectors with marks. x, marks: of row i from of.x(i), of.marks(i) on; squares [group]: of the
// slice; scratch: a tile's table in float; tables: [row of x] of them in bytes. errors [row of x] += what the steps are
// expected to lose, squares summed over the rows.
template <int ENTRIES, int PLANES, class OfRow>
void add_tile(const PsumbookArgs& a, int part, const Tile& tile, int first_row, int end_row, const OfRow& of,
              const float* squares, float* scratch, uint8_t* tables, float* sums, size_t sums_pitch, double* errors) {
    const int positions = (tile.end - tile.first) * a.m;
    const size_t table_bytes = size_t(positions) * PLANES * ENTRIES;
    Step steps[batch];
    for (int i = 0; i < a.n; ++i) {
        build(a, part, tile, of.x(i), scratch, of.marks(i));
        quantise<PLANES>(scratch, tile.first * a.m, positions, ENTRIES, tables + i * table_bytes, steps[i]);
    }
    for_groups(a, tile, [&](int first, int end) {
        for (int i = 0; i < a.n; ++i)
            errors[i] += lost(steps[i].step, (end - first) * a.m) * squares[first / a.group_vectors];
    });
    for (int row = first_row; row < end_row; row += block_rows) {
        const int rows = end_row - row < block_rows ? end_row - row : block_rows;
        const uint8_t* codes = codes_at(a, tile, row);
        prefetch(codes + size_t(positions) * rows, size_t(positions) * rows);
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
                if (rows == block_rows)
                    return add_rows<ENTRIES, PLANES, block_rows / group_rows>(from, rows, count, table, step, least,
                                                                              scale, to);
                for (int r = 0; r < rows; r += group_rows)
                    add_rows<ENTRIES, PLANES, 1>(from + r, rows, count, table, step, least, scale + r, to + r);
            });
    }
}

}  // namespace codegemm
