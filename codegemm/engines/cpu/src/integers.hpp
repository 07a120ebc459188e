// Products of 16-bit integers for panels.hpp: pairs of neighbouring k by AVX512_VNNI, twice as many an instruction as
// of float32.
//
// Centroids become integers of one unit, a power of two: of float16's 11 bits they lose nothing where a centroid is not
// small beside the largest. Those of m codebooks are added as integers. x becomes integers of a unit for each row and
// block of 32 k, so large that no sum over a block leaves 32 bits: it is at most the length of a chunk of x times that
// of the longest chunk of a centroid, summed over the chunks. (On the way it may: integers wrap.) After a block the
// sums are added up in float32, times the scale of W's row, of which a block has one, and x's unit.
//
// What is lost is known but for the codes that meet it. A row of x for which it is too much for y, since W or y is
// small where x is large, is multiplied again (mend_rows).
#pragma once

#include <immintrin.h>

#include "panels.hpp"

namespace codegemm {

namespace decoding {

constexpr int block_pairs = tile_step / 2;
// Of a row of a strip: a tile's pairs, then a scale for each of its blocks.
constexpr int scales_place = max_tile / 2, integers_pitch = scales_place + lanes;
static_assert(max_tile / tile_step <= lanes);

typedef int16_t Short __attribute__((may_alias));
typedef float Float __attribute__((may_alias));

template <int V>
struct Shorts {
    typedef int16_t type __attribute__((vector_size(2 * V), aligned(2), may_alias));
};

// to[k-vector][v] of `count` k-vectors: sums of the integers of their centroids. V, M 0: known at run time only.
template <class Code, int V, int M>
[[gnu::noinline]] void decode_vectors(const DequantArgs& a, const Code* codes, int count, const int16_t* books,
                                      Short* to) {
    const int v = V ? V : a.v, m = M ? M : a.m;
    const size_t book = size_t(a.centroids) * v;
#pragma GCC unroll 8
    for (int j = 0; j < count; ++j, codes += m, to += v) {
        if constexpr (V != 0) {
            using Vector = typename Shorts<V>::type;
            Vector sum = *reinterpret_cast<const Vector*>(books + size_t(codes[0]) * V);
            for (int c = 1; c < m; ++c)
                sum += *reinterpret_cast<const Vector*>(books + c * book + size_t(codes[c]) * V);
            *reinterpret_cast<Vector*>(to) = sum;
        } else {
            for (int t = 0; t < v; ++t) to[t] = books[size_t(codes[0]) * v + t];
            for (int c = 1; c < m; ++c)
                for (int t = 0; t < v; ++t) to[t] += books[c * book + size_t(codes[c]) * v + t];
        }
    }
}

// Some of the rows of a tile into a strip.
using DecodeIntegers = void (*)(const CodeTile& tile, int row, int end_row, Pair* strip);

template <class Code, int V, int M>
void decode_integers(const CodeTile& tile, int row, int end_row, Pair* strip) {
    const DequantArgs& a = *tile.args;
    const int vectors = tile.end - tile.first, group = a.group_vectors * a.v;
    const size_t groups = a.in_features / group;
    const int16_t* books = a.integers + size_t(tile.part) * a.m * a.centroids * a.v;
    const int blocks = (tile.width() + tile_step - 1) / tile_step;
    const float unit = a.units[tile.part];
    int group_of[lanes];  // of a block
    for (int b = 0; b < blocks; ++b) group_of[b] = (tile.first * a.v + b * tile_step) / group;
    for (; row < end_row; ++row, strip += integers_pitch) {
        const Code* codes = static_cast<const Code*>(tile.codes) + row * tile.pitch;
        fetch_next(tile, codes, vectors * a.m);
        decode_vectors<Code, V, M>(a, codes, vectors, books, reinterpret_cast<Short*>(strip));
        const half* scales = a.scales + size_t(tile.first_row + row) * groups;
        half some[lanes] = {};
        for (int b = 0; b < blocks; ++b) some[b] = scales[group_of[b]];
        store<lanes>(reinterpret_cast<float*>(strip + scales_place), widen<lanes>(some) * unit);
    }
}

template <class Code, int V>
DecodeIntegers decode_integers_for(int m) {
    return m == 1 ? decode_integers<Code, V, 1> : m == 2 ? decode_integers<Code, V, 2> : decode_integers<Code, V, 0>;
}

template <class Code>
DecodeIntegers decode_integers_for(int v, int m) {
    switch (v) {
        case 4: return decode_integers_for<Code, 4>(m);
        case 8: return decode_integers_for<Code, 8>(m);
        case 16: return decode_integers<Code, 16, 0>;
        default: return decode_integers<Code, 0, 0>;
    }
}

}  // namespace decoding

struct Integers {
    using Element = Pair;
    using Decode = decoding::DecodeIntegers;
    static constexpr int step = 2, planes = 1, pitch = decoding::integers_pitch;
    static constexpr int elements = decoding::block_pairs + 1;  // behind a block lie the units of x
    static constexpr bool scaled = true, overlaps = false, rounds = true;

    static constexpr int strip_rows(int panels) { return panels == 1 ? 16 : 13; }

