// Rows of W out of its codes: blocks of rows and tiles of K, as floats.
#pragma once

#include "floats.hpp"
#include "lookup.hpp"

namespace codegemm {

struct DequantArgs {
    const void* x;          // [n, in_features], x_dtype
    void* out;              // [n, rows], out_dtype
    float* workspace;       // of dots.hpp or of panels.hpp
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
    int32_t tile_vectors;                 // k-vectors of a tile; tile_vectors * v is a multiple of tile_step
    // Of integers.hpp.
    const int16_t* integers;  // null, or the codebooks [parts][m][centroids][v] in units
    const float* units;       // [parts]
    int32_t chunk;            // components, of which `longest` is the length in integers, summed over m
    float longest;            // of all chunks of centroids
    // Of rows that may be mended (panels.hpp).
    const float* squares;            // [groups] sums of the squares of W's scales
    float w_square, w_row, w_group;  // of a component before its scale: its square, and its product with that of
                                     // another k-vector of the row, of the group, on average
    float rounded_square, rounded_row, rounded_group;  // the same of what their rounding takes
    float allowed;                                     // to lose, by expectation: of the square of y
};

constexpr int max_block_rows = group_rows, max_tile = 512, max_m = 8;
constexpr int tile_step = 32;    // of K: whole registers, and what the elements of panels.hpp need
constexpr int usual_tile = 256;  // of K: rows of W and of x fit L1

namespace decoding {

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

// to[row][k-vector][m] of a block's rows and k-vectors first .. end-1, out of the tiles of psumbook.hpp. Behind a row's
// end 16 bytes more are written.
inline void collect(const DequantArgs& a, const int32_t* place, int first, int end, uint8_t* to, size_t to_pitch) {
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

// to[k-vector][v] of `count` k-vectors that share a scale. V, M 0: v, m known at run time only.
template <class Code, class Centroid, int V, int M>
[[gnu::noinline]] void decode_group(const DequantArgs& a, const Code* codes, int count, const Centroid* books,
                                    float scale, float* to) {
    const int v = V ? V : a.v, m = M ? M : a.m;
    const size_t book = size_t(a.centroids) * v;
#pragma GCC unroll 8
    for (int j = 0; j < count; ++j, codes += m, to += v) {
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

}  // namespace decoding

// The codes of one tile of a block of rows.
struct CodeTile {
    const DequantArgs* args;
    int part, first_row, first, end;  // first, end: of its k-vectors
    const void* codes;                // [row][k-vector][m]
    size_t pitch;                     // of codes, from row to row
    size_t next;                      // from a row's codes to those that will be read after this tile

    // collected: [max_block_rows * (max_tile * max_m + 16)], for codes that lie in tiles.
    CodeTile(const DequantArgs& a, int block, int first, int end, uint8_t* collected)
        : args(&a), part(a.blocks[3 * block]), first_row(a.blocks[3 * block + 1]), first(first), end(end) {
        const size_t vectors = a.in_features / a.v, size = a.wide_codes ? 2 : 1;
        if (a.tiles) {
            pitch = size_t(end - first) * a.m + 16, next = 0, codes = collected;
            decoding::collect(a, a.places + 3 * block, first, end, collected, pitch);
        } else {
            pitch = vectors * a.m;
            codes = static_cast<const char*>(a.codes) + (first_row * pitch + size_t(first) * a.m) * size;
            next = end < int(vectors) ? size_t(end - first) * a.m : max_block_rows * pitch - size_t(first) * a.m;
        }
    }

    int width() const {  // in weights
        return (end - first) * args->v;
    }
};

// Asks for a row's codes of the next tile while `count` of this one are read. Into L1: of a wish for L2 some processors
// take no notice.
template <class Code>
inline void fetch_next(const CodeTile& tile, const Code* codes, int count) {
    const char* next = reinterpret_cast<const char*>(codes + tile.next);
    for (int i = 0; i < count * int(sizeof(Code)); i += 64) __builtin_prefetch(next + i);
}

// to[row][pitch] of some of the rows of a tile, as floats.
using Decode = void (*)(const CodeTile& tile, int row, int end_row, float* to, size_t pitch);

namespace decoding {

template <class Code, class Centroid, int V, int M>
void decode(const CodeTile& tile, int row, int end_row, float* to, size_t pitch) {
    const DequantArgs& a = *tile.args;
    const int v = V ? V : a.v, m = M ? M : a.m, groups = a.in_features / v / a.group_vectors;
    const auto* books = static_cast<const Centroid*>(a.codebooks) + size_t(tile.part) * m * a.centroids * v;
    for (; row < end_row; ++row, to += pitch) {
        const Code* codes = static_cast<const Code*>(tile.codes) + row * tile.pitch;
        const half* scales = a.scales + size_t(tile.first_row + row) * groups;
        fetch_next(tile, codes, (tile.end - tile.first) * m);
        for (int j = tile.first, next; j < tile.end; j = next) {
            const int group = j / a.group_vectors, group_end = (group + 1) * a.group_vectors;
            next = group_end < tile.end ? group_end : tile.end;
            decode_group<Code, Centroid, V, M>(a, codes + size_t(j - tile.first) * m, next - j, books,
                                               float(scales[group]), to + size_t(j - tile.first) * v);
        }
    }
}

template <class Code, class Centroid, int V>
Decode decode_for(int m) {
    return m == 1 ? decode<Code, Centroid, V, 1> : m == 2 ? decode<Code, Centroid, V, 2> : decode<Code, Centroid, V, 0>;
}

template <class Code, class Centroid>
Decode decode_for(int v, int m) {
    switch (v) {
        case 4: return decode_for<Code, Centroid, 4>(m);
        case 8: return decode_for<Code, Centroid, 8>(m);
        case 16: return decode<Code, Centroid, 16, 0>;
        default: return decode<Code, Centroid, 0, 0>;
    }
}

}  // namespace decoding

inline Decode decode_for(const DequantArgs& a) {
    return a.wide_codes ? decoding::decode_for<uint16_t, half>(a.v, a.m)
                        : decoding::decode_for<uint8_t, float>(a.v, a.m);
}

}  // namespace codegemm
