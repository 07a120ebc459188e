// Products with tables of integers, one or two bytes an entry: for each row of x the entries of a tile become multiples
// of one step, `step * (entry - bias)`, so that they can be looked up by byte permutations (lookup.hpp) and added
// exactly. Half a step is all that an entry loses.
#pragma once

#include "lookup.hpp"
#include "psumbook.hpp"

namespace codegemm {

typedef int32_t ints __attribute__((vector_size(4 * wide)));
typedef uint16_t shorts __attribute__((vector_size(2 * wide)));
typedef uint8_t bytes __attribute__((vector_size(wide)));

template <int PLANES>
constexpr int bias = PLANES == 2 ? 1 << 15 : 1 << 7;

// The largest magnitude; a NaN is larger than infinity.
inline float largest(const float* values, size_t count) {
    ints most{};  // magnitudes compare as their bits do
    for (size_t i = 0; i < count; i += wide) {
        const ints magnitude = (ints)load<wide>(values + i) & 0x7fffffff;
        most = magnitude > most ? magnitude : most;
    }
    int32_t bits = 0;
    for (int i = 0; i < wide; ++i) bits = most[i] > bits ? most[i] : bits;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
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

// tables[position][plane][entry] from `table` [position][entry]; returns the step. Where x has a NaN or an infinity,
// the step is one.
template <int PLANES>
float quantise(const float* table, int positions, int entries, uint8_t* tables) {
    const float most = largest(table, size_t(positions) * entries);
    const float steps = bias<PLANES> - 1, inverse = most > 0 ? steps / most : 0;
    for (int p = 0; p < positions; ++p, tables += (PLANES - 1) * entries)
        for (int i = 0; i < entries; i += wide, table += wide, tables += wide) {
            const auto scaled = load<wide>(table) * inverse + (bias<PLANES> + 0.5f);
            store_planes<PLANES>(__builtin_convertvector(scaled, ints), tables, tables + entries);
        }
    return most / steps;
}

// sums[row] += factor * scale[row] * (sum of entries - `count` biases) for 64 rows.
template <int PLANES>
inline void add_group(const uint16_t* entries, int count, float factor, const half* scale, float* sums) {
    for (int i = 0; i < group_rows; i += wide) {
        ints total = __builtin_convertvector(*reinterpret_cast<const shorts*>(entries + i), ints);
        if constexpr (PLANES == 2)
            total += __builtin_convertvector(*reinterpret_cast<const shorts*>(entries + group_rows + i), ints) * 256;
        const auto sum = __builtin_convertvector(total - count * bias<PLANES>, vec<wide>);
        store<wide>(sums + i, load<wide>(sums + i) + sum * (widen<wide>(scale + i) * factor));
    }
}

// Adds k-vectors that share a scale, for GROUPS * 64 rows.
template <int ENTRIES, int PLANES, int GROUPS>
inline void add_rows(const uint8_t* codes, size_t pitch, int count, const uint8_t* tables, float step,
                     const half* scale, float* sums) {
    alignas(64) uint16_t entries[GROUPS * PLANES * group_rows];
    look_up<ENTRIES, PLANES, GROUPS>(codes, pitch, count, tables, entries);
    for (int g = 0; g < GROUPS; ++g)
        add_group<PLANES>(entries + g * PLANES * group_rows, count, step, scale + g * group_rows,
                          sums + g * group_rows);
}

// Adds a tile's part of the padded rows first_row .. end_row-1 to sums [row of x][row], `sums_pitch` from one row of x
// to the next. x: [row of x][in_features]. scratch: a tile's table in float; tables: [row of x] of them in bytes.
template <int ENTRIES, int PLANES>
void add_tile(const PsumbookArgs& a, int part, const Vectors& k, int first_row, int end_row, const float* x,
              float* scratch, uint8_t* tables, float* sums, size_t sums_pitch) {
    const int positions = (k.end - k.first) * a.m;
    const size_t table_bytes = size_t(positions) * PLANES * ENTRIES;
    float steps[16];
    for (int i = 0; i < a.n; ++i) {
        build(a, part, k.first, k.end, x + size_t(i) * a.in_features, scratch);
        steps[i] = quantise<PLANES>(scratch, positions, ENTRIES, tables + i * table_bytes);
    }
    for (int row = first_row; row < end_row; row += block_rows) {
        const int rows = end_row - row < block_rows ? end_row - row : block_rows;
        const uint8_t* codes = codes_at(a, k, row, rows);
        prefetch(codes + size_t(positions) * rows, size_t(positions) * rows);
        for (int i = 0; i < a.n; ++i)
            for_groups(a, k.first, k.end, [&](int first, int end) {
                const size_t skipped = size_t(first - k.first) * a.m;
                const uint8_t* from = codes + skipped * rows;
                const uint8_t* table = tables + i * table_bytes + skipped * PLANES * ENTRIES;
                const half* scale = a.scales + size_t(first / a.group_vectors) * a.padded_rows + row;
                float* to = sums + i * sums_pitch + (row - first_row);
                const int count = (end - first) * a.m;
                if (rows == block_rows)
                    return add_rows<ENTRIES, PLANES, block_rows / group_rows>(from, rows, count, table, steps[i], scale,
                                                                              to);
                for (int r = 0; r < rows; r += group_rows)
                    add_rows<ENTRIES, PLANES, 1>(from + r, rows, count, table, steps[i], scale + r, to + r);
            });
    }
}

}  // namespace codegemm
