// W in dense form, for a library's product: a thread decodes the k-vectors that fill 16 bytes of a row.
//
// The weight's own arrays are read as they are: neighbouring threads have neighbouring codes and write neighbouring
// weights, so everything but the centroids is coalesced; those come from shared memory where all codebooks fit.
#include "floats.cuh"

// Everything but where to write. Row 0 is the first of the slice.
struct Dequantize {
    const void* codes;     // Code [rows][vectors][codebooks]
    const u16* codebooks;  // fp16 [codebook][centroid][V]
    const u16* scales;     // fp16 [rows][groups]
    int rows;
    int vectors;  // of a row
    int codebooks_count;
    int centroids;
    int group_vectors;  // that share a scale
    int groups;         // of a row
};

template <int V>
struct Centroid {
    float component[V];

    // SHARED: from shared memory.
    template <bool SHARED>
    DEVICE void add(const u16* books, ptx::Shared shared, u32 index) {
        if constexpr (V % 4 == 0) {
#pragma unroll
            for (int h = 0; h < V / 4; h++) {
                const u32 at = index * (V / 4) + h;
                const uint2 pairs = SHARED ? ptx::shared_load<uint2>(shared + at * 8)
                                           : ptx::load(reinterpret_cast<const uint2*>(books) + at);
                component[4 * h] += ptx::half_to_float(u16(pairs.x));
                component[4 * h + 1] += ptx::half_to_float(u16(pairs.x >> 16));
                component[4 * h + 2] += ptx::half_to_float(u16(pairs.y));
                component[4 * h + 3] += ptx::half_to_float(u16(pairs.y >> 16));
            }
        } else {
#pragma unroll
            for (int i = 0; i < V; i++)
                component[i] += ptx::half_to_float(SHARED ? ptx::shared_load<u16>(shared + (index * V + i) * 2)
                                                          : ptx::load(books + index * V + i));
        }
    }
};

DEVICE u32 word_of(const u16* pair) {
    return pair[0] | u32(pair[1]) << 16;
}
DEVICE u32 word_of(const float* one) {
    return ptx::float_to_bits(*one);
}

// Neighbouring weights, as wide as `to` is aligned; only the first `valid` of them exist.
template <class T, int COUNT>
DEVICE void store_weights(T* to, const T (&weights)[COUNT], int valid) {
    constexpr int each = 4 / sizeof(T), bytes = COUNT * sizeof(T);
    if constexpr (bytes % 16 == 0)
        if (valid == COUNT && size_t(to) % 16 == 0) {
#pragma unroll
            for (int i = 0; i < bytes / 16; i++)
                ptx::store(reinterpret_cast<uint4*>(to) + i,
                           make_uint4(word_of(weights + 4 * i * each), word_of(weights + (4 * i + 1) * each),
                                      word_of(weights + (4 * i + 2) * each), word_of(weights + (4 * i + 3) * each)));
            return;
        }
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        if (i < valid) ptx::store(to + i, weights[i]);
}

// dense: X [rows][vectors * V].
template <int V, class Code, class X, bool SHARED>
DEVICE void dequantize(u8* dense, const Dequantize& w) {
    constexpr int together = V == 1 ? 8 : V == 2 ? 4 : V == 4 ? 2 : 1;  // k-vectors of a thread
    constexpr int count = together * V;
    constexpr int rows = V == 4 || V == 8 ? 2 : 1;  // at once: more take registers from other warps
    ptx::let_next_start();
    const ptx::Shared shared = ptx::shared_memory();
    if constexpr (SHARED) {
        const int words = (w.codebooks_count * w.centroids * V + 1) / 2;  // the array is padded to whole words
        for (int i = threadIdx.x; i < words; i += blockDim.x)
            ptx::shared_store(shared + 4 * i, ptx::load(reinterpret_cast<const u32*>(w.codebooks) + i));
        ptx::sync_block();
    }
    using T = typename X::storage;
    const auto* codes = static_cast<const Code*>(w.codes);
    const size_t row_codes = size_t(w.vectors) * w.codebooks_count;
    // Codes of the first rows, no more: others would stand in their way.
    const int first_row = blockIdx.x + threadIdx.x * gridDim.x;
    if (int(threadIdx.x) < rows && first_row < w.rows && row_codes * sizeof(Code) % 16 == 0)
        ptx::prefetch(codes + first_row * row_codes, u32(row_codes * sizeof(Code)));
    ptx::wait_for_previous();
    // The same weights of several rows: their codes travel together.
    for (int first = threadIdx.x * together; first < w.vectors; first += blockDim.x * together) {
        int group[together];
#pragma unroll
        for (int t = 0; t < together; t++) group[t] = min(first + t, w.vectors - 1) / w.group_vectors;
        for (int begin = blockIdx.x; begin < w.rows; begin += rows * gridDim.x) {
            Centroid<V> sum[rows][together] = {};
            u16 scale[rows][together];
            int row[rows];  // the last one again where there are no more
#pragma unroll
            for (int r = 0; r < rows; r++) {
                row[r] = min(begin + r * int(gridDim.x), w.rows - 1);
#pragma unroll
                for (int t = 0; t < together; t++)
                    scale[r][t] = ptx::load(w.scales + size_t(row[r]) * w.groups + group[t]);
            }
            for (int c = 0; c < w.codebooks_count; c++) {
                u32 code[rows][together];
#pragma unroll
                for (int r = 0; r < rows; r++)
#pragma unroll
                    for (int t = 0; t < together; t++) {
                        const size_t vector = size_t(row[r]) * w.vectors + min(first + t, w.vectors - 1);
                        code[r][t] = ptx::load(codes + vector * w.codebooks_count + c);
                    }
#pragma unroll
                for (int r = 0; r < rows; r++)
#pragma unroll
                    for (int t = 0; t < together; t++)
                        sum[r][t].template add<SHARED>(w.codebooks, shared, u32(c * w.centroids) + code[r][t]);
            }
#pragma unroll
            for (int r = 0; r < rows; r++) {
                if (begin + r * int(gridDim.x) >= w.rows) break;
                T narrow[count];
#pragma unroll
                for (int t = 0; t < together; t++)
#pragma unroll
                    for (int i = 0; i < V; i++)
                        narrow[t * V + i] = X::narrow(sum[r][t].component[i] * ptx::half_to_float(scale[r][t]));
                store_weights(reinterpret_cast<T*>(dense) + (size_t(row[r]) * w.vectors + first) * V, narrow,
                              min(count, (w.vectors - first) * V));
            }
        }
    }
}

constexpr int most_threads = 256;

#define ENTRY(name, ...)                                                        \
    extern "C" KERNEL void __launch_bounds__(most_threads, 2)                   \
        name(const void* x, void* y, u8* workspace, int offset, Dequantize w) { \
        __VA_ARGS__(workspace + offset, w);                                     \
    }
