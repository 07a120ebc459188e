// The dequantising kernel's form for Hopper: y = x W^T by wgmma, for 33 to 128 rows of x in one pass over W.
//
// Weights are wgmma's A, from registers; x is B, in shared memory, read once for 64 rows of W. A lookup brings four
// neighbouring components of a k-vector (V = 4) or more to the lane whose rows and k they are: k is ordered within 16
// so that they are the lane's words of A, and x lies in shared memory in that order. Centroids of two codebooks are
// added in fp16, as in dequant.cu. Sums of a group are scaled and added in fp32, which also bounds what tensor cores
// lose by truncating.
//
// A warp has 16 rows of each 64. Tiles 0, 1 of its block of 32 rows are in one wgmma, tiles 2, 3 in another: two
// *chains* of products, 128 rows a warpgroup. With one chain two warps share a block, tiles 0, 1 and 2, 3.
//
// A *stage* is what is multiplied together: two tiles by one or two *slabs* of 16 k. Four stages are in registers, two
// that are looked up, and two that are multiplied:
//
//   look up   0 1 2 3 4 5 ...
//   multiply      0 1 2 3 ...
//
// Thread blocks and splits of K are those of dequant.cu. A launch before this one has made slabs of x
// (dequant_wide_x.cu), which come in bulk: while a chunk of them is multiplied, the next one is on its way.
//
// Codes come through shared memory, many k blocks ahead: what registers had room for would leave memory idle.
//
// Shared memory: tables, x of a chunk and of the next, codes [warp][k block][codebook][lane], counters of x; in the end
// a stage for y [warp][n][row]; what the other blocks of a cluster send.
#include "dequant_centroids.cuh"
#include "dequant_wide_x.cuh"

// CHAINS: products of 64 rows of W that a warpgroup has under way, one or two; the rest as in DequantShape, with N = 64
// or 128, at most two codebooks and at most one scale a k block.
template <int V, int M, int B, int PHASES, int N, class X, int CHAINS>
struct WideShape {
    static constexpr int v = V, m = M, phases = PHASES, n = N, chains = CHAINS;
    static constexpr bool shared = true;
    using x = WideX<V, N, X>;
    using x_type = X;

    static constexpr int centroids = 1 << B;
    static constexpr int pieces = V == 16 ? 2 : 1;            // of a centroid, each a load
    static constexpr int quarters = V == 4 ? 1 : 2;           // slabs that a piece feeds
    static constexpr int tables = V == 16 ? M : (M + 1) / 2;  // of 256 bytes a centroid
    static constexpr int code_bits = B <= 2 ? 2 : B <= 4 ? 4 : 8;
    static constexpr int code_words = code_bits * CHAINS / 4;  // a lane's codes of a k block: 16 or 8
    static constexpr int ring = M == 1 ? 8 : 4;                // k blocks whose codes have room in shared memory
    static constexpr int ring_bytes = ring * M * code_words * 4 * lanes;  // of a warp
    static constexpr bool scaled = x::scaled;
    static constexpr int slabs = V == 4 ? CHAINS : 2;  // of a stage
    static constexpr int stages = V * CHAINS / slabs;  // of a k block
    static constexpr int tiles = 2 * CHAINS;           // of eight rows of W, of a warp
    // Whether a thread has sums of a group apart from those of all groups; else those are in units of a group's scale.
    static constexpr bool apart = N <= 64;
    static constexpr int most_threads = M * V == 4 && CHAINS == 1 ? 512 : 256;  // registers decide
    static_assert(code_words > 0 && stages % 4 == 0 && PHASES <= 1 && (apart || !scaled));
};

constexpr int wide_stage_words = 36;  // of a row of x: lanes that store together meet in no bank

// A's words for two tiles and some slabs.
template <class S>
struct Stage {
    u32 a[S::slabs][4];

    // Where a stage of a k block is.
    struct Place {
        int chain, slab;
        DEVICE explicit Place(int stage) : chain(stage % S::chains), slab(stage / S::chains * S::slabs) {}
    };

    DEVICE void look_up_tiles(const Centroids<S>& centroids, const RowCodes<S> (&codes)[S::m], int stage) {
        const Place place(stage);
#pragma unroll
        for (int s = 0; s < S::slabs; s += S::quarters)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int step = (place.slab + s) / (S::quarters * S::pieces);
                const int piece = (place.slab + s) / S::quarters % S::pieces;
                u32 words[2 * S::quarters];
                centroids.look_up_pair(words, codes, 0, 0, 2 * place.chain + i, step, piece);
#pragma unroll
                for (int h = 0; h < S::quarters; h++) {
                    a[s + h][i] = words[2 * h];
                    a[s + h][i + 2] = words[2 * h + 1];
                }
            }
    }

    DEVICE void multiply(float (&sums)[S::chains][S::n / 2], ptx::WgmmaB slabs, int stage) const {
        const Place place(stage);
#pragma unroll
        for (int s = 0; s < S::slabs; s++)
            ptx::wgmma(sums[place.chain], a[s], slabs.behind((place.slab + s) * S::x::slab_bytes));
    }
};

