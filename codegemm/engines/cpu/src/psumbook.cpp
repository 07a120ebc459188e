// y = x @ W^T by Psumbooks (CodeGEMM): the inner products of all centroids with x, looked up by the codes.
//
// The k-vectors of a row are cut into tiles whose table fits L1. A task builds the tables of its tiles one after
// another and adds, for each of its rows, the entries that the row's codes name:
//
//                tile 0   tile 1   tile 2   tile 3
//              +--------+--------+--------+--------+
//     rows     |   task 0        |   task 1        |      a piece = some tiles, a slice = some rows of one part
//     slice 0  |                 |                 |      position = (k-vector, codebook)
//              +--------+--------+--------+--------+
//     slice 1  |   task 2        |   task 3        |
//              +--------+--------+--------+--------+
//                piece 0           piece 1
//
// A vector's lanes are rows: the codes lie as [tile][block of 16 rows][position][row], so that 16 rows look up their
// entries of one position together, and no sum crosses lanes. Rows are padded to whole blocks.
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
    void* workspace;         // x as float [in_features, width], sums [pieces, padded rows, width], counters [slices]
    const uint8_t* codes;    // [tile][block][k-vector of the tile][codebook][lane]
    const float* codebooks;  // [parts][m][v][stride]: component t of all centroids side by side
    const half* scales;      // [groups][padded rows]
    const int32_t* tiles;    // [tile_count + 1] first k-vector of each tile
    const int32_t* pieces;   // [piece_count + 1] first tile of each piece
    const int32_t* slices;   // [slice_count][5] part, first row, end row, first padded row, end padded row
    int32_t piece_count, slice_count;
    int32_t x_dtype, out_dtype;
    int32_t n, rows, padded_rows, in_features;
    int32_t v, m, stride;   // stride: entries of a table, 2^b and at least 16
    int32_t group_vectors;  // k-vectors that share a scale; a tile is part of a group or some whole groups
};

constexpr int prefetch_bytes = 4096;
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

// For each of 16 rows (lanes) the sum of `count` entries, one for each position: codes [position][lane].
template <int STRIDE>
inline vec<lanes> gather_rows(const float* table, int run_time_stride, const uint8_t* codes, int count) {
    const size_t stride = STRIDE ? STRIDE : run_time_stride;
#if defined(__AVX512F__) && !defined(__znver4__) && !defined(__znver5__)  // AMD gathers slower than it loads
    __m512 even = _mm512_setzero_ps(), odd = even;
    auto entries = [&](int p) {
        const __m128i lane_codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + p * lanes));
        return _mm512_i32gather_ps(_mm512_cvtepu8_epi32(lane_codes), table + p * stride, 4);
    };
    int p = 0;
    for (; p + 2 <= count; p += 2) {
        even = _mm512_add_ps(even, entries(p));
        odd = _mm512_add_ps(odd, entries(p + 1));
    }
    if (p < count) even = _mm512_add_ps(even, entries(p));
    return vec<lanes>(_mm512_add_ps(even, odd));
#else
    vec<lanes> result;
    for (int half = 0; half < lanes; half += 8, codes += 8) {
        // Named, not an array: compilers keep these in registers.
        float sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0, sum4 = 0, sum5 = 0, sum6 = 0, sum7 = 0;
        for (int p = 0; p < count; ++p) {
            const float* t = table + p * stride;
            const uint8_t* c = codes + p * lanes;
            sum0 += t[c[0]], sum1 += t[c[1]], sum2 += t[c[2]], sum3 += t[c[3]];
            sum4 += t[c[4]], sum5 += t[c[5]], sum6 += t[c[6]], sum7 += t[c[7]];
        }
        store<8>(reinterpret_cast<float*>(&result) + half, vec<8>{sum0, sum1, sum2, sum3, sum4, sum5, sum6, sum7});
    }
    return result;
#endif
}

