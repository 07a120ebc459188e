// QuIP#'s product of E8P codes with rotated x (Tseng et al., 2024): codes are decoded into the operands of tensor
// cores.
//
//              K:  step 0   step 1        step 31  step 32
//                +--------+--------+-----+--------+--------+--      thread block: near-equal shares of all tiles
//   tile 0       | warp 0 | warp 1 | ... | warp31 | warp 0 |          for each few tiles:
//   (16 rows)    +--------+--------+-----+--------+--------+--          warp: every 32nd step of 64 weights
//   tile 1       | warp 0 | warp 1 |     |        |        |            sums to shared memory, a barrier
//                +--------+--------+-----+--------+--------+--          threads: add the warps in their order
//
// A lane's 8 bytes of codes are four words, of rows 2g and 2g + 1 and columns 2t and 2t + 1 of a step (g = lane / 4,
// t = lane % 4): the A operands of four mma whose k are in an order that x is stored in. x fills up to eight columns;
// where at most four rows leave some free, these hold what fp16 lost of each row.
//
// Sums are of 2-bit codes and of the residual's apart. No atomics: the same bits in every run.
#include "e8p.cuh"

constexpr int lanes = 32;
constexpr int most_threads = 1024;
constexpr int tile_rows = 16;
constexpr int step_weights = 64;
constexpr int most_columns = 8;
constexpr int table_bytes = 4 * table_words * lanes;

struct Quip {
    const uint2* codes;    // [tile][step][lane]: base vectors, a byte each, and signs
    const void* residual;  // nullptr, the same of a second E8P (4 bit), or u32 indices into the ball (3 bit)
    const u32* tables;     // base vectors and, for 3 bit, the ball
    int first_tile;
    int tiles;
    int steps;  // of K
    int batch;  // rows of x
    int pairs;  // whether a row of x is two columns
    float residual_factor;
    u64 rotated;  // where in the workspace: fp16 [row][1 or 2 columns][K], in each 64 as rotate.cu's `place_of` says
    u64 sums;     // float [row][M]
    u64 dense;    // fp16 [row of the tiles][K], in the same order
};

template <int BITS>
struct Tables {
    ptx::Shared base, ball;  // this lane's copies
    ptx::Shared rest;        // shared memory behind them

    DEVICE explicit Tables(const Quip& w) {
        const ptx::Shared memory = ptx::shared_memory();
        stage_table(w.tables, memory);
        if (BITS == 3) stage_table(w.tables + table_words, memory + table_bytes);
        ptx::sync_block();
        base = memory + ptx::lane() * 4;
        ball = base + table_bytes;
        rest = memory + (BITS == 3 ? 2 : 1) * table_bytes;
    }
};

// One lane's codes of 16 rows and 64 columns.
template <int BITS>
struct Codes {
    uint2 main = {};
    uint2 residual = {};

    // at: (tile * steps + step) * lanes + lane.
    DEVICE void load_codes(const Quip& w, u32 at) {
        main = ptx::load_once(w.codes + at);
        if (BITS == 4) residual = ptx::load_once(static_cast<const uint2*>(w.residual) + at);
        if (BITS == 3) residual.x = ptx::load_once(static_cast<const u32*>(w.residual) + at);
    }

    DEVICE Weights decode_main(const Tables<BITS>& tables, const Flips& flips, int i) const {
        return unpack<true>(gather(tables.base, main.x, i) ^ flips.of(i));
    }

    DEVICE Weights decode_residual(const Tables<BITS>& tables, const Flips& flips, int i) const {
        if (BITS == 3) return unpack<false>(gather(tables.ball, residual.x, i));
        return unpack<true>(gather(tables.base, residual.x, i) ^ flips.of(i));
    }
};

// A step of this lane's column of x: for each code word of a row 16 bytes.
struct Factors {
    uint4 words[2];

    DEVICE void load_x(const Quip& w, const u8* workspace, int step) {
        words[0] = words[1] = make_uint4(0, 0, 0, 0);
        const int column = ptx::lane() / 4;
        if (column >= w.batch * (w.pairs + 1)) return;
        const u16* row = reinterpret_cast<const u16*>(workspace + w.rotated) + size_t(column) * w.steps * step_weights;
        const uint4* at = reinterpret_cast<const uint4*>(row + step * step_weights) + ptx::lane() % 4;
        words[0] = ptx::load(at);
        words[1] = ptx::load(at + 4);
    }
};