// Scales of row r of each of a warp's tiles.
template <class S>
struct TileScales {
    u32 word[S::tiles];  // of two rows

    // place: group * w.row_blocks + block of rows; pair: the first of the warp's tiles, halved.
    DEVICE void load_scales(const Dequant& w, u32 place, int pair) {
        const auto* rows = reinterpret_cast<const uint2*>(w.scales) + size_t(place * 4 + ptx::lane() / 8) * 2 + pair;
        if constexpr (S::tiles == 4)
            put_words(word, ptx::load(reinterpret_cast<const uint4*>(rows)));
        else
            put_words(word, ptx::load(rows));
    }
    DEVICE float of(int tile) const { return ptx::half_to_float(u16(word[tile] >> (ptx::lane() / 4 % 2 * 16))); }

    // The same as a unit that sums can be told in: in place of zero something far below all else.
    DEVICE float unit(int tile) const {
        const float scale = of(tile);
        return scale == 0 ? 0x1p-50f : scale;
    }
};

// The codes that a warp looks up next, a k block behind the other. Each lane copies what it reads itself, so there is
// nothing to wait for but its own copies.
template <class S>
struct CodeRing {
    static constexpr int book_bytes = S::code_words * 4 * lanes, block_bytes = S::m * book_bytes;

    ptx::Shared place;  // this lane's
    const u8* from;     // of the k block that is copied next
    size_t row_bytes;   // of a k block and codebook
    u32 left;           // k blocks to copy
    u32 copied = 0, read = 0;

    DEVICE void copy_block() {
        if (copied < left) {
#pragma unroll
            for (int book = 0; book < S::m; book++)
                copy_codes(copied % S::ring * block_bytes + book * book_bytes, book);
            from += S::m * row_bytes;
        }
        copied++;
        ptx::end_copies();
    }

    // Of the k block behind the one read last, which has been waited for; behind the last one, that again.
    DEVICE void read_block(RowCodes<S> (&codes)[S::m]) {
#pragma unroll
        for (int book = 0; book < S::m; book++)
            read_codes(codes[book], read % S::ring * block_bytes + book * book_bytes);
        if (read + 1 < left) read++;
    }

    DEVICE void copy_codes(int to, int book) const {
        const u8* codes = from + book * row_bytes;
        if constexpr (S::code_words == 4) ptx::copy_async(place + to, reinterpret_cast<const uint4*>(codes));
        if constexpr (S::code_words == 2) ptx::copy_async(place + to, reinterpret_cast<const uint2*>(codes));
        if constexpr (S::code_words == 1) ptx::copy_async(place + to, reinterpret_cast<const u32*>(codes));
    }

    DEVICE void read_codes(RowCodes<S>& codes, int at) const {
        if constexpr (S::code_words == 4) {
            const uint4 words = ptx::shared_load<uint4>(place + at);
            codes.word[0] = words.x;
            codes.word[1] = words.y;
            codes.word[2] = words.z;
            codes.word[3] = words.w;
        } else if constexpr (S::code_words == 2) {
            const uint2 words = ptx::shared_load<uint2>(place + at);
            codes.word[0] = words.x;
            codes.word[1] = words.y;
        } else {
            codes.word[0] = ptx::shared_load<u32>(place + at);
        }
    }
};

// total += sums, scaled.
template <class S>
DEVICE void add_scaled(float (&total)[S::chains][S::n / 2], const float (&sums)[S::chains][S::n / 2],
                       const TileScales<S>& scales, ptx::Shared unscale) {
    float factor[S::tiles];
#pragma unroll
    for (int tile = 0; tile < S::tiles; tile++) factor[tile] = S::phases ? scales.of(tile) : 1.0f;
#pragma unroll
    for (int j = 0; j < S::n / 8; j++) {
        float back[2] = {1, 1};
        if constexpr (S::scaled) {
            const uint2 pair = ptx::shared_load<uint2>(unscale + 4 * (8 * j + 2 * (ptx::lane() & 3)));
            back[0] = ptx::bits_to_float(pair.x);
            back[1] = ptx::bits_to_float(pair.y);
        }
#pragma unroll
        for (int chain = 0; chain < S::chains; chain++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float scale = S::scaled ? factor[2 * chain + i / 2] * back[i % 2] : factor[2 * chain + i / 2];
                total[chain][4 * j + i] = fmaf(scale, sums[chain][4 * j + i], total[chain][4 * j + i]);
            }
    }
}

