// Many rows of x times decoded rows of W. x lies in panels of 16 rows, these side by side for each k, so that a
// register holds one k of many rows, W's elements are broadcast and nothing is summed across a register:
//
//     W [row][k]  x  panels of x [k][16]  ->  sums [panel][row of W][16]
//
// A task is a block of rows of W over all of K, and some panels. It takes W in strips: some rows of a tile of K, which
// are decoded into L1 and multiplied by all panels. What these consist of says an Arithmetic:
//
//     Element, step, planes           `step` neighbouring k, in 1 or 2 planes, a high and a low part
//     elements                        of a tile_step, with what else is stored for it
//     pitch                           elements from a row of a strip to the next
//     scaled                          whether rows of x come under powers of two that bring their largest near 1
//     rounds                          whether rows may have to be mended, by what put_x says of them in part.lost
//     overlaps                        whether a strip is decoded while the one before it is multiplied
//     strip_rows(panels)              rows of a strip
//     put_x(part, count, plane, to)   `count` k of one row of x into a panel, whose planes are `plane` elements apart
//     decode_for(args)                how: what decode is given
//     decode(tile, row, end, how, to) rows of a tile into a strip [plane][row][k / step]; what is beyond a row's end is
//                                     left as it is: there x is zero, and weights are finite
//     multiply(strip, row, panels, sums, ahead)
#pragma once

#include <algorithm>
#include <cmath>

#include "decode.hpp"
#include "parallel.hpp"

namespace codegemm {

constexpr int panel_rows = 16;
constexpr int max_panels = 16;                                     // of a batch: two tiles of it fit L2
constexpr int max_strip_rows = 16, sum_rows = max_block_rows + 2;  // sum_rows: of whole strips
constexpr int min_tasks = 64, min_task_panels = 8;
using Pair = uint32_t;  // an Element of two neighbouring k, the first in the lower half
// From a row of a strip to the next, in elements of `step` k: not a multiple of 4 KiB, of which rows would share sets.
constexpr int strip_pitch(int step) {
    return (max_tile + lanes) / step;
}

// Sums over a row of x, whose square is what is lost where all that they are multiplied by is alike: over all columns,
// and over those of each group, for groups have scales of their own, by which they cancel in sum and not in the rows.
struct Alike {
    double all = 0, group = 0, squares = 0;  // of the group at hand; of those before it, the squares

    void add(double part, bool begins_group) {
        if (begins_group) squares += group * group, group = 0;
        group += part, all += part;
    }
    // by_row, by_group: the square of what is alike in a row and in a group.
    double square(double by_row, double by_group) const {
        return std::max(by_row * all * all, by_group * (squares + group * group));
    }
};

// What a row of x is expected to lose where its products are rounded: x, and W.
struct Lost {
    double square = 0;
    Alike of_x, of_w;

    // Columns that share a scale, the first of their group or not: what rounding took of x and what it left, in units,
    // their sums and those of their squares.
    void add(const DequantArgs& a, int group, bool begins_group, double unit, double taken, double square_taken,
             double sum, double square_sum) {
        const double root = unit * std::sqrt(double(a.squares[group]));
        square += root * root * (a.w_square * square_taken + a.rounded_square * square_sum);
        of_x.add(root * taken, begins_group);
        of_w.add(root * sum, begins_group);
    }
    double expected(const DequantArgs& a) const {
        return square + of_x.square(a.w_row, a.w_group) + of_w.square(a.rounded_row, a.rounded_group);
    }
};

// Neighbouring k of one row of x, from k on.
struct PartOfRow {
    const DequantArgs* args;
    int k;
    const float* x;
    Lost* lost;
};

// Some panels of a tile of x, [panel][plane][k / step][16].
template <class Element>
struct Panels {
    const Element *x, *next;  // next: of the tile that comes after it
    int panels, count;        // count: of elements along K
    size_t plane, pitch;      // elements of a plane, of a panel

    const Element* at(int panel) const { return x + panel * pitch; }
    // What may be fetched while one of several products is made: of the next tile, a panel each.
    const Element* soon(int product) const { return product < panels ? next + product * pitch : x; }
};

// Panels of a batch of rows of x, [tile of K][panel][plane][k / step][16]: those of a tile side by side in the cache.
template <class Arithmetic>
struct Batch {
    using Element = typename Arithmetic::Element;
    Element* x;
    const int32_t* chosen;  // the rows of x, or null: those from `first` on
    int first, rows;
    int panels, tile_k, padded;

    Batch(const DequantArgs& a, int first, int rows, const int32_t* chosen = nullptr)
        : x(reinterpret_cast<Element*>(a.workspace)),
          chosen(chosen),
          first(first),
          rows(rows),
          panels((rows + panel_rows - 1) / panel_rows),
          tile_k(a.tile_vectors * a.v),
          padded((a.in_features + tile_step - 1) / tile_step * tile_step) {}

