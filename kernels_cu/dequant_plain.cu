// The dequantising kernel's plain form: any vector length, any number of codebooks, codes of up to 16 bits, any groups.
//
// Lane = row: a warp decodes one k-vector of 32 rows at a time into fp32 and multiplies it by all rows of x. The warps
// of a thread block take the k-vectors of its split in turn; the first warp adds their sums in order.
#include "splits.cuh"

// Everything about a product but x and y.
struct DequantPlain {
    const void* codes;     // Code [k-vector][codebook][padded row]
    const u16* codebooks;  // fp16 [part][codebook][centroid][V]
    const u16* scales;     // fp16 [group][padded row]
    int out_features;
    int in_features;
    int row_blocks;     // padded rows of all parts / 32
    int vectors;        // of a row
    int split_vectors;  // that one thread block sums up
    int group_vectors;  // that share a scale
    int codebooks_count;
    int centroids;
    Slices slices;  // gridDim.x of them, of one block of 32 rows each
};

constexpr int most_threads = 256;

// V: vector length, Code: u8 or u16, N: most rows of x, X: their type.
template <int V, class Code, int N, class X>
DEVICE void dequant_plain(const void* x, void* y, u8* workspace, int batch, int y_is_float, const DequantPlain& w) {
    ptx::let_next_start();
    const Slice slice = w.slices.at(blockIdx.x);
    const int lane = ptx::lane(), padded_rows = w.row_blocks * lanes, row = slice.first_block * lanes + lane;
    const int first = blockIdx.y * w.split_vectors, end = min(first + w.split_vectors, w.vectors);
    const auto* codes = static_cast<const Code*>(w.codes);
    const u16* books = w.codebooks + size_t(slice.part) * w.codebooks_count * w.centroids * V;
    const int pieces = (end - first) * w.codebooks_count;  // of the codes, for a k-vector and codebook each
    for (int i = threadIdx.x; i < pieces; i += blockDim.x)
        ptx::prefetch(codes + (size_t(first) * w.codebooks_count + i) * padded_rows + slice.first_block * lanes,
                      lanes * int(sizeof(Code)));
    ptx::wait_for_previous();

    float sums[N] = {};
    for (int vector = first + ptx::warp(); vector < end; vector += ptx::warps()) {
        float weight[V] = {};
        for (int book = 0; book < w.codebooks_count; book++) {
            const u32 code = ptx::load(codes + (size_t(vector) * w.codebooks_count + book) * padded_rows + row);
            const u16* centroid = books + (size_t(book) * w.centroids + code) * V;
#pragma unroll
            for (int i = 0; i < V; i++) weight[i] += ptx::half_to_float(ptx::load(centroid + i));
        }
        const float scale =
            ptx::half_to_float(ptx::load(w.scales + size_t(vector / w.group_vectors) * padded_rows + row));
#pragma unroll
        for (int i = 0; i < V; i++) weight[i] *= scale;
        const auto* column = static_cast<const typename X::storage*>(x) + size_t(vector) * V;
#pragma unroll
        for (int n = 0; n < N; n++) {
            if (n < batch)
#pragma unroll
                for (int i = 0; i < V; i++)
                    sums[n] = fmaf(weight[i], X::widen(ptx::load(column + size_t(n) * w.in_features + i)), sums[n]);
        }
    }

    const ptx::Shared mine = ptx::shared_memory() + 4 * lane;  // sums [warp][n][lane]
#pragma unroll
    for (int n = 0; n < N; n++) ptx::shared_store(mine + 4 * lanes * (ptx::warp() * N + n), sums[n]);
    ptx::sync_block();
    if (ptx::warp() > 0) return;
    const Output<X> out{y, batch, y_is_float, w.out_features, nullptr, slice};
    const Splits splits{workspace, int(gridDim.y), int(gridDim.y), batch, padded_rows};
    for (int n = 0; n < batch; n++) {
        float sum = 0;
        for (int warp = 0; warp < ptx::warps(); warp++)
            sum += ptx::shared_load<float>(mine + 4 * lanes * (warp * N + n));
        if (splits.count == 1)
            out.write(n, 0, lane, sum);
        else
            ptx::store(splits.place(blockIdx.y, n, slice.first_block, lane), sum);
    }
    if (splits.count > 1) splits.finish(out, 0, 1);
}

#define ENTRY(name, ...)                                                                         \
    extern "C" KERNEL void __launch_bounds__(most_threads, 1)                                    \
        name(const void* x, void* y, u8* workspace, int batch, int y_is_float, DequantPlain w) { \
        __VA_ARGS__(x, y, workspace, batch, y_is_float, w);                                      \
    }