// total *= factor of each tile, in the lane's row of it.
template <class S, class Factor>
DEVICE void multiply_rows(float (&total)[S::chains][S::n / 2], Factor factor) {
#pragma unroll
    for (int tile = 0; tile < S::tiles; tile++) {
        const float by = factor(tile);
#pragma unroll
        for (int j = 0; j < S::n / 8; j++)
#pragma unroll
            for (int i = 0; i < 2; i++) total[tile / 2][4 * j + tile % 2 * 2 + i] *= by;
    }
}

// Which rows of W a warp multiplies: a block of 32 of the slice, or two tiles of one.
template <class S>
struct WarpRows {
    int block;
    int pair;  // the first of its tiles, halved

    DEVICE explicit WarpRows(int warp) : block(warp * S::chains / 2), pair(S::chains == 2 ? 0 : warp % 2) {}
};

// Pieces of a block of 32 rows that have so many rows of x: a tile's sums of eight of them each.
DEVICE int sent_pieces(int rows) {
    return (rows + 7) / 8 * 4;
}

// A warp's sums into y, by the blocks of a cluster together.
template <class S>
DEVICE void add_in_cluster(const float (&total)[S::chains][S::n / 2], void* y, int batch, int y_is_float,
                           const Dequant& w) {
    const Slice slice = w.slices.anew();
    const int r = ptx::lane() >> 2, q = ptx::lane() & 3, blocks = slice.end_block - slice.first_block;
    const WarpRows<S> mine(ptx::warp());
    const Output<typename S::x_type> out{y, batch, y_is_float, w.out_features, nullptr, slice};
    const int sent = sent_pieces(batch);
    Cluster<float2> cluster{ptx::shared_memory() + w.received, S::n / 2};
    cluster.wait_for_begin(mine.block);
    if (mine.block < blocks) {
        TileScales<S> scales;
        if (!S::phases) scales.load_scales(w, slice.first_block + mine.block, mine.pair);
#pragma unroll
        for (int j = 0; j < S::n / 8; j++)
#pragma unroll
            for (int tile = 0; tile < S::tiles; tile++) {
                const float* two = &total[tile / 2][4 * j + tile % 2 * 2];
                const float scale = S::phases ? 1.0f : scales.of(tile);
                if (8 * j < batch)
                    cluster.send(4 * j + 2 * mine.pair + tile, make_float2(two[0] * scale, two[1] * scale));
            }
    }
    // The pieces of all blocks that are this thread block's, a piece a warp.
    int piece = ptx::warp(), owned = 0;
    const auto skip_blocks = [&] {
        for (; piece >= sent; piece -= sent) owned++;
        return cluster.rank + owned * cluster.size;
    };
    int block = skip_blocks();
    cluster.wait();
    for (; block < blocks; piece += ptx::warps(), block = skip_blocks()) {
        const int n = piece / 4 * 8 + 2 * q, row = piece % 4 * 8 + r;
        const float2 sum = cluster.sum(piece, owned);
        if (n < batch) out.write(n, block, row, sum.x);
        if (n + 1 < batch) out.write(n + 1, block, row, sum.y);
    }
}

// A warp's sums into y, or those of a split into the workspace.
template <class S>
DEVICE void write_sums(const float (&total)[S::chains][S::n / 2], void* y, u8* workspace, int batch, int y_is_float,
                       const Dequant& w) {
    const Slice slice = w.slices.anew();
    const int lane = ptx::lane(), r = lane >> 2, q = lane & 3, split = blockIdx.z;
    const WarpRows<S> mine(ptx::warp());
    constexpr int rows = 8 * S::tiles, sharers = 3 - S::chains;  // warps of a block of 32 rows
    const Output<typename S::x_type> out{y, batch, y_is_float, w.out_features, nullptr, slice};
    const Splits splits{workspace, int(gridDim.z), int(gridDim.z) * sharers, batch, w.row_blocks * lanes};
    const ptx::Shared stage = ptx::shared_memory() + ptx::warp() * (8 * wide_stage_words * 4);
    if (splits.count == 1) ptx::sync_block();  // what was tables and x becomes the stage
    if (mine.block < slice.end_block - slice.first_block) {
        TileScales<S> scales;
        if (!S::phases) scales.load_scales(w, slice.first_block + mine.block, mine.pair);
#pragma unroll
        for (int j = 0; j < S::n / 8; j++) {
#pragma unroll
            for (int tile = 0; tile < S::tiles; tile++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const int n = 2 * q + i, row = 8 * tile + r;
                    const float sum = total[tile / 2][4 * j + tile % 2 * 2 + i] * (S::phases ? 1.0f : scales.of(tile));
                    if (splits.count == 1)
                        ptx::shared_store(stage + 4 * (n * wide_stage_words + row), sum);
                    else if (8 * j + n < batch)  // eight rows are a sector
                        ptx::store(splits.place(split, 8 * j + n, slice.first_block + mine.block, 16 * mine.pair + row),
                                   sum);
                }
            if (splits.count > 1) continue;
            // Lanes = rows, so that rows of y are written as a whole.
            ptx::sync_warp();
            for (int n = lane / rows; n < min(8, batch - 8 * j); n += lanes / rows)
                out.write(8 * j + n, mine.block, 16 * mine.pair + lane % rows,
                          ptx::shared_load<float>(stage + 4 * (n * wide_stage_words + lane % rows)));
            ptx::sync_warp();
        }
    }
    if (splits.count > 1) splits.finish(out, mine.block, ptx::warps() / sharers);
}

