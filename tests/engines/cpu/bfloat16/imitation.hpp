// AVX512_BF16 and, with TILES, AMX in plain C++, for processors that have neither: as Intel's manual defines them, with
// sums rounded to nearest even, denormal numbers taken and given as zeros, and tiles that hold rubbish unless they are
// configured.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace imitated {

inline float flushed(float value) {
    return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value;
}

inline float widened(uint16_t half) {
    const uint32_t word = uint32_t(half) << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return flushed(value);
}

inline uint16_t rounded(float value) {
    value = flushed(value);
    uint32_t word;
    std::memcpy(&word, &value, 4);
    return std::isnan(value) ? word >> 16 | 0x40 : (word + 0x7fff + (word >> 16 & 1)) >> 16;
}

inline float multiply_add(uint16_t a, uint16_t b, float sum) {
    return flushed(std::fma(widened(a), widened(b), flushed(sum)));
}

inline __m256bh convert(__m512 values) {
    uint16_t halves[16];
    for (int i = 0; i < 16; ++i) halves[i] = rounded(values[i]);
    __m256bh result;
    std::memcpy(&result, halves, sizeof result);
    return result;
}

inline __m512 dot(__m512 sums, __m512bh a, __m512bh b) {
    uint16_t x[32], y[32];
    std::memcpy(x, &a, sizeof x);
    std::memcpy(y, &b, sizeof y);
    for (int i = 0; i < 16; ++i)
        for (int d = 1; d >= 0; --d) sums[i] = multiply_add(x[2 * i + d], y[2 * i + d], sums[i]);
    return sums;
}

struct Tile {
    uint8_t bytes[16][64];
};
inline thread_local Tile tiles[8];
inline thread_local uint8_t configuration[64];  // zeros: no tiles

inline int rows_of(int tile) {
    return configuration[48 + tile];
}
inline int row_bytes_of(int tile) {
    uint16_t bytes;
    std::memcpy(&bytes, configuration + 16 + 2 * tile, 2);
    if (configuration[0] != 1 || !bytes) std::abort();
    return bytes;
}
inline void load_configuration(const void* from) {
    std::memcpy(configuration, from, sizeof configuration);
    std::memset(tiles, 0, sizeof tiles);
}
inline void release() {
    std::memset(configuration, 0, sizeof configuration);
    std::memset(tiles, 0xff, sizeof tiles);
}
inline void zero(int tile) {
    row_bytes_of(tile);
    std::memset(&tiles[tile], 0, sizeof(Tile));
}
inline void load(int tile, const void* from, long pitch) {
    for (int r = 0; r < rows_of(tile); ++r)
        std::memcpy(tiles[tile].bytes[r], static_cast<const char*>(from) + r * pitch, row_bytes_of(tile));
}
inline void store(int tile, void* to, long pitch) {
    for (int r = 0; r < rows_of(tile); ++r)
        std::memcpy(static_cast<char*>(to) + r * pitch, tiles[tile].bytes[r], row_bytes_of(tile));
}
inline void multiply(int to, int a, int b) {
    for (int r = 0; r < rows_of(to); ++r)
        for (int n = 0; n < row_bytes_of(to) / 4; ++n) {
            float sum = 0, before;
            for (int k = 0; k < row_bytes_of(a) / 4; ++k)
                for (int d = 0; d < 2; ++d) {
                    uint16_t x, y;
                    std::memcpy(&x, &tiles[a].bytes[r][4 * k + 2 * d], 2);
                    std::memcpy(&y, &tiles[b].bytes[k][4 * n + 2 * d], 2);
                    sum = multiply_add(x, y, sum);
                }
            std::memcpy(&before, &tiles[to].bytes[r][4 * n], 4);
            sum = flushed(flushed(before) + sum);
            std::memcpy(&tiles[to].bytes[r][4 * n], &sum, 4);
        }
}

}  // namespace imitated

#define __AVX512BF16__ 1
#define _mm512_cvtneps_pbh imitated::convert
#define _mm512_dpbf16_ps imitated::dot

#ifdef TILES
#define __AMX_BF16__ 1
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig imitated::load_configuration
#define _tile_release imitated::release
#define _tile_loadd imitated::load
#define _tile_stored imitated::store
#define _tile_zero imitated::zero
#define _tile_dpbf16ps imitated::multiply
#endif
