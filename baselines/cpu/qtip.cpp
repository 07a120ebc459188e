// QTIP's product with trellis codes: rotate x, decode and multiply, rotate y; see qtip.py.
//
// Of 32 rows some columns at a time are decoded, which stay in the first cache while they are multiplied by every row
// of x. Two weights take a load of an index, a load of a pair and a store. On a Xeon of 2019 that is a cycle: gathers
// take a quarter more there with AVX-512 and four times as long with AVX2, permutations of registers a tenth more.
#include <cstring>

#include "incoherent.hpp"

namespace codegemm {

struct QtipArgs {
    const void* x;          // [n, in_features], x_dtype
    void* out;              // [n, rows], out_dtype
    float* workspace;       // of multiply_between_rotations
    const float* bias;      // [rows], or null
    const uint16_t* codes;  // [rows / 32][in_features / 32][2 bits words of a tile's row][8 of those][2 x 2 tiles]
    const float* pairs;     // [1024][2] by the upper bits of a state's hash
    const float* SU;        // [in_features]
    const float* SV;        // [rows]
    const float* had_in;    // [order_in][order_in], transposed
    const float* had_out;   // [order_out][order_out]
    int32_t x_dtype, out_dtype;
    int32_t bias_pitch;  // from one row of x to the next; 0: one bias for all
    int32_t n, rows, in_features;
    int32_t bits, order_in, order_out;
};

namespace {

constexpr int block = 32;          // rows and columns, of 2 x 2 tiles
constexpr int tile_rows = 8;       // that a tile's steps take one after the other, each two rows of weights
constexpr int row_steps = 16;      // of such a row
constexpr int words_at_once = 32;  // at one place of the rows of a block's tiles
constexpr int column_pair = 64;    // floats of two columns of a block
constexpr int blocks_at_once = 4;  // decoded: 16 KiB

// Floats of a register, and rows of x at a time: as many as have registers for the sums, four for each.
#if defined(__AVX512F__)
constexpr int width = 16, most_rows = 6;
#elif defined(__AVX2__)
constexpr int width = 8, most_rows = 3;
#elif defined(__ARM_NEON)
constexpr int width = 4, most_rows = 6;
#else
constexpr int width = 4, most_rows = 3;
#endif

typedef uint16_t Words __attribute__((vector_size(2 * words_at_once)));

// The upper ten bits of all states' hashes, [step][tile row][2 x 2 tiles].
template <int BITS>
inline void hash(const uint16_t* codes, uint16_t* found) {
    constexpr int count = 2 * BITS, next = 4;
    Words words[count + 1];
    std::memcpy(words, codes, sizeof(Words) * count);
    // A row's last states go on in the next row, those of a tile's last one in its first.
    auto* after = reinterpret_cast<char*>(words + count);
    std::memcpy(after, codes + next, 2 * (words_at_once - next));
    std::memcpy(after + 2 * (words_at_once - next), codes, 2 * next);
#pragma GCC unroll 16
    for (int step = 0; step < row_steps; ++step) {
        const int word = step * count / 16, bit = step * count % 16;
        const Words states = bit ? words[word] << bit | words[word + 1] >> (16 - bit) : words[word];
        const Words upper = states * (states + 1) >> 6;
        std::memcpy(found + step * words_at_once, &upper, sizeof(Words));
    }
}

// weights[column / 2][row][column % 2] of a block.
template <int BITS>
void decode(const uint16_t* codes, const float* pairs, float* weights) {
    alignas(64) uint16_t indices[row_steps][tile_rows][2][2];
    hash<BITS>(codes, indices[0][0][0]);
    for (int step = 0; step < row_steps; ++step)
        for (int below = 0; below < 2; ++below)
            for (int right = 0; right < 2; ++right) {
                const int column = 2 * (step / 4) + 8 * (step / 2 % 2) + 16 * right, row = 8 * (step % 2) + 16 * below;
                float* to = weights + column / 2 * column_pair + 2 * row;
                for (int r = 0; r < tile_rows; ++r)
                    std::memcpy(to + 2 * r, pairs + 2 * indices[step][r][below][right], 2 * sizeof(float));
            }
}

// Two floats, over and over.
inline vec<width> repeat(const float* two) {
    typedef uint64_t Pairs __attribute__((vector_size(4 * width)));
    uint64_t bits;
    std::memcpy(&bits, two, sizeof(bits));
    return vec<width>(bits + Pairs{});
}

// y[i][row] += of a block's rows and so many decoded columns, COUNT rows of x.
template <int COUNT>
void add_products(const QtipArgs& a, const float* weights, int columns, const float* x, float* y) {
    constexpr int registers = 4, part = registers * width;
    for (int first = 0; first < column_pair; first += part) {
        vec<width> sums[COUNT][registers] = {};
        for (int column = 0; column < columns; column += 2) {
            const float* w = weights + column / 2 * column_pair + first;
            for (int i = 0; i < COUNT; ++i) {
                const vec<width> two = repeat(x + size_t(i) * a.in_features + column);
                for (int r = 0; r < registers; ++r) sums[i][r] += load<width>(w + r * width) * two;
            }
        }
        for (int i = 0; i < COUNT; ++i) {
            alignas(64) float sum[part];
            std::memcpy(sum, sums[i], sizeof(sum));
            float* to = y + size_t(i) * a.rows + first / 2;
            for (int row = 0; row < part / 2; ++row) to[row] += sum[2 * row] + sum[2 * row + 1];
        }
    }
}

// The same for `count` rows of x, up to COUNT.
template <int COUNT>
void add_products(const QtipArgs& a, int count, const float* weights, int columns, const float* x, float* y) {
    if (count == COUNT) return add_products<COUNT>(a, weights, columns, x, y);
    if constexpr (COUNT > 1) add_products<COUNT - 1>(a, count, weights, columns, x, y);
}

// y of a block's rows.
template <int BITS>
void multiply_rows(const QtipArgs& a, const float* x, int first_row, float* y) {
    alignas(64) float weights[blocks_at_once * block * block];
    const int blocks = a.in_features / block, turns = (a.n + most_rows - 1) / most_rows;
    constexpr int words = 2 * BITS * words_at_once;
    const uint16_t* codes = a.codes + size_t(first_row / block) * blocks * words;
    y += first_row;
    for (int i = 0; i < a.n; ++i) std::memset(y + size_t(i) * a.rows, 0, block * sizeof(float));
    for (int first = 0; first < blocks; first += blocks_at_once) {
        const int count = blocks - first < blocks_at_once ? blocks - first : blocks_at_once;
        for (int b = 0; b < count; ++b, codes += words) decode<BITS>(codes, a.pairs, weights + b * block * block);
        for (int turn = 0; turn < turns; ++turn) {
            const int i = int(int64_t(a.n) * turn / turns), end = int(int64_t(a.n) * (turn + 1) / turns);
            add_products<most_rows>(a, end - i, weights, count * block, x + size_t(i) * a.in_features + first * block,
                                    y + size_t(i) * a.rows);
        }
    }
}

}  // namespace
}  // namespace codegemm

extern "C" void qtip(codegemm::ParallelFor loop, const codegemm::QtipArgs* args) {
    using namespace codegemm;
    const QtipArgs& a = *args;
    multiply_between_rotations(loop, a, [&](const float* x, float* y) {
        parallel_for(loop, a.rows / block, [&](int task) {
            if (a.bits == 2)
                multiply_rows<2>(a, x, task * block, y);
            else if (a.bits == 3)
                multiply_rows<3>(a, x, task * block, y);
            else
                multiply_rows<4>(a, x, task * block, y);
        });
    });
}
