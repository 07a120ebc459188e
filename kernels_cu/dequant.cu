// The dequantising kernel: y = x W^T for a codebook-quantised W and up to 64 rows of x, by tensor cores.
//
// Weights are mma's B, eight rows of W its columns; x is A. A lookup brings B's fragment as it stands, so the loop is
// one permute, one load and V / 4 mma for 32 codes. Of up to eight rows of x weights are A: half as many mma, and half
// as much of x to read, for two moves a lookup. The centroids of two codebooks are added in fp16, as W is rounded where
// it is dequantised; all else is added in fp32. Sums of a group are scaled and added in fp32, which also bounds what
// tensor cores lose by truncating.
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

// What a lane has of an mma's tile of W and tile t of x, d[4]: rows r and r + 8 of x and rows 8 * tile + 2q and the
// next of W, x by x; with weights as A rows 16 * tile + r and 8 more of W and rows 2q and the next of x, row by row of
// W. So d is two *pieces* of two neighbours each.
template <class S>
struct Places {
    static constexpr int x_step = S::narrow, w_step = !S::narrow;  // from a piece's first number to its second
    static constexpr int block_pieces = 4;                         // for every eight rows of x, of 32 of W

    DEVICE static int x_row(int t, int half) {
        return S::narrow ? 2 * (ptx::lane() & 3) : 16 * t + 8 * half + (ptx::lane() >> 2);
    }
    DEVICE static int w_row(int tile, int half) {
        return S::narrow ? 16 * tile + 8 * half + (ptx::lane() >> 2) : 8 * tile + 2 * (ptx::lane() & 3);
    }
    DEVICE static int piece(int t, int tile, int half) {
        return S::narrow ? 2 * tile + half : (2 * t + half) * block_pieces + tile;
    }
    // Of that number, again.
    DEVICE static int x_row_of(int piece) { return x_row(piece / (2 * block_pieces), piece / block_pieces % 2); }
    DEVICE static int w_row_of(int piece) {
        return S::narrow ? w_row(piece / 2, piece % 2) : w_row(piece % block_pieces, 0);
    }
};

// Scales of a lane's rows, for one block of 32 rows.
template <class S>
struct RowScales {
    uint4 pair;

    // place: group * w.row_blocks + block of rows. In 32 bits, which number 64 GiB of scales, four lanes a place.
    DEVICE void load_scales(const Dequant& w, u32 place) {
        const int pairs = S::narrow ? ptx::lane() >> 3 : ptx::lane() & 3;
        pair = ptx::load(reinterpret_cast<const uint4*>(w.scales) + (place * 4 + pairs));
    }
    // Of d[j].
    DEVICE float of(int tile, int j) const {
        const u32 two = S::narrow ? word(2 * tile + j / 2) >> (ptx::lane() / 4 % 2 * 16) : word(tile) >> j % 2 * 16;
        return ptx::half_to_float(u16(two));
    }
    DEVICE u32 word(int tile) const { return tile == 0 ? pair.x : tile == 1 ? pair.y : tile == 2 ? pair.z : pair.w; }
};

// Sums of a warp's rows, as `Places` says.
template <class S>
struct Sums {
    float d[S::row_blocks][S::w_tiles][S::x_tiles][4];

    DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < S::row_blocks; i++)
#pragma unroll
            for (int tile = 0; tile < S::w_tiles; tile++)
#pragma unroll
                for (int t = 0; t < S::x_tiles; t++)
#pragma unroll
                    for (int j = 0; j < 4; j++) d[i][tile][t][j] = 0;
    }
};

// A fragment of x: of sixteen rows, or of eight where weights are A.
template <bool NARROW>
struct FragmentOf {
    using type = uint4;
};
template <>
struct FragmentOf<true> {
    using type = uint2;
};

template <bool NARROW>
DEVICE typename FragmentOf<NARROW>::type load_fragment(ptx::Shared from) {
    return ptx::shared_load<typename FragmentOf<NARROW>::type>(from);
}

