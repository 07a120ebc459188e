// AQLM's matrix-vector product (Egiazarian et al., 2024): a warp multiplies a row of W by a row of x.
//
// A lane takes 8 or 16 k-vectors of a chunk: it reads their codes 16 bytes at a time, fetches their centroids and
// multiplies them by x two fp16 at a time, at most eight terms of a sum in fp16 before it goes to fp32.
//
//            K:  chunk 0              chunk 1
//              +----+----+---+-----+----+--            thread block (rows, row of x):
//   warp 0     | l0 | l1 |...| l31 | l0 |                for each chunk: x as fp16 into shared memory,
//   warp 1     |    |    |   |     |    |                  then every warp its row
//              +----+----+---+-----+----+--
//
// Codebooks of few bits lie in shared memory eightfold: the eight lanes that a 16-byte load serves at once read eight
// copies, which are the eight groups of four banks. Others are fetched from L2 past L1, which is too small for them.
//
// Codes: [row][chunk][16 bytes of a lane][lane], in a lane k-vector by k-vector, the codes of a k-vector together;
// only a row's last lane is filled up. Shared memory: codebooks [piece of 16 bytes][copy], x [lane][piece].
#include "floats.cuh"

constexpr int copies = 8;
constexpr int most_threads = 16 * lanes;

struct Aqlm {
    const uint4* codes;      // as above
    const uint4* codebooks;  // fp16 [codebook][centroid][V]
    const u16* scales;       // fp16 [row]
    int out_features;
    int in_features;
    int row_lanes;  // lanes that a row's k-vectors fill, over all chunks
    int centroids;  // of a codebook
};

// Codes of a byte find their codebooks in shared memory, wider ones in L2.
template <int V, int M, class Code, class X>
struct Shape {
    using code = Code;
    using x_type = X;
    static constexpr bool shared = sizeof(Code) == 1;
    static constexpr int codebooks = M;
    static constexpr int vectors = M * sizeof(Code) % 2 ? 16 : 8;  // of a lane in a chunk: whole loads of codes
    static constexpr int loads = vectors * M * sizeof(Code) / 16;
    static constexpr int step = vectors / 4;              // k-vectors whose codes fill whole registers
    static constexpr bool ahead = loads <= 4;             // registers hold the next chunk's codes beside this one's
    static constexpr int pieces = V / 8;                  // of 16 bytes, in a k-vector
    static constexpr int lane_pieces = vectors * pieces;  // of x
    static constexpr int lane_stride = lane_pieces + 1;   // odd, so that eight lanes read eight groups of banks
};

template <class S>
struct Codes {
    u32 words[4 * S::loads];

    // row: where the codes of this warp's row begin. chunk_lanes: lanes that have codes.
    DEVICE void load_codes(const uint4* row, int first_lane, int chunk_lanes) {
        if (ptx::lane() >= chunk_lanes) return;
#pragma unroll
        for (int i = 0; i < S::loads; i++)
            put_words(words + 4 * i, ptx::load_once(row + first_lane * S::loads + i * chunk_lanes + ptx::lane()));
    }

    // vector: of the next S::step.
    DEVICE u32 code(int vector, int codebook) const {
        constexpr int bits = 8 * sizeof(typename S::code);
        const int at = (vector * S::codebooks + codebook) * bits;
        return words[at / 32] >> at % 32 & ((1u << bits) - 1);
    }

    // To the next S::step k-vectors.
    DEVICE void advance() {
#pragma unroll
        for (int i = 0; i + S::loads < 4 * S::loads; i++) words[i] = words[i + S::loads];
    }
};

// Neighbouring lanes begin with neighbouring copies: a store fills all banks, as a load does.
template <class S>
DEVICE void stage_codebooks(const Aqlm& w, ptx::Shared to) {
    const int pieces = S::codebooks * w.centroids * S::pieces;
    for (int piece = threadIdx.x; piece < pieces; piece += blockDim.x) {
        const uint4 value = ptx::load(w.codebooks + piece);
#pragma unroll
        for (int i = 0; i < copies; i++)
            ptx::shared_store(to + (piece * copies + (ptx::lane() + i) % copies) * 16, value);
    }
}

template <class X>
DEVICE uint4 load_piece(const typename X::storage* x) {
    if constexpr (X::is_half) return ptx::load(reinterpret_cast<const uint4*>(x));
    const float4 low = load_four<X>(x), high = load_four<X>(x + 4);
    return make_uint4(ptx::pack_half2(low.x, low.y), ptx::pack_half2(low.z, low.w), ptx::pack_half2(high.x, high.y),
                      ptx::pack_half2(high.z, high.w));
}

// A chunk of x as fp16, zeros beyond K. x: where the chunk begins; features: from there to the end of the row.
template <class S>
DEVICE void stage_x(const typename S::x_type::storage* x, int features, int chunk_lanes, ptx::Shared to) {
    for (int piece = threadIdx.x; piece < chunk_lanes * S::lane_pieces; piece += blockDim.x) {
        const uint4 value =
            8 * piece < features ? load_piece<typename S::x_type>(x + 8 * piece) : make_uint4(0, 0, 0, 0);
        ptx::shared_store(to + (piece + piece / S::lane_pieces) * 16, value);
    }
}

