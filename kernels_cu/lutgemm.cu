// LUT-GEMM's matrix-vector product (Park et al., 2022): planes of signs look up the sums of +-x that they name.
//
//               K:  split 0        split 1           thread block (slice, split, row of x)
//                 +------+------+------+------+         for each tile of the split:
//   slice 0       | tile | tile |      |      |           a table of 2^V sums for every k-vector of x
//                 +------+------+------+------+           lane = two rows: for each word of four codes
//   slice 1       |      |      |      |      |             four entries, added in fp16; times the scale, in fp32
//                 +------+------+------+------+       the splits' sums meet in the workspace (splits.cuh)
//
// A *run* is what a lane loads at a time of each row and plane: up to four words of one group, or a word in which
// scales change. All planes of a run look up the same tables.
//
// An entry lies where its code says, so a warp's 32 codes fall into banks at random: of tables of 256 entries, which
// are four words a bank, the busiest bank has 2.8 different ones to give.
//
// Shared memory: tables [k-vector of the tile][2^V] of fp16.
#include "splits.cuh"

constexpr int most_threads = 16 * lanes;
constexpr int word_codes = 4;
constexpr int most_words = 4;         // of a run
constexpr int warp_rows = 2 * lanes;  // of W

struct Lutgemm {
    const u32* codes;   // [run][plane][word][padded row], a byte a code
    const u16* scales;  // fp16 [group][plane][padded row]
    int out_features;
    int in_features;
    int padded_rows;  // of W, whole warps'
    int planes;
    int vectors;        // k-vectors of a row
    int group_vectors;  // that share a scale
    int group_runs;     // the same in runs, if those have one scale
    int runs;           // of the whole of K
    int split_runs;     // that one thread block sums up
    int tile_runs;      // whose tables are in shared memory together; of several tiles a multiple of S::ahead
};

// V: signs of a code, WORDS: of a run of one group, 0 for runs of a word in which scales change, X: type of x.
template <int V, int WORDS, class X>
struct Shape {
    using x_type = X;
    static constexpr int v = V;
    static constexpr bool mixed = WORDS == 0;
    static constexpr int words = mixed ? 1 : WORDS;
    static constexpr int run_vectors = words * word_codes;
    static constexpr int ahead = most_words / words;  // runs of a plane whose codes are on their way at once
    static constexpr int table_bytes = 2 << V;
    static constexpr int low = V < 6 ? V : 6;     // bits of a code of which a lane adds all terms, for two entries
    static constexpr int pairs = 1 << (low - 1);  // lanes that make a table
    static constexpr int turns = 1 << (V - low);  // pairs that each of them makes
};

// The numbers of a k-vector, each twice as fp16; zeros where there is none.
template <class S>
DEVICE void load_x(u32 (&twice)[S::v], const typename S::x_type::storage* x, bool is_there) {
    using X = typename S::x_type;
    float values[S::v] = {};
    if (is_there) {
        if constexpr (S::v % 4 == 0) {
#pragma unroll
            for (int i = 0; i < S::v; i += 4) {
                const float4 four = load_four<X>(x + i);
                values[i] = four.x, values[i + 1] = four.y, values[i + 2] = four.z, values[i + 3] = four.w;
            }
        } else {
#pragma unroll
            for (int i = 0; i < S::v; i++) values[i] = X::widen(ptx::load(x + i));
        }
    }
#pragma unroll
    for (int i = 0; i < S::v; i++) twice[i] = ptx::pack_half2(values[i], values[i]);
}

// Entry c of a table is the sum of x[i] for every bit i that is set in c, and of -x[i] for the others. As in the
// original those of the lower bits are added term by term, and each makes another with a further bit by adding twice
// that x.
template <class S>
DEVICE void build(ptx::Shared tables, const Lutgemm& w, const typename S::x_type::storage* x, int first, int count) {
    constexpr u32 minus = 0x80008000u, minus_first = 0x8000u;  // of both fp16 of a register, of the lower one
    for (int item = threadIdx.x; item < count * S::pairs; item += blockDim.x) {
        const int table = item / S::pairs, pair = item % S::pairs, vector = first + table;
        u32 numbers[S::v];
        load_x<S>(numbers, x + size_t(vector) * S::v, vector < w.vectors);
        u32 entries[S::turns];
        entries[0] = numbers[0] ^ minus_first;
#pragma unroll
        for (int i = 1; i < S::v; i++) {
            const bool plus = i < S::low && (pair >> (i - 1) & 1);
            entries[0] = ptx::add_half2(entries[0], plus ? numbers[i] : numbers[i] ^ minus);
        }
#pragma unroll
        for (int i = S::low; i < S::v; i++) {
            const u32 change = ptx::add_half2(numbers[i], numbers[i]);
#pragma unroll
            for (int turn = 0; turn < 1 << (i - S::low); turn++)
                entries[turn + (1 << (i - S::low))] = ptx::add_half2(entries[turn], change);
        }
        const ptx::Shared to = tables + table * S::table_bytes + pair * 4;
#pragma unroll
        for (int turn = 0; turn < S::turns; turn++) ptx::shared_store(to + turn * (S::pairs * 4), entries[turn]);
    }
}

