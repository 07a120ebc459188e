// y = x @ W^T by Psumbooks (CodeGEMM): the inner products of all centroids with x, looked up by the codes.
//
// The k-vectors of a row are cut into tiles whose table fits L1. A task builds the tables of its tiles one after
// another and adds, for each of its rows, the entries that the row's codes name:
//
//                tile 0   tile 1   tile 2   tile 3
//              +--------+--------+--------+--------+
//     rows     |   task 0        |   task 1        |      a piece = some tiles, a slice = some rows of one part
//     slice 0  | codes: [tile][row][position]      |      position = (k-vector, codebook)
//              +--------+--------+--------+--------+
//     slice 1  |   task 2        |   task 3        |
//              +--------+--------+--------+--------+
//                piece 0           piece 1
//
// Each task writes its sums to the workspace; the last task of a slice adds the pieces in order. So the cut, and with
// it every rounding, depends on the shape alone.
#include <atomic>
#include <type_traits>

#include "floats.hpp"
#include "parallel.hpp"

namespace codegemm {

// Must match `PsumbookArgs` in psumbook.py.
struct PsumbookArgs {
    const void* x;           // [n, in_features], x_dtype
    void* out;               // [n, rows], out_dtype
    void* workspace;         // x as float [in_features, width], partial sums [pieces, rows, width], counters [slices]
    const uint8_t* codes;    // [tile][row][k-vector of the tile][codebook]
    const float* codebooks;  // [parts][m][v][stride]: component t of all centroids side by side
    const half* scales;      // [groups][rows]
    const int32_t* tiles;    // [tile_count + 1] first k-vector of each tile
    const int32_t* pieces;   // [piece_count + 1] first tile of each piece
    const int32_t* slices;   // [slice_count][3] part, first row, end row
    int32_t piece_count, slice_count;
    int32_t x_dtype, out_dtype;
    int32_t n, rows, in_features;
    int32_t v, m, stride;   // stride: entries of a table, 2^b and at least 16
    int32_t group_vectors;  // k-vectors that share a scale; a tile is part of a group or some whole groups
};

constexpr int prefetch_bytes = 2048;
constexpr int max_table_bytes = 32 << 10;  // of one row of x; must match `TABLE_BYTES` in psumbook.py

namespace {

// table[position][centroid][row of x] for k-vectors first .. end-1. WIDTH rows of x lie side by side.
template <int WIDTH>
void build(const PsumbookArgs& a, int part, int first, int end, const float* x, float* table) {
    const float* books = a.codebooks + size_t(part) * a.m * a.v * a.stride;
    for (int j = first; j < end; ++j) {
        const float* xj = x + size_t(j) * a.v * WIDTH;
        for (int c = 0; c < a.m; ++c, table += a.stride * WIDTH) {
            const float* book = books + size_t(c) * a.v * a.stride;
            if constexpr (WIDTH == 1) {
                for (int i = 0; i < a.stride; i += lanes) {
                    vec<lanes> sum = load<lanes>(book + i) * xj[0];
                    for (int t = 1; t < a.v; ++t) sum += load<lanes>(book + t * a.stride + i) * xj[t];
                    store<lanes>(table + i, sum);
                }
            } else {
                for (int i = 0; i < a.stride; ++i) {
                    vec<WIDTH> sum = load<WIDTH>(xj) * book[i];
                    for (int t = 1; t < a.v; ++t) sum += load<WIDTH>(xj + t * WIDTH) * book[t * a.stride + i];
                    store<WIDTH>(table + i * WIDTH, sum);
                }
            }
        }
    }
}

// The sum of `count` entries, one for each position, named by codes. STRIDE 0: known at run time only.
template <int WIDTH, int STRIDE>
inline vec<WIDTH> gather(const float* table, int stride, const uint8_t* codes, int count) {
    const size_t step = size_t(STRIDE ? STRIDE : stride) * WIDTH;
    // Named, not an array: compilers keep these four in registers.
    vec<WIDTH> sum0{}, sum1{}, sum2{}, sum3{};
    int p = 0;
    for (; p + 8 <= count; p += 8, table += 8 * step) {
        uint64_t eight;  // one load for eight codes leaves the load ports to the table
        std::memcpy(&eight, codes + p, 8);
        auto entry = [&](int i) { return load<WIDTH>(table + i * step + (eight >> 8 * i & 255) * WIDTH); };
        sum0 += entry(0), sum1 += entry(1), sum2 += entry(2), sum3 += entry(3);
        sum0 += entry(4), sum1 += entry(5), sum2 += entry(6), sum3 += entry(7);
    }
    for (; p < count; ++p, table += step) sum0 += load<WIDTH>(table + codes[p] * WIDTH);
    return (sum0 + sum1) + (sum2 + sum3);
}

// Adds a tile's part of rows first_row .. end_row-1 to sums [row][WIDTH].
template <int WIDTH, int STRIDE>
void add_tile(const PsumbookArgs& a, int first, int end, int first_row, int end_row, const float* table, float* sums) {
    const int positions = (end - first) * a.m;
    const uint8_t* codes = a.codes + size_t(first) * a.m * a.rows + size_t(first_row) * positions;
    const half* scales = a.scales + size_t(first / a.group_vectors) * a.rows;
    const int per_group = (end - first < a.group_vectors ? end - first : a.group_vectors) * a.m;
    for (int row = first_row; row < end_row; ++row, codes += positions, sums += WIDTH) {
        // Some rows ahead: without it the hardware's prefetchers stop at every page of a new tile.
        for (int p = 0; p < positions; p += 64) __builtin_prefetch(codes + prefetch_bytes + p);
        vec<WIDTH> sum = load<WIDTH>(sums);
        const half* scale = scales + row;
        for (int p = 0; p < positions; p += per_group, scale += a.rows)
            sum += gather<WIDTH, STRIDE>(table + size_t(p) * a.stride * WIDTH, a.stride, codes + p, per_group) *
                   float(*scale);
        store<WIDTH>(sums, sum);
    }
}

template <int WIDTH, int STRIDE>
void multiply(ParallelFor loop, const PsumbookArgs& a) {
    float* x = static_cast<float*>(a.workspace);
    float* partial = x + size_t(a.in_features) * WIDTH;
    auto* finished = reinterpret_cast<std::atomic<int32_t>*>(partial + size_t(a.piece_count) * a.rows * WIDTH);
    for (int s = 0; s < a.slice_count; ++s) finished[s].store(0, std::memory_order_relaxed);
    visit(Dtype(a.x_dtype), [&](auto* type) {
        const auto* typed = static_cast<decltype(type)>(const_cast<void*>(a.x));
        for (int k = 0; k < a.in_features; ++k)
            for (int i = 0; i < WIDTH; ++i)
                x[size_t(k) * WIDTH + i] = i < a.n ? float(typed[size_t(i) * a.in_features + k]) : 0.0f;
    });

    parallel_for(loop, a.slice_count * a.piece_count, [&](int task) {
        alignas(64) static thread_local float table[max_table_bytes / 4 * WIDTH];
        const int piece = task % a.piece_count, slice = task / a.piece_count;
        const int32_t* s = a.slices + 3 * slice;
        const int part = s[0], first_row = s[1], end_row = s[2];
        float* sums = partial + (size_t(piece) * a.rows + first_row) * WIDTH;
        std::memset(sums, 0, size_t(end_row - first_row) * WIDTH * sizeof(float));
        for (int t = a.pieces[piece]; t < a.pieces[piece + 1]; ++t) {
            build<WIDTH>(a, part, a.tiles[t], a.tiles[t + 1], x, table);
            add_tile<WIDTH, STRIDE>(a, a.tiles[t], a.tiles[t + 1], first_row, end_row, table, sums);
        }
        if (finished[slice].fetch_add(1, std::memory_order_acq_rel) != a.piece_count - 1) return;

        float* total = partial + size_t(first_row) * WIDTH;
        const size_t count = size_t(end_row - first_row) * WIDTH;
        for (int p = 1; p < a.piece_count; ++p) {
            const float* more = total + size_t(p) * a.rows * WIDTH;
            for (size_t i = 0; i < count; ++i) total[i] += more[i];
        }
        for (int i = 0; i < a.n; ++i)
            from_float(total + i, WIDTH, a.out, Dtype(a.out_dtype), size_t(i) * a.rows + first_row,
                       end_row - first_row);
    });
}

template <int WIDTH>
void multiply(ParallelFor loop, const PsumbookArgs& a) {
    if (a.stride == 256)
        multiply<WIDTH, 256>(loop, a);
    else
        multiply<WIDTH, 0>(loop, a);
}

}  // namespace
}  // namespace codegemm

// `width`: n rounded up to 1, 2, 4, 8 or 16, as the workspace was sized for.
extern "C" void psumbook(codegemm::ParallelFor loop, const codegemm::PsumbookArgs* args, int width) {
    using namespace codegemm;
    switch (width) {
        case 1: return multiply<1>(loop, *args);
        case 2: return multiply<2>(loop, *args);
        case 4: return multiply<4>(loop, *args);
        case 8: return multiply<8>(loop, *args);
        default: return multiply<16>(loop, *args);
    }
}
