// Sums of table entries, looked up by codes of one byte, 64 rows at a time.
//
// An entry is one byte (PLANES = 1) or two, the low and the high one in tables of their own (PLANES = 2), so that a
// byte permutation looks up as many codes as a register has bytes. In a block of rows the codes of a position lie side
// by side; within 64 rows byte 2i is the code of row i and byte 2i + 1 that of row 32 + i. So a register of entries v
// is one of 16-bit numbers, (row 32 + i) << 8 | row i, and two additions sum it up without unpacking:
//
//     both += v;  odd += v >> 8;          at the end row i has both - (odd << 8), modulo 2^16, and row 32 + i has odd
//
// That holds up to 257 entries. Where bytes are permuted within 16 of them alone but words among 64, tables are of
// words: two bytes of one entry, or two entries of one byte. There is one implementation for each instruction set, all
// with the same interface.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "floats.hpp"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace codegemm {

constexpr int group_rows = 64;

typedef int32_t ints __attribute__((vector_size(4 * wide)));
typedef uint16_t shorts __attribute__((vector_size(2 * wide)));
typedef uint8_t bytes __attribute__((vector_size(wide)));

// The row of a group whose code is at some place.
constexpr int row_at(int place) {
    return place % 2 * (group_rows / 2) + place / 2;
}

// Asks for a cache line, to wait in L2.
inline void fetch(const uint8_t* line) {
    __builtin_prefetch(line, 0, 2);
}

#if defined(__AVX512BW__) && !defined(__AVX512VBMI__)

// Whether a table of so many entries is one of words: in those of one byte an entry is beside that half a table
// further.
constexpr bool in_words(int entries) {
    return entries > 16;
}

#else

constexpr bool in_words(int) {
    return false;
}

#endif

// Numbers of PLANES bytes to a table, the low bytes from `low` on and the high ones from `high` on.
template <int PLANES>
inline void store_planes(ints values, uint8_t* low, uint8_t* high) {
#if defined(__AVX512F__)
    const __m512i all = (__m512i)values;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm512_cvtepi32_epi8(all));
    if constexpr (PLANES == 2)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(high), _mm512_cvtepi32_epi8(_mm512_srli_epi32(all, 8)));
#elif defined(__AVX2__)
    const __m256i all = (__m256i)values;
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    const __m128i low_words = _mm_and_si128(words, _mm_set1_epi16(0xff));
    const __m128i planes = _mm_packus_epi16(low_words, _mm_srli_epi16(words, 8));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(low), planes);
    if constexpr (PLANES == 2) _mm_storeh_pd(reinterpret_cast<double*>(high), _mm_castsi128_pd(planes));
#else
    const shorts words = __builtin_convertvector(values, shorts);
    const bytes first = __builtin_convertvector(words & 0xff, bytes),
                second = __builtin_convertvector(words >> 8, bytes);
    std::memcpy(low, &first, sizeof first);
    if constexpr (PLANES == 2) std::memcpy(high, &second, sizeof second);
#endif
}

#if defined(__AVX512VBMI__)

template <int ENTRIES>
constexpr bool quads = ENTRIES % 64 == 0;

// The same of 64 numbers: their bytes are blended, and put in order at the end.
template <int PLANES>
inline void store_quad(ints first, ints second, ints third, ints fourth, uint8_t* low, uint8_t* high) {
    // Of number i of each register there are bytes next to each other: of the first, the third, the second, the fourth.
    struct Order {
        uint8_t at[64];
        constexpr Order() : at() {
            for (int i = 0; i < 16; ++i)
                at[i] = 4 * i, at[16 + i] = 4 * i + 2, at[32 + i] = 4 * i + 1, at[48 + i] = 4 * i + 3;
        }
    };
    alignas(64) static constexpr Order order;
    const __m512i in_order = _mm512_loadu_si512(order.at);
    constexpr uint64_t odd = 0xaaaaaaaaaaaaaaaa;
    const __m512i one = _mm512_mask_blend_epi16(uint32_t(odd), (__m512i)first, _mm512_slli_epi32((__m512i)second, 16));
    const __m512i two = _mm512_mask_blend_epi16(uint32_t(odd), (__m512i)third, _mm512_slli_epi32((__m512i)fourth, 16));
    const __m512i lows = _mm512_mask_blend_epi8(odd, one, _mm512_slli_epi16(two, 8));
    _mm512_storeu_si512(low, _mm512_permutexvar_epi8(in_order, lows));
    if constexpr (PLANES == 2) {
        const __m512i highs = _mm512_mask_blend_epi8(odd, _mm512_srli_epi16(one, 8), two);
        _mm512_storeu_si512(high, _mm512_permutexvar_epi8(in_order, highs));
    }
}