    int row(int place) const { return chosen ? chosen[place] : first + place; }
    int width(int k) const {  // of a tile, in elements
        return std::min(padded - k, tile_k) / tile_step * Arithmetic::elements;
    }
    // Panel `panel` of the tile that begins at k.
    Element* at(int k, int panel) const {
        const size_t rows = size_t(k) / tile_step * Arithmetic::elements * panels + size_t(panel) * width(k);
        return x + rows * Arithmetic::planes * panel_rows;
    }
    // Behind all panels: what a row's product must be multiplied by.
    float* powers() const { return reinterpret_cast<float*>(at(padded, 0)); }
    // Behind these: what a row's product is expected to lose, the square of it under the power.
    double* lost() const { return reinterpret_cast<double*>(powers() + panels * panel_rows); }
    Panels<Element> tile(int k, int begin, int end) const {
        const int next = k + tile_k < padded ? k + tile_k : 0;
        const size_t plane = size_t(width(k)) * panel_rows;
        return {at(k, begin), at(next, begin), end - begin, width(k), plane, plane * Arithmetic::planes};
    }
};

// Decodes a strip little by little, in so many calls, while the one before it is multiplied.
template <class Arithmetic>
class Ahead {
    using Element = typename Arithmetic::Element;
    using Decode = typename Arithmetic::Decode;
    const CodeTile* tile;
    Decode how;
    Element* strip;
    int first, rows, done = 0;

 public:
    Ahead(const CodeTile* tile, Decode how, int row, int rows, Element* strip)
        : tile(tile), how(how), strip(strip), first(row), rows(rows) {}

    void finish() { decode_until(rows); }
    // Call number `call` of `calls`.
    void advance(int call, int calls) { decode_until(rows * (call + 1) / calls); }

 private:
    void decode_until(int end) {
        if (done >= end) return;
        Arithmetic::decode(*tile, first + done, first + end, how, strip + done * Arithmetic::pitch);
        done = end;
    }
};

// Floats of a register, and how many registers there are.
#if defined(__AVX512F__)
constexpr int register_floats = 16, register_count = 32;
#elif defined(__AVX2__)
constexpr int register_floats = 8, register_count = 16;
#elif defined(__aarch64__)
constexpr int register_floats = 4, register_count = 32;
#else
constexpr int register_floats = 4, register_count = 16;
#endif

// Float32 multiply-adds, which every instruction set has.
struct FloatLanes {
    using Element = float;
    using Decode = codegemm::Decode;
    using Register = vec<register_floats>;
    static constexpr int step = 1, elements = tile_step, pitch = strip_pitch(step);
    static constexpr int width = register_floats;  // rows of x in a register
    static constexpr bool scaled = false, rounds = false;

    static Register load(const float* x) { return codegemm::load<width>(x); }
    static void add(Register& sum, Register x, float w) { sum += x * w; }
    static void put_x(const PartOfRow& part, int count, size_t, float* to) {
        for (int k = 0; k < count; ++k) to[k * panel_rows] = part.x[k];
    }
    static Decode decode_for(const DequantArgs& a) { return codegemm::decode_for(a); }
    static void decode(const CodeTile& tile, int row, int end_row, Decode how, float* strip) {
        how(tile, row, end_row, strip, pitch);
    }
};

// Elements of W times registers of x.
template <class Lanes>
struct Broadcast : Lanes {
    using Element = typename Lanes::Element;
    static constexpr int planes = 1;
    static constexpr bool overlaps = false;  // the same units decode and multiply
    static constexpr int registers = panel_rows / Lanes::width, pair = registers == 1 ? 2 : 1;

    // Whose sums, with those of two panels or one, fill the registers.
    static constexpr int strip_rows(int panels) {
        if (registers == 1) return panels == 1 ? 16 : 13;
        return registers == 2 ? 6 : register_count == 32 ? 5 : 3;
    }
    static void multiply(const Element* strip, int row, const Panels<Element>& x, float* sums, Ahead<Broadcast>&) {
        if (x.panels == 1) return multiply<strip_rows(1), 1>(strip, x, 0, row, sums);
        int p = 0;
        for (; p + pair <= x.panels; p += pair) multiply<strip_rows(2), pair>(strip, x, p, row, sums);
        if (p < x.panels) multiply<strip_rows(2), 1>(strip, x, p, row, sums);
    }

