// Tables of the sums of +-x for all signs of some columns, and the sums of what codes look up in them.
//
// A code is the signs of eight columns, bit t for column t. There are two kinds of tables, with one interface: `make`
// them of COUNT rows of x [COUNT][tile_columns], and `add` what a block's codes [code][block_rows] find there, times
// the scales of its rows, to its sums. Row r of the block and row i of x have theirs at r * row_pitch + i * x_pitch.
//
// On a Xeon of 2019, with AVX-512, a gather of 16 entries takes nine times as long as two permutations that look up 16
// codes, loads of one entry each four times as long. With AVX2 those of an entry for eight rows of x take less than
// permutations for five.
#pragma once

#include <type_traits>

#include "floats.hpp"

namespace codegemm {

constexpr int code_signs = 8, tile_codes = 16, tile_columns = tile_codes * code_signs;
constexpr int block_rows = 64;
constexpr int max_table_floats = 16 << 10;  // of a tile's codes or fewer: 64 KiB stay in L2

#if defined(__AVX2__)

// The 16 sums of four columns are in registers, of which a permutation looks up one for each of as many rows as a
// register has: twice for a code.
template <int COUNT>
struct RegisterTables {
    static constexpr int count = COUNT, codes = tile_codes;  // rows of x, codes whose tables are made at a time
    static constexpr int entries = 16, nibble_signs = 4, code_floats = 2 * entries * COUNT;
    static constexpr int row_pitch = 1, x_pitch = block_rows;
    static constexpr int registers = wide == 16 ? 4 : 2;  // of sums for a row of x, since additions take their time

    typedef uint32_t words __attribute__((vector_size(4 * wide)));

    // tables[code][nibble][COUNT][entries]
    static void make(const float (*x)[tile_columns], int codes, float* tables) {
        constexpr vec<entries> signs[nibble_signs] = {{-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1},
                                                      {-1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1},
                                                      {-1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1},
                                                      {-1, -1, -1, -1, -1, -1, -1, -1, 1, 1, 1, 1, 1, 1, 1, 1}};
        for (int nibble = 0; nibble < 2 * codes; ++nibble)
            for (int i = 0; i < COUNT; ++i, tables += entries) {
                const float* four = x[i] + nibble * nibble_signs;
                store<entries>(tables,
                               signs[0] * four[0] + signs[1] * four[1] + signs[2] * four[2] + signs[3] * four[3]);
            }
    }

    static words load_codes(const uint8_t* codes) {
#if defined(__AVX512F__)
        return words(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes))));
#else
        return words(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes))));
#endif
    }

    // By the low four bits of each word.
    static vec<wide> look_up(const float* table, words rows) {
#if defined(__AVX512F__)
        return vec<wide>(_mm512_permutexvar_ps(__m512i(rows), load<16>(table)));
#else
        const __m256 low = _mm256_permutevar8x32_ps(load<8>(table), __m256i(rows));
        const __m256 high = _mm256_permutevar8x32_ps(load<8>(table + 8), __m256i(rows));
        return vec<wide>(_mm256_blendv_ps(low, high, __m256(rows << 28)));
#endif
    }

    static void add(const uint8_t* codes, int count, const float* tables, const half* scales, float* sums) {
        for (int row = 0; row < block_rows; row += registers * wide) {
            vec<wide> found[COUNT][registers] = {};
            const float* table = tables;
            for (int c = 0; c < count; ++c) {
                words rows[registers];
                for (int r = 0; r < registers; ++r) rows[r] = load_codes(codes + c * block_rows + row + r * wide);
                for (int nibble = 0; nibble < 2; ++nibble) {
                    for (int i = 0; i < COUNT; ++i, table += entries)
                        for (int r = 0; r < registers; ++r) found[i][r] += look_up(table, rows[r]);
                    for (int r = 0; r < registers; ++r) rows[r] >>= nibble_signs;
                }
            }
            for (int r = 0; r < registers; ++r) {
                const auto scale = widen<wide>(scales + row + r * wide);
                for (int i = 0; i < COUNT; ++i) {
                    float* to = sums + i * x_pitch + row + r * wide;
                    store<wide>(to, load<wide>(to) + found[i][r] * scale);
                }
            }
        }
    }
};

#endif

// One of 256 entries in memory, each of the sums for all rows of x.
template <int COUNT>
struct MemoryTables {
    static constexpr int count = COUNT, entries = 1 << code_signs, code_floats = entries * COUNT;
    static constexpr int codes =
        max_table_floats / code_floats < tile_codes ? max_table_floats / code_floats : tile_codes;
    static constexpr int row_pitch = COUNT, x_pitch = 1;
    static constexpr int registers = 8;  // of sums, since additions take their time

    using Entry = std::conditional_t<COUNT == 1, float, vec<COUNT>>;

    static Entry load_entry(const float* from) {
        if constexpr (COUNT == 1)
            return *from;
        else
            return load<COUNT>(from);
    }
    static void store_entry(float* to, Entry entry) {
        if constexpr (COUNT == 1)
            *to = entry;
        else
            store<COUNT>(to, entry);
    }

    // tables[code][entries][COUNT]: all signs -1 first, then for each column once more what is there, with a +1.
    static void make(const float (*x)[tile_columns], int codes, float* tables) {
        for (int c = 0; c < codes; ++c, tables += code_floats) {
            for (int i = 0; i < COUNT; ++i) {
                tables[i] = 0;
                for (int t = 0; t < code_signs; ++t) tables[i] -= x[i][c * code_signs + t];
            }
            for (int t = 0; t < code_signs; ++t) {
                float twice[wide];
                for (int e = 0; e < wide; ++e) twice[e] = 2 * x[e % COUNT][c * code_signs + t];
                const int made = COUNT << t;
                float* more = tables + made;
                if (made < wide)
                    for (int e = 0; e < made; ++e) more[e] = tables[e] + twice[e];
                else
                    for (int e = 0; e < made; e += wide)
                        store<wide>(more + e, load<wide>(tables + e) + load<wide>(twice));
            }
        }
    }

    static void add(const uint8_t* codes, int count, const float* tables, const half* scales, float* sums) {
        float scale[block_rows];
        for (int row = 0; row < block_rows; row += wide) store<wide>(scale + row, widen<wide>(scales + row));
        for (int row = 0; row < block_rows; row += registers) {
            Entry found[registers] = {};
            const float* table = tables;
            for (int c = 0; c < count; ++c, table += code_floats) {
                const uint8_t* code = codes + c * block_rows + row;
                for (int r = 0; r < registers; ++r) found[r] += load_entry(table + code[r] * COUNT);
            }
            for (int r = 0; r < registers; ++r) {
                float* to = sums + (row + r) * row_pitch;
                store_entry(to, load_entry(to) + found[r] * scale[row + r]);
            }
        }
    }
};

// Tables of as many rows of x as are worth it.
#if defined(__AVX512F__)
using LargestTables = RegisterTables<4>;
#elif defined(__AVX2__)
using LargestTables = MemoryTables<8>;
#else
using LargestTables = MemoryTables<4>;
#endif

// run(tables) for `left` rows of x, or the first of them.
template <class Run>
inline void with_tables(int left, Run&& run) {
#if defined(__AVX2__)
    switch (left) {
        case 1: return run(RegisterTables<1>());
        case 2: return run(RegisterTables<2>());
        case 3: return run(RegisterTables<3>());
        case 4: return run(RegisterTables<4>());
    }
#else
    if (left == 1) return run(MemoryTables<1>());
#endif
    run(LargestTables());
}

}  // namespace codegemm