// d += x times what lookups brought: four components of each from `2 * h` on.
template <int WORDS>
DEVICE void multiply(float (&d)[4], const uint4& x, const u32 (&weights)[1][WORDS], int h) {
    ptx::mma(d, x.x, x.y, x.z, x.w, weights[0][2 * h], weights[0][2 * h + 1]);
}
template <int WORDS>
DEVICE void multiply(float (&d)[4], const uint2& x, const u32 (&weights)[2][WORDS], int h) {
    ptx::mma(d, weights[0][2 * h], weights[1][2 * h], weights[0][2 * h + 1], weights[1][2 * h + 1], x.x, x.y);
}

// sums += one step of x times the weights that the codes stand for, of COUNT blocks of rows. With no branch inside, so
// that lookups of several blocks, and of the next step, are under way together.
template <class S, int COUNT>
DEVICE void multiply_step(Sums<S>& sums, ptx::Shared fragments, const Centroids<S>& centroids,
                          const RowCodes<S> (&codes)[S::row_blocks][S::books], int first_book, int step) {
#pragma unroll(S::shared ? S::pieces : 1)  // else the compiler fetches both at once, into registers that are not there
    for (int piece = 0; piece < S::pieces; piece++) {
        typename FragmentOf<S::narrow>::type x[S::quarters][S::x_tiles];
#pragma unroll
        for (int h = 0; h < S::quarters; h++)
#pragma unroll
            for (int t = 0; t < S::x_tiles; t++)
                x[h][t] = load_fragment<S::narrow>(
                    fragments + (((step * S::pieces + piece) * S::quarters + h) * S::x_tiles + t) * S::fragment_bytes);
#pragma unroll
        for (int i = 0; i < COUNT; i++)
#pragma unroll
            for (int book = 0; book < S::books; book += 2)
#pragma unroll
                for (int tile = 0; tile < S::w_tiles; tile++) {
                    u32 weights[4 / S::w_tiles][2 * S::quarters];
#pragma unroll
                    for (int k = 0; k < 4 / S::w_tiles; k++)
                        centroids.look_up_pair(weights[k], codes[i], first_book, book, tile * (4 / S::w_tiles) + k,
                                               step, piece);
#pragma unroll
                    for (int h = 0; h < S::quarters; h++)
#pragma unroll
                        for (int t = 0; t < S::x_tiles; t++) multiply(sums.d[i][tile][t], x[h][t], weights, h);
                }
    }
}