// Two words: the same code column of rows 2g and 2g + 1.
DEVICE void multiply(float (&sum)[4], const Weights& even, const Weights& odd, const uint4& x) {
    ptx::mma(sum, even.pairs[0], odd.pairs[0], even.pairs[1], odd.pairs[1], x.x, x.y);
    ptx::mma(sum, even.pairs[2], odd.pairs[2], even.pairs[3], odd.pairs[3], x.z, x.w);
}

template <int BITS>
struct Sum {
    float main[4] = {};
    float residual[4] = {};

    DEVICE void add(const Codes<BITS>& codes, const Tables<BITS>& tables, const Factors& x) {
        const Flips flips(codes.main.y);
#pragma unroll
        for (int i = 0; i < 4; i += 2)
            multiply(main, codes.decode_main(tables, flips, i), codes.decode_main(tables, flips, i + 1),
                     x.words[i / 2]);
        if (BITS == 2) return;
        const Flips others(codes.residual.y);
#pragma unroll
        for (int i = 0; i < 4; i += 2)
            multiply(residual, codes.decode_residual(tables, others, i), codes.decode_residual(tables, others, i + 1),
                     x.words[i / 2]);
    }

    DEVICE float value(int i, const Quip& w) const {
        return BITS == 2 ? 0.5f * main[i] : 0.5f * main[i] + w.residual_factor * residual[i];
    }
};

// Numbers of a row of W in a warp's partial sums.
DEVICE int width(const Quip& w) {
    return w.pairs ? w.batch : most_columns;
}

// A tile's sums of this warp, rows 2g first. to: [row][width].
template <int BITS>
DEVICE void store_partial(const Sum<BITS>& sum, const Quip& w, ptx::Shared to) {
    const int t = ptx::lane() % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float first = sum.value(2 * half, w), second = sum.value(2 * half + 1, w);
        const ptx::Shared row = to + (half * (tile_rows / 2) + ptx::lane() / 4) * width(w) * 4;
        if (!w.pairs)
            ptx::shared_store(row + t * 8, make_float2(first, second));
        else if (t < w.batch)
            ptx::shared_store(row + t * 4, first + second);
    }
}

// The sums over warps, each `stride` bytes behind the one before, of `count` tiles from `tile`.
DEVICE void add_warps(const Quip& w, u8* workspace, ptx::Shared from, int stride, int tile, int count) {
    for (int i = threadIdx.x; i < count * tile_rows * width(w); i += blockDim.x) {
        const int row = i / width(w), n = i % width(w);
        if (n >= w.batch) continue;
        float sum = 0;
#pragma unroll 8
        for (int warp = 0; warp < ptx::warps(); warp++) sum += ptx::shared_load<float>(from + warp * stride + i * 4);
        const int place = row % (tile_rows / 2) * 2 + row % tile_rows / (tile_rows / 2);
        float* sums = reinterpret_cast<float*>(workspace + w.sums) + size_t(n) * w.tiles * tile_rows;
        ptx::store(sums + (tile + row / tile_rows) * tile_rows + place, sum);
    }
}

