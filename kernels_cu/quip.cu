// QuIP#'s product of E8P codes with rotated x (Tseng et al., 2024): codes are decoded into the operands of tensor
// cores.
//
//              K:  step 0   step 1        step 15  step 16
//                +--------+--------+-----+--------+--------+--      thread block: near-equal shares of all tiles
//   tile 0       | warp 0 | warp 1 | ... | warp15 | warp 0 |          for each few tiles:
//   (16 rows)    +--------+--------+-----+--------+--------+--          warp: every 16th step of 64 weights
//   tile 1       | warp 0 | warp 1 |     |        |        |            sums to shared memory, a barrier
//                +--------+--------+-----+--------+--------+--          threads: add the warps in their order
//
// A lane's 8 bytes of codes are four words, of rows 2g and 2g + 1 and columns 2t and 2t + 1 of a step (g = lane / 4,
// t = lane % 4): nibbles that stand for integers, as bytes the A operands of two mma of integers. A number of x is four
// signed digits of base 256, a column each, so that two rows of x fill an operand's eight columns; one or two GROUPS of
// these go together. More than four rows have three digits, and a group for each: its columns are the rows. All
// integers are exact: a weight is (2n - 15) / 4, and the sum of x, which 15 multiplies, is that of a matrix of ones.
//
// Sums are of 2-bit codes and of the residual's apart. No atomics: the same bits in every run.
#include "constant.cuh"
#include "e8p.cuh"

constexpr int most_threads = 512;
constexpr int tile_rows = 16;
constexpr int step_weights = 64;
constexpr int most_rows = 8;  // of x, that a block multiplies

struct Quip {
    const uint2* codes;    // [tile][step][lane]: base vectors and signs, a byte each
    const void* residual;  // nullptr, the same of a second E8P (4 bit), or u32 indices into the ball (3 bit)
    const u32* tables;     // [256][base vector, what a sign byte flips] and, for 3 bit, the ball
    int first_tile;
    int tiles;
    int steps;  // of K
    int batch;  // rows of x
    float residual_factor;
    u64 rotated;  // where in the workspace: signed bytes [row][digit][K], in rotate.cu's `place_of_digits`
    u64 sums;     // float [row][M]
    u64 dense;    // fp16 [row of the tiles][K], in each 64 as rotate.cu's `place_of` says
};

// Rows of x of this block: eight, or the last ones.
DEVICE int first_row() {
    return blockIdx.y * most_rows;
}
DEVICE int rows_of(const Quip& w) {
    return min(w.batch - first_row(), most_rows);
}

// Four words of eight nibbles, or of four bytes.
struct Words {
    u32 word[4];
};

// One lane's codes of 16 rows and 64 columns.
template <int BITS>
struct Codes {
    uint2 main = {};
    uint2 residual = {};

    // at: (tile * steps + step) * lanes + lane. early: before `wait_for_previous`.
    DEVICE void load_codes(const Quip& w, u32 at, bool early = false) {
        load_codes(main, w.codes + at, early);
        if (BITS == 4) load_codes(residual, static_cast<const uint2*>(w.residual) + at, early);
        if (BITS == 3) load_codes(residual.x, static_cast<const u32*>(w.residual) + at, early);
    }

 private:
    template <class T>
    DEVICE static void load_codes(T& codes, const T* address, bool early) {
        codes = early ? ptx::load_early(address) : ptx::load_once(address);
    }
};

// Where base vectors are flipped: base ^ flips.
struct Flipped {
    Words base, flips;

    DEVICE Flipped(const Tables& tables, const uint2& codes) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            base.word[i] = tables.gather_base(codes.x, i);
            flips.word[i] = tables.gather_flips(codes.y, i);
        }
    }
};

// The ball's points, of which nothing is flipped.
DEVICE Words ball_points(const Tables& tables, u32 indices) {
    Words words;
#pragma unroll
    for (int i = 0; i < 4; i++) words.word[i] = tables.gather_ball(indices, i);
    return words;
}

// Whether a group has one digit of all rows of x, and not all digits of two rows.
template <int GROUPS>
constexpr bool digits_apart = GROUPS == 3;
template <int GROUPS>
constexpr int digits = digits_apart<GROUPS> ? 3 : 4;
// Of rotated x, over a row's power of two.
template <int GROUPS>
constexpr float x_unit = 1.0f / (digits<GROUPS> == 3 ? 1 << 21 : 1 << 29);

