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
//
// Integers lose half a step of their table's range, however small the entries are that are looked up. So k-vectors that
// are much larger than the others of their row of x are left to tables of floats (float_tables.hpp); and where what is
// expected to be lost is still too much for y, the row is multiplied again, all of it by those.
#include <cmath>

#include "byte_tables.hpp"
#include "float_tables.hpp"
#include "parallel.hpp"

namespace codegemm {
namespace {

constexpr int finished_rows = 1024;  // that a task adds up at the end

constexpr double promised[] = {0, 3e-2, 2e-4};  // an error, of the norm of y, by bytes of an entry

// A thread's tables: floats of a tile for one row of x, then bytes of it for each; or floats of some positions for 16
// rows, then words of a tile.
constexpr size_t table_entries = max_table_bytes / 4;
constexpr size_t task_bytes = chunk_entries * batch * sizeof(float) + table_entries * batch * sizeof(uint16_t);

uint8_t* task_memory() {
    alignas(64) static thread_local uint8_t memory[task_bytes];
    return memory;
}

// Tasks that a slice's rows are cut into at the end.
int row_parts(const PsumbookArgs& a) {
    int longest = 0;
    for (int s = 0; s < a.slice_count; ++s) {
        const int rows = a.slices[5 * s + 2] - a.slices[5 * s + 1];
        longest = rows > longest ? rows : longest;
    }
    return (longest + finished_rows - 1) / finished_rows;
}

// What is in the workspace. x: rows under a power of two each, as scale_row does it.
struct Workspace {
    double* errors;      // [task][16] squares that the integers are expected to lose, summed over the task's rows of W
    double* norms;       // [task at the end][16] squares of y under the power, summed over the task's rows of W
    float* unscale;      // [16] the inverse powers
    float* rows;         // [16][in_features] x
    float* interleaved;  // [in_features][16] of words alone, x without marked k-vectors, zeros beyond n
    float* sums;         // bytes: [piece][row of x][padded row]; words: [piece][padded row][16]
    int32_t* marked;     // [16] whether a row of x has marks
    uint8_t* all_marks;  // [16][k-vector]
    int in_features, vectors;