#else

template <int>
constexpr bool quads = false;
template <int>
void store_quad(ints, ints, ints, ints, uint8_t*, uint8_t*);

#endif

// A position's table from numbers of PLANES bytes; entry(i): those of entries i .. i + wide - 1.
template <int ENTRIES, int PLANES, class Entry>
inline void store_entries(Entry&& entry, uint8_t* table) {
    if constexpr (in_words(ENTRIES)) {
        constexpr int words = ENTRIES * PLANES / 2;
        for (int i = 0; i < words; i += wide) {
            ints values = entry(i);
            if constexpr (PLANES == 1) values |= entry(i + words) << 8;
            const shorts stored = __builtin_convertvector(values, shorts);
            std::memcpy(table + 2 * i, &stored, sizeof stored);
        }
    } else if constexpr (quads<ENTRIES>) {
        for (int i = 0; i < ENTRIES; i += 64)
            store_quad<PLANES>(entry(i), entry(i + 16), entry(i + 32), entry(i + 48), table + i, table + ENTRIES + i);
    } else {
        for (int i = 0; i < ENTRIES; i += wide) store_planes<PLANES>(entry(i), table + i, table + ENTRIES + i);
    }
}

#if defined(__AVX512VBMI__) || defined(__AVX512BW__)

#if defined(__AVX512VBMI__)

// A table of ENTRIES bytes in registers.
template <int ENTRIES>
struct Table {
    static constexpr int registers = (ENTRIES + 63) / 64;
    __m512i part[registers];

    explicit Table(const uint8_t* table) {
        for (int i = 0; i < registers; ++i)
            part[i] = ENTRIES < 64 ? _mm512_maskz_loadu_epi8((uint64_t(1) << ENTRIES % 64) - 1, table)
                                   : _mm512_loadu_si512(table + 64 * i);
    }
    __m512i look_up(__m512i codes) const {
        if constexpr (registers == 1) {
            return _mm512_permutexvar_epi8(codes, part[0]);
        } else if constexpr (registers == 2) {
            return _mm512_permutex2var_epi8(part[0], codes, part[1]);
        } else {
            const __m512i low = _mm512_permutex2var_epi8(part[0], codes, part[1]);
            const __m512i high = _mm512_permutex2var_epi8(part[2], codes, part[3]);
            return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high);
        }
    }
};

#else

// A table of 16 bytes, in every quarter of a register.
template <int>
struct Table {
    __m512i part;

    explicit Table(const uint8_t* table)
        : part(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)))) {}
    __m512i look_up(__m512i codes) const { return _mm512_shuffle_epi8(part, codes); }
};

#endif