constexpr int most_summed = 4;  // k blocks whose sums tensor cores add up, before float32 does

// As in dequant.cu, with all rows of x in one pass; x: slabs of all k blocks.
template <class S>
DEVICE void dequant_wide(const void* x, void* y, u8* workspace, int batch, int y_is_float, const Dequant& w) {
    ptx::let_next_start();
    const Slice slice = w.slices.at(blockIdx.x);
    const int lane = ptx::lane(), warp = ptx::warp(), blocks = slice.end_block - slice.first_block;
    const WarpRows<S> mine(warp);
    const bool has_rows = mine.block < blocks;
    const bool multiplies = WarpRows<S>(warp / 4 * 4).block < blocks;  // the whole warpgroup does, or none of it
    const int first = blockIdx.z * w.split_blocks, end = min(first + w.split_blocks, w.k_blocks);

    const ptx::Shared tables = ptx::shared_memory();
    const ptx::Shared slabs = tables + S::tables * S::centroids * line_bytes;
    const ptx::Shared rings = slabs + (w.chunk_blocks < w.split_blocks ? 2 : 1) * w.chunk_blocks * S::x::x_bytes;
    const ptx::Shared counters = rings + ptx::warps() * S::ring_bytes;  // of x as it comes, by buffer
    const u16* books = w.codebooks + size_t(slice.part) * (S::m * S::centroids * S::v);
    // A warp without rows of W looks up the same place with all lanes, which takes the least.
    const u32 copy = S::v == 4 ? lane % 16 * 8 : lane % 8 * 16;
    const Centroids<S> centroids{tables, has_rows ? copy : 0, books};

    // What the tables are made of comes first, then codes: memory serves in turn.
    Copies<S> copied;
    copied.load(books, threadIdx.x);
    constexpr int lane_bytes = S::code_words * 4, code_bytes = lanes * lane_bytes * 2 / S::chains;  // as in dequant.cu
    const size_t row_bytes = size_t(w.row_blocks) * code_bytes;
    const int codes_of_lane = (S::chains == 2 ? lane : 2 * lane + mine.pair) * lane_bytes;
    CodeRing<S> ring{rings + warp * S::ring_bytes + lane * lane_bytes,
                     w.codes + size_t(first * S::m) * row_bytes + size_t(slice.first_block + mine.block) * code_bytes +
                         codes_of_lane,
                     row_bytes, has_rows ? u32(end - first) : 0};
    ptx::keep(ring.left);                                     // else it is computed anew for each k block
    for (int i = 0; i < S::ring / 2; i++) ring.copy_block();  // more would hold up what is needed before them
    if (threadIdx.x == 0) {
        ptx::make_counter(counters);
        ptx::make_counter(counters + 8);
    }
    const Cluster<float2> cluster{ptx::shared_memory() + w.received, S::n / 2};
    cluster.begin();
    // The k block behind the group under way, the place of its scales, and those of the next: they come from memory.
    TileScales<S> scales, next_scales;
    int group_end = end;
    u32 group_place = 0;
    if (S::phases) {
        const u32 group = u32(first) / u32(w.group_blocks);
        group_end = (group + 1) * w.group_blocks;
        group_place = group * w.row_blocks + slice.first_block + min(mine.block, blocks - 1);
        scales.load_scales(w, group_place, mine.pair);
        if (group_end < end) next_scales.load_scales(w, group_place + w.row_blocks, mine.pair);
    }
    copied.finish(books, tables);
    ptx::wait_for_previous();

    RowCodes<S> codes[S::m] = {}, next[S::m] = {};
    float total[S::chains][S::n / 2] = {};
    Stage<S> stages[4];
    const auto bring_x = [&](int chunk, int buffer) {
        if (threadIdx.x != 0) return;
        const u32 bytes = min(w.chunk_blocks, end - chunk) * S::x::x_bytes;
        const ptx::Shared counter = counters + 8 * buffer;
        ptx::expect(counter, bytes);
        ptx::send_bulk(slabs + buffer * w.chunk_blocks * S::x::x_bytes, counter,
                       static_cast<const u8*>(x) + size_t(chunk) * S::x::x_bytes, bytes);
    };
    bring_x(first, 0);
    cluster.expect(sent_pieces(batch), blocks);
    for (int i = 0; i < S::ring / 2; i++) ring.copy_block();
    if (has_rows) {
        ptx::wait_copies<S::ring - 1>();
        ring.read_block(codes);
    }
    int buffer = 0;
    u32 parity = 0;  // of the buffer's chunks
    for (int chunk = first; chunk < end; chunk += w.chunk_blocks) {
        const int chunk_end = min(chunk + w.chunk_blocks, end);
        const int before = buffer * w.chunk_blocks - chunk;  // k blocks in shared memory before the first of K
        ptx::sync_block();
        if (chunk_end < end) bring_x(chunk_end, buffer ^ 1);  // where the chunk before has been multiplied
        ptx::wait_for_sent(counters + 8 * buffer, parity);
        parity ^= buffer;  // both have had as many phases once the second has
        buffer ^= 1;
        if (!multiplies) continue;
        if (chunk == first) {
            stages[0].look_up_tiles(centroids, codes, 0);
            stages[1].look_up_tiles(centroids, codes, 1);
        }
        for (int k_block = chunk; k_block < chunk_end;) {
            // Sums under one scale.
            const int most = S::scaled ? 1 : S::apart ? most_summed : end;
            const int stop = min(min(group_end, chunk_end), k_block + most);
            const ptx::Shared back = slabs + (before + k_block) * S::x::x_bytes + S::x::slabs_bytes;
            float group_sums[S::chains][S::n / 2] = {};
            auto& sums = S::apart ? group_sums : total;
            for (; k_block < stop; k_block++) {
                const auto block_of_x = ptx::WgmmaB::at(slabs + (before + k_block) * S::x::x_bytes);
#pragma unroll
                for (int s = 0; s < S::stages; s++) {
                    if (s == S::stages - 3 && has_rows) {
                        ptx::wait_copies<S::ring - 2>();
                        ring.read_block(next);
                        ring.copy_block();  // over those that are in registers
                    }
                    if (s == S::stages - 2) {
#pragma unroll
                        for (int book = 0; book < S::m; book++) codes[book] = next[book];
                    }
                    ptx::wait_wgmma<1>();
                    stages[(s + 2) % 4].look_up_tiles(centroids, codes, (s + 2) % S::stages);
                    ptx::begin_wgmma();
                    stages[s % 4].multiply(sums, block_of_x, s);
                    ptx::end_wgmma();
                }
            }
            ptx::wait_wgmma<0>();
            // Who reads the sums stays behind the wait.
#pragma unroll
            for (int chain = 0; chain < S::chains; chain++)
#pragma unroll
                for (int i = 0; i < S::n / 2; i++) ptx::keep(sums[chain][i]);
            if (S::apart) add_scaled<S>(total, sums, scales, back);
            if (S::phases && k_block == group_end && group_end < end) {
                if (!S::apart)
                    multiply_rows<S>(total, [&](int tile) { return scales.unit(tile) / next_scales.unit(tile); });
                scales = next_scales;
                group_end += w.group_blocks;
                group_place += w.row_blocks;
                if (group_end < end) next_scales.load_scales(w, group_place + w.row_blocks, mine.pair);
            }
        }
    }
    if (!S::apart && S::phases) multiply_rows<S>(total, [&](int tile) { return scales.unit(tile); });
    if (cluster.size > 1)
        add_in_cluster<S>(total, y, batch, y_is_float, w);
    else
        write_sums<S>(total, y, workspace, batch, y_is_float, w);
}

#define ENTRY(name, ...)                                                                    \
    using name##_shape = __VA_ARGS__;                                                       \
    extern "C" KERNEL void __launch_bounds__(name##_shape::most_threads, 1)                 \
        name(const void* x, void* y, u8* workspace, int batch, int y_is_float, Dequant w) { \
        dequant_wide<name##_shape>(x, y, workspace, batch, y_is_float, w);                  \
    }