    explicit Workspace(const PsumbookArgs& a) : in_features(a.in_features), vectors(a.in_features / a.v) {
        errors = static_cast<double*>(a.workspace);
        norms = errors + size_t(a.slice_count) * a.piece_count * batch;
        float* next = reinterpret_cast<float*>(norms + size_t(a.slice_count) * row_parts(a) * batch);
        auto take = [&next](size_t floats) { return next += floats, next - floats; };
        unscale = take(batch);
        rows = take(size_t(batch) * in_features);
        interleaved = take(size_t(batch) * in_features);
        sums = take(size_t(batch) * a.piece_count * a.padded_rows);
        marked = reinterpret_cast<int32_t*>(take(batch));
        all_marks = reinterpret_cast<uint8_t*>(next);
    }
    float* x(int i) const { return rows + size_t(i) * in_features; }
    uint8_t* marks_at(int i) const { return all_marks + size_t(i) * vectors; }
    const uint8_t* marks(int i) const { return marked[i] ? marks_at(i) : nullptr; }
};

// run(piece, slice's description, task): fills its part of the sums.
template <class Run>
void for_tasks(ParallelFor loop, const PsumbookArgs& a, Run&& run) {
    parallel_for(loop, a.slice_count * a.piece_count,
                 [&](int task) { run(task % a.piece_count, a.slices + 5 * (task / a.piece_count), task); });
}

// run(first row, count, first padded row, task) for parts of all slices.
template <class Run>
void for_rows(ParallelFor loop, const PsumbookArgs& a, Run&& run) {
    const int parts = row_parts(a);
    parallel_for(loop, a.slice_count * parts, [&](int task) {
        const int32_t* s = a.slices + 5 * (task / parts);
        const int skipped = task % parts * finished_rows, rows = s[2] - s[1] - skipped;
        run(s[1] + skipped, rows < finished_rows ? rows > 0 ? rows : 0 : finished_rows, s[3] + skipped, task);
    });
}

// total[i] += the same of the other pieces, `pitch` floats apart.
[[gnu::noinline]] void add_pieces(const PsumbookArgs& a, float* total, size_t count, size_t pitch) {
    for (int p = 1; p < a.piece_count; ++p)
        for (size_t i = 0; i < count; ++i) total[i] += total[p * pitch + i];
}

// y of `count` rows of W from row `first` on, for row i of x: without the power of two, with the bias, to out. Returns
// the sum of its squares under that power.
[[gnu::noinline]] double finish(const PsumbookArgs& a, int i, int first, float* y, int count, float unscale) {
    for (int r = 0; r < count; ++r) y[r] *= unscale;
    add_bias(a, i, first, y, count);
    from_float(y, 1, a.out, Dtype(a.out_dtype), size_t(i) * a.rows + first, count);
    constexpr int several = 8;  // sums at once, since additions take their time
    double squares[several] = {}, total = 0;
    int r = 0;
    for (; r + several <= count; r += several)
        for (int i = 0; i < several; ++i) squares[i] += double(y[r + i]) * y[r + i];
    for (; r < count; ++r) total += double(y[r]) * y[r];
    for (double square : squares) total += square;
    return total / unscale / unscale;
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

// x, the inverse powers and the marks of all rows.
void scale_rows(ParallelFor loop, const PsumbookArgs& a, const Workspace& w) {
    constexpr float most = 4;               // of a scaled row
    constexpr int task_elements = 1 << 14;  // some microseconds
    const int rows = task_elements / a.in_features;
    parallel_pieces(loop, a.n, rows < 1 ? 1 : rows, [&](int first, int end) {
        for (int i = first; i < end; ++i) {
            w.unscale[i] = scale_row(a, i, w.x(i));
            w.marked[i] = mark_outliers(w.x(i), a.in_features, a.v, most, w.marks_at(i));
        }
    });
}

// The sum of [task][16] for row i of x.
double total(const double* values, int tasks, int i) {
    double sum = 0;
    for (int task = 0; task < tasks; ++task) sum += values[size_t(task) * batch + i];
    return sum;
}

// `count` rows of x from row i on, as a product of their own.
PsumbookArgs rows_of(const PsumbookArgs& a, int i, int count) {
    PsumbookArgs some = a;
    some.n = count;
    some.x = element(a.x, Dtype(a.x_dtype), size_t(i) * a.in_features);
    some.out = element(a.out, Dtype(a.out_dtype), size_t(i) * a.rows);
    if (a.bias) some.bias = a.bias + size_t(i) * a.bias_pitch;
    return some;
}

// One row of x by tables of floats alone.
template <int ENTRIES>
void multiply_row(ParallelFor loop, const PsumbookArgs& a, const Workspace& w) {
    std::memset(w.marks_at(0), 1, w.vectors);
    for_tasks(loop, a, [&](int piece, const int32_t* s, int) {
        float* mine = w.sums + size_t(piece) * a.padded_rows + s[3];
        std::memset(mine, 0, sizeof(float) * (s[4] - s[3]));
        for (int t = a.pieces[piece]; t < a.pieces[piece + 1]; ++t)
            add_marked<ENTRIES, 1, false>(a, s[0], {a.tiles[t], a.tiles[t + 1]}, s[3], s[4], w.x(0), w.marks_at(0),
                                          reinterpret_cast<float*>(task_memory()), mine);
    });
    for_rows(loop, a, [&](int row, int count, int padded, int) {
        add_pieces(a, w.sums + padded, count, a.padded_rows);
        finish(a, 0, row, w.sums + padded, count, w.unscale[0]);
    });
}

void interleave_rows(ParallelFor loop, const PsumbookArgs& a, const Workspace& w) {
    constexpr int columns = 1024;  // of a task
    parallel_pieces(loop, a.in_features, columns, [&](int first, int end) {
        float* to = w.interleaved + size_t(first) * batch;
        std::memset(to, 0, sizeof(float) * batch * (end - first));
        for (int i = 0; i < a.n; ++i) {
            const float* x = w.x(i);
            const uint8_t* marks = w.marks(i);
            for (int k = first; k < end; ++k)
                if (!marks || !marks[k / a.v]) to[size_t(k - first) * batch + i] = x[k];
        }
    });
}

// Rows of x from sums [piece][padded row][16], those that are wanted, and their norms.
void finish_batch(ParallelFor loop, const PsumbookArgs& a, const Workspace& w, const bool* wanted) {
    for_rows(loop, a, [&](int row, int count, int padded, int task) {
        double* norms = w.norms + size_t(task) * batch;
        std::memset(norms, 0, sizeof(double) * batch);
        for (int r = 0; r < count; r += group_rows) {
            float* total = w.sums + size_t(padded + r) * batch;
            add_pieces(a, total, size_t(group_rows) * batch, size_t(a.padded_rows) * batch);
            float y[batch * group_rows];
            transpose_group(total, y);
            const int rows = count - r < group_rows ? count - r : group_rows;
            for (int i = 0; i < a.n; ++i)
                if (wanted[i]) norms[i] += finish(a, i, row + r, y + i * group_rows, rows, w.unscale[i]);
        }
    });
}

// Some of up to 16 rows of x by tables of floats alone.
template <int ENTRIES>
void multiply_rows(ParallelFor loop, const PsumbookArgs& a, const Workspace& w, const bool* wanted) {
    std::memset(w.marked, 0, sizeof(int32_t) * batch);
    interleave_rows(loop, a, w);
    for_tasks(loop, a, [&](int piece, const int32_t* s, int) {
        float* mine = w.sums + (size_t(piece) * a.padded_rows + s[3]) * batch;
        std::memset(mine, 0, sizeof(float) * (s[4] - s[3]) * batch);
        for (int t = a.pieces[piece]; t < a.pieces[piece + 1]; ++t)
            add_tile_floats<ENTRIES>(a, s[0], {a.tiles[t], a.tiles[t + 1]}, s[3], s[4], w.interleaved,
                                     reinterpret_cast<float*>(task_memory()), mine);
    });
    finish_batch(loop, a, w, wanted);
}

// Rows of x for whose y the steps were too large, once more. Each by itself, whatever the others are.
template <int ENTRIES>
void mend_rows(ParallelFor loop, const PsumbookArgs& a, const Workspace& w, double most) {
    bool mended[batch], any = false;
    for (int i = 0; i < a.n; ++i) {
        mended[i] = a.margin * total(w.errors, a.slice_count * a.piece_count, i) >
                    most * most * total(w.norms, a.slice_count * row_parts(a), i);
        any |= mended[i];
    }
    if (any) a.n == 1 ? multiply_row<ENTRIES>(loop, a, w) : multiply_rows<ENTRIES>(loop, a, w, mended);
}

template <int ENTRIES, int PLANES>
void multiply_bytes(ParallelFor loop, const PsumbookArgs& a) {
    const Workspace w(a);
    const size_t piece_floats = size_t(a.n) * a.padded_rows;
    const int groups = w.vectors / a.group_vectors;
    scale_rows(loop, a, w);

    for_tasks(loop, a, [&](int piece, const int32_t* s, int task) {
        float* scratch = reinterpret_cast<float*>(task_memory());
        uint8_t* tables = task_memory() + max_table_bytes;
        float* mine = w.sums + piece * piece_floats + s[3];
        double* errors = w.errors + size_t(task) * batch;
        const float* squares = a.squares + size_t(task / a.piece_count) * groups;
        std::memset(errors, 0, sizeof(double) * batch);
        for (int i = 0; i < a.n; ++i) std::memset(mine + size_t(i) * a.padded_rows, 0, sizeof(float) * (s[4] - s[3]));
        for (int t = a.pieces[piece]; t < a.pieces[piece + 1]; ++t) {
            const Tile tile{a.tiles[t], a.tiles[t + 1]};
            const bool last = t + 1 == a.pieces[piece + 1];
            const uint8_t* next = last ? nullptr : codes_at(a, {a.tiles[t + 1], a.tiles[t + 2]}, s[3]);
            add_tile<ENTRIES, PLANES>(a, s[0], tile, next, s[3], s[4], w, squares, scratch, tables, mine, a.padded_rows,
                                      errors);
            for (int i = 0; i < a.n; ++i)
                if (w.marked[i])
                    add_marked<ENTRIES, 1, false>(a, s[0], tile, s[3], s[4], w.x(i), w.marks_at(i), scratch,
                                                  mine + size_t(i) * a.padded_rows);
        }
    });
    for_rows(loop, a, [&](int row, int count, int padded, int task) {
        for (int i = 0; i < a.n; ++i) {
            float* total = w.sums + size_t(i) * a.padded_rows + padded;
            add_pieces(a, total, count, piece_floats);
            w.norms[size_t(task) * batch + i] = finish(a, i, row, total, count, w.unscale[i]);
        }
    });
    mend_rows<ENTRIES>(loop, a, w, promised[PLANES]);
}

template <int ENTRIES>
void multiply_words(ParallelFor loop, const PsumbookArgs& a) {
    const Workspace w(a);
    const size_t piece_floats = size_t(a.padded_rows) * batch;
    const int groups = w.vectors / a.group_vectors;
    scale_rows(loop, a, w);
    interleave_rows(loop, a, w);

    for_tasks(loop, a, [&](int piece, const int32_t* s, int task) {
        float* scratch = reinterpret_cast<float*>(task_memory());
        words* tables = reinterpret_cast<words*>(scratch + chunk_entries * batch);
        float* mine = w.sums + piece * piece_floats + size_t(s[3]) * batch;
        double* errors = w.errors + size_t(task) * batch;
        const float* squares = a.squares + size_t(task / a.piece_count) * groups;
        std::memset(errors, 0, sizeof(double) * batch);
        std::memset(mine, 0, sizeof(float) * (s[4] - s[3]) * batch);
        for (int t = a.pieces[piece]; t < a.pieces[piece + 1]; ++t) {
            const Tile tile{a.tiles[t], a.tiles[t + 1]};
            add_tile_words<ENTRIES>(a, s[0], tile, s[3], s[4], w.interleaved, squares, scratch, tables, mine, errors);
            for (int i = 0; i < a.n; ++i)
                if (w.marked[i])
                    add_marked<ENTRIES, batch, true>(a, s[0], tile, s[3], s[4], w.x(i), w.marks_at(i), scratch,
                                                     mine + i);
        }
    });
    bool all[batch];
    std::memset(all, true, sizeof all);
    finish_batch(loop, a, w, all);
    mend_rows<ENTRIES>(loop, a, w, promised[2]);
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

// 16 rows of x at a time, and what is left of them: up to `bytes_up_to` with entries of `planes` bytes, 1 or 2, for
// each; more with entries of words for all of them.
void psumbook(codegemm::ParallelFor loop, const codegemm::PsumbookArgs* args, int planes, int bytes_up_to) {
    using namespace codegemm;
    for (int i = 0; i < args->n; i += batch) {
        const PsumbookArgs some = rows_of(*args, i, args->n - i < batch ? args->n - i : batch);
        for_entries(args->entries, [&](auto entries) {
            if (some.n > bytes_up_to) return multiply_words<entries>(loop, some);
            planes == 1 ? multiply_bytes<entries, 1>(loop, some) : multiply_bytes<entries, 2>(loop, some);
        });
    }
}
}
