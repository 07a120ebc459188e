// Few rows of x times decoded rows of W: dot products along K, 4 x 4 at a time.
#pragma once

#include "floats.hpp"

namespace codegemm {

// Sums of dot products that the registers hold at once: rows of W times rows of x.
constexpr int dot_rows = 4, dot_batch = wide == 16 ? 4 : 2;

inline vec<8> fold(vec<16> values) {
    return __builtin_shufflevector(values, values, 0, 1, 2, 3, 4, 5, 6, 7) +
           __builtin_shufflevector(values, values, 8, 9, 10, 11, 12, 13, 14, 15);
}
inline vec<8> fold(vec<8> values) {
    return values;
}

// The sums of four vectors.
inline vec<4> sums_of(vec<8> a, vec<8> b, vec<8> c, vec<8> d) {
    const vec<8> ab = __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14) +
                      __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
    const vec<8> cd = __builtin_shufflevector(c, d, 0, 8, 2, 10, 4, 12, 6, 14) +
                      __builtin_shufflevector(c, d, 1, 9, 3, 11, 5, 13, 7, 15);
    const vec<8> halves = __builtin_shufflevector(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13) +
                          __builtin_shufflevector(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
    return __builtin_shufflevector(halves, halves, 0, 1, 2, 3) + __builtin_shufflevector(halves, halves, 4, 5, 6, 7);
}

// One row of x times four rows of W. Named, not an array: compilers keep these in registers.
struct FourDots {
    vec<wide> row0{}, row1{}, row2{}, row3{};

    void add(vec<wide> x, vec<wide> w0, vec<wide> w1, vec<wide> w2, vec<wide> w3) {
        row0 += x * w0, row1 += x * w1, row2 += x * w2, row3 += x * w3;
    }
    void add_to(float* sums, int rows) const {
        const vec<4> sum = sums_of(fold(row0), fold(row1), fold(row2), fold(row3));
        for (int r = 0; r < rows; ++r) sums[r] += sum[r];
    }
};

// sums[i][r] += x[i] . block[r] over `length` elements, i < ROWS_OF_X (1, 2 or 4), r < rows (dot_rows at most).
template <int ROWS_OF_X>
inline void dot(const float* x, size_t x_pitch, const float* block, int pitch, int length, int rows, float* sums,
                size_t sums_pitch) {
    FourDots x0, x1, x2, x3;
    for (int k = 0; k < length; k += wide, x += wide, block += wide) {
        const auto w0 = load<wide>(block), w1 = load<wide>(block + pitch);
        const auto w2 = load<wide>(block + 2 * pitch), w3 = load<wide>(block + 3 * pitch);
        x0.add(load<wide>(x), w0, w1, w2, w3);
        if constexpr (ROWS_OF_X > 1) x1.add(load<wide>(x + x_pitch), w0, w1, w2, w3);
        if constexpr (ROWS_OF_X > 2) {
            x2.add(load<wide>(x + 2 * x_pitch), w0, w1, w2, w3);
            x3.add(load<wide>(x + 3 * x_pitch), w0, w1, w2, w3);
        }
    }
    x0.add_to(sums, rows);
    if constexpr (ROWS_OF_X > 1) x1.add_to(sums + sums_pitch, rows);
    if constexpr (ROWS_OF_X > 2) {
        x2.add_to(sums + 2 * sums_pitch, rows);
        x3.add_to(sums + 3 * sums_pitch, rows);
    }
}

// y[i][row] += x[i] . block[row], n rows of x and `rows` of the block, which lies in memory up to whole dot_rows.
inline void add_dots(const float* x, size_t x_pitch, int n, const float* block, int pitch, int rows, float* y,
                     size_t y_pitch) {
    for (int r = 0; r < rows; r += dot_rows) {
        const int left = rows - r < dot_rows ? rows - r : dot_rows;
        const float* w = block + r * pitch;
        int i = 0;
        for (; i + dot_batch <= n; i += dot_batch)
            dot<dot_batch>(x + i * x_pitch, x_pitch, w, pitch, pitch, left, y + i * y_pitch + r, y_pitch);
        for (; i < n; ++i) dot<1>(x + i * x_pitch, x_pitch, w, pitch, pitch, left, y + i * y_pitch + r, y_pitch);
    }
}

}  // namespace codegemm