// A step of this lane's column of x in each group: a digit of 16 columns of K.
template <int GROUPS>
struct Factors {
    uint4 digit[GROUPS];
};

// Where they are, in bytes of the workspace's rotated x. Columns that are none have another's digits: nobody asks for
// their sums.
template <int GROUPS>
struct Columns {
    static constexpr bool neighbours = digits_apart<GROUPS>;
    const u8* rotated;
    u32 at[neighbours ? 1 : GROUPS];
    u32 stride;  // between columns

    DEVICE Columns(const Quip& w, const u8* workspace)
        : rotated(workspace + w.rotated), stride(w.steps * step_weights) {
        const int first = first_row() * digits<GROUPS>, all = rows_of(w) * digits<GROUPS>, place = ptx::lane() / 4;
        const int piece = ptx::lane() % 4 * 16;
        if (neighbours) at[0] = (first + min(place * digits<GROUPS>, all - digits<GROUPS>)) * stride + piece;
#pragma unroll
        for (int group = 0; group < GROUPS && !neighbours; group++)
            at[group] = (first + min(8 * group + place, all - 1)) * stride + piece;
    }

    DEVICE Factors<GROUPS> load_x(int step) const {
        Factors<GROUPS> x;
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            const u32 column = neighbours ? at[0] + group * stride : at[group % (neighbours ? 1 : GROUPS)];
            x.digit[group] = ptx::load(reinterpret_cast<const uint4*>(rotated + column + step * step_weights));
        }
        return x;
    }
};

// Of one tile: what nibbles sum up to.
template <int GROUPS>
struct Sum {
    int sum[GROUPS][4] = {};

    // Nibbles as bytes: the low ones of a word's bytes, and the high ones.
    DEVICE void add(const Words& low, const Words& high, const Factors<GROUPS>& x) {
        const u32(&a)[4] = low.word, (&b)[4] = high.word;
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            const uint4& digit = x.digit[group];
            ptx::mma(sum[group], a[0], a[1], a[2], a[3], digit.x, digit.y);
            ptx::mma(sum[group], b[0], b[1], b[2], b[3], digit.z, digit.w);
        }
    }

    DEVICE void add(const Flipped& words, const Factors<GROUPS>& x) {
        Words low, high;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 base = words.base.word[i], flips = words.flips.word[i];
            low.word[i] = ptx::xor_and(base, flips, 0x0f0f0f0f);
            high.word[i] = ptx::xor_and(base, flips, 0xf0f0f0f0) >> 4;
        }
        add(low, high, x);
    }

    DEVICE void add(const Words& words, const Factors<GROUPS>& x) {
        Words low, high;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            low.word[i] = words.word[i] & 0x0f0f0f0f;
            high.word[i] = (words.word[i] & 0xf0f0f0f0) >> 4;
        }
        add(low, high, x);
    }

    // Four times what weights (2n - zero) / 4 sum up to. Whatever leaves 32 bits on the way comes back.
    DEVICE float value(int group, int i, int zero, int all_x) const {
        return float(int(2u * sum[group][i] - u32(zero) * all_x));
    }
};

// Where sums of row n of x and the i-th tile are in a warp's, [n][TOGETHER tiles][row]: of every second n two tiles
// have changed places, so that lanes that store several n use more banks.
template <int TOGETHER>
DEVICE int swap(int i, int n) {
    return TOGETHER % 2 == 0 ? i ^ (n ^ n >> 1) & 1 : i;
}

// The sums of row n of x and this lane's two rows of the i-th tile.
template <int TOGETHER>
DEVICE void store_partial(const Quip& w, ptx::Shared to, int n, int i, float first, float second) {
    const int row = (n * TOGETHER + swap<TOGETHER>(i, n)) * tile_rows + ptx::lane() / 4 * 2;
    if (n < rows_of(w)) ptx::shared_store(to + row * 4, make_float2(first, second));
}