// 16 bytes of a centroid. copy: this lane's of the codebooks.
template <class S>
DEVICE uint4 fetch(const Aqlm& w, ptx::Shared copy, u32 centroid, int piece) {
    const u32 at = centroid * S::pieces + piece;
    if constexpr (S::shared)
        return ptx::shared_load<uint4>(copy + at * (copies * 16));
    else
        return ptx::load_l2(w.codebooks + at);
}

DEVICE uint4 add(const uint4& a, const uint4& b) {
    return make_uint4(ptx::add_half2(a.x, b.x), ptx::add_half2(a.y, b.y), ptx::add_half2(a.z, b.z),
                      ptx::add_half2(a.w, b.w));
}

DEVICE float dot(const uint4& a, const uint4& b) {
    u32 sum = ptx::fma_half2(a.x, b.x, 0);
    sum = ptx::fma_half2(a.y, b.y, sum);
    sum = ptx::fma_half2(a.z, b.z, sum);
    sum = ptx::fma_half2(a.w, b.w, sum);
    return ptx::half_to_float(u16(sum)) + ptx::half_to_float(u16(sum >> 16));
}

// This lane's k-vectors of a chunk. x: this lane's part of it.
template <class S>
DEVICE float multiply(Codes<S>& codes, const Aqlm& w, ptx::Shared x, ptx::Shared copy) {
    float sum = 0;
#pragma unroll 1
    for (int first = 0; first < S::vectors; first += S::step) {
#pragma unroll
        for (int vector = 0; vector < S::step; vector++)
#pragma unroll
            for (int piece = 0; piece < S::pieces; piece++) {
                const uint4 factor = ptx::shared_load<uint4>(x + (vector * S::pieces + piece) * 16);
#pragma unroll
                for (int c = 0; c < S::codebooks; c += 2) {
                    uint4 centroid = fetch<S>(w, copy, c * w.centroids + codes.code(vector, c), piece);
                    // Two centroids are added in fp16, as the original's 2x8 kernel does.
                    if (c + 1 < S::codebooks)
                        centroid =
                            add(centroid, fetch<S>(w, copy, (c + 1) * w.centroids + codes.code(vector, c + 1), piece));
                    sum += dot(centroid, factor);
                }
            }
        codes.advance();
        x += S::step * S::pieces * 16;
    }
    return sum;
}

// x: [gridDim.y][in_features] of X; y: [gridDim.y][out_features] of X or float32.
template <int V, int M, class Code, class X>
DEVICE void aqlm(const void* x, void* y, int y_is_float, const Aqlm& w) {
    using S = Shape<V, M, Code, X>;
    ptx::let_next_start();
    const auto* x_row = static_cast<const typename X::storage*>(x) + size_t(blockIdx.y) * w.in_features;
    const int row = blockIdx.x * ptx::warps() + ptx::warp();
    const bool inside = row < w.out_features;
    const uint4* row_codes = w.codes + size_t(row) * (w.row_lanes * S::loads);

    const ptx::Shared books = ptx::shared_memory();
    const ptx::Shared chunk = books + (S::shared ? M * w.centroids * S::pieces * copies * 16 : 0);
    const ptx::Shared lane_x = chunk + ptx::lane() * (S::lane_stride * 16);
    const ptx::Shared copy = books + ptx::lane() % copies * 16;

    Codes<S> codes;
    if (S::ahead && inside) codes.load_codes(row_codes, 0, min(w.row_lanes, lanes));
    if constexpr (S::shared) stage_codebooks<S>(w, books);
    ptx::wait_for_previous();
    float sum = 0;
    for (int first = 0; first < w.row_lanes; first += lanes) {
        const int chunk_lanes = min(w.row_lanes - first, lanes), begin = first * S::vectors * V;
        if (!S::ahead && inside) codes.load_codes(row_codes, first, chunk_lanes);
        if (first) ptx::sync_block();
        stage_x<S>(x_row + begin, w.in_features - begin, chunk_lanes, chunk);
        ptx::sync_block();
        // The next codes travel while these are multiplied.
        Codes<S> next;
        if (S::ahead && inside && first + lanes < w.row_lanes)
            next.load_codes(row_codes, first + lanes, min(w.row_lanes - first - lanes, lanes));
        if (inside && ptx::lane() < chunk_lanes) sum += multiply<S>(codes, w, lane_x, copy);
        if (S::ahead) codes = next;
    }
    sum = sum_of_warp(sum);
    if (!inside || ptx::lane()) return;
    sum *= ptx::half_to_float(ptx::load(w.scales + row));
    store_y<X>(y, y_is_float, size_t(blockIdx.y) * w.out_features + row, sum);
}

#define ENTRY(name, ...)                                                      \
    extern "C" KERNEL void __launch_bounds__(most_threads, 1)                 \
        name(const void* x, void* y, u8* workspace, int y_is_float, Aqlm w) { \
        __VA_ARGS__(x, y, y_is_float, w);                                     \
    }
