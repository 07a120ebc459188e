// The dequantising kernel: y = x W^T for a codebook-quantised W and up to 64 rows of x, by tensor cores.
//
// Weights are mma's B, eight rows of W its columns; x is A. A lookup brings B's fragment as it stands, so the loop is
// one permute, one load and V / 4 mma for 32 codes. (With weights as A, half of it was register moves.) Each codebook
// is an mma of its own into the same fp32 sums: centroids are never added in fp16. Sums of a group are scaled and added
// in fp32, which also bounds what tensor cores lose by truncating.
//
//            K:  split 0      split 1            thread block (slice, split)
//              +---+---+---+---+---+---+           copy the codebooks 8 or 16 times into shared memory
//   slice 0    | c |   |   |   |   |   |           for each chunk c of K: fragments of x into shared memory
//              +---+---+---+---+---+---+             for each k block, in every warp for its 32 or 64 rows:
//   slice 1    |   |   |   |   |   |   |               look up, multiply; scale, add
//              +---+---+---+---+---+---+
// More rows of x than registers hold sums of (N) are several passes over W, by thread blocks beside each other.
//
// Shared memory: tables, fragments of x of a chunk, powers of two of x; in the end a stage for y [warp][n][row]; what
// the other blocks of a cluster send.
#include "constant.cuh"
#include "dequant_centroids.cuh"
#include "dequant_x.cuh"

// Scales of rows 8 * tile + 2q and the next, for one block of 32 rows.
struct RowScales {
    uint4 pair;

    // place: group * w.row_blocks + block of rows. In 32 bits, which number 64 GiB of scales, four lanes a place.
    DEVICE void load_scales(const Dequant& w, u32 place) {
        pair = ptx::load(reinterpret_cast<const uint4*>(w.scales) + (place * 4 + (ptx::lane() & 3)));
    }
    DEVICE float even(int tile) const { return ptx::half_to_float(u16(word(tile))); }
    DEVICE float odd(int tile) const { return ptx::half_to_float(u16(word(tile) >> 16)); }
    DEVICE u32 word(int tile) const { return tile == 0 ? pair.x : tile == 1 ? pair.y : tile == 2 ? pair.z : pair.w; }
};

// Sums of a warp's rows: d0, d1 of rows 2q, 2q + 1 and row r of x; d2, d3 of the same and row r + 8.
template <class S>
struct Sums {
    float d[S::row_blocks][4][S::x_tiles][4];

    DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < S::row_blocks; i++)
#pragma unroll
            for (int tile = 0; tile < 4; tile++)
#pragma unroll
                for (int t = 0; t < S::x_tiles; t++)
#pragma unroll
                    for (int j = 0; j < 4; j++) d[i][tile][t][j] = 0;
    }
};

// A fragment of x, rows r and r + 8 of a tile.
DEVICE uint4 load_fragment(ptx::Shared from) {
    return ptx::shared_load<uint4>(from);
}

// sums += one step of x times the weights that the codes stand for, of COUNT blocks of rows. With no branch inside, so
// that lookups of several blocks, and of the next step, are under way together.
template <class S, int COUNT>
DEVICE void multiply_step(Sums<S>& sums, ptx::Shared fragments, const Centroids<S>& centroids,
                          const RowCodes<S> (&codes)[S::row_blocks][S::books], int first_book, int step) {
#pragma unroll(S::shared ? S::pieces : 1)  // else the compiler fetches both at once, into registers that are not there
    for (int piece = 0; piece < S::pieces; piece++) {
        uint4 x[S::quarters][S::x_tiles];
#pragma unroll
        for (int h = 0; h < S::quarters; h++)
#pragma unroll
            for (int t = 0; t < S::x_tiles; t++)
                x[h][t] = load_fragment(fragments + (((step * S::pieces + piece) * S::quarters + h) * S::x_tiles + t) *
                                                        (lanes * 16));
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
#pragma unroll
            for (int book = 0; book < S::books; book++)
#pragma unroll
                for (int tile = 0; tile < 4; tile++) {
                    u32 b[2 * S::quarters];
                    centroids.look_up(b, codes[i][book], first_book + book, tile, step, piece);
#pragma unroll
                    for (int h = 0; h < S::quarters; h++)
#pragma unroll
                        for (int t = 0; t < S::x_tiles; t++) {
                            const uint4& a = x[h][t];
                            ptx::mma(sums.d[i][tile][t], a.x, a.y, a.z, a.w, b[2 * h], b[2 * h + 1]);
                        }
                }
        }
    }
}

