// y = x @ W^T by decoding a block of W that stays in cache and multiplying it by every row of x.
//
//            K tile 0     K tile 1
//          +-----------+-----------+
//   rows   |  decode: scale * sum of centroids, float [block rows][tile]
//   block  |  then y[n][row] += x[n][tile] . W[row][tile], 4 x 4 dot products at a time
//          +-----------+-----------+
//
// A task is one block of rows over all of K, so nothing is summed across tasks.
#include <type_traits>

#include "floats.hpp"
#include "lookup.hpp"
#include "parallel.hpp"

namespace codegemm {

struct DequantArgs {
    const void* x;          // [n, in_features], x_dtype
    void* out;              // [n, rows], out_dtype
    float* workspace;       // x as float [n][padded in_features], sums [n][rows]
    const float* bias;      // [rows], or null
    const void* codes;      // [rows][vectors][m], uint8 or uint16; uint8 as psumbook.hpp has them where there are tiles
    const void* codebooks;  // [parts][m][centroids][v], float (uint8 codes) or half (uint16 codes)
    const half* scales;     // [rows][groups]
    const int32_t* blocks;  // [block_count][3] part, first row, end row
    const int32_t* tiles;   // null, or psumbook.hpp's; then a block is a group of rows of lookup.hpp
    const int32_t* places;  // [block_count][3] padded row; begin and end of the block of padded rows that it is in
    int32_t block_count, padded_rows;
    int32_t x_dtype, out_dtype;
    int32_t bias_pitch;  // from one row of x to the next; 0: one bias for all
    int32_t n, rows, in_features;
    int32_t v, m, centroids, wide_codes;  // wide_codes: uint16
    int32_t group_vectors;                // k-vectors that share a scale
    int32_t tile_vectors;                 // k-vectors of a tile; tile_vectors * v is a multiple of `lanes`
};

constexpr int max_block_rows = group_rows, max_tile = 512, max_m = 8;

namespace {

// Sums of dot products that the registers hold at once: rows of W times rows of x.
constexpr int dot_rows = 4, dot_batch = wide == 16 ? 4 : 2;
constexpr int l2_batch = 32;  // rows of x whose tile stays in L2 beside the block

typedef uint8_t bytes __attribute__((vector_size(16)));

// to[row_at(place)][position] of 16 places and up to 16 positions, whose codes lie `pitch` apart. Writes 16 positions.
inline void transpose(const uint8_t* codes, size_t pitch, int positions, int place, uint8_t* to, size_t to_pitch) {
    bytes rows[2][16] = {};
    for (int p = 0; p < positions; ++p) std::memcpy(&rows[0][p], codes + p * pitch, 16);
    for (int step = 0; step < 4; ++step) {  // a perfect shuffle, four times
        const bytes* from = rows[step % 2];
        bytes* mixed = rows[1 - step % 2];
        for (int i = 0; i < 8; ++i) {
            mixed[2 * i] =
                __builtin_shufflevector(from[i], from[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            mixed[2 * i + 1] = __builtin_shufflevector(from[i], from[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13,
                                                       29, 14, 30, 15, 31);
        }
    }
    for (int i = 0; i < 16; ++i) std::memcpy(to + row_at(place + i) * to_pitch, &rows[0][i], 16);
}

// to[row][k-vector][m] of a block's rows and k-vectors first .. end-1, out of tiles. Behind a row's end 16 bytes more
// are written.
void collect(const DequantArgs& a, const int32_t* place, int first, int end, uint8_t* to, size_t to_pitch) {
    const int padded_row = place[0], begin_row = place[1], block_rows = place[2] - place[1];
    const int32_t* tile = a.tiles;
    while (tile[1] <= first) ++tile;
    for (int from = first; from < end; from = tile[1], ++tile) {
        const int stop = tile[1] < end ? tile[1] : end, positions = (stop - from) * a.m;
        const size_t tile_codes = size_t(tile[1] - tile[0]) * a.m;
        const uint8_t* codes = static_cast<const uint8_t*>(a.codes) + size_t(tile[0]) * a.m * a.padded_rows +
                               tile_codes * begin_row + size_t(from - tile[0]) * a.m * block_rows +
                               (padded_row - begin_row);
        for (int p = 0; p < positions; p += 16)
            for (int i = 0; i < group_rows; i += 16)
                transpose(codes + size_t(p) * block_rows + i, block_rows, positions - p < 16 ? positions - p : 16, i,
                          to + (from - first) * a.m + p, to_pitch);
    }
}

// block[row][tile] of a block's rows and k-vectors first .. end-1. A row's end up to the pitch is left as it is: there
// x is zero. V 0: v known at run time only.
template <class Code, class Centroid, int V>
void decode(const DequantArgs& a, int number, int first, int end, int pitch, float* block) {
    const int32_t* rows = a.blocks + 3 * number;
    const int part = rows[0], first_row = rows[1], end_row = rows[2];
    const int v = V ? V : a.v, m = a.m;
    const int vectors = a.in_features / v, groups = vectors / a.group_vectors;
    const size_t book = size_t(a.centroids) * v;
    const auto* books = static_cast<const Centroid*>(a.codebooks) + size_t(part) * m * book;
    const Code* row_codes = static_cast<const Code*>(a.codes) + (size_t(first_row) * vectors + first) * m;
    size_t codes_pitch = size_t(vectors) * m;
    if constexpr (sizeof(Code) == 1)
        if (a.tiles) {
            alignas(64) static thread_local uint8_t collected[max_block_rows * (max_tile * max_m + 16)];
            codes_pitch = size_t(end - first) * m + 16;
            collect(a, a.places + 3 * number, first, end, collected, codes_pitch);
            row_codes = collected;
        }
    for (int row = first_row; row < end_row; ++row, block += pitch, row_codes += codes_pitch) {
        const Code* codes = row_codes;
        const half* scales = a.scales + size_t(row) * groups;
        for (int p = 0; p < (end - first) * m * int(sizeof(Code)); p += 64)
            __builtin_prefetch(reinterpret_cast<const char*>(codes + codes_pitch) + p);
        float* to = block;
        for (int j = first; j < end;) {
            const int group = j / a.group_vectors;
            const int group_end = (group + 1) * a.group_vectors < end ? (group + 1) * a.group_vectors : end;
            const float scale = float(scales[group]);
            for (; j < group_end; ++j, codes += m, to += v) {
                const Centroid* centroid = books + size_t(codes[0]) * v;
                if constexpr (V != 0) {
                    vec<V> sum = widen<V>(centroid);
                    for (int c = 1; c < m; ++c) sum += widen<V>(books + c * book + size_t(codes[c]) * V);
                    store<V>(to, sum * scale);
                } else {
                    float sum[16];
                    for (int t = 0; t < v; ++t) sum[t] = float(centroid[t]);
                    for (int c = 1; c < m; ++c) {
                        centroid = books + c * book + size_t(codes[c]) * v;
                        for (int t = 0; t < v; ++t) sum[t] += float(centroid[t]);
                    }
                    for (int t = 0; t < v; ++t) to[t] = sum[t] * scale;
                }
            }
        }
    }
}

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
void multiply_block(const float* x, size_t x_pitch, int n, const float* block, int pitch, int rows, float* y,
                    size_t y_pitch) {
    for (int some = 0; some < n; some += l2_batch) {
        const int end = some + l2_batch < n ? some + l2_batch : n;
        for (int r = 0; r < rows; r += dot_rows) {
            const int left = rows - r < dot_rows ? rows - r : dot_rows;
            const float* w = block + r * pitch;
            int i = some;
            for (; i + dot_batch <= end; i += dot_batch)
                dot<dot_batch>(x + i * x_pitch, x_pitch, w, pitch, pitch, left, y + i * y_pitch + r, y_pitch);
            for (; i < end; ++i) dot<1>(x + i * x_pitch, x_pitch, w, pitch, pitch, left, y + i * y_pitch + r, y_pitch);
        }
    }
}

template <class Code, class Centroid, int V>
void multiply(ParallelFor loop, const DequantArgs& a) {
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
        const int32_t* b = a.blocks + 3 * task;
        const int first_row = b[1], count = b[2] - first_row;
        const int vectors = a.in_features / a.v;
        for (int i = 0; i < a.n; ++i) std::memset(y + size_t(i) * a.rows + first_row, 0, count * sizeof(float));
        for (int first = 0; first < vectors; first += a.tile_vectors) {
            const int end = first + a.tile_vectors < vectors ? first + a.tile_vectors : vectors;
            const int pitch = ((end - first) * a.v + lanes - 1) / lanes * lanes;
            decode<Code, Centroid, V>(a, task, first, end, pitch, block);
            multiply_block(x + size_t(first) * a.v, x_pitch, a.n, block, pitch, count, y + first_row, a.rows);
        }
        for (int i = 0; i < a.n; ++i) {
            const size_t place = size_t(i) * a.rows + first_row;
            add_bias(a, i, first_row, y + place, count);
            from_float(y + place, 1, a.out, Dtype(a.out_dtype), place, count);
        }
    });
}

// Decodes blocks first .. end-1 to dense [row][in_features].
template <class Code, class Centroid, int V>
void dequantize(ParallelFor loop, const DequantArgs& a, float* dense, int first, int end) {
    const int32_t* blocks = a.blocks + 3 * first;
    const int vectors = a.in_features / a.v, step = a.tiles ? a.tile_vectors : vectors;
    parallel_for(loop, end - first, [&](int task) {
        float* rows = dense + size_t(blocks[3 * task + 1] - blocks[1]) * a.in_features;
        for (int j = 0; j < vectors; j += step)
            decode<Code, Centroid, V>(a, first + task, j, j + step < vectors ? j + step : vectors, a.in_features,
                                      rows + j * a.v);
    });
}

// Calls `run` with the template arguments <Code, Centroid, V> that the weight needs, as a null pointer and a constant.
template <class Code, class Centroid, class Run>
void specialise(int v, Run&& run) {
    const Code* code = nullptr;
    const Centroid* centroid = nullptr;
    switch (v) {
        case 4: return run(code, centroid, std::integral_constant<int, 4>());
        case 8: return run(code, centroid, std::integral_constant<int, 8>());
        case 16: return run(code, centroid, std::integral_constant<int, 16>());
        default: return run(code, centroid, std::integral_constant<int, 0>());
    }
}

template <class Run>
void specialise(const DequantArgs& a, Run&& run) {
    if (a.wide_codes)
        specialise<uint16_t, half>(a.v, run);
    else
        specialise<uint8_t, float>(a.v, run);
}

}  // namespace
}  // namespace codegemm

extern "C" {

void dequant(codegemm::ParallelFor loop, const codegemm::DequantArgs* args) {
    using namespace codegemm;
    specialise(*args, [&](auto* code, auto* centroid, auto v) {
        multiply<std::decay_t<decltype(*code)>, std::decay_t<decltype(*centroid)>, v>(loop, *args);
    });
}

void dequantize(codegemm::ParallelFor loop, const codegemm::DequantArgs* args, float* dense, int first_block,
                int end_block) {
    using namespace codegemm;
    specialise(*args, [&](auto* code, auto* centroid, auto v) {
        dequantize<std::decay_t<decltype(*code)>, std::decay_t<decltype(*centroid)>, v>(loop, *args, dense, first_block,
                                                                                        end_block);
    });
}
}