// The i-th tile's sums of this warp, whose lanes have two columns of rows 2g and 2g + 1.
template <int BITS, int GROUPS, int TOGETHER>
DEVICE void store_partials(const Sum<GROUPS>& main, const Sum<GROUPS>& residual, const Sum<GROUPS>& all_x,
                           const Quip& w, ptx::Shared to, int i) {
    constexpr float unit = x_unit<GROUPS> / 4;
    constexpr int zero = 15, ball_zero = 16;
    const int t = ptx::lane() % 4;
    const auto digit = [&](int group, int at) {
        const int x = all_x.sum[group][at];
        float sum = main.value(group, at, zero, x);
        if (BITS > 2) sum += w.residual_factor * residual.value(group, at, BITS == 3 ? ball_zero : zero, x);
        return sum * unit;
    };
    if (digits_apart<GROUPS>) {
#pragma unroll
        for (int column = 0; column < 2; column++) {
            float rows[2];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int at = 2 * half + column;
                rows[half] = digit(0, at) + 256.0f * digit(1 % GROUPS, at) + 65536.0f * digit(2 % GROUPS, at);
            }
            store_partial<TOGETHER>(w, to, 2 * t + column, i, rows[0], rows[1]);
        }
        return;
    }
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
        float rows[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float two = digit(group, 2 * half) + 256.0f * digit(group, 2 * half + 1);
            rows[half] = two + 65536.0f * ptx::shuffle_xor(two, 1);  // the next lane's two digits are the higher ones
        }
        if (t % 2 == 0) store_partial<TOGETHER>(w, to, 2 * group + t / 2, i, rows[0], rows[1]);
    }
}

// The sums over warps, each `stride` bytes behind the one before, of tiles from `tile` on.
template <int TOGETHER>
DEVICE void add_warps(const Quip& w, u8* workspace, ptx::Shared from, int stride, int tile) {
    constexpr int rows = TOGETHER * tile_rows;
    for (int i = threadIdx.x; i < rows_of(w) * rows; i += blockDim.x) {
        const int n = i / rows, row = swap<TOGETHER>(i % rows / tile_rows, n) * tile_rows + i % tile_rows;
        float sum = 0;
#pragma unroll 8
        for (int warp = 0; warp < ptx::warps(); warp++) sum += ptx::shared_load<float>(from + warp * stride + i * 4);
        float* sums = reinterpret_cast<float*>(workspace + w.sums) + size_t(first_row() + n) * w.tiles * tile_rows;
        ptx::store(sums + tile * tile_rows + row, sum);
    }
}

// Steps of a warp whose codes are on their way at once: two, for memory takes longer than a step, or one where
// registers are too few.
template <int BITS, int GROUPS>
constexpr int turns_of = BITS > 2 && GROUPS > 2 ? 1 : 2;

// Tiles of a block whose look-ups travel together.
template <int BITS>
constexpr int together_of = BITS == 2 ? 4 : 2;

