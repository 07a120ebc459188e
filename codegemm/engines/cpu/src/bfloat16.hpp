// Products of bfloat16 for panels.hpp, summed in float32: pairs of neighbouring k by AVX512_BF16, tiles of 16 rows and
// 32 k by AMX.
//
// A number of 8 bits, the high part, leaves a remainder, whose 8 bits are the low part. AMX multiplies high by high,
// high by low and low by high, which is as exact as W and x to 16 bits are, or (`precision="fast"`) high by high alone.
// By AVX512_BF16 three products take longer than float32 does.
//
// What is lost is known but for the codes that meet it. Where it is too much for y, since W has few rows or y is small
// where x is large, a row of x is multiplied again (mend_rows).
//
// These instructions take denormal numbers as zeros: x comes under a power of two.
#pragma once

#include <immintrin.h>

#include "panels.hpp"

namespace codegemm {

inline Pair pair_of(float first, float second) {
    return bfloat16(first).bits | Pair(bfloat16(second).bits) << 16;
}

// What the high part of a number leaves; nothing of infinities.
inline float remainder_of(float value) {
    const float high = bfloat16(value);
    return std::isfinite(high) ? value - high : 0;
}

// Panels and strips of pairs, in one plane or two.
template <int PLANES>
struct Pairs {
    using Element = Pair;
    using Decode = codegemm::Decode;
    static constexpr int step = 2, planes = PLANES, elements = tile_step / step, pitch = strip_pitch(step);
    static constexpr bool scaled = true, rounds = true;

    static void put_x(const PartOfRow& part, int count, size_t plane, Pair* to) {
        const DequantArgs& a = *part.args;
        const float* row = part.x;
        for (int k = 0; k < count; k += 2, to += panel_rows) {
            to[0] = pair_of(row[k], row[k + 1]);
            if (planes == 2) to[plane] = pair_of(remainder_of(row[k]), remainder_of(row[k + 1]));
        }
        const int group = a.group_vectors * a.v, there = std::min(count, a.in_features - part.k);
        for (int k = 0, end; k < there; k = end) {
            const int at = (part.k + k) / group;
            end = std::min(there, (at + 1) * group - part.k);
            Taken taken;
            int i = k;
            for (; i + 16 <= end; i += 16) taken.add(load<16>(row + i));
            if (i < end) {
                float few[16] = {};
                std::copy(row + i, row + end, few);
                taken.add(load<16>(few));
            }
            part.lost->add(a, at, (part.k + k) % group == 0, 1, total(taken.left), total(taken.left_square),
                           total(taken.kept), total(taken.kept_square));
        }
    }
    static Decode decode_for(const DequantArgs& a) { return codegemm::decode_for(a); }
    static void decode(const CodeTile& tile, int row, int end_row, Decode how, Pair* strip) {
        alignas(64) float weights[max_tile];
        std::fill(weights + tile.width() / 16 * 16, weights + (tile.width() + 15) / 16 * 16, 0.0f);
        for (; row < end_row; ++row, strip += pitch) {
            how(tile, row, row + 1, weights, 0);
            for (int k = 0; k < tile.width(); k += 16) {
                const vec<16> values = load<16>(weights + k);
                const auto high = _mm512_cvtneps_pbh(__m512(values));
                store_halves(strip + k / 2, high);
                if (planes == 1) continue;
                const vec<16> left = values - widened(high);
                store_halves(strip + strip_plane + k / 2, _mm512_cvtneps_pbh(__m512(left)));
            }
        }
    }

 protected:
    static constexpr int strip_plane = max_strip_rows * pitch;

 private:
    typedef uint16_t halves __attribute__((vector_size(32)));
    typedef uint32_t words __attribute__((vector_size(64)));
    typedef double doubles __attribute__((vector_size(64)));

    // Sums over x of what rounding takes and keeps, and of their squares, which may leave float32's range.
    struct Taken {
        doubles left{}, left_square{}, kept{}, kept_square{};

        void add(vec<16> x) {
            vec<16> rounded = widened(_mm512_cvtneps_pbh(__m512(x)));
            if (planes == 2) rounded += widened(_mm512_cvtneps_pbh(__m512(x - rounded)));
            for (int half = 0; half < 2; ++half) {
                const doubles of_left = in_doubles(x - rounded, half), of_kept = in_doubles(rounded, half);
                left += of_left, left_square += of_left * of_left;
                kept += of_kept, kept_square += of_kept * of_kept;
            }
        }

        static doubles in_doubles(vec<16> values, int half) {
            vec<8> some;
            std::memcpy(&some, reinterpret_cast<const float*>(&values) + 8 * half, sizeof some);
            return __builtin_convertvector(some, doubles);
        }
    };

    static double total(doubles values) { return _mm512_reduce_add_pd(__m512d(values)); }

    template <class Halves>
    static void store_halves(Pair* to, Halves values) {
        std::memcpy(to, &values, 32);
    }
    template <class Halves>
    static vec<16> widened(Halves values) {
        return vec<16>(__builtin_convertvector(halves(values), words) << 16);
    }
};

#ifdef __AVX512BF16__

struct PairLanes : Pairs<1> {
    using Register = __m512bh;
    static constexpr int width = 16;

    static Register load(const Pair* x) { return Register(codegemm::load<16>(reinterpret_cast<const float*>(x))); }
    static void add(vec<16>& sum, Register x, Pair w) {
        sum = vec<16>(_mm512_dpbf16_ps(__m512(sum), x, Register(_mm512_set1_epi32(int(w)))));
    }
};

#endif

#ifdef __AMX_BF16__

template <int PLANES>
struct Tiles : Pairs<PLANES> {
    static constexpr bool overlaps = true;
    using Pairs<PLANES>::pitch;
    using Pairs<PLANES>::strip_plane;