// sums[group][plane][row] of `count` positions: codes [position][pitch], of which GROUPS * 64 rows from `codes` on;
// tables [position] of PLANES * ENTRIES bytes. Meanwhile as many codes `ahead` bytes further are fetched.
template <int ENTRIES, int PLANES, int GROUPS>
inline void look_up_bytes(const uint8_t* codes, size_t pitch, int count, const uint8_t* tables, ptrdiff_t ahead,
                          uint16_t* sums) {
    __m512i both[GROUPS][PLANES], odd[GROUPS][PLANES];
    for (int g = 0; g < GROUPS; ++g)
        for (int plane = 0; plane < PLANES; ++plane) both[g][plane] = odd[g][plane] = _mm512_setzero_si512();
    for (int p = 0; p < count; ++p, codes += pitch, tables += PLANES * ENTRIES) {
        const Table<ENTRIES> low(tables), high(tables + (PLANES - 1) * ENTRIES);
        for (int g = 0; g < GROUPS; ++g) {
            fetch(codes + group_rows * g + ahead);
            const __m512i code = _mm512_loadu_si512(codes + group_rows * g);
            for (int plane = 0; plane < PLANES; ++plane) {
                const __m512i found = (plane ? high : low).look_up(code);
                both[g][plane] = _mm512_add_epi16(both[g][plane], found);
                odd[g][plane] = _mm512_add_epi16(odd[g][plane], _mm512_srli_epi16(found, 8));
            }
        }
    }
    for (int g = 0; g < GROUPS; ++g)
        for (int plane = 0; plane < PLANES; ++plane, sums += group_rows) {
            const __m512i even = _mm512_sub_epi16(both[g][plane], _mm512_slli_epi16(odd[g][plane], 8));
            _mm512_storeu_si512(sums, even);
            _mm512_storeu_si512(sums + 32, odd[g][plane]);
        }
}

#if defined(__AVX512VBMI__)

template <int ENTRIES, int PLANES, int GROUPS>
inline void look_up(const uint8_t* codes, size_t pitch, int count, const uint8_t* tables, ptrdiff_t ahead,
                    uint16_t* sums) {
    look_up_bytes<ENTRIES, PLANES, GROUPS>(codes, pitch, count, tables, ahead, sums);
}

#else

// A table of words in registers, a permutation's two at a time.
template <int ENTRIES, int PLANES>
struct WordTable {
    static constexpr int words = ENTRIES * PLANES / 2, registers = words / 32;
    static_assert(registers == 1 || registers == 2 || registers == 4 || registers == 8);
    __m512i part[registers];

    explicit WordTable(const uint8_t* table) {
        for (int i = 0; i < registers; ++i) part[i] = _mm512_loadu_si512(table + 64 * i);
    }
    // What 32 codes name, each at the low end of a word: words, or bytes with something else above.
    __m512i look_up(__m512i low) const {
        auto bit = [&](int i) { return _mm512_test_epi16_mask(low, _mm512_set1_epi16(short(1 << i))); };
        auto pair = [&](int i) { return _mm512_permutex2var_epi16(part[i], low, part[i + 1]); };
        __m512i found;
        if constexpr (registers == 1) {
            found = _mm512_permutexvar_epi16(low, part[0]);
        } else if constexpr (registers == 2) {
            found = pair(0);
        } else if constexpr (registers == 4) {
            found = _mm512_mask_blend_epi16(bit(6), pair(0), pair(2));
        } else {
            const __mmask32 bit6 = bit(6);
            found = _mm512_mask_blend_epi16(bit(7), _mm512_mask_blend_epi16(bit6, pair(0), pair(2)),
                                            _mm512_mask_blend_epi16(bit6, pair(4), pair(6)));
        }
        if constexpr (PLANES == 1) {
            constexpr int last = ENTRIES == 64 ? 5 : 7;
            found = _mm512_mask_srli_epi16(found, bit(last), found, 8);
        }
        return found;
    }
};

