// y = x @ W^T by decoding a block of W that stays in cache and multiplying it by every row of x.
//
//            K tile 0     K tile 1
//          +-----------+-----------+
//   rows   |  decode: scale * sum of centroids, float [block rows][tile]
//   block  |  then y[n][row] += x[n][tile] . W[row][tile]
//          +-----------+-----------+
//
// A task is one block of rows over all of K, so nothing is summed across tasks.
#include "decode.hpp"
#include "dots.hpp"
#include "panels.hpp"
#include "parallel.hpp"
#ifdef __AVX512BF16__
#include "bfloat16.hpp"
#endif
#ifdef __AVX512VNNI__
#include "integers.hpp"
#endif

namespace codegemm {

constexpr int few_rows = 8;  // of x, multiplied by dot products

namespace {

// K-vectors of the largest tile: dot products gain by it what decoding does.
int most_vectors(const DequantArgs& a) {
    return max_tile / (a.tile_vectors * a.v) * a.tile_vectors;
}

void multiply_few(ParallelFor loop, const DequantArgs& a) {
    const Decode decode = decode_for(a);
    const size_t x_pitch = (a.in_features + lanes - 1) / lanes * lanes;
    float* x = a.workspace;
    for (int i = 0; i < a.n; ++i) {
        float* row = x + i * x_pitch;
        to_float(a.x, Dtype(a.x_dtype), size_t(i) * a.in_features, row, a.in_features);
        for (size_t k = a.in_features; k < x_pitch; ++k) row[k] = 0;
    }
    float* y = x + a.n * x_pitch;

    parallel_for(loop, a.block_count, [&](int task) {
        alignas(64) static thread_local float block[max_block_rows * max_tile];
        alignas(64) static thread_local uint8_t collected[max_block_rows * (max_tile * max_m + 16)];
        const int32_t* b = a.blocks + 3 * task;
        const int first_row = b[1], count = b[2] - first_row;
        const int vectors = a.in_features / a.v, most = most_vectors(a);
        for (int i = 0; i < a.n; ++i) std::memset(y + size_t(i) * a.rows + first_row, 0, count * sizeof(float));
        for (int first = 0; first < vectors; first += most) {
            const CodeTile tile(a, task, first, std::min(first + most, vectors), collected);
            const int width = (tile.end - first) * a.v, pitch = (width + lanes - 1) / lanes * lanes;
            decode(tile, 0, count, block, pitch);  // up to a row's end: beyond it x is zero, and weights are finite
            add_dots(x + size_t(first) * a.v, x_pitch, a.n, block, pitch, count, y + first_row, a.rows);
        }
        for (int i = 0; i < a.n; ++i) {
            const size_t place = size_t(i) * a.rows + first_row;
            add_bias(a, i, first_row, y + place, count);
            from_float(y + place, 1, a.out, Dtype(a.out_dtype), place, count);
        }
    });
}

#if defined(__AMX_BF16__)
using Exact = Tiles<2>;
using Fast = Tiles<1>;
#elif defined(__AVX512BF16__)
using Exact = Broadcast<FloatLanes>;
using Fast = Broadcast<PairLanes>;
#else
using Exact = Broadcast<FloatLanes>;
#endif

}  // namespace
}  // namespace codegemm

extern "C" {

void dequant(codegemm::ParallelFor loop, const codegemm::DequantArgs* args) {
    using namespace codegemm;
    if (args->n <= few_rows) multiply_few(loop, *args);
#ifdef __AVX512VNNI__
    else if (args->integers)
        multiply_panels<Integers>(loop, *args);
#endif
    else
        multiply_panels<Exact>(loop, *args);
}

#ifdef __AVX512BF16__
void dequant_fast(codegemm::ParallelFor loop, const codegemm::DequantArgs* args) {
    codegemm::multiply_panels<codegemm::Fast>(loop, *args);
}
#endif

// Decodes blocks first .. end-1 to dense [row][in_features].
void dequantize(codegemm::ParallelFor loop, const codegemm::DequantArgs* args, float* dense, int first_block,
                int end_block) {
    using namespace codegemm;
    const DequantArgs& a = *args;
    const Decode decode = decode_for(a);
    const int vectors = a.in_features / a.v, most = most_vectors(a), first_row = a.blocks[3 * first_block + 1];
    parallel_for(loop, end_block - first_block, [&](int task) {
        alignas(64) static thread_local uint8_t collected[max_block_rows * (max_tile * max_m + 16)];
        const int32_t* block = a.blocks + 3 * (first_block + task);
        float* rows = dense + size_t(block[1] - first_row) * a.in_features;
        for (int first = 0; first < vectors; first += most) {
            const CodeTile tile(a, first_block + task, first, std::min(first + most, vectors), collected);
            decode(tile, 0, block[2] - block[1], rows + size_t(first) * a.v, a.in_features);
        }
    });
}
}