    static constexpr int strip_rows(int) { return 16; }
    static void multiply(const Pair* strip, int row, const Panels<Pair>& x, float* sums, Ahead<Tiles>& ahead) {
        configure();
        const int calls = x.panels * x.count / tile_pairs;
        int p = 0, call = 0;
        const auto sums_of = [&](int panel) { return sums + (size_t(panel) * sum_rows + row) * panel_rows; };
        for (; p + 4 <= x.panels; p += 4) multiply_four(strip, x, p, sums_of(p), ahead, call, calls);
        for (; p < x.panels; ++p) multiply_one(strip, x, p, sums_of(p), ahead, call, calls);
        _tile_release();
    }

 private:
    static constexpr int tile_pairs = 16, line = 64;  // line: bytes of a row of a tile
    static constexpr int row_pitch = pitch * int(sizeof(Pair));
    static constexpr size_t sums_pitch = size_t(sum_rows) * panel_rows;

    // All tiles have 16 rows of 64 bytes. Between products the system may take the tiles' state away with the thread.
    static void configure() {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {line, line, line, line, line, line, line, line};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } configuration;
        _tile_loadconfig(&configuration);
    }

    // The compiler does not know that tiles are loaded from memory.
    static void written() { __asm__ volatile("" ::: "memory"); }

    // sums[panel][row][16] of four panels, in tiles 0 to 3: not in a loop, since compilers take literals alone for
    // tiles.
    static void multiply_four(const Pair* w, const Panels<Pair>& panels, int panel, float* sums, Ahead<Tiles>& ahead,
                              int& call, int calls) {
        written();
        _tile_loadd(0, sums, line);
        _tile_loadd(1, sums + sums_pitch, line);
        _tile_loadd(2, sums + 2 * sums_pitch, line);
        _tile_loadd(3, sums + 3 * sums_pitch, line);
        const Pair *x0 = panels.at(panel), *x1 = panels.at(panel + 1), *x2 = panels.at(panel + 2),
                   *x3 = panels.at(panel + 3);
        for (int k = 0; k < panels.count; k += tile_pairs, w += tile_pairs) {
            const int at = k * panel_rows;
            _tile_loadd(4, w, row_pitch);
            if (PLANES == 2) _tile_loadd(5, w + strip_plane, row_pitch);
            _tile_loadd(6, x0 + at, line);
            _tile_dpbf16ps(0, 4, 6);
            if (PLANES == 2) {
                _tile_dpbf16ps(0, 5, 6);
                _tile_loadd(7, x0 + panels.plane + at, line);
                _tile_dpbf16ps(0, 4, 7);
            }
            ahead.advance(call++, calls);
            _tile_loadd(6, x1 + at, line);
            _tile_dpbf16ps(1, 4, 6);
            if (PLANES == 2) {
                _tile_dpbf16ps(1, 5, 6);
                _tile_loadd(7, x1 + panels.plane + at, line);
                _tile_dpbf16ps(1, 4, 7);
            }
            ahead.advance(call++, calls);
            _tile_loadd(6, x2 + at, line);
            _tile_dpbf16ps(2, 4, 6);
            if (PLANES == 2) {
                _tile_dpbf16ps(2, 5, 6);
                _tile_loadd(7, x2 + panels.plane + at, line);
                _tile_dpbf16ps(2, 4, 7);
            }
            ahead.advance(call++, calls);
            _tile_loadd(6, x3 + at, line);
            _tile_dpbf16ps(3, 4, 6);
            if (PLANES == 2) {
                _tile_dpbf16ps(3, 5, 6);
                _tile_loadd(7, x3 + panels.plane + at, line);
                _tile_dpbf16ps(3, 4, 7);
            }
            ahead.advance(call++, calls);
        }
        _tile_stored(0, sums, line);
        _tile_stored(1, sums + sums_pitch, line);
        _tile_stored(2, sums + 2 * sums_pitch, line);
        _tile_stored(3, sums + 3 * sums_pitch, line);
    }

    // Of one panel; each of the three products has a tile, since a sum waits for the one before it.
    static void multiply_one(const Pair* w, const Panels<Pair>& panels, int panel, float* sums, Ahead<Tiles>& ahead,
                             int& call, int calls) {
        written();
        _tile_loadd(0, sums, line);
        _tile_zero(1);
        _tile_zero(2);
        const Pair* x = panels.at(panel);
        for (int k = 0; k < panels.count; k += tile_pairs, w += tile_pairs, x += tile_pairs * panel_rows) {
            _tile_loadd(4, w, row_pitch);
            _tile_loadd(6, x, line);
            _tile_dpbf16ps(0, 4, 6);
            if (PLANES == 2) {
                _tile_loadd(5, w + strip_plane, row_pitch);
                _tile_dpbf16ps(1, 5, 6);
                _tile_loadd(7, x + panels.plane, line);
                _tile_dpbf16ps(2, 4, 7);
            }
            ahead.advance(call++, calls);
        }
        _tile_stored(0, sums, line);
        if (PLANES == 1) return;
        alignas(64) float others[2][16 * panel_rows];
        _tile_stored(1, others[0], line);
        _tile_stored(2, others[1], line);
        for (int i = 0; i < 16 * panel_rows; ++i) sums[i] += others[0][i] + others[1][i];
    }
};

#endif

}  // namespace codegemm