 private:
    // sums[panel][row][16] += strip[row][k] * x[panel][k][16] of PANELS panels from `panel` on.
    template <int ROWS, int PANELS>
    static void multiply(const Element* w, const Panels<Element>& panels, int panel, int row, float* sums) {
        constexpr int width = Lanes::width, count = PANELS * registers;
        const auto place = [](int r, int i) {
            return (i / registers * sum_rows + r) * panel_rows + i % registers * width;
        };
        const int product = row / ROWS * (panels.panels / PANELS) + panel / PANELS;
        const Element *x = panels.at(panel), *soon = panels.soon(product);
        sums += (size_t(panel) * sum_rows + row) * panel_rows;
        vec<width> sum[ROWS][count];
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
            for (int i = 0; i < count; ++i) sum[r][i] = load<width>(sums + place(r, i));
        for (int k = 0; k < panels.count; ++k, x += panel_rows, soon += panel_rows, ++w) {
            typename Lanes::Register of_x[count];
#pragma GCC unroll 4
            for (int i = 0; i < count; ++i) {
                const Element* from = x + i / registers * panels.pitch + i % registers * width;
                if (i % registers == 0) __builtin_prefetch(from + 8 * panel_rows);
                of_x[i] = Lanes::load(from);
            }
            __builtin_prefetch(soon, 0, 2);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
                for (int i = 0; i < count; ++i) Lanes::add(sum[r][i], of_x[i], w[r * Lanes::pitch]);
        }
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
            for (int i = 0; i < count; ++i) store<width>(sums + place(r, i), sum[r][i]);
    }
};

// The power of two that brings the largest number of a row of x, which lies at `offset`, to 0.5 .. 1; 1 of zeros and of
// what is not finite.
inline float power_for(const DequantArgs& a, size_t offset) {
    float some[max_tile], largest = 0;
    for (int k = 0; k < a.in_features; k += max_tile) {
        const int count = std::min(max_tile, a.in_features - k);
        to_float(a.x, Dtype(a.x_dtype), offset + k, some, count);
        for (int i = 0; i < count; ++i) largest = std::max(largest, std::fabs(some[i]));
    }
    if (!(largest > 0 && std::isfinite(largest))) return 1;
    return std::ldexp(1.0f, -std::max(-126, std::min(126, std::ilogb(largest) + 1)));
}

// A panel of a batch, k beyond in_features zero.
template <class Arithmetic>
void fill_panel(const DequantArgs& a, const Batch<Arithmetic>& batch, int panel) {
    float row[max_tile], powers[panel_rows];
    Lost lost[panel_rows];
    for (int i = 0; Arithmetic::scaled && i < panel_rows; ++i) {
        const int place = panel * panel_rows + i;
        powers[i] = place < batch.rows ? power_for(a, size_t(batch.row(place)) * a.in_features) : 1;
        batch.powers()[place] = 1 / powers[i];
    }
    for (int k = 0; k < batch.padded; k += batch.tile_k) {
        const int width = std::min(batch.padded - k, batch.tile_k), there = std::min(width, a.in_features - k);
        for (int i = 0; i < panel_rows; ++i) {
            const int place = panel * panel_rows + i, known = place < batch.rows ? there : 0;
            if (known) to_float(a.x, Dtype(a.x_dtype), size_t(batch.row(place)) * a.in_features + k, row, known);
            if (Arithmetic::scaled)
                for (int j = 0; j < known; ++j) row[j] *= powers[i];
            std::fill(row + known, row + width, 0.0f);
            Arithmetic::put_x({&a, k, row, lost + i}, width, size_t(batch.width(k)) * panel_rows,
                              batch.at(k, panel) + i);
        }
    }
    if constexpr (Arithmetic::rounds)
        for (int i = 0; i < panel_rows; ++i) batch.lost()[panel * panel_rows + i] = lost[i].expected(a);
}

// Sums of a block and panels begin .. end-1 of a batch, over all of K.
template <class Arithmetic>
void multiply_block(const DequantArgs& a, typename Arithmetic::Decode decode, int block, const Batch<Arithmetic>& batch,
                    int begin, int end, float* sums) {
    constexpr size_t strip_size = size_t(Arithmetic::planes) * max_strip_rows * Arithmetic::pitch;
    alignas(64) static thread_local typename Arithmetic::Element strips[Arithmetic::overlaps ? 2 : 1][strip_size];
    alignas(64) static thread_local uint8_t collected[max_block_rows * (max_tile * max_m + 16)];
    const int vectors = a.in_features / a.v, rows = a.blocks[3 * block + 2] - a.blocks[3 * block + 1];
    const int most = Arithmetic::strip_rows(end - begin);
    const auto tile_at = [&](int first) {
        return CodeTile(a, block, first, std::min(first + a.tile_vectors, vectors), collected);
    };
    CodeTile tile = tile_at(0);
    auto* strip = strips[0];
    Ahead<Arithmetic>(&tile, decode, 0, std::min(most, rows), strip).finish();
    for (int row = 0, first = 0; first < vectors;) {
        const int next_row = row + most < rows ? row + most : 0, next = next_row ? first : first + a.tile_vectors;
        if (!next_row && next < vectors) tile = tile_at(next);
        auto* next_strip = strips[Arithmetic::overlaps && strip == strips[0]];
        Ahead<Arithmetic> ahead(&tile, decode, next_row, next < vectors ? std::min(most, rows - next_row) : 0,
                                next_strip);
        Arithmetic::multiply(strip, row, batch.tile(first * a.v, begin, end), sums, ahead);
        ahead.finish();
        strip = next_strip, row = next_row, first = next;
    }
}

// A block's rows of `count` rows of out from place `first` of a batch on, out of their sums.
template <class Arithmetic>
void write_rows(const DequantArgs& a, const int32_t* block, const Batch<Arithmetic>& batch, int first, int count,
                const float* sums) {
    const int first_row = block[1], rows = block[2] - first_row;
    float y[max_block_rows];
    for (int i = 0; i < count; ++i) {
        const float* from = sums + size_t(i / panel_rows) * sum_rows * panel_rows + i % panel_rows;
        const float power = Arithmetic::scaled ? batch.powers()[first + i] : 1;
        for (int r = 0; r < rows; ++r) y[r] = from[r * panel_rows] * power;
        const size_t row = batch.row(first + i);
        add_bias(a, row, first_row, y, rows);
        from_float(y, 1, a.out, Dtype(a.out_dtype), row * a.rows + first_row, rows);
    }
}

template <class Arithmetic>
void multiply_batch(ParallelFor loop, const DequantArgs& a, const Batch<Arithmetic>& batch) {
    const auto decode = Arithmetic::decode_for(a);
    parallel_for(loop, batch.panels, [&](int panel) { fill_panel(a, batch, panel); });
    // Few blocks are shared by tasks that decode them for some panels each.
    const int chunks = std::max(1, std::min(min_tasks / a.block_count, batch.panels / min_task_panels));
    parallel_for(loop, a.block_count * chunks, [&](int task) {
        alignas(64) static thread_local float sums[max_panels * sum_rows * panel_rows];
        const int block = task / chunks, chunk = task % chunks;
        const int begin = batch.panels * chunk / chunks, end = batch.panels * (chunk + 1) / chunks;
        std::memset(sums, 0, sizeof(float) * (end - begin) * sum_rows * panel_rows);
        multiply_block(a, decode, block, batch, begin, end, sums);
        const int row = begin * panel_rows;
        write_rows(a, a.blocks + 3 * block, batch, row, std::min(batch.rows, end * panel_rows) - row, sums);
    });
}

// The sum of the squares of a row of out.
inline double square_of(const DequantArgs& a, int row) {
    float y[max_tile];
    double square = 0;
    for (int r = 0; r < a.rows; r += max_tile) {
        const int count = std::min(max_tile, a.rows - r);
        to_float(a.out, Dtype(a.out_dtype), size_t(row) * a.rows + r, y, count);
        double sums[8] = {};
        std::fill(y + count, y + (count + 7) / 8 * 8, 0.0f);
        for (int i = 0; i < count; i += 8)
            for (int j = 0; j < 8; ++j) sums[j] += double(y[i + j]) * y[i + j];
        for (double sum : sums) square += sum;
    }
    return square;
}

// Multiplies the rows of a batch once more in float32 whose product lost too much or is not finite. Each is looked at
// by itself, so that its bits do not depend on the others.
template <class Arithmetic>
void mend_rows(ParallelFor loop, const DequantArgs& a, const Batch<Arithmetic>& batch) {
    bool wrong[max_panels * panel_rows];
    parallel_for(loop, batch.rows, [&](int i) {
        const double power = batch.powers()[i], square = square_of(a, batch.row(i));
        wrong[i] = !(std::isfinite(square) && batch.lost()[i] * power * power <= a.allowed * square);
    });
    int32_t chosen[max_panels * panel_rows];
    int count = 0;
    for (int i = 0; i < batch.rows; ++i)
        if (wrong[i]) chosen[count++] = batch.row(i);
    if (count) multiply_batch(loop, a, Batch<Broadcast<FloatLanes>>(a, 0, count, chosen));
}

// y = x @ W^T + bias, in batches of max_panels panels at most.
template <class Arithmetic>
void multiply_panels(ParallelFor loop, const DequantArgs& a) {
    constexpr int most = max_panels * panel_rows;
    const int batches = (a.n + most - 1) / most;
    const int rows = ((a.n + batches - 1) / batches + panel_rows - 1) / panel_rows * panel_rows;
    for (int first = 0; first < a.n; first += rows) {
        const Batch<Arithmetic> batch(a, first, std::min(a.n - first, rows));
        multiply_batch(loop, a, batch);
        if constexpr (Arithmetic::rounds) mend_rows(loop, a, batch);
    }
}

}  // namespace codegemm