// What a lane has of a run and plane: two rows' codes and, of one group, their scales.
template <class S>
struct Run {
    uint2 words[S::words];
    u32 scales;

    DEVICE void load_codes(const u32* codes, const Lutgemm& w, bool early) {
#pragma unroll
        for (int i = 0; i < S::words; i++) {
            const auto* from = reinterpret_cast<const uint2*>(codes + size_t(i) * w.padded_rows);
            words[i] = early ? ptx::load_early(from) : ptx::load_once(from);
        }
    }
};

// Two rows' scales.
DEVICE u32 load_scales(const u16* scales, bool early = false) {
    const auto* from = reinterpret_cast<const u32*>(scales);
    return early ? ptx::load_early(from) : ptx::load(from);
}
DEVICE float low_half(u32 pair) {
    return ptx::half_to_float(u16(pair));
}
DEVICE float high_half(u32 pair) {
    return ptx::half_to_float(u16(pair >> 16));
}

// Where a lane is in the codes and scales: plane by plane, run by run.
template <class S>
struct Cursor {
    const u32* codes;
    const u16* scales;
    int run, plane, left;  // left: runs of the group

    DEVICE static Cursor at(const Lutgemm& w, int run, int row) {
        const int group = S::mixed ? 0 : run / w.group_runs;
        return {w.codes + size_t(run) * (w.planes * S::words) * w.padded_rows + row,
                w.scales + size_t(group) * w.planes * w.padded_rows + row, run, 0, (group + 1) * w.group_runs - run};
    }

    // A run of a plane, and on to the next one. early: before the kernel before has ended.
    DEVICE void load_run(Run<S>& to, const Lutgemm& w, bool early = false) {
        to.load_codes(codes, w, early);
        if (!S::mixed) to.scales = load_scales(scales, early);
        codes += size_t(S::words) * w.padded_rows;
        scales += w.padded_rows;
        if (++plane < w.planes) return;
        plane = 0;
        run++;
        if (--left)
            scales -= size_t(w.planes) * w.padded_rows;
        else
            left = w.group_runs;
    }
};

// The entry that a word's code names. tables: the word's.
template <class S>
DEVICE u32 gather(ptx::Shared tables, u32 word, int code) {
    const u32 twice = code ? word >> (8 * code - 1) : word << 1;  // entries have two bytes
    return ptx::shared_load<u16>(tables + code * S::table_bytes + (twice & (S::table_bytes - 2)));
}

// Of four codes, in fp16.
template <class S>
DEVICE float sum_of_word(ptx::Shared tables, u32 word) {
    u32 entries[word_codes];
#pragma unroll
    for (int code = 0; code < word_codes; code++) entries[code] = gather<S>(tables, word, code);
    return low_half(ptx::add_half2(ptx::add_half2(entries[0], entries[1]), ptx::add_half2(entries[2], entries[3])));
}

// sums += a run of one plane and one group.
template <class S>
DEVICE void add_run(float2& sums, ptx::Shared tables, const Run<S>& run) {
    float2 sum = make_float2(0, 0);
#pragma unroll
    for (int i = 0; i < S::words; i++) {
        const ptx::Shared from = tables + i * (word_codes * S::table_bytes);
        sum.x += sum_of_word<S>(from, run.words[i].x), sum.y += sum_of_word<S>(from, run.words[i].y);
    }
    sums.x = fmaf(low_half(run.scales), sum.x, sums.x), sums.y = fmaf(high_half(run.scales), sum.y, sums.y);
}