// The same for one lane and WIDTH rows of x.
template <int WIDTH, int STRIDE>
inline vec<WIDTH> gather(const float* table, int run_time_stride, const uint8_t* codes, int count) {
    const size_t stride = size_t(STRIDE ? STRIDE : run_time_stride) * WIDTH;
    vec<WIDTH> sum0{}, sum1{}, sum2{}, sum3{};
    auto entry = [&](int p) { return load<WIDTH>(table + p * stride + codes[p * lanes] * WIDTH); };
    int p = 0;
    for (; p + 4 <= count; p += 4) sum0 += entry(p), sum1 += entry(p + 1), sum2 += entry(p + 2), sum3 += entry(p + 3);
    for (; p < count; ++p) sum0 += entry(p);
    return (sum0 + sum1) + (sum2 + sum3);
}

// Adds a tile's part of the (padded) rows first_row .. end_row-1 to sums [row][WIDTH].
template <int WIDTH, int STRIDE>
void add_tile(const PsumbookArgs& a, int first, int end, int first_row, int end_row, const float* table, float* sums) {
    const int positions = (end - first) * a.m;
    const int per_group = (end - first < a.group_vectors ? end - first : a.group_vectors) * a.m;
    const size_t group_entries = size_t(per_group) * a.stride * WIDTH;
    const uint8_t* codes = a.codes + size_t(first) * a.m * a.padded_rows + size_t(first_row) * positions;
    const half* scales = a.scales + size_t(first / a.group_vectors) * a.padded_rows;
    for (int row = first_row; row < end_row; row += lanes, codes += positions * lanes, sums += lanes * WIDTH) {
        // Some rows ahead: without it the hardware's prefetchers stop at every page of a new tile.
        for (int i = 0; i < positions * lanes; i += 64) __builtin_prefetch(codes + prefetch_bytes + i);
        const half* scale = scales + row;
        const float* group_table = table;
        for (int p = 0; p < positions; p += per_group, scale += a.padded_rows, group_table += group_entries) {
            const uint8_t* group_codes = codes + p * lanes;
            if constexpr (WIDTH == 1) {
                const auto sum = gather_rows<STRIDE>(group_table, a.stride, group_codes, per_group);
                store<lanes>(sums, load<lanes>(sums) + sum * widen<lanes>(scale));
            } else {
                for (int lane = 0; lane < lanes; ++lane) {
                    const auto sum = gather<WIDTH, STRIDE>(group_table, a.stride, group_codes + lane, per_group);
                    float* to = sums + lane * WIDTH;
                    store<WIDTH>(to, load<WIDTH>(to) + sum * float(scale[lane]));
                }
            }
        }
    }
}

template <int WIDTH, int STRIDE>
void multiply(ParallelFor loop, const PsumbookArgs& a) {
    float* x = static_cast<float*>(a.workspace);
    float* partial = x + size_t(a.in_features) * WIDTH;
    auto* finished = reinterpret_cast<std::atomic<int32_t>*>(partial + size_t(a.piece_count) * a.padded_rows * WIDTH);
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
        const int32_t* s = a.slices + 5 * slice;
        const int part = s[0], first_row = s[1], end_row = s[2], first_padded = s[3], end_padded = s[4];
        float* sums = partial + (size_t(piece) * a.padded_rows + first_padded) * WIDTH;
        std::memset(sums, 0, size_t(end_padded - first_padded) * WIDTH * sizeof(float));
        for (int t = a.pieces[piece]; t < a.pieces[piece + 1]; ++t) {
            build<WIDTH>(a, part, a.tiles[t], a.tiles[t + 1], x, table);
            add_tile<WIDTH, STRIDE>(a, a.tiles[t], a.tiles[t + 1], first_padded, end_padded, table, sums);
        }
        if (finished[slice].fetch_add(1, std::memory_order_acq_rel) != a.piece_count - 1) return;

        float* total = partial + size_t(first_padded) * WIDTH;
        const size_t count = size_t(end_row - first_row) * WIDTH;
        for (int p = 1; p < a.piece_count; ++p) {
            const float* more = total + size_t(p) * a.padded_rows * WIDTH;
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