// total += sums, scaled.
template <class S, int COUNT>
DEVICE void add_scaled(Sums<S>& total, const Sums<S>& sums, const RowScales<S> (&scales)[S::row_blocks],
                       ptx::Shared unscale) {
#pragma unroll
    for (int t = 0; t < S::x_tiles; t++) {
        float back[4] = {1, 1, 1, 1};
        if constexpr (S::scaled) {
#pragma unroll
            for (int j = 0; j < 4; j++)
                back[j] =
                    ptx::shared_load<float>(unscale + 4 * (Places<S>::x_row(t, j / 2) + j % 2 * Places<S>::x_step));
        }
#pragma unroll
        for (int i = 0; i < COUNT; i++)
#pragma unroll
            for (int tile = 0; tile < S::w_tiles; tile++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const float factor = S::phases ? scales[i].of(tile, j) : 1.0f;
                    total.d[i][tile][t][j] =
                        fmaf(S::scaled ? factor * back[j] : factor, sums.d[i][tile][t][j], total.d[i][tile][t][j]);
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

// to(half, tile, first, second), for what a lane has of a block of 32 rows and a tile of x.
template <class S, class To>
DEVICE void for_each_piece(const Sums<S>& total, const RowScales<S>& scales, int i, int t, To to) {
#pragma unroll
    for (int tile = 0; tile < S::w_tiles; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const auto scaled = [&](int j) { return total.d[i][tile][t][j] * (S::phases ? 1.0f : scales.of(tile, j)); };
            to(half, tile, scaled(2 * half), scaled(2 * half + 1));
        }
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
        RowScales<S> scales;
        if (!S::phases) scales.load_scales(w, written.slice.first_block + block);
#pragma unroll
        for (int t = 0; t < S::x_tiles; t++)
            for_each_piece<S>(total, scales, i, t, [&](int half, int tile, float first, float second) {
                const int piece = Places<S>::piece(t, tile, half);
                if (piece < sent) cluster.send(piece, make_float2(first, second));
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
        const int n = Places<S>::x_row_of(piece), row = Places<S>::w_row_of(piece);
        const float2 sum = cluster.sum(piece, owned);
        if (n < rows) out.write(written.first_n + n, block, row, sum.x);
        if (n + Places<S>::x_step < rows)
            out.write(written.first_n + n + Places<S>::x_step, block, row + Places<S>::w_step, sum.y);
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
        RowScales<S> scales;
        if (!S::phases) scales.load_scales(w, slice.first_block + block);
#pragma unroll
        for (int t = 0; t < S::x_tiles; t++) {
            const int first_x = first_n + S::x_tile_rows * t;
            for_each_piece<S>(total, scales, i, t, [&](int half, int tile, float first, float second) {
                const int n = Places<S>::x_row(0, half), row = Places<S>::w_row(tile, half);
                const auto in_stage = [&](int n) { return stage + 4 * (n * stage_words + row); };
                const auto in_workspace = [&](int n) {
                    return splits.place(blockIdx.z, first_x + n, slice.first_block + block, row);
                };
                if constexpr (!S::narrow) {
                    const float2 both = make_float2(first, second);
                    if (splits.count == 1)
                        ptx::shared_store(in_stage(n), both);
                    else if (first_x + n < batch)
                        ptx::store(reinterpret_cast<float2*>(in_workspace(n)), both);
                } else {
#pragma unroll
                    for (int k = 0; k < 2; k++) {
                        if (splits.count == 1)
                            ptx::shared_store(in_stage(n + k), k ? second : first);
                        else if (first_x + n + k < batch)
                            ptx::store(in_workspace(n + k), k ? second : first);
                    }
                }
            });
            if (splits.count > 1) continue;
            // Lane = row, so that a row of y is written as a whole.
            ptx::sync_warp();
            for (int n = 0; n < min(S::x_tile_rows, batch - first_x); n++)
                out.write(first_x + n, block, lane, ptx::shared_load<float>(stage + 4 * (n * stage_words + lane)));
            ptx::sync_warp();
        }
    }
    if (splits.count > 1) splits.finish(out, warp, stride);
}

template <int BLOCKS, int BOOKS, class S>
DEVICE void copy_codes(RowCodes<S> (&to)[BLOCKS][BOOKS], const RowCodes<S> (&from)[BLOCKS][BOOKS]) {
#pragma unroll
    for (int i = 0; i < BLOCKS; i++)
#pragma unroll
        for (int book = 0; book < BOOKS; book++) to[i][book] = from[i][book];
}

// to(number) with the least power of two from count on, of at most MOST, which is one, as a constant.
template <int MOST, class To>
DEVICE void with_count(int count, To to) {
    if constexpr (MOST > 1)
        if (count <= MOST / 2) return with_count<MOST / 2>(count, to);
    to(Constant<MOST>());
}

constexpr int most_turns = 4;  // of a span: before float32 adds up

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
    int count = 0;  // of this warp's blocks of rows
#pragma unroll
    for (int i = 0; i < S::row_blocks; i++) count += warp + i * stride < blocks;
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
    RowCodes<S> codes[S::row_blocks][S::books] = {}, next[S::ahead ? S::ahead : 1][S::row_blocks][S::books] = {};
    const u8* turn_codes = slice_codes + size_t(first * S::m) * row_bytes + warp * code_bytes;  // loaded next
    const auto load_turn = [&](RowCodes<S>(&to)[S::row_blocks][S::books]) {
#pragma unroll
        for (int i = 0; i < S::row_blocks; i++)
#pragma unroll
            for (int book = 0; book < S::books; book++)
                if (i < count) to[i][book].load_codes(turn_codes + book * row_bytes + i * stride * code_bytes);
        turn_codes += S::books * row_bytes;
    };
#pragma unroll
    for (int i = 0; i < S::ahead; i++)
        if (i < (end - first) * turns) load_turn(next[i]);
    // Where centroids come from L2 as well, all codes: behind those they would each be waited for.
    const int prefetched = S::shared ? min(end - first, prefetched_blocks) : end - first;
    for (int i = threadIdx.x; i < prefetched * S::m; i += blockDim.x)
        ptx::prefetch(slice_codes + (first * S::m + i) * row_bytes, min(blocks * code_bytes, most_prefetched));
    const Cluster<float2> cluster{ptx::shared_memory() + w.received, S::n / 2};
    cluster.begin();
    // Scales of the group under way, and of the next, which are asked for before that one begins where registers allow.
    RowScales<S> scales[S::row_blocks], next_scales[S::row_blocks];
    const auto load_scales = [&](RowScales<S>(&to)[S::row_blocks], u32 place) {
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
    // Sums that tensor cores add up, before they are scaled: of a part of a k block, or where x has no powers of two of
    // its own of a *span*, some turns of a group.
    constexpr bool spans = S::phases <= 1 && !S::scaled;
    Sums<S> sums;
    const auto begin_turn = [&](int turn) {
        if constexpr (S::ahead == 0) {
            load_turn(codes);
        } else {
            // The next codes travel while these are looked up.
            copy_codes(codes, next[0]);
#pragma unroll
            for (int i = 1; i < S::ahead; i++) copy_codes(next[i - 1], next[i]);
            if (turn + S::ahead < end * turns) load_turn(next[S::ahead - 1]);
        }
    };
    const auto multiply_span = [&](auto number, int begin, int stop, int chunk) {
        constexpr int blocks = decltype(number)::value;
        const auto place_of_x = [&](int turn) { return fragments + (turn / turns - chunk) * S::x_bytes; };
        const auto multiply_steps = [&](int turn, int phase) {
#pragma unroll
            for (int i = 0; i < steps / phases; i++)
                multiply_step<S, blocks>(sums, place_of_x(turn) + lane * (S::fragment_bytes / lanes), centroids, codes,
                                         turn % turns * S::books, phase * (steps / phases) + i);
        };
        const ptx::Shared powers = unscale + (begin / turns - chunk) * (S::n * 4);
        begin_turn(begin);
#pragma unroll
        for (int phase = 0; phase < phases; phase++) {
            if (S::phases > 1) load_scales(scales, u32(begin / turns * S::phases + phase) * w.row_blocks + rows_place);
            sums.clear();  // apart from the turns behind the first, so that its products need no zeros
            multiply_steps(begin, phase);
            if (!spans) add_scaled<S, blocks>(total, sums, scales, powers);
        }
        if (!spans) return;
        for (int turn = begin + 1; turn < stop; turn++) {
            begin_turn(turn);
            multiply_steps(turn, 0);
        }
        add_scaled<S, blocks>(total, sums, scales, powers);
    };
    for (int chunk = first; chunk < end; chunk += w.chunk_blocks) {
        const int chunk_end = min(chunk + w.chunk_blocks, end);
        if (chunk > first) ptx::sync_block();
        build_x<S>(fragments, unscale, w, rows, batch - first_n, chunk, chunk_end - chunk,
                   x_first && chunk == first ? stride : 0);
        ptx::sync_block();
        if (count == 0) continue;
        for (int turn = chunk * turns, stop; turn < chunk_end * turns; turn = stop) {
            stop = spans ? min(min(group_end, chunk_end) * turns, turn + most_turns) : turn + 1;
            const bool changes = S::phases == 1 && stop == group_end * turns && group_end < end;
            if (changes) group_place += w.row_blocks;
            if (S::scales_ahead && changes) load_scales(next_scales, group_place);
            with_count<S::row_blocks>(count, [&](auto number) { multiply_span(number, turn, stop, chunk); });
            if (!changes) continue;
            group_end += w.group_blocks;
            if (S::scales_ahead) {
#pragma unroll
                for (int i = 0; i < S::row_blocks; i++) scales[i] = next_scales[i];
            } else {
                load_scales(scales, group_place);
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
