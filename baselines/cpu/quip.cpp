// QuIP#'s product with E8P codes: rotate x, decode and multiply, rotate y; see quip.py.
#include <type_traits>

#include "incoherent.hpp"

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
    multiply_between_rotations(loop, a, [&](const float* x, float* y) {
        parallel_pieces(loop, a.rows, task_rows, [&](int first, int end) {
            if (a.bits == 2)
                multiply_rows<2>(a, x, first, end, y);
            else if (a.bits == 3)
                multiply_rows<3>(a, x, first, end, y);
            else
                multiply_rows<4>(a, x, first, end, y);
        });
    });
}