// total += sums, scaled.
template <class S, int COUNT>
DEVICE void add_scaled(Sums<S>& total, const Sums<S>& sums, const RowScales (&scales)[S::row_blocks],
                       ptx::Shared unscale) {
    const int r = ptx::lane() >> 2;
#pragma unroll
    for (int t = 0; t < S::x_tiles; t++) {
        float back[2] = {1, 1};
        if constexpr (S::scaled) {
            back[0] = ptx::shared_load<float>(unscale + 4 * (16 * t + r));
            back[1] = ptx::shared_load<float>(unscale + 4 * (16 * t + r + 8));
        }
#pragma unroll
        for (int i = 0; i < COUNT; i++)
#pragma unroll
            for (int tile = 0; tile < 4; tile++) {
                const float factor[2] = {S::phases ? scales[i].even(tile) : 1.0f,
                                         S::phases ? scales[i].odd(tile) : 1.0f};
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const float scale = S::scaled ? factor[j % 2] * back[j / 2] : factor[j % 2];
                    total.d[i][tile][t][j] = fmaf(scale, sums.d[i][tile][t][j], total.d[i][tile][t][j]);
                }
            }
    }
}

// What a warp's sums are written with.
template <class S>
struct Written {
    Slice slice;
    int warp = ptx::warp(), stride = ptx::warps();
    int first_n = blockIdx.y * S::n;

    DEVICE explicit Written(const Dequant& w) { slice = w.slices.anew(); }

    DEVICE int blocks() const { return slice.end_block - slice.first_block; }
};

