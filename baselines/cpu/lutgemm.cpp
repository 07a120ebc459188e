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
    int columns, codes, all_codes;

    explicit Groups(const LutgemmArgs& a)
        : columns(a.in_features / a.groups),
          codes((columns + code_signs - 1) / code_signs),
          all_codes(a.groups * codes) {}

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

// The columns of codes first .. end-1 of a row of x.
void take_columns(const LutgemmArgs& a, const Groups& groups, int row, int first, int end, float* x) {
    std::memset(x, 0, sizeof(float) * code_signs * (end - first));
    groups.each(first, end, [&](int from, int next, int group) {
        const int skipped = (from - group * groups.codes) * code_signs;
        const size_t start = size_t(row) * a.in_features + size_t(group) * groups.columns + skipped;
        to_float(a.x, Dtype(a.x_dtype), start, x + (from - first) * code_signs,
                 smaller((next - from) * code_signs, groups.columns - skipped));
    });
}

// y of `blocks` blocks from the first on for `count` rows of x from row i on.
void multiply(const LutgemmArgs& a, const Groups& groups, int first_block, int blocks, int i, int count) {
    alignas(64) static thread_local float sums[batch / most_rows][most_rows * slice_rows];
    alignas(64) static thread_local float tables[max_table_floats];
    alignas(64) float x[most_rows][tile_columns] = {};
    const int tiles = (groups.all_codes + tile_codes - 1) / tile_codes, turns = (count + most_rows - 1) / most_rows;
    const uint8_t* tile = a.codes + size_t(first_block) * tiles * a.planes * plane_codes;
    const half* scales = a.scales + size_t(first_block) * a.groups * a.planes * block_rows;

    // run(tables, first row of x, how many, their sums)
    auto in_turns = [&](auto&& run) {
        for (int turn = 0; turn < turns; ++turn) {
            const int done = turn * most_rows;
            with_tables(count - done,
                        [&](auto kind) { run(kind, i + done, smaller(kind.count, count - done), sums[turn]); });
        }
    };
    std::memset(sums, 0, sizeof(sums[0]) * turns);
    for (int start = 0; start < groups.all_codes; start += tile_codes, tile += blocks * a.planes * plane_codes)
        in_turns([&](auto kind, int row, int rows, float* to) {
            const int stop = smaller(start + tile_codes, groups.all_codes);
            for (int first = start; first < stop; first += kind.codes) {
                const int end = smaller(first + kind.codes, stop);
                for (int r = 0; r < rows; ++r) take_columns(a, groups, row + r, first, end, x[r]);
                kind.make(x, end - first, tables);
                groups.each(first, end, [&](int from, int next, int group) {
                    const uint8_t* codes = tile + (from - start) * block_rows;
                    const float* table = tables + (from - first) * kind.code_floats;
                    for (int block = 0; block < blocks; ++block)
                        for (int plane = 0; plane < a.planes; ++plane) {
                            const half* scale =
                                scales + ((size_t(group) * a.planes + plane) * blocks + block) * block_rows;
                            kind.add(codes + (size_t(block) * a.planes + plane) * plane_codes, next - from, table,
                                     scale, to + block * block_rows * kind.count);
                        }
                });
            }
        });
    in_turns([&](auto kind, int row, int rows, const float* from) {
        for (int block = 0; block < blocks; ++block, from += block_rows * kind.count) {
            const int first = (first_block + block) * block_rows, some = smaller(a.rows - first, block_rows);
            for (int r = 0; r < rows; ++r) {
                float y[block_rows];
                for (int k = 0; k < some; ++k) y[k] = from[k * kind.row_pitch + r * kind.x_pitch];
                add_bias(a, row + r, first, y, some);
                from_float(y, 1, a.out, Dtype(a.out_dtype), size_t(row + r) * a.rows + first, some);
            }
        }
    });
}

}  // namespace
}  // namespace codegemm

extern "C" void lutgemm(codegemm::ParallelFor loop, const codegemm::LutgemmArgs* args) {
    using namespace codegemm;
    const Groups groups(*args);
    parallel_pieces(loop, (args->rows + block_rows - 1) / block_rows, slice_rows / block_rows, [&](int first, int end) {
        for (int i = 0; i < args->n; i += batch)
            multiply(*args, groups, first, end - first, i, smaller(args->n - i, batch));
    });
}