// blockIdx.y: which eight rows of x.
template <int BITS, int GROUPS>
DEVICE void quip(u8* workspace, const Quip& w) {
    ptx::let_next_start();
    constexpr int together = together_of<BITS>;
    int tile = int(u64(blockIdx.x) * w.tiles / gridDim.x);
    const int end = int((blockIdx.x + 1ull) * w.tiles / gridDim.x);
    const u32 tile_words = w.steps * lanes;
    const int warp = ptx::warp(), warps = ptx::warps();
    const u32 first_word = warp * lanes + ptx::lane();
    constexpr int turns = turns_of<BITS, GROUPS>;
    Codes<BITS> codes[turns][together];  // of a warp's even steps and of its odd ones
#pragma unroll
    for (int turn = 0; turn < turns; turn++)
#pragma unroll
        for (int i = 0; i < together; i++)
            if (tile + i < end && warp + turn * warps < w.steps)
                codes[turn][i].load_codes(w, (tile + i) * tile_words + turn * warps * lanes + first_word, true);

    const Tables tables(ptx::shared_memory(), w.tables, BITS == 3);
    ptx::wait_for_previous();
    const Columns<GROUPS> columns(w, workspace);
    Factors<GROUPS> x = columns.load_x(warp);
    const Words ones = {{0x01010101, 0x01010101, 0x01010101, 0x01010101}};
    const int stride = rows_of(w) * together * tile_rows * 4;  // bytes of a warp's partial sums
    const ptx::Shared partial = tables.memory + tables_bytes + (BITS == 3 ? ball_bytes : 0);
    // All steps of so many tiles: without branches between these, their look-ups travel together.
    const auto add_tiles = [&](auto tiles) {
        constexpr int count = decltype(tiles)::value;
        Sum<GROUPS> main[count], residual[count];
        Sum<GROUPS> all_x;  // of a row of ones
        // These codes and x, while the next ones travel.
        const auto add_step = [&](auto is_last, int turn, u32 next, int next_step) {
            const Factors<GROUPS> next_x = columns.load_x(next_step);
            all_x.add(ones, ones, x);
#pragma unroll
            for (int i = 0; i < count; i++) {
                Codes<BITS>& mine = codes[turn][i];
                main[i].add(Flipped(tables, mine.main), x);
                if (BITS == 3) residual[i].add(ball_points(tables, mine.residual.x), x);
                if (BITS == 4) residual[i].add(Flipped(tables, mine.residual), x);
                if (!decltype(is_last)::value || tile + count + i < end) mine.load_codes(w, next + i * tile_words);
            }
            x = next_x;
        };
        const int round = turns * warps;  // steps
        int step = warp;
        u32 at = tile * tile_words + first_word;
#pragma unroll 1
        for (; step + round + (turns - 1) * warps < w.steps; step += round) {
#pragma unroll
            for (int turn = 0; turn < turns; turn++)
                add_step(Constant<false>(), turn, at + (round + turn * warps) * lanes, step + (turn + 1) * warps);
            at += round * lanes;
        }
        // The last one, two or three steps, behind which come the first ones of the next tiles.
        const u32 next_tiles = (tile + count) * tile_words + first_word;
        if (turns == 2 && step + round < w.steps) {
            add_step(Constant<false>(), 0, at + round * lanes, step + warps);
            add_step(Constant<true>(), 1, next_tiles + warps * lanes, step + round);
            add_step(Constant<true>(), 0, next_tiles, warp);
        } else if (turns == 2 && step + warps < w.steps) {
            add_step(Constant<true>(), 0, next_tiles, step + warps);
            add_step(Constant<true>(), 1, next_tiles + warps * lanes, warp);
        } else {
            add_step(Constant<true>(), 0, next_tiles, warp);
        }
        ptx::sync_block();  // the sums of the tiles before are added
#pragma unroll
        for (int i = 0; i < count; i++)
            store_partials<BITS, GROUPS, count>(main[i], residual[i], all_x, w, partial + warp * stride, i);
        ptx::sync_block();
        add_warps<count>(w, workspace, partial, stride, tile);
        tile += count;
    };
    while (tile < end) {
        const int count = min(together, end - tile);
        if (count == together) add_tiles(Constant<together>());
        if (together > 3 && count == 3) add_tiles(Constant<3>());
        if (together > 2 && count == 2) add_tiles(Constant<2>());
        if (together > 1 && count == 1) add_tiles(Constant<1>());
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
    const Tables tables(ptx::shared_memory(), w.tables, BITS == 3);
    ptx::wait_for_previous();
    while (i < all) {
        // The next codes travel while these are decoded.
        const int next = i + gridDim.x * ptx::warps();
        Codes<BITS> next_codes;
        load(next_codes, next);
        const Flipped main(tables, codes.main);
        const int tile = i / w.steps, step = i % w.steps;
        uint4* to = reinterpret_cast<uint4*>(workspace + w.dense) +
                    size_t(tile * tile_rows + ptx::lane() / 4 * 2) * row_pieces + step * (step_weights / 8) +
                    ptx::lane() % 4;
#pragma unroll
        for (int word = 0; word < 4; word++) {
            Weights residual = {};
            if (BITS == 3) residual = unpack<false>(tables.gather_ball(codes.residual.x, word));
            if (BITS == 4)
                residual = unpack<true>(tables.gather_base(codes.residual.x, word) ^
                                        tables.gather_flips(codes.residual.y, word));
            ptx::store(to + word % 2 * row_pieces + word / 2 * 4,
                       combine<BITS>(unpack<true>(main.base.word[word] ^ main.flips.word[word]), residual,
                                     0.5f * w.residual_factor));
        }
        codes = next_codes;
        i = next;
    }
}

// As many threads as a multiprocessor's registers are shared out to: of products with few rows of x, which wait for
// more than their instructions, half a block more than there is, so that the rotations' blocks run beside them.
template <void (*BODY)(u8*, const Quip&)>
constexpr int register_threads = most_threads;
template <>
constexpr int register_threads<quip<2, 1>> = most_threads * 3 / 2;
template <>
constexpr int register_threads<quip<3, 1>> = most_threads * 3 / 2;
template <>
constexpr int register_threads<quip<4, 1>> = most_threads * 3 / 2;

#define ENTRY(name, ...)                                                       \
    extern "C" KERNEL void __launch_bounds__(register_threads<__VA_ARGS__>, 1) \
        name(const void* x, void* y, u8* workspace, Quip w) {                  \
        __VA_ARGS__(workspace, w);                                             \
    }
