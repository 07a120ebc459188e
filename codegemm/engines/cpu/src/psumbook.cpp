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
// The codes of 256 rows lie side by side for each position, so that no sum crosses lanes. Entries are bytes for few
// rows of x, looked up by permutations (byte_tables.hpp), words for more (word_tables.hpp).
//
// Each task writes its sums to the workspace; then the pieces are added in order. So the cut, and with it every
// rounding, depends on the shape alone.
#include <cmath>

#include "byte_tables.hpp"
#include "parallel.hpp"
#include "word_tables.hpp"

namespace codegemm {
namespace {

constexpr int finished_rows = 1024;  // that a task adds up at the end

// A thread's tables: floats of a tile for one row of x, then bytes of it for each; or floats of some positions for 16
// rows, then words of a tile.
constexpr size_t table_entries = max_table_bytes / 4;
constexpr size_t task_bytes = chunk_entries * batch * sizeof(float) + table_entries * batch * sizeof(uint16_t);

uint8_t* task_memory() {
    alignas(64) static thread_local uint8_t memory[task_bytes];
    return memory;
}

// run(piece, slice's description): fills its part of the sums.
template <class Run>
void for_tasks(ParallelFor loop, const PsumbookArgs& a, Run&& run) {
    parallel_for(loop, a.slice_count * a.piece_count,
                 [&](int task) { run(task % a.piece_count, a.slices + 5 * (task / a.piece_count)); });
}

// run(first row, count, first padded row) for parts of all slices.
template <class Run>
void for_rows(ParallelFor loop, const PsumbookArgs& a, Run&& run) {
    int longest = 0;
    for (int s = 0; s < a.slice_count; ++s) {
        const int rows = a.slices[5 * s + 2] - a.slices[5 * s + 1];
        longest = rows > longest ? rows : longest;
    }
    const int parts = (longest + finished_rows - 1) / finished_rows;
    parallel_for(loop, a.slice_count * parts, [&](int task) {
        const int32_t* s = a.slices + 5 * (task / parts);
        const int skipped = task % parts * finished_rows, rows = s[2] - s[1] - skipped;
        if (rows > 0) run(s[1] + skipped, rows < finished_rows ? rows : finished_rows, s[3] + skipped);
    });
}

// total[i] += the same of the other pieces, `pitch` floats apart.
[[gnu::noinline]] void add_pieces(const PsumbookArgs& a, float* total, size_t count, size_t pitch) {
    for (int p = 1; p < a.piece_count; ++p)
        for (size_t i = 0; i < count; ++i) total[i] += total[p * pitch + i];
}

// x [in_features] of row i in float, under the power of two that brings its largest element near 1. Returns the inverse
// power, or NaN for a row with a NaN or an infinity, of which integers would lose track.
[[gnu::noinline]] float scale_row(const PsumbookArgs& a, int i, float* x) {
    to_float(a.x, Dtype(a.x_dtype), size_t(i) * a.in_features, x, a.in_features);
    uint32_t most = 0;
    for (int k = 0; k < a.in_features; ++k) {
        uint32_t bits;
        std::memcpy(&bits, x + k, 4);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    const uint32_t exponent = most >> 23;
    // Both powers are normal numbers.
    const uint32_t power = exponent == 255 ? 127 : exponent < 1 ? 253 : exponent > 253 ? 1 : 254 - exponent;
    const uint32_t words[2] = {power << 23, (254 - power) << 23};
    float powers[2];
    std::memcpy(powers, words, sizeof powers);
    for (int k = 0; k < a.in_features; ++k) x[k] *= powers[0];
    return exponent == 255 ? NAN : powers[1];
}

// x [n][in_features] of all rows, the inverse powers to unscale [n].
void scale_rows(ParallelFor loop, const PsumbookArgs& a, float* x, float* unscale) {
    parallel_for(loop, a.n, [&](int i) { unscale[i] = scale_row(a, i, x + size_t(i) * a.in_features); });
}

// workspace: unscale [16], x [n][in_features], sums [piece][row of x][padded rows].
template <int ENTRIES, int PLANES>
void multiply_bytes(ParallelFor loop, const PsumbookArgs& a) {
    float* unscale = static_cast<float*>(a.workspace);
    float* x = unscale + batch;
    float* sums = x + size_t(a.n) * a.in_features;
    const size_t piece_floats = size_t(a.n) * a.padded_rows;
    scale_rows(loop, a, x, unscale);

    for_tasks(loop, a, [&](int piece, const int32_t* s) {
        float* scratch = reinterpret_cast<float*>(task_memory());
        uint8_t* tables = task_memory() + max_table_bytes;
        float* mine = sums + piece * piece_floats + s[3];
        for (int i = 0; i < a.n; ++i) std::memset(mine + size_t(i) * a.padded_rows, 0, sizeof(float) * (s[4] - s[3]));
        for (int t = a.pieces[piece]; t < a.pieces[piece + 1]; ++t) {
            const Tile tile{a.tiles[t], a.tiles[t + 1]};
            add_tile<ENTRIES, PLANES>(a, s[0], tile, s[3], s[4], x, scratch, tables, mine, a.padded_rows);
        }
    });
    for_rows(loop, a, [&](int row, int count, int padded) {
        for (int i = 0; i < a.n; ++i) {
            float* total = sums + size_t(i) * a.padded_rows + padded;
            add_pieces(a, total, count, piece_floats);
            for (int r = 0; r < count; ++r) total[r] *= unscale[i];
            add_bias(a.bias, row, total, count);
            from_float(total, 1, a.out, Dtype(a.out_dtype), size_t(i) * a.rows + row, count);
        }
    });
}

// interleaved [in_features][16] of x [n][in_features], zeros beyond n.
void interleave_rows(ParallelFor loop, const PsumbookArgs& a, const float* x, float* interleaved) {
    constexpr int columns = 1024;  // of a task
    parallel_pieces(loop, a.in_features, columns, [&](int first, int end) {
        std::memset(interleaved + size_t(first) * batch, 0, sizeof(float) * batch * (end - first));
        for (int i = 0; i < a.n; ++i)
            for (int k = first; k < end; ++k) interleaved[size_t(k) * batch + i] = x[size_t(i) * a.in_features + k];
    });
}

// workspace: unscale [16], x [n][in_features], x [in_features][16], sums [piece][padded row][16].
template <int ENTRIES>
void multiply_words(ParallelFor loop, const PsumbookArgs& a) {
    float* unscale = static_cast<float*>(a.workspace);
    float* rows_of_x = unscale + batch;
    float* x = rows_of_x + size_t(batch) * a.in_features;
    float* sums = x + size_t(batch) * a.in_features;
    const size_t piece_floats = size_t(a.padded_rows) * batch;
    scale_rows(loop, a, rows_of_x, unscale);
    interleave_rows(loop, a, rows_of_x, x);

    for_tasks(loop, a, [&](int piece, const int32_t* s) {
        float* scratch = reinterpret_cast<float*>(task_memory());
        words* tables = reinterpret_cast<words*>(scratch + chunk_entries * batch);
        float* mine = sums + piece * piece_floats + size_t(s[3]) * batch;
        std::memset(mine, 0, sizeof(float) * (s[4] - s[3]) * batch);
        for (int t = a.pieces[piece]; t < a.pieces[piece + 1]; ++t) {
            const Tile tile{a.tiles[t], a.tiles[t + 1]};
            add_tile_words<ENTRIES>(a, s[0], tile, s[3], s[4], x, scratch, tables, mine);
        }
    });
    for_rows(loop, a, [&](int row, int count, int padded) {
        for (int r = 0; r < count; r += group_rows) {
            float* total = sums + size_t(padded + r) * batch;
            add_pieces(a, total, size_t(group_rows) * batch, piece_floats);
            float y[batch * group_rows];
            transpose_group(total, y);
            const int rows = count - r < group_rows ? count - r : group_rows;
            for (int i = 0; i < a.n; ++i) {
                float* yi = y + i * group_rows;
                for (int j = 0; j < rows; ++j) yi[j] *= unscale[i];
                add_bias(a.bias, row + r, yi, rows);
                from_float(yi, 1, a.out, Dtype(a.out_dtype), size_t(i) * a.rows + row + r, rows);
            }
        }
    });
}

constexpr int few_entries = 16, some_entries = 64, most_entries = 256;

// run(entries of a table, as a constant).
template <class Run>
void for_entries(int entries, Run&& run) {
    switch (entries) {
        case few_entries: return run(std::integral_constant<int, few_entries>());
        case some_entries: return run(std::integral_constant<int, some_entries>());
        default: return run(std::integral_constant<int, most_entries>());
    }
}

}  // namespace
}  // namespace codegemm

extern "C" {

// Entries of `planes` bytes, 1 or 2, for each row of x.
void psumbook_bytes(codegemm::ParallelFor loop, const codegemm::PsumbookArgs* args, int planes) {
    using namespace codegemm;
    for_entries(args->entries, [&](auto entries) {
        planes == 1 ? multiply_bytes<entries, 1>(loop, *args) : multiply_bytes<entries, 2>(loop, *args);
    });
}

// Entries of words for 16 rows of x at a time.
void psumbook_words(codegemm::ParallelFor loop, const codegemm::PsumbookArgs* args, int) {
    using namespace codegemm;
    for_entries(args->entries, [&](auto entries) {
        PsumbookArgs some = *args;
        for (int i = 0; i < args->n; i += batch) {
            some.n = args->n - i < batch ? args->n - i : batch;
            some.x = element(args->x, Dtype(args->x_dtype), size_t(i) * args->in_features);
            some.out = element(args->out, Dtype(args->out_dtype), size_t(i) * args->rows);
            multiply_words<entries>(loop, some);
        }
    });
}
}