// to(half, tile, even, odd), for what a lane has of a block of 32 rows and a tile of x: sums of row 8 * half + r of x
// and rows 8 * tile + 2q and the next of W.
template <class S, class To>
DEVICE void for_each_piece(const Sums<S>& total, const RowScales& scales, int i, int t, To to) {
#pragma unroll
    for (int tile = 0; tile < 4; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            to(half, tile, total.d[i][tile][t][2 * half] * (S::phases ? 1.0f : scales.even(tile)),
               total.d[i][tile][t][2 * half + 1] * (S::phases ? 1.0f : scales.odd(tile)));
}

// Pieces of a block of 32 rows that have so many rows of x: every eight of those have four.
DEVICE int sent_pieces(int rows) {
    return (rows + 7) / 8 * 4;
}

// A warp's sums into y, by the blocks of a cluster together. A piece is what `for_each_piece` has at a time.
template <class S>
DEVICE void add_in_cluster(const Sums<S>& total, void* y, int batch, int y_is_float, const Dequant& w) {
    const Written<S> written(w);
    const Output<typename S::x_type> out{y, batch, y_is_float, w.out_features, nullptr, written.slice};
    const int rows = min(batch - written.first_n, S::n), sent = sent_pieces(rows);
    Cluster<float2> cluster{ptx::shared_memory() + w.received, S::n / 2};
    cluster.wait_for_begin(written.warp);
#pragma unroll
    for (int i = 0; i < S::row_blocks; i++) {
        const int block = written.warp + i * written.stride;
        if (block >= written.blocks()) break;
        RowScales scales;
        if (!S::phases) scales.load_scales(w, written.slice.first_block + block);
#pragma unroll
        for (int t = 0; t < S::x_tiles; t++)
            for_each_piece<S>(total, scales, i, t, [&](int half, int tile, float even, float odd) {
                if (16 * t + 8 * half < rows) cluster.send((2 * t + half) * 4 + tile, make_float2(even, odd));
            });
        cluster.advance(written.stride);
    }
    // The pieces of all blocks that are this thread block's, a piece a warp.
    int piece = written.warp, owned = 0;
    const auto skip_blocks = [&] {
        for (; piece >= sent; piece -= sent) owned++;
        return cluster.rank + owned * cluster.size;
    };
    int block = skip_blocks();
    cluster.wait();
    for (; block < written.blocks(); piece += written.stride, block = skip_blocks()) {
        const int n = piece / 4 * 8 + (ptx::lane() >> 2), row = piece % 4 * 8 + 2 * (ptx::lane() & 3);
        const float2 sum = cluster.sum(piece, owned);
        if (n >= rows) continue;
        out.write(written.first_n + n, block, row, sum.x);
        out.write(written.first_n + n, block, row + 1, sum.y);
    }
}

// A warp's sums into y, or those of a split into the workspace.
template <class S>
DEVICE void write_sums(const Sums<S>& total, void* y, u8* workspace, int batch, int y_is_float, const Dequant& w) {
    const Written<S> written(w);
    const int lane = ptx::lane(), warp = written.warp, stride = written.stride, first_n = written.first_n;
    const Slice& slice = written.slice;
    const Output<typename S::x_type> out{y, batch, y_is_float, w.out_features, nullptr, slice};
    const Splits splits{workspace, int(gridDim.z), int(gridDim.z * gridDim.y), batch, w.row_blocks * lanes};
    const ptx::Shared stage = ptx::shared_memory() + warp * stage_bytes;
    if (splits.count == 1) ptx::sync_block();  // what was tables and x becomes the stage
#pragma unroll
    for (int i = 0; i < S::row_blocks; i++) {
        const int block = warp + i * stride;
        if (block >= written.blocks()) break;
        RowScales scales;
        if (!S::phases) scales.load_scales(w, slice.first_block + block);
#pragma unroll
        for (int t = 0; t < S::x_tiles; t++) {
            for_each_piece<S>(total, scales, i, t, [&](int half, int tile, float even, float odd) {
                const int n = 8 * half + (lane >> 2), row = 8 * tile + 2 * (lane & 3);
                if (splits.count == 1) {
                    ptx::shared_store(stage + 4 * (n * stage_words + row), make_float2(even, odd));
                } else if (first_n + 16 * t + n < batch) {
                    float* to = splits.place(blockIdx.z, first_n + 16 * t + n, slice.first_block + block, row);
                    ptx::store(reinterpret_cast<float2*>(to), make_float2(even, odd));
                }
            });
            if (splits.count > 1) continue;
            // Lane = row, so that a row of y is written as a whole.
            ptx::sync_warp();
            for (int n = 0; n < min(16, batch - first_n - 16 * t); n++)
                out.write(first_n + 16 * t + n, block, lane,
                          ptx::shared_load<float>(stage + 4 * (n * stage_words + lane)));
            ptx::sync_warp();
        }
    }
    if (splits.count > 1) splits.finish(out, warp, stride);
}

constexpr int most_turns = 4;  // whose sums tensor cores add up, before float32 does

// x: [batch][in_features] of X; y: [batch][out_features] of X or float32; workspace: as splits.cuh says, unused where
// gridDim.z is 1.
template <class S>
DEVICE void dequant(const void* x, void* y, u8* workspace, int batch, int y_is_float, const Dequant& w) {
    using X = typename S::x_type;
    ptx::let_next_start();
    constexpr int phases = S::phases ? S::phases : 1;
    constexpr int turns = S::m / S::books;  // of a k block
    const Slice slice = w.slices.at(blockIdx.x);
    const int lane = ptx::lane(), warp = ptx::warp(), stride = ptx::warps();
    const int blocks = slice.end_block - slice.first_block;
    const int count = (warp < blocks) + (S::row_blocks > 1 && warp + stride < blocks);  // of this warp's blocks of rows
    const int first_n = blockIdx.y * S::n;
    const int first = blockIdx.z * w.split_blocks, end = min(first + w.split_blocks, w.k_blocks);
    const auto* rows = static_cast<const typename X::storage*>(x) + size_t(first_n) * w.in_features;

    const ptx::Shared tables = ptx::shared_memory();
    const ptx::Shared fragments = tables + (S::shared ? S::tables * S::centroids * line_bytes : 0);
    const ptx::Shared unscale = fragments + w.chunk_blocks * S::x_bytes;
    const u16* books = w.codebooks + size_t(slice.part) * (S::m * S::centroids * S::v);
    const Centroids<S> centroids{tables, u32(S::v == 4 ? lane % 16 * 8 : lane % 8 * 16), books};

    // What the tables are made of comes first, then the first codes, then a few more: memory serves in turn.
    Copies<S> copied;
    if constexpr (S::shared) copied.load(books, threadIdx.x);
    constexpr int code_bytes = lanes * S::code_words * 4;  // of 32 rows in a k block, for each codebook
    const size_t row_bytes = size_t(w.row_blocks) * code_bytes;
    const u8* slice_codes = w.codes + size_t(slice.first_block) * code_bytes;
    RowCodes<S> codes[S::row_blocks][S::books], next[S::row_blocks][S::books];
    const u8* turn_codes = slice_codes + size_t(first * S::m) * row_bytes + warp * code_bytes;  // loaded next
    const auto load_turn = [&](RowCodes<S>(&to)[S::row_blocks][S::books]) {
#pragma unroll
        for (int i = 0; i < S::row_blocks; i++)
#pragma unroll
            for (int book = 0; book < S::books; book++)
                if (i < count) to[i][book].load_codes(turn_codes + book * row_bytes + i * stride * code_bytes);
        turn_codes += S::books * row_bytes;
    };
    if (S::ahead) load_turn(next);
    // Where centroids come from L2 as well, all codes: behind those they would each be waited for.
    const int prefetched = S::shared ? min(end - first, prefetched_blocks) : end - first;
    for (int i = threadIdx.x; i < prefetched * S::m; i += blockDim.x)
        ptx::prefetch(slice_codes + (first * S::m + i) * row_bytes, min(blocks * code_bytes, most_prefetched));
    const Cluster<float2> cluster{ptx::shared_memory() + w.received, S::n / 2};
    cluster.begin();
    // Scales of the group under way, and of the next, which are asked for before that one begins where registers allow.
    RowScales scales[S::row_blocks], next_scales[S::row_blocks];
    const auto load_scales = [&](RowScales(&to)[S::row_blocks], u32 place) {
#pragma unroll
        for (int i = 0; i < S::row_blocks; i++)
            if (i < count) to[i].load_scales(w, place + i * stride);
    };
    const u32 rows_place = slice.first_block + warp;
    // Where a k block has one scale: the k block behind its group, and the place of the group's.
    int group_end = end;
    u32 group_place = 0;
    if (S::phases == 1) {
        const u32 group = u32(first) / u32(w.group_blocks);
        group_end = (group + 1) * w.group_blocks;
        group_place = group * w.row_blocks + rows_place;
        load_scales(scales, group_place);
    }
    // A cluster's launches end at once, so that x is there before the codebooks: the tables are filled while its first
    // part comes. Where the last of them still add up sums in memory, they are filled until x may be read.
    ItemOfX<S> first_x;
    const bool x_first = ItemOfX<S>::ahead && cluster.size > 1;
    const bool is_ahead = x_first && ItemOfX<S>::exists(warp, min(w.chunk_blocks, end - first));
    if (is_ahead) first_x.find_item(w, first, warp);
    if constexpr (S::shared)
        if (!x_first) copied.finish(books, tables);
    ptx::wait_for_previous();
    if (is_ahead) first_x.load_item(w, rows, batch - first_n, warp);
    cluster.expect(sent_pieces(min(batch - first_n, S::n)), blocks);
    if constexpr (S::shared)
        if (x_first) copied.finish(books, tables);
    if (is_ahead) first_x.store_item(fragments, unscale, warp);

    Sums<S> total;
    total.clear();
    // Sums under one scale: of a part of a k block, or where x has no powers of two of its own of a group, `most_turns`
    // at a time.
    constexpr bool by_group = S::phases == 1 && !S::scaled;
    Sums<S> sums;
    if (by_group) sums.clear();
    const auto multiply_turn = [&](auto number, int turn, int chunk, bool folds) {
        constexpr int blocks = decltype(number)::value;
        const int k_block = turn / turns, first_book = turn % turns;
#pragma unroll
        for (int phase = 0; phase < phases; phase++) {
            if (S::phases > 1) load_scales(scales, u32(k_block * S::phases + phase) * w.row_blocks + rows_place);
            if (!by_group) sums.clear();
#pragma unroll
            for (int i = 0; i < steps / phases; i++)
                multiply_step<S, blocks>(sums, fragments + (k_block - chunk) * S::x_bytes + lane * 16, centroids, codes,
                                         first_book, phase * (steps / phases) + i);
            if (by_group && !folds) continue;
            add_scaled<S, blocks>(total, sums, scales, unscale + (k_block - chunk) * (S::n * 4));
            if (by_group) sums.clear();
        }
    };
    for (int chunk = first; chunk < end; chunk += w.chunk_blocks) {
        const int chunk_end = min(chunk + w.chunk_blocks, end);
        if (chunk > first) ptx::sync_block();
        build_x<S>(fragments, unscale, w, rows, batch - first_n, chunk, chunk_end - chunk,
                   x_first && chunk == first ? stride : 0);
        ptx::sync_block();
        if (count == 0) continue;
        for (int turn = chunk * turns; turn < chunk_end * turns; turn++) {
            if (S::ahead) {
                // The next codes travel while these are looked up.
#pragma unroll
                for (int i = 0; i < S::row_blocks; i++)
#pragma unroll
                    for (int book = 0; book < S::books; book++) codes[i][book] = next[i][book];
                if (turn + 1 < end * turns) load_turn(next);
            } else {
                load_turn(codes);
            }
            const bool ends = turn + 1 == min(group_end, end) * turns;  // the group, as far as this split has it
            const bool changes = S::phases == 1 && ends && group_end < end;
            if (changes) group_place += w.row_blocks;
            if (S::scales_ahead && changes) load_scales(next_scales, group_place);
            const bool folds = ends || (turn + 1) % most_turns == 0;
            if (S::row_blocks == 1 || count == S::row_blocks)
                multiply_turn(Constant<S::row_blocks>(), turn, chunk, folds);
            else
                multiply_turn(Constant<1>(), turn, chunk, folds);
            if (changes) {
                group_end += w.group_blocks;
                if (S::scales_ahead) {
#pragma unroll
                    for (int i = 0; i < S::row_blocks; i++) scales[i] = next_scales[i];
                } else {
                    load_scales(scales, group_place);
                }
            }
        }
    }

    if (ptx::cluster_size() > 1)
        add_in_cluster<S>(total, y, batch, y_is_float, w);
    else
        write_sums<S>(total, y, workspace, batch, y_is_float, w);
}

#define ENTRY(name, ...)                                                                    \
    using name##_shape = __VA_ARGS__;                                                       \
    extern "C" KERNEL void __launch_bounds__(name##_shape::most_threads, 1)                 \
        name(const void* x, void* y, u8* workspace, int batch, int y_is_float, Dequant w) { \
        dequant<name##_shape>(x, y, workspace, batch, y_is_float, w);                       \
    }
