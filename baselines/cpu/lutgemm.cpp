// LUT-GEMM's product with planes of signs; see lutgemm.py.
//
//                 tile 0        tile 1
//               +-------------+-------------+--    slice: some blocks of 64 rows, a task
//      block 0  | plane 0     |             |      tile: 16 codes of a row, 128 columns
//               | plane 1     |             |
//      slice    +-------------+-------------+--    for each tile, for a few rows of x at a time:
//      block 1  |             |             |        make its tables
//               |             |             |        look them up, for all blocks and planes of the slice
//               +-------------+-------------+--
#include "parallel.hpp"
#include "sign_tables.hpp"

namespace codegemm {

struct LutgemmArgs {
    const void* x;         // [n, in_features], x_dtype
    void* out;             // [n, rows], out_dtype
    void* workspace;       // none
    const float* bias;     // [rows], or null
    const uint8_t* codes;  // [slice][tile][block of the slice][plane][code of the tile][row of the block]
    const half* scales;    // [slice][group][plane][row of the slice]
    int32_t x_dtype, out_dtype;
    int32_t bias_pitch;  // from one row of x to the next; 0: one bias for all
    int32_t n, rows, in_features;
    int32_t planes, groups;
};

constexpr int slice_rows = 512;

namespace {

constexpr int most_rows = LargestTables::count;  // of x that have tables at a time
constexpr int batch = 16;                        // rows of x whose sums wait for all tiles
constexpr size_t plane_codes = tile_codes * block_rows;

inline int smaller(int a, int b) {
    return a < b ? a : b;
}

// Groups have whole codes: the columns that the last one lacks are zeros of x.
struct Groups {
    int columns, codes, all_codes, tiles;

    explicit Groups(const LutgemmArgs& a)
        : columns(a.in_features / a.groups),
          codes((columns + code_signs - 1) / code_signs),
          all_codes(a.groups * codes),
          tiles((all_codes + tile_codes - 1) / tile_codes) {}

    // run(first, end, group) for those of codes first .. end-1 that share scales.
    template <class Run>
    void each(int first, int end, Run&& run) const {
        for (int next; first < end; first = next) {
            const int group = first / codes;
            next = smaller((group + 1) * codes, end);
            run(first, next, group);
        }
    }
};

// The columns of codes first .. end-1 of a row of x, but for zeros.
void take_columns(const LutgemmArgs& a, const Groups& groups, int row, int first, int end, float* x) {
    groups.each(first, end, [&](int from, int next, int group) {
        const int skipped = (from - group * groups.codes) * code_signs;
        const size_t start = size_t(row) * a.in_features + size_t(group) * groups.columns + skipped;
        to_float(a.x, Dtype(a.x_dtype), start, x + (from - first) * code_signs,
                 smaller((next - from) * code_signs, groups.columns - skipped));
    });
}

struct Slice {
    int first_block, blocks;
    const uint8_t* codes;
    const half* scales;

    Slice(const LutgemmArgs& a, const Groups& groups, int first, int end)
        : first_block(first),
          blocks(end - first),
          codes(a.codes + size_t(first) * groups.tiles * a.planes * plane_codes),
          scales(a.scales + size_t(first) * a.groups * a.planes * block_rows) {}
};

// Adds a tile to the sums of a slice for `rows` rows of x from the first on, as many as have tables or fewer.
template <class Tables>
void add_tile(const LutgemmArgs& a, const Groups& groups, const Slice& slice, int tile, int first_row, int rows,
              float* sums) {
    alignas(64) static thread_local float tables[Tables::codes * Tables::code_floats];
    const int start = tile * tile_codes, stop = smaller(start + tile_codes, groups.all_codes);
    const uint8_t* codes = slice.codes + size_t(tile) * slice.blocks * a.planes * plane_codes;
    for (int first = start; first < stop; first += Tables::codes) {
        const int end = smaller(first + Tables::codes, stop);
        float x[Tables::count][tile_columns] = {};
        for (int r = 0; r < rows; ++r) take_columns(a, groups, first_row + r, first, end, x[r]);
        Tables::make(x, end - first, tables);
        groups.each(first, end, [&](int from, int next, int group) {
            const uint8_t* code = codes + (from - start) * block_rows;
            const float* table = tables + (from - first) * Tables::code_floats;
            const half* scales = slice.scales + size_t(group) * a.planes * slice.blocks * block_rows;
            for (int block = 0; block < slice.blocks; ++block)
                for (int plane = 0; plane < a.planes; ++plane, code += plane_codes)
                    Tables::add(code, next - from, table, scales + (size_t(plane) * slice.blocks + block) * block_rows,
                                sums + block * block_rows * Tables::count);
        });
    }
}

// y of a slice for so many rows of x.
template <class Tables>
void finish(const LutgemmArgs& a, const Slice& slice, int first_row, int rows, const float* sums) {
    for (int block = 0; block < slice.blocks; ++block, sums += block_rows * Tables::count) {
        const int first = (slice.first_block + block) * block_rows, some = smaller(a.rows - first, block_rows);
        for (int r = 0; r < rows; ++r) {
            float y[block_rows];
            for (int k = 0; k < some; ++k) y[k] = sums[k * Tables::row_pitch + r * Tables::x_pitch];
            add_bias(a, first_row + r, first, y, some);
            from_float(y, 1, a.out, Dtype(a.out_dtype), size_t(first_row + r) * a.rows + first, some);
        }
    }
}

// y of a slice for `count` rows of x from the first on, up to `batch`.
void multiply(const LutgemmArgs& a, const Groups& groups, const Slice& slice, int first_row, int count) {
    alignas(64) static thread_local float sums[batch / most_rows][most_rows * slice_rows];
    const int turns = (count + most_rows - 1) / most_rows;
    auto in_turns = [&](auto&& run) {  // run(kind of tables, first row of x, rows, their sums)
        for (int turn = 0; turn < turns; ++turn) {
            const int done = turn * most_rows, left = count - done;
            with_tables(left, [&](auto kind) { run(kind, first_row + done, smaller(kind.count, left), sums[turn]); });
        }
    };
    std::memset(sums, 0, sizeof(sums[0]) * turns);
    for (int tile = 0; tile < groups.tiles; ++tile)
        in_turns([&](auto kind, int row, int rows, float* to) {
            add_tile<decltype(kind)>(a, groups, slice, tile, row, rows, to);
        });
    in_turns(
        [&](auto kind, int row, int rows, const float* from) { finish<decltype(kind)>(a, slice, row, rows, from); });
}

}  // namespace
}  // namespace codegemm

extern "C" void lutgemm(codegemm::ParallelFor loop, const codegemm::LutgemmArgs* args) {
    using namespace codegemm;
    const Groups groups(*args);
    parallel_pieces(loop, (args->rows + block_rows - 1) / block_rows, slice_rows / block_rows, [&](int first, int end) {
        const Slice slice(*args, groups, first, end);
        for (int i = 0; i < args->n; i += batch) multiply(*args, groups, slice, i, smaller(args->n - i, batch));
    });
}