// The same of a word whose codes have scales of their own. scales: the plane's of the first group; number: the run's.
template <class S>
DEVICE void add_mixed(float2& sums, ptx::Shared tables, const Run<S>& run, const Lutgemm& w, const u16* scales,
                      int number) {
    const int vector = number * word_codes;
    int group = vector / w.group_vectors, inside = vector % w.group_vectors;
#pragma unroll
    for (int code = 0; code < word_codes; code++) {
        if (vector + code >= w.vectors) return;
        const u32 pair = load_scales(scales + size_t(group) * w.planes * w.padded_rows);
        sums.x = fmaf(low_half(pair), low_half(gather<S>(tables, run.words[0].x, code)), sums.x);
        sums.y = fmaf(high_half(pair), low_half(gather<S>(tables, run.words[0].y, code)), sums.y);
        if (++inside == w.group_vectors) inside = 0, group++;
    }
}

// x: [batch][in_features] of X; y: [batch][out_features] of X or float32; workspace: as splits.cuh says, unused where
// gridDim.y is 1. blockIdx.z: which row of x.
template <int V, int WORDS, class X>
DEVICE void lutgemm(const void* x, void* y, u8* workspace, int batch, int y_is_float, const Lutgemm& w) {
    using S = Shape<V, WORDS, X>;
    ptx::let_next_start();
    const int warp = blockIdx.x * ptx::warps() + ptx::warp(), first_row = warp * warp_rows;
    const bool inside = first_row < w.out_features;
    const int first = blockIdx.y * w.split_runs, end = min(first + w.split_runs, w.runs);
    const auto* row_of_x = static_cast<const typename X::storage*>(x) + size_t(blockIdx.z) * w.in_features;
    const ptx::Shared tables = ptx::shared_memory();

    const int row = first_row + 2 * ptx::lane();
    Cursor<S> cursor = Cursor<S>::at(w, first, row);
    Run<S> next[S::ahead];
#pragma unroll
    for (int turn = 0; turn < S::ahead; turn++)
        if (inside && cursor.run < end) cursor.load_run(next[turn], w, true);
    ptx::wait_for_previous();
    float2 sums = make_float2(0, 0);
    for (int tile = first; tile < end; tile += w.tile_runs) {
        const int tile_end = min(tile + w.tile_runs, end);
        if (tile > first) ptx::sync_block();
        build<S>(tables, w, row_of_x, tile * S::run_vectors, (tile_end - tile) * S::run_vectors);
        ptx::sync_block();
        if (!inside) continue;
        ptx::Shared of_run = tables;
        int run = tile, plane = 0;
#pragma unroll 1
        while (run < tile_end) {
#pragma unroll
            for (int turn = 0; turn < S::ahead; turn++) {
                if (run >= tile_end) break;
                // The next codes travel while these are looked up.
                const Run<S> mine = next[turn];
                if (cursor.run < end) cursor.load_run(next[turn], w);
                if constexpr (S::mixed)
                    add_mixed<S>(sums, of_run, mine, w, w.scales + size_t(plane) * w.padded_rows + row, run);
                else
                    add_run<S>(sums, of_run, mine);
                if (++plane < w.planes) continue;
                plane = 0;
                run++;
                of_run += S::run_vectors * S::table_bytes;
            }
        }
    }

    if (!inside) return;
    const int n = blockIdx.z, first_block = first_row / lanes;
    const int block = ptx::lane() / (lanes / 2), place = 2 * ptx::lane() % lanes;
    const Slice mine{0, first_block, first_block + warp_rows / lanes, first_row, w.out_features};
    const Output<X> out{y, batch, y_is_float, w.out_features, nullptr, mine};
    const int splits = gridDim.y;
    const Splits partials{workspace, splits, splits * batch, batch, w.padded_rows};
    if (splits == 1) {
        out.write(n, block, place, sums.x);
        out.write(n, block, place + 1, sums.y);
        return;
    }
    ptx::store(reinterpret_cast<float2*>(partials.place(blockIdx.y, n, first_block + block, place)), sums);
    partials.finish(out, 0, 1);
}

#define ENTRY(name, ...)                                                                    \
    extern "C" KERNEL void __launch_bounds__(most_threads, 1)                               \
        name(const void* x, void* y, u8* workspace, int batch, int y_is_float, Lutgemm w) { \
        __VA_ARGS__(x, y, workspace, batch, y_is_float, w);                                 \
    }
