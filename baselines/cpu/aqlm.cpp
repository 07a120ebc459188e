// AQLM's matrix-vector products, one row of x after another; see aqlm.py.
#include <type_traits>

#include "floats.hpp"
#include "parallel.hpp"

namespace codegemm {

struct AqlmArgs {
    const void* x;          // [n, in_features], x_dtype
    void* out;              // [n, rows], out_dtype
    float* workspace;       // x as float [in_features], y [rows], tables [vectors][m][centroids]
    const float* bias;      // [rows], or null
    const void* codes;      // uint8 [vectors][m][rows], or uint16 [rows][vectors][m]
    const void* codebooks;  // [m][centroids][v], float (uint8 codes) or half (uint16 codes)
    const half* scales;     // [rows]
    int32_t x_dtype, out_dtype;
    int32_t bias_pitch;  // from one row of x to the next; 0: one bias for all
    int32_t n, rows, in_features;
    int32_t v, m, centroids, wide_codes;
};

namespace {

constexpr int block_rows = 1024;   // of sums that stay in L1 while all tables pass by
constexpr int table_vectors = 16;  // k-vectors whose tables one task makes
constexpr int gather_rows = 64;

void make_tables(const AqlmArgs& a, const float* x, int first, int end, float* tables) {
    for (int j = first; j < end; ++j) {
        const float* book = static_cast<const float*>(a.codebooks);
        float* to = tables + size_t(j) * a.m * a.centroids;
        for (int i = 0; i < a.m * a.centroids; ++i, book += a.v) {
            float sum = 0;
            for (int t = 0; t < a.v; ++t) sum += book[t] * x[size_t(j) * a.v + t];
            to[i] = sum;
        }
    }
}

void add_tables(const AqlmArgs& a, const float* tables, int first_row, int end_row, float* y) {
    for (int row = first_row; row < end_row; ++row) y[row] = 0;
    const int positions = a.in_features / a.v * a.m;
    const uint8_t* codes = static_cast<const uint8_t*>(a.codes);
    for (int p = 0; p < positions; ++p, codes += a.rows, tables += a.centroids)
        for (int row = first_row; row < end_row; ++row) y[row] += tables[codes[row]];
}

// V 0: v known at run time only.
template <int V>
void gather(const AqlmArgs& a, const float* x, int first_row, int end_row, float* y) {
    const int v = V ? V : a.v, vectors = a.in_features / v;
    const half* books = static_cast<const half*>(a.codebooks);
    const uint16_t* codes = static_cast<const uint16_t*>(a.codes) + size_t(first_row) * vectors * a.m;
    for (int row = first_row; row < end_row; ++row) {
        vec<V ? V : 16> sums{};
        for (int j = 0; j < vectors; ++j)
            for (int c = 0; c < a.m; ++c) {
                const half* centroid = books + (size_t(c) * a.centroids + *codes++) * v;
                const float* xj = x + size_t(j) * v;
                if constexpr (V != 0)
                    sums += widen<V>(centroid) * load<V>(xj);
                else
                    for (int t = 0; t < v; ++t) sums[t] += float(centroid[t]) * xj[t];
            }
        y[row] = 0;
        for (int t = 0; t < v; ++t) y[row] += sums[t];
    }
}

void multiply(ParallelFor loop, const AqlmArgs& a, int i) {
    float* x = a.workspace;
    float* y = x + a.in_features;
    float* tables = y + a.rows;
    to_float(a.x, Dtype(a.x_dtype), size_t(i) * a.in_features, x, a.in_features);
    const int vectors = a.in_features / a.v;
    if (!a.wide_codes)
        parallel_pieces(loop, vectors, table_vectors,
                        [&](int first, int end) { make_tables(a, x, first, end, tables); });
    parallel_pieces(loop, a.rows, a.wide_codes ? gather_rows : block_rows, [&](int first, int end) {
        if (!a.wide_codes)
            add_tables(a, tables, first, end, y);
        else if (a.v == 8)
            gather<8>(a, x, first, end, y);
        else
            gather<0>(a, x, first, end, y);
        for (int row = first; row < end; ++row) y[row] *= float(a.scales[row]);
        add_bias(a, i, first, y + first, end - first);
        from_float(y + first, 1, a.out, Dtype(a.out_dtype), size_t(i) * a.rows + first, end - first);
    });
}

}  // namespace
}  // namespace codegemm

extern "C" void aqlm(codegemm::ParallelFor loop, const codegemm::AqlmArgs* args) {
    for (int i = 0; i < args->n; ++i) codegemm::multiply(loop, *args, i);
}
