// What comes before and after the product with a transformed weight's core; see transformed.py.
#include "floats.hpp"
#include "hadamard.hpp"
#include "parallel.hpp"

namespace codegemm {

struct TransformedArgs {
    const void* x;         // before: [n, in_features], after: y' [n, rows]; x_dtype
    void* out;             // before: float x' [n, terms, in_features], add_offsets: float, after: out_dtype; [n, rows]
    float* workspace;      // sums [n, groups]
    const float* bias;     // add_offsets, after: [rows], or null
    const float* factors;  // [in_features] signs over the root of the block, or null
    const float* addends;  // [groups][rows], or null
    const int32_t* order;  // [in_features] the place in x of each number of x', or null
    int32_t x_dtype, out_dtype;
    int32_t bias_pitch;  // from one row of x to the next; 0: one bias for all
    int32_t n, rows, in_features;
    int32_t block, terms, groups;
};

namespace {

constexpr int task_rows = 256;

// Several sums at once, always the same ones.
float sum(const float* x, int count) {
    vec<lanes> sums = {};
    int i = 0;
    for (; i + lanes <= count; i += lanes) sums += load<lanes>(x + i);
    float total = 0;
    for (int lane = 0; lane < lanes; ++lane) total += sums[lane];
    for (; i < count; ++i) total += x[i];
    return total;
}

// run(row of x, first row of W, count of those) for pieces of all outputs.
template <class Run>
void for_pieces(ParallelFor loop, const TransformedArgs& a, Run&& run) {
    parallel_pieces(loop, a.rows, task_rows, [&](int first, int end) {
        for (int i = 0; i < a.n; ++i) run(i, first, end - first);
    });
}

}  // namespace
}  // namespace codegemm

extern "C" void before(codegemm::ParallelFor loop, const codegemm::TransformedArgs* args) {
    using namespace codegemm;
    const TransformedArgs& a = *args;
    parallel_for(loop, a.n, [&](int i) {
        float* x = static_cast<float*>(a.out) + size_t(i) * a.terms * a.in_features;
        const size_t first = size_t(i) * a.in_features;
        if (a.order)
            to_float(a.x, Dtype(a.x_dtype), first, a.order, x, a.in_features);
        else
            to_float(a.x, Dtype(a.x_dtype), first, x, a.in_features);
        if (a.factors) {
            for (int k = 0; k < a.in_features; ++k) x[k] *= a.factors[k];
            walsh_hadamard(x, a.in_features, a.block);
        }
        if (a.addends)
            for (int g = 0, width = a.in_features / a.groups; g < a.groups; ++g)
                a.workspace[size_t(i) * a.groups + g] = sum(x + g * width, width);
        for (int term = 1; term < a.terms; ++term)
            std::memcpy(x + size_t(term) * a.in_features, x, 4 * size_t(a.in_features));
    });
}

extern "C" void add_offsets(codegemm::ParallelFor loop, const codegemm::TransformedArgs* args) {
    using namespace codegemm;
    const TransformedArgs& a = *args;
    for_pieces(loop, a, [&](int i, int first, int count) {
        float* y = static_cast<float*>(a.out) + size_t(i) * a.rows + first;
        std::memset(y, 0, sizeof(float) * count);
        for (int g = 0; g < a.groups; ++g) {
            const float factor = a.workspace[size_t(i) * a.groups + g];
            const float* addends = a.addends + size_t(g) * a.rows + first;
            for (int row = 0; row < count; ++row) y[row] += factor * addends[row];
        }
        add_bias(a, i, first, y, count);
    });
}

extern "C" void after(codegemm::ParallelFor loop, const codegemm::TransformedArgs* args) {
    using namespace codegemm;
    const TransformedArgs& a = *args;
    for_pieces(loop, a, [&](int i, int first, int count) {
        const size_t at = size_t(i) * a.rows + first;
        float y[task_rows];
        to_float(a.x, Dtype(a.x_dtype), at, y, count);
        add_bias(a, i, first, y, count);
        from_float(y, 1, a.out, Dtype(a.out_dtype), at, count);
    });
}