    static void put_x(const PartOfRow& part, int count, size_t, Pair* to) {
        const DequantArgs& a = *part.args;
        for (int k = 0; k < count; k += tile_step, to += elements * panel_rows) {
            const float unit = unit_for(a, part.x + k), inverse = 1 / unit;
            Pair pairs[block_pairs];
            vec<16> taken{}, square_taken{}, sum{}, square{};
            for (int i = 0; i < tile_step; i += 16) {
                const vec<16> x = load<16>(part.x + k + i) * inverse;
                const __m512i whole = _mm512_cvtps_epi32(__m512(x));
                const vec<16> rounded = vec<16>(_mm512_cvtepi32_ps(whole));
                const __m256i halves = _mm512_cvtepi32_epi16(whole);
                std::memcpy(pairs + i / 2, &halves, sizeof halves);
                taken += x - rounded, square_taken += (x - rounded) * (x - rounded);
                sum += rounded, square += rounded * rounded;
            }
            for (int p = 0; p < block_pairs; ++p) to[p * panel_rows] = pairs[p];
            std::memcpy(to + block_pairs * panel_rows, &unit, sizeof unit);
            const int group = a.group_vectors * a.v, at = (part.k + k) / group;
            part.lost->add(a, at, (part.k + k) % group == 0, unit, total(taken), total(square_taken), total(sum),
                           total(square));
        }
    }

    static Decode decode_for(const DequantArgs& a) {
        return a.wide_codes ? decoding::decode_integers_for<uint16_t>(a.v, a.m)
                            : decoding::decode_integers_for<uint8_t>(a.v, a.m);
    }
    static void decode(const CodeTile& tile, int row, int end_row, Decode how, Pair* strip) {
        how(tile, row, end_row, strip);
    }

    static void multiply(const Pair* strip, int row, const Panels<Pair>& x, float* sums, Ahead<Integers>&) {
        if (x.panels == 1) return multiply<strip_rows(1), 1>(strip, x, 0, row, sums);
        int p = 0;
        for (; p + 2 <= x.panels; p += 2) multiply<strip_rows(2), 2>(strip, x, p, row, sums);
        if (p < x.panels) multiply<strip_rows(2), 1>(strip, x, p, row, sums);
    }

 private:
    typedef int32_t Sums __attribute__((vector_size(64)));  // __m512i, which may alias, would not stay in registers
    static constexpr int block_pairs = decoding::block_pairs;

    static float total(vec<16> values) { return _mm512_reduce_add_ps(__m512(values)); }

    // Of a block of a row of x.
    static float unit_for(const DequantArgs& a, const float* x) {
        constexpr float most = 32766, most_sum = 0x1p31f * 0.9999f, least_unit = 1e-30f;
        float lengths = 0, largest = 0;
        for (int k = 0; k < tile_step; k += a.chunk) {
            float square = 0;
            for (int i = k; i < k + a.chunk; ++i) {
                square += x[i] * x[i];
                largest = std::max(largest, std::fabs(x[i]));
            }
            lengths += std::sqrt(square);
        }
        // Rounding makes each of them longer by half a unit's diagonal at most.
        const float longer = tile_step * 0.5f / std::sqrt(float(a.chunk));
        return std::max(std::max(lengths / (most_sum / a.longest - longer), largest / most), least_unit);
    }

    // sums[panel][row][16] += strip[row][k] * x[panel][k][16] of PANELS panels from `panel` on.
    template <int ROWS, int PANELS>
    static void multiply(const Pair* w, const Panels<Pair>& panels, int panel, int row, float* sums) {
        const int product = row / ROWS * (panels.panels / PANELS) + panel / PANELS;
        const Pair *x = panels.at(panel), *soon = panels.soon(product);
        const auto* scale = reinterpret_cast<const decoding::Float*>(w + decoding::scales_place);
        sums += (size_t(panel) * sum_rows + row) * panel_rows;
        for (int k = 0; k < panels.count; k += elements, w += block_pairs, ++scale) {
            Sums sum[ROWS][PANELS];
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
                for (int i = 0; i < PANELS; ++i) sum[r][i] = Sums{};
#pragma GCC unroll 1
            for (int p = 0; p < block_pairs; ++p, x += panel_rows, soon += panel_rows) {
                __m512i of_x[PANELS];
#pragma GCC unroll 2
                for (int i = 0; i < PANELS; ++i) {
                    const Pair* from = x + i * panels.pitch;
                    __builtin_prefetch(from + 8 * panel_rows);
                    of_x[i] = _mm512_loadu_si512(from);
                }
                __builtin_prefetch(soon, 0, 2);
#pragma GCC unroll 16
                for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
                    for (int i = 0; i < PANELS; ++i)
                        sum[r][i] = Sums(
                            _mm512_dpwssd_epi32(__m512i(sum[r][i]), of_x[i], _mm512_set1_epi32(int(w[r * pitch + p]))));
            }
            __asm__ volatile("" ::: "memory");  // the sums of all blocks would not stay in registers
            vec<16> unit[PANELS];
#pragma GCC unroll 2
            for (int i = 0; i < PANELS; ++i) unit[i] = load<16>(reinterpret_cast<const float*>(x + i * panels.pitch));
            x += panel_rows, soon += panel_rows;
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
                for (int i = 0; i < PANELS; ++i) {
                    float* to = sums + (i * sum_rows + r) * panel_rows;
                    const vec<16> whole = vec<16>(_mm512_cvtepi32_ps(__m512i(sum[r][i])));
                    store<16>(to, load<16>(to) + whole * (unit[i] * scale[r * pitch]));
                }
        }
    }
};

}  // namespace codegemm