// The same two additions as above sum up the two bytes of an entry, for each half of the rows.
template <int ENTRIES, int PLANES, int GROUPS>
inline void look_up(const uint8_t* codes, size_t pitch, int count, const uint8_t* tables, ptrdiff_t ahead,
                    uint16_t* sums) {
    if constexpr (!in_words(ENTRIES)) {
        look_up_bytes<ENTRIES, PLANES, GROUPS>(codes, pitch, count, tables, ahead, sums);
    } else {
        __m512i all[GROUPS][2], high[GROUPS][2];  // by half of the rows
        for (int g = 0; g < GROUPS; ++g)
            for (int half = 0; half < 2; ++half) all[g][half] = high[g][half] = _mm512_setzero_si512();
        for (int p = 0; p < count; ++p, codes += pitch, tables += PLANES * ENTRIES) {
            const WordTable<ENTRIES, PLANES> table(tables);
            for (int g = 0; g < GROUPS; ++g) {
                fetch(codes + group_rows * g + ahead);
                const __m512i code = _mm512_loadu_si512(codes + group_rows * g);
                for (int half = 0; half < 2; ++half) {
                    const __m512i found = table.look_up(half ? _mm512_srli_epi16(code, 8) : code);
                    if constexpr (PLANES == 2) {
                        all[g][half] = _mm512_add_epi16(all[g][half], found);
                        high[g][half] = _mm512_add_epi16(high[g][half], _mm512_srli_epi16(found, 8));
                    } else {
                        const __m512i low = _mm512_and_si512(found, _mm512_set1_epi16(0xff));
                        all[g][half] = _mm512_add_epi16(all[g][half], low);
                    }
                }
            }
        }
        for (int g = 0; g < GROUPS; ++g, sums += PLANES * group_rows)
            for (int half = 0; half < 2; ++half) {
                const __m512i low = _mm512_sub_epi16(all[g][half], _mm512_slli_epi16(high[g][half], 8));
                _mm512_storeu_si512(sums + 32 * half, low);
                if constexpr (PLANES == 2) _mm512_storeu_si512(sums + group_rows + 32 * half, high[g][half]);
            }
    }
}

#endif

#elif defined(__AVX2__)

// Four parts of 16 entries are told apart by the index: it names an entry in one of them and makes 0 of the others.
// What is left of a code then chooses between quarters.
template <int ENTRIES>
struct Codes {
    __m256i part[4], code;

    explicit Codes(__m256i codes) : code(codes) {
        const __m256i low = _mm256_and_si256(codes, _mm256_set1_epi8(63)), zero_above = _mm256_set1_epi8(0x70);
        for (int i = 0; i < 4; ++i)
            part[i] = _mm256_add_epi8(_mm256_xor_si256(low, _mm256_set1_epi8(char(16 * i))), zero_above);
    }
    __m256i sixteen(const uint8_t* table, int i) const {
        const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16 * i));
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(entries), ENTRIES == 16 ? code : part[i]);
    }
    __m256i quarter(const uint8_t* table) const {
        return _mm256_or_si256(_mm256_or_si256(sixteen(table, 0), sixteen(table, 1)),
                               _mm256_or_si256(sixteen(table, 2), sixteen(table, 3)));
    }
    __m256i look_up(const uint8_t* table) const {
        if constexpr (ENTRIES == 16) return sixteen(table, 0);
        if constexpr (ENTRIES == 64) return quarter(table);
        const __m256i bit6 = _mm256_add_epi8(code, code);
        const __m256i low = _mm256_blendv_epi8(quarter(table), quarter(table + 64), bit6);
        const __m256i high = _mm256_blendv_epi8(quarter(table + 128), quarter(table + 192), bit6);
        return _mm256_blendv_epi8(low, high, code);
    }
};

template <int ENTRIES, int PLANES, int GROUPS>
inline void look_up(const uint8_t* codes, size_t pitch, int count, const uint8_t* tables, ptrdiff_t ahead,
                    uint16_t* sums) {
    for (int half = 0; half < 2 * GROUPS; ++half, codes += 32) {
        __m256i both[PLANES], odd[PLANES];
        for (int plane = 0; plane < PLANES; ++plane) both[plane] = odd[plane] = _mm256_setzero_si256();
        const uint8_t* from = codes;
        const uint8_t* table = tables;
        for (int p = 0; p < count; ++p, from += pitch) {
            if (half % 2 == 0) fetch(from + ahead);
            const Codes<ENTRIES> code(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
            for (int plane = 0; plane < PLANES; ++plane, table += ENTRIES) {
                const __m256i found = code.look_up(table);
                both[plane] = _mm256_add_epi16(both[plane], found);
                odd[plane] = _mm256_add_epi16(odd[plane], _mm256_srli_epi16(found, 8));
            }
        }
        for (int plane = 0; plane < PLANES; ++plane) {
            uint16_t* to = sums + (half / 2 * PLANES + plane) * group_rows + half % 2 * 16;
            const __m256i even = _mm256_sub_epi16(both[plane], _mm256_slli_epi16(odd[plane], 8));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), even);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 32), odd[plane]);
        }
    }
}

