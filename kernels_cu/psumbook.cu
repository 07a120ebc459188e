// The Psumbook kernel (CodeGEMM): y = x W^T for a codebook-quantised W, b <= 8, up to four rows of x.
//
// A thread block takes a slice of rows and a split of K. Tile by tile it builds the tables of all centroids' inner
// products with x (psumbook_build.cuh) and lets the codes of its rows gather them (psumbook_gather.cuh); splits.cuh
// adds the splits.
//
//            K:  split 0      split 1            thread block (slice, split)
//              +---+---+---+---+---+---+           for each tile:
//   slice 0    |   |   |   |   |   |   |             build its tables in shared memory
//              +---+---+---+---+---+---+             for each block of 32 rows of this warp:
//   slice 1    |   |   |   | tile  |   |               lane = row: look up, add
//              +---+---+---+---+---+---+
//
// Shared memory: tables [unit of a tile][centroid][256 bytes], unscale [unit][position row][n] (n > 1),
// sums [block of 32 rows][n][lane], and what the other blocks of a cluster send.
#include "psumbook_build.cuh"
#include "psumbook_gather.cuh"
#include "splits.cuh"

// x: [batch][in_features] of X; y: [batch][out_features] of X or float32; workspace: as splits.cuh says, unused where
// gridDim.y is 1.
template <int V, int M, int B, int PHASES, int N, class X, int ROWS>
DEVICE void psumbook(const void* x, void* y, u8* workspace, int batch, int y_is_float, const Psumbook& w) {
    using S = Shape<V, M, B, PHASES, N, X, ROWS>;
    ptx::let_next_start();
    const Slice slice = w.slices.at(blockIdx.x);
    const int warp = ptx::warp();
    const int blocks = slice.end_block - slice.first_block, stride = ptx::warps();
    const int first_unit = blockIdx.y * w.units_per_split;
    const int end_unit = min(first_unit + w.units_per_split, w.units);

    const ptx::Shared tables = ptx::shared_memory();
    const ptx::Shared unscale = tables + w.units_per_tile * S::table_bytes;
    const ptx::Shared first_sum = unscale + (N > 1 ? w.units_per_tile * ROWS * N * 4 : 0);
    const ptx::Shared sums = first_sum + ptx::lane() * 4;
    Cluster<float> cluster{first_sum + blocks * (N * lanes * 4), N};

    // What the first tables are made of comes first, then the first codes: memory serves in turn.
    const auto* rows = static_cast<const typename X::storage*>(x);
    const int first_units = min(w.units_per_tile, end_unit - first_unit);
    Items<S> items{warp};
    items.load_centroids(w, slice.part, first_unit, first_units);
    const Offsets offsets = Offsets::of<S>(ptx::lane());
    Codes<S> codes;
    Scales<S> scales;
    Cursor<S> cursor = Cursor<S>::at(w, first_unit, slice.first_block + warp);
    if (warp < blocks) {
        codes.load_codes(w, cursor.codes);
        if (S::scales_ahead) scales.load_scales(w, cursor.scales);
    }
    cluster.begin();  // a branch, over which the compiler moves no load: else it would behind the wait
    ptx::wait_for_previous();
    items.load_x(w, rows, batch, first_unit, first_units);
    cluster.expect(batch, blocks);

    const Output<X> out{y, batch, y_is_float, w.out_features, PHASES ? nullptr : w.scales, slice};
    const Splits splits{workspace, w.partials, w.partials, batch, w.row_blocks * lanes};
    for (int tile = first_unit; tile < end_unit; tile += w.units_per_tile) {
        const int tile_end = min(tile + w.units_per_tile, end_unit);
        if (tile > first_unit) ptx::sync_block();
        items.build(tables, unscale, w, rows, batch, slice.part, tile, tile_end - tile, tile == first_unit);
        ptx::sync_block();
        for (int unit = tile; unit < tile_end; unit++) {
            const u32 unit_bits = u32(unit - tile) * (0x01010101u << B);
            const Cursor<S> next_unit = Cursor<S>::at(w, unit + 1, slice.first_block + warp);
            const bool sends = unit + 1 == end_unit && cluster.size > 1;
            if (sends) cluster.wait_for_begin(warp);
            for (int block = warp; block < blocks; block += stride) {
                // The next codes travel while these are looked up.
                if (!S::scales_ahead) scales.load_scales(w, cursor.scales);
                const bool last = block + stride >= blocks;
                cursor.advance(stride);
                if (last) cursor = next_unit;
                Codes<S> next_codes;
                Scales<S> next_scales;
                if (!last || unit + 1 < end_unit) {
                    next_codes.load_codes(w, cursor.codes);
                    if (S::scales_ahead) next_scales.load_scales(w, cursor.scales);
                }

                const ptx::Shared sum = sums + block * (N * lanes * 4);
                float total[N] = {};
                if (unit > first_unit) {
#pragma unroll
                    for (int n = 0; n < N; n++) total[n] = ptx::shared_load<float>(sum + n * (lanes * 4));
                }
                gather<S>(total, tables, unit_bits, unscale + (unit - tile) * (ROWS * N * 4), offsets, codes, scales);
                if (sends) {
#pragma unroll
                    for (int n = 0; n < N; n++)
                        if (n < batch) cluster.send(n, total[n]);
                    cluster.advance(stride);
                } else {
#pragma unroll
                    for (int n = 0; n < N; n++) ptx::shared_store(sum + n * (lanes * 4), total[n]);
                }
                codes = next_codes;
                if (S::scales_ahead) scales = next_scales;
            }
        }
    }

    // Of blocks of rows, those whose sums end up in this thread block.
    const int first = cluster.rank + warp * cluster.size, step = stride * cluster.size;
    float scale = 1;
    if (first < blocks) scale = out.scale(first, ptx::lane());
    u32 partial = ptx::cluster_index();
    ptx::keep(partial);  // it takes long, and else would after the wait
    if (cluster.size > 1) cluster.wait();
    int owned = warp;
    for (int block = first; block < blocks; block += step, owned += stride) {
        if (block > first) scale = out.scale(block, ptx::lane());
        for (int n = 0; n < N && n < batch; n++) {
            const float total = cluster.size > 1 ? cluster.sum(n, owned)
                                                 : ptx::shared_load<float>(sums + (block * N + n) * (lanes * 4));
            if (splits.count == 1)
                out.write(n, block, ptx::lane(), total * scale);
            else
                ptx::store(splits.place(partial, n, slice.first_block + block, ptx::lane()), total);
        }
    }
    if (splits.count > 1) splits.finish(out, first, step);
}

constexpr int most_threads = 16 * lanes;  // 128 registers each

#define ENTRY(name, ...)                                                                     \
    extern "C" KERNEL void __launch_bounds__(most_threads, 1)                                \
        name(const void* x, void* y, u8* workspace, int batch, int y_is_float, Psumbook w) { \
        __VA_ARGS__(x, y, workspace, batch, y_is_float, w);                                  \
    }
