// QuIP#'s product with E8P codes: rotate x, decode and multiply, rotate y; see quip.py.
#include <cmath>
#include <type_traits>

#include "floats.hpp"
#include "hadamard.hpp"
#include "parallel.hpp"

namespace codegemm {

struct QuipArgs {
    const void* x;              // [n, in_features], x_dtype
    void* out;                  // [n, rows], out_dtype
    float* workspace;           // rotated x [n][in_features], y [n][rows], a transform's other half [n][longest]
    const float* bias;          // [rows], or null
    const uint16_t* codes;      // [rows][in_features / 8], abs index << 8 | sign byte
    const void* residual;       // the same (4 bit), uint8 ball indices (3 bit) or null (2 bit)
    const float* SU;            // [in_features]
    const float* SV;            // [rows]
    const float* abs_vectors;   // [256][8]
    const float* sign_vectors;  // [256][8]
    const float* shifts;        // [256] +-1/4 by sign byte
    const float* ball;          // [256][8] residual points of the 3-bit form
    const float* had_in;        // [order_in][order_in], transposed
    const float* had_out;       // [order_out][order_out]
    int32_t x_dtype, out_dtype;
    int32_t bias_pitch;  // from one row of x to the next; 0: one bias for all
    int32_t n, rows, in_features;
    int32_t bits, order_in, order_out;
    float resid_factor;  // 1 / the residual's divisor
};

namespace {

constexpr int dim = 8;
constexpr int task_rows = 64;

// y = (matrix kron Sylvester) x / sqrt(length), x [order][power] overwritten.
void rotate(float* x, float* y, int length, int order, const float* matrix) {
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

inline vec<dim> decode(const QuipArgs& a, uint16_t code) {
    const int sign = code & 255;
    return load<dim>(a.abs_vectors + dim * (code >> 8)) * load<dim>(a.sign_vectors + dim * sign) + a.shifts[sign];
}

// y[i][row] for rows first_row .. end_row-1 and COUNT rows of x.
template <int BITS, int COUNT>
void multiply_rows(const QuipArgs& a, const float* x, int first_row, int end_row, float* y) {
    const int columns = a.in_features / dim;
    for (int row = first_row; row < end_row; ++row) {
        const size_t start = size_t(row) * columns;
        vec<dim> sums[COUNT] = {};
        for (int j = 0; j < columns; ++j) {
            vec<dim> w = decode(a, a.codes[start + j]);
            if constexpr (BITS == 3)
                w += load<dim>(a.ball + dim * static_cast<const uint8_t*>(a.residual)[start + j]) * a.resid_factor;
            if constexpr (BITS == 4)
                w += decode(a, static_cast<const uint16_t*>(a.residual)[start + j]) * a.resid_factor;
            for (int i = 0; i < COUNT; ++i) sums[i] += w * load<dim>(x + size_t(i) * a.in_features + j * dim);
        }
        for (int i = 0; i < COUNT; ++i) {
            float sum = 0;
            for (int t = 0; t < dim; ++t) sum += sums[i][t];
            y[size_t(i) * a.rows + row] = sum;
        }
    }
}

template <int BITS>
void multiply_rows(const QuipArgs& a, const float* x, int first_row, int end_row, float* y) {
    int i = 0;
    auto multiply = [&](auto count) {
        for (; i + count <= a.n; i += count)
            multiply_rows<BITS, count>(a, x + size_t(i) * a.in_features, first_row, end_row, y + size_t(i) * a.rows);
    };
    multiply(std::integral_constant<int, 8>());
    multiply(std::integral_constant<int, 4>());
    multiply(std::integral_constant<int, 1>());
}

}  // namespace
}  // namespace codegemm

extern "C" void quip(codegemm::ParallelFor loop, const codegemm::QuipArgs* args) {
    using namespace codegemm;
    const QuipArgs& a = *args;
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
    parallel_pieces(loop, a.rows, task_rows, [&](int first, int end) {
        if (a.bits == 2)
            multiply_rows<2>(a, x, first, end, y);
        else if (a.bits == 3)
            multiply_rows<3>(a, x, first, end, y);
        else
            multiply_rows<4>(a, x, first, end, y);
    });
    parallel_for(loop, a.n, [&](int i) {
        float* mine = other + size_t(i) * longest;
        rotate(y + size_t(i) * a.rows, mine, a.rows, a.order_out, a.had_out);
        for (int row = 0; row < a.rows; ++row) mine[row] *= a.SV[row];
        add_bias(a, i, 0, mine, a.rows);
        from_float(mine, 1, a.out, Dtype(a.out_dtype), size_t(i) * a.rows, a.rows);
    });
}