#elif defined(__ARM_NEON)

// An index beyond a part's 64 entries makes 0 of it.
template <int ENTRIES>
struct Table {
    static constexpr int parts = (ENTRIES + 63) / 64;
    uint8x16x4_t part[parts];

    explicit Table(const uint8_t* table) {
        for (int i = 0; i < parts; ++i)
            for (int j = 0; j < 4 && 64 * i + 16 * j < ENTRIES; ++j) part[i].val[j] = vld1q_u8(table + 64 * i + 16 * j);
    }
    uint8x16_t look_up(uint8x16_t codes) const {
        if constexpr (ENTRIES == 16) return vqtbl1q_u8(part[0].val[0], codes);
        uint8x16_t found = vqtbl4q_u8(part[0], codes);
        for (int i = 1; i < parts; ++i)
            found = vqtbx4q_u8(found, part[i], vsubq_u8(codes, vdupq_n_u8(uint8_t(64 * i))));
        return found;
    }
};

template <int ENTRIES, int PLANES, int GROUPS>
inline void look_up(const uint8_t* codes, size_t pitch, int count, const uint8_t* tables, ptrdiff_t ahead,
                    uint16_t* sums) {
    constexpr int registers = 4 * GROUPS;
    for (int plane = 0; plane < PLANES; ++plane) {
        uint16x8_t both[registers], odd[registers];
        for (int i = 0; i < registers; ++i) both[i] = odd[i] = vdupq_n_u16(0);
        for (int p = 0; p < count; ++p) {
            const Table<ENTRIES> table(tables + (size_t(p) * PLANES + plane) * ENTRIES);
            if (plane == 0)
                for (int g = 0; g < GROUPS; ++g) fetch(codes + p * pitch + group_rows * g + ahead);
            for (int i = 0; i < registers; ++i) {
                const uint8x16_t found = table.look_up(vld1q_u8(codes + p * pitch + 16 * i));
                const uint16x8_t pairs = vreinterpretq_u16_u8(found);
                both[i] = vaddq_u16(both[i], pairs);
                odd[i] = vsraq_n_u16(odd[i], pairs, 8);
            }
        }
        for (int i = 0; i < registers; ++i) {
            uint16_t* to = sums + (i / 4 * PLANES + plane) * group_rows + i % 4 * 8;
            vst1q_u16(to, vsubq_u16(both[i], vshlq_n_u16(odd[i], 8)));
            vst1q_u16(to + 32, odd[i]);
        }
    }
}

#else

template <int ENTRIES, int PLANES, int GROUPS>
inline void look_up(const uint8_t* codes, size_t pitch, int count, const uint8_t* tables, ptrdiff_t ahead,
                    uint16_t* sums) {
    std::memset(sums, 0, sizeof(uint16_t) * GROUPS * PLANES * group_rows);
    for (int p = 0; p < count; ++p, codes += pitch)
        for (int g = 0; g < GROUPS; ++g) {
            fetch(codes + group_rows * g + ahead);
            for (int plane = 0; plane < PLANES; ++plane) {
                const uint8_t* table = tables + (size_t(p) * PLANES + plane) * ENTRIES;
                uint16_t* to = sums + (g * PLANES + plane) * group_rows;
                for (int i = 0; i < 32; ++i) {
                    to[i] += table[codes[group_rows * g + 2 * i]];
                    to[32 + i] += table[codes[group_rows * g + 2 * i + 1]];
                }
            }
        }
}

#endif

}  // namespace codegemm
