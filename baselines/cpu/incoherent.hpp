// A product between two randomised Hadamard rotations; see incoherent.py.
#pragma once

#include <cmath>

#include "floats.hpp"
#include "hadamard.hpp"
#include "parallel.hpp"

namespace codegemm {

// y = (matrix kron Sylvester) x / sqrt(length), x [order][power] overwritten.
inline void rotate(float* x, float* y, int length, int order, const float* matrix) {
    const int power = length / order;
    const float norm = 1 / std::sqrt(float(length));  // first: sums of large numbers stay in range
    for (int i = 0; i < length; ++i) x[i] *= norm;
    walsh_hadamard(x, length, power);
    for (int a = 0; a < order; ++a) {
        float* to = y + size_t(a) * power;
        for (int i = 0; i < power; ++i) to[i] = matrix[a * order] * x[i];
        for (int b = 1; b < order; ++b) {
            const float factor = matrix[a * order + b];
            const float* from = x + size_t(b) * power;
            for (int i = 0; i < power; ++i) to[i] += factor * from[i];
        }
    }
}

// out = rotated y + bias, y [n][rows] of multiply(x, y), x [n][in_features] rotated. The workspace holds rotated x, y
// and a transform's other half [n][longest of both].
template <class Args, class Multiply>
void multiply_between_rotations(ParallelFor loop, const Args& a, Multiply&& multiply) {
    const int longest = a.rows > a.in_features ? a.rows : a.in_features;
    float* x = a.workspace;
    float* y = x + size_t(a.n) * a.in_features;
    float* other = y + size_t(a.n) * a.rows;

    parallel_for(loop, a.n, [&](int i) {
        float* mine = other + size_t(i) * longest;
        to_float(a.x, Dtype(a.x_dtype), size_t(i) * a.in_features, mine, a.in_features);
        for (int k = 0; k < a.in_features; ++k) mine[k] *= a.SU[k];
        rotate(mine, x + size_t(i) * a.in_features, a.in_features, a.order_in, a.had_in);
    });
    multiply(x, y);
    parallel_for(loop, a.n, [&](int i) {
        float* mine = other + size_t(i) * longest;
        rotate(y + size_t(i) * a.rows, mine, a.rows, a.order_out, a.had_out);
        for (int row = 0; row < a.rows; ++row) mine[row] *= a.SV[row];
        add_bias(a, i, 0, mine, a.rows);
        from_float(mine, 1, a.out, Dtype(a.out_dtype), size_t(i) * a.rows, a.rows);
    });
}

}  // namespace codegemm