// blockIdx.y: which eight rows of x.
template <int BITS>
DEVICE void quip(u8* workspace, const Quip& all) {
    ptx::let_next_start();
    Quip w = all;
    const int first_row = blockIdx.y * most_columns;
    w.batch = min(all.batch - first_row, most_columns);
    w.rotated += size_t(first_row) * w.steps * step_weights * 2;
    w.sums += size_t(first_row) * w.tiles * tile_rows * 4;
    constexpr int together = BITS == 2 ? 4 : 2;  // tiles
    int tile = int(u64(blockIdx.x) * w.tiles / gridDim.x);
    const int end = int((blockIdx.x + 1ull) * w.tiles / gridDim.x);
    const u32 tile_words = w.steps * lanes, warp_word = ptx::warp() * lanes + ptx::lane();
    Codes<BITS> codes[together];
#pragma unroll
    for (int i = 0; i < together; i++)
        if (tile + i < end) codes[i].load_codes(w, (tile + i) * tile_words + warp_word);

    const Tables<BITS> tables(w);
    ptx::wait_for_previous();
    const int stride = together * tile_rows * width(w) * 4;  // bytes of a warp's partial sums
    ptx::Shared partial = tables.rest;
    int other = ptx::warps() * stride;
    for (; tile < end; tile += together) {
        Sum<BITS> sums[together];
        for (int step = ptx::warp(); step < w.steps; step += ptx::warps()) {
            // A tile's next codes travel while those of the others are decoded.
            const bool last = step + ptx::warps() >= w.steps;
            const int next_tile = last ? tile + together : tile;
            const u32 next = next_tile * tile_words + (last ? warp_word : (step + ptx::warps()) * lanes + ptx::lane());
            Factors x;
            x.load_x(w, workspace, step);
#pragma unroll
            for (int i = 0; i < together; i++) {
                if (tile + i >= end) break;
                sums[i].add(codes[i], tables, x);
                if (next_tile + i < end) codes[i].load_codes(w, next + i * tile_words);
            }
        }
#pragma unroll
        for (int i = 0; i < together; i++)
            store_partial(sums[i], w, partial + ptx::warp() * stride + i * tile_rows * width(w) * 4);
        ptx::sync_block();
        // The next tiles' partial sums go elsewhere: whoever adds these is done before the barrier after those.
        add_warps(w, workspace, partial, stride, tile, min(together, end - tile));
        partial += other;
        other = -other;
    }
}

// Weights of a row in a word's order, of doubled base vectors and residuals, as fp16.
template <int BITS>
DEVICE uint4 combine(const Weights& main, const Weights& residual, float factor) {
    u32 pairs[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (BITS == 2) {
            pairs[i] = ptx::fma_half2(main.pairs[i], 0x38003800, 0);
            continue;
        }
        const float low = 0.5f * ptx::half_to_float(u16(main.pairs[i])),
                    high = 0.5f * ptx::half_to_float(u16(main.pairs[i] >> 16));
        pairs[i] = ptx::pack_half2(low + factor * ptx::half_to_float(u16(residual.pairs[i])),
                                   high + factor * ptx::half_to_float(u16(residual.pairs[i] >> 16)));
    }
    return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// The matrix between the rotations, of w.tiles tiles: a warp a step of a tile.
template <int BITS>
DEVICE void dequantize_e8p(u8* workspace, const Quip& w) {
    ptx::let_next_start();
    const int row_pieces = w.steps * step_weights / 8, all = w.tiles * w.steps;
    const auto load = [&](Codes<BITS>& codes, int i) {
        if (i < all) codes.load_codes(w, u32(w.first_tile * w.steps + i) * lanes + ptx::lane());
    };
    int i = blockIdx.x * ptx::warps() + ptx::warp();
    Codes<BITS> codes;
    load(codes, i);
    const Tables<BITS> tables(w);
    ptx::wait_for_previous();
    while (i < all) {
        // The next codes travel while these are decoded.
        const int next = i + gridDim.x * ptx::warps();
        Codes<BITS> next_codes;
        load(next_codes, next);
        const Flips flips(codes.main.y), others(codes.residual.y);
        const int tile = i / w.steps, step = i % w.steps;
        uint4* to = reinterpret_cast<uint4*>(workspace + w.dense) +
                    size_t(tile * tile_rows + ptx::lane() / 4 * 2) * row_pieces + step * (step_weights / 8) +
                    ptx::lane() % 4;
#pragma unroll
        for (int word = 0; word < 4; word++) {
            Weights residual = {};
            if (BITS > 2) residual = codes.decode_residual(tables, others, word);
            ptx::store(to + word % 2 * row_pieces + word / 2 * 4,
                       combine<BITS>(codes.decode_main(tables, flips, word), residual, w.residual_factor));
        }
        codes = next_codes;
        i = next;
    }
}

#define ENTRY(name, ...)                                                                                            \
    extern "C" KERNEL void __launch_bounds__(most_threads, 1) name(const void* x, void* y, u8* workspace, Quip w) { \
        __VA_ARGS__(workspace, w);                                                                                  \
    }
