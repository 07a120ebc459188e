// QTIP's product of trellis codes with rotated x (Tseng et al., 2024): states become pairs of weights, the operands of
// tensor cores.
//
//                 K:  step 0   step 1        step 15  step 16
//                   +--------+--------+-----+--------+--------+--      thread block: a near-equal share of all strips
//   strip 0         | warp 0 | warp 1 | ... | warp15 | warp 0 |          for each strip:
//   (32 rows)       +--------+--------+-----+--------+--------+--          warp: every 16th step of 32 weights
//   strip 1         | warp 0 | warp 1 |     |        |        |            sums to shared memory, a barrier
//                   +--------+--------+-----+--------+--------+--          threads: add the warps in their order
//
// A step of a strip is 2 x 2 tiles: 16 pairs of weights a lane, each a state, a multiplication and a load from a table
// that every bank has, and four mma. A number of x is two fp16, the second what the first leaves, in neighbouring
// columns: four rows of x fill an operand's eight columns, and up to eight rows take two such GROUPS. The error is that
// of float32 sums.
//
// No atomics: the same bits in every run.
#include "trellis.cuh"

constexpr int most_threads = 512;
constexpr int most_rows = 8;  // of x, that a block multiplies

struct Qtip {
    const u32* codes;  // as the format has them
    const u32* table;  // [512] of two fp16
    int first_strip;
    int strips;
    int steps;    // of K
    int batch;    // rows of x
    u64 rotated;  // where in the workspace: fp16 [row][2][K], in each 32 as rotate.cu's `place_of_pairs`
    u64 sums;     // float [row][M]
    u64 dense;    // fp16 [row of the strips][K], in the same order of K
};

// Rows of x of this block: eight, or the last ones.
DEVICE int first_row() {
    return blockIdx.y * most_rows;
}
DEVICE int rows_of(const Qtip& w) {
    return min(w.batch - first_row(), most_rows);
}

// A step of this lane's column of x in each group: both halves of the first 16 weights, then of the second.
template <int GROUPS>
struct Factors {
    uint4 group[GROUPS];
};

// Where they are. Columns that are none have another's numbers: nobody asks for their sums.
template <int GROUPS>
struct Columns {
    const u8* rotated;
    u32 at[GROUPS];

    DEVICE Columns(const Qtip& w, const u8* workspace) : rotated(workspace + w.rotated) {
        const int all = 2 * rows_of(w);
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            const int column = min(8 * group + ptx::lane() / 4, all - 1);
            at[group] = u32(2 * first_row() + column) * (w.steps * block_side * 2) + ptx::lane() % 4 * 16;
        }
    }

    DEVICE Factors<GROUPS> load_x(int step) const {
        Factors<GROUPS> x;
#pragma unroll
        for (int group = 0; group < GROUPS; group++)
            x.group[group] = ptx::load(reinterpret_cast<const uint4*>(rotated + at[group] + step * (block_side * 2)));
        return x;
    }
};

// Of a strip: both tiles' sums.
template <int GROUPS>
struct Sum {
    float sum[2][GROUPS][4] = {};

    template <int BITS>
    DEVICE void add(const Pairs& pairs, const Codes<BITS>& codes, const Factors<GROUPS>& x) {
        const Codes<BITS> next = codes.next();
#pragma unroll
        for (int i = 0; i < block_tiles; i++) {
            u32 a[4];
            decode(pairs, codes, next, i, a);
#pragma unroll
            for (int group = 0; group < GROUPS; group++) {
                const uint4& v = x.group[group];
                ptx::mma(sum[i % 2][group], a[0], a[1], a[2], a[3], i < 2 ? v.x : v.z, i < 2 ? v.y : v.w);
            }
        }
    }
};

// Where the sum of a row of W and row n of x is in a warp's: rows of x whose lanes store together begin with other
// banks.
DEVICE int place_of_sum(int n, int row) {
    return n * block_side + (row ^ n % 4 * 8);
}

template <int GROUPS>
DEVICE void store_partials(const Sum<GROUPS>& sums, const Qtip& w, ptx::Shared to) {
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
        const int n = 4 * group + ptx::lane() % 4;
        if (n >= rows_of(w)) continue;
#pragma unroll
        for (int half = 0; half < 4; half++) {
            const float* two = sums.sum[half / 2][group] + half % 2 * 2;  // the columns of a number's two parts
            ptx::shared_store(to + place_of_sum(n, half * 8 + ptx::lane() / 4) * 4, two[0] + two[1]);
        }
    }
}

// The sums over warps, each `stride` bytes behind the one before.
DEVICE void add_warps(const Qtip& w, u8* workspace, ptx::Shared from, int stride, int strip) {
    for (int i = threadIdx.x; i < rows_of(w) * block_side; i += blockDim.x) {
        const int n = i / block_side, row = i % block_side;
        float sum = 0;
#pragma unroll 8
        for (int warp = 0; warp < ptx::warps(); warp++)
            sum += ptx::shared_load<float>(from + warp * stride + place_of_sum(n, row) * 4);
        float* sums = reinterpret_cast<float*>(workspace + w.sums) + size_t(first_row() + n) * w.strips * block_side;
        ptx::store(sums + strip * block_side + row, sum);
    }
}

// Steps of a warp whose codes are on their way at once.
template <int BITS>
constexpr int turns_of = BITS == 2 ? 4 : 2;

// blockIdx.y: which eight rows of x.
template <int BITS, int GROUPS>
DEVICE void qtip(u8* workspace, const Qtip& w) {
    ptx::let_next_start();
    constexpr int turns = turns_of<BITS>;
    const int warp = ptx::warp(), round = turns * ptx::warps();
    int strip = int(u64(blockIdx.x) * w.strips / gridDim.x);
    const int end = int((blockIdx.x + 1ull) * w.strips / gridDim.x);
    Codes<BITS> codes[turns];
#pragma unroll
    for (int turn = 0; turn < turns; turn++) {
        const int step = warp + turn * ptx::warps();
        if (step < w.steps) codes[turn].load_codes(w.codes, strip * w.steps + step, true);
    }
    const Pairs pairs(ptx::shared_memory(), w.table);
    ptx::wait_for_previous();
    const Columns<GROUPS> columns(w, workspace);
    Factors<GROUPS> x = columns.load_x(warp);
    const int stride = rows_of(w) * block_side * 4;  // bytes of a warp's partial sums
    const ptx::Shared partial = pairs.memory + table_bytes;
#pragma unroll 1
    for (; strip < end; strip++) {
        Sum<GROUPS> sums;
#pragma unroll 1
        for (int first = warp; first < w.steps; first += round) {
#pragma unroll
            for (int turn = 0; turn < turns; turn++) {
                const int step = first + turn * ptx::warps();
                if (step >= w.steps) break;
                // The next x and codes, of the next strip behind the last ones of this, travel while these are used.
                const int next = step + ptx::warps(), later = step + round;
                const Factors<GROUPS> next_x = columns.load_x(next < w.steps ? next : warp);
                const Codes<BITS> mine = codes[turn];
                if (later < w.steps || strip + 1 < end)
                    codes[turn].load_codes(w.codes,
                                           strip * w.steps + (later < w.steps ? later : w.steps + step - first + warp));
                sums.add(pairs, mine, x);
                x = next_x;
            }
        }
        ptx::sync_block();  // the sums of the strip before are added
        store_partials(sums, w, partial + warp * stride);
        ptx::sync_block();
        add_warps(w, workspace, partial, stride, strip);
    }
}

// The matrix between the rotations, of w.strips strips: a warp a step of a strip.
template <int BITS>
DEVICE void dequantize_qtip(u8* workspace, const Qtip& w) {
    ptx::let_next_start();
    const int all = w.strips * w.steps, row_pieces = w.steps * block_side / 8;
    const u32 before = w.first_strip * w.steps;
    int i = blockIdx.x * ptx::warps() + ptx::warp();
    Codes<BITS> codes;
    if (i < all) codes.load_codes(w.codes, before + i, true);
    const Pairs pairs(ptx::shared_memory(), w.table);
    ptx::wait_for_previous();
    while (i < all) {
        // The next codes travel while these are decoded.
        const int next = i + gridDim.x * ptx::warps();
        Codes<BITS> next_codes;
        if (next < all) next_codes.load_codes(w.codes, before + next);
        const Codes<BITS> following = codes.next();
        u32 a[block_tiles][4];
#pragma unroll
        for (int tile = 0; tile < block_tiles; tile++) decode(pairs, codes, following, tile, a[tile]);
        uint4* to = reinterpret_cast<uint4*>(workspace + w.dense) +
                    size_t(i / w.steps * block_side + ptx::lane() / 4) * row_pieces + i % w.steps * (block_side / 8) +
                    ptx::lane() % 4;
#pragma unroll
        for (int half = 0; half < 4; half++) {  // rows, eight at a time
            const u32(&left)[4] = a[half / 2], (&right)[4] = a[2 + half / 2];
            const int first = half % 2;
            ptx::store(to + size_t(half * 8) * row_pieces,
                       make_uint4(left[first], left[first + 2], right[first], right[first + 2]));
        }
        codes = next_codes;
        i = next;
    }
}

#define ENTRY(name, ...)                                                                                            \
    extern "C" KERNEL void __launch_bounds__(most_threads, 1) name(const void* x, void* y, u8* workspace, Qtip w) { \
        __VA_ARGS__(workspace, w);                                                                                  \
    }
