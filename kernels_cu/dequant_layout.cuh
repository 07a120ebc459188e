// Where things lie for the dequantising kernel: codes, scales and centroids of a prepared weight, and fragments of x.
// `dequant_layout.py` in the engine arranges the weight in the same way.
//
// mma's k axis has 16 places; lane 4r + q of a warp holds four of them for one row of W. Any order of k will do if x
// has the same, so those four are four neighbouring components of one k-vector: what a lookup brings is B's fragment as
// it stands. A *step* is four k-vectors, one for each q, and V / 4 mma; a *k block* is four steps, whose codes a lane
// loads together. Groups of weights with one scale are filled up to one, two or a multiple of four steps, so that a
// scale ends with a step; x is zero in what was filled up.
//
//   table[pair of codebooks][centroid][256 bytes]    (V = 16: of each codebook)
//   byte address of a centroid = centroid << 8 | copy of this lane
//
// 16 copies of 8 bytes (V = 4) or 8 of 16 bytes fill 128 bytes, all banks once: lanes that are served together read
// different copies, so a lookup takes as many wavefronts as it moves 128 bytes, whatever the codes are.
#pragma once

#include "splits.cuh"

constexpr int line_bytes = 256;
constexpr int steps = 4;                           // of a k block
constexpr int block_vectors = 4 * steps;           // k-vectors of a k block
constexpr int prefetched_blocks = 4;               // k blocks, of a split: more would stand in the way of all else
constexpr int most_prefetched = 64 << 10;          // bytes of each k block and codebook
constexpr int stage_words = 40;                    // of a row of x: with 32, all would meet in the same banks
constexpr int stage_bytes = 16 * stage_words * 4;  // of a warp

// Everything about a product but x and y.
struct Dequant {
    const u8* codes;       // [k block][codebook][block of 32 rows][load][lane][codes of up to 16 bytes]
    const u16* codebooks;  // fp16 [part][codebook][centroid][V]
    const u16* scales;     // fp16 [group][block of 32 rows][q][row tile][2]
    int out_features;
    int in_features;
    int row_blocks;      // padded rows of all parts / 32
    int k_blocks;        // of the whole of K
    int split_blocks;    // k blocks that one thread block sums up
    int chunk_blocks;    // k blocks whose x is in shared memory together
    int group_blocks;    // k blocks that share a scale, where a k block has one
    int group_vectors;   // k-vectors of a group
    int padded_vectors;  // the same, filled up
    int received;        // where in shared memory a cluster's blocks send their sums
    Slices slices;       // gridDim.x of them, by gridDim.y passes of N rows of x, by gridDim.z splits
};

// V: vector length, M: codebooks, B: bits of a code, PHASES: scales of a row in a k block, 0 for one scale a row of W,
// N: rows of x at once (8, 16, 32 or 64), X: their type, SHARED: whether the tables are in shared memory, or centroids
// in L2.
template <int V, int M, int B, int PHASES, int N, class X, bool SHARED>
struct DequantShape {
    static constexpr int v = V, m = M, phases = PHASES, n = N;
    static constexpr bool shared = SHARED;
    using x_type = X;

    static constexpr int centroids = 1 << B;
    static constexpr int pieces = V == 16 ? 2 : 1;            // of a centroid, each a load
    static constexpr int quarters = V == 4 ? 1 : 2;           // mma that a piece feeds
    static constexpr int tables = V == 16 ? M : (M + 1) / 2;  // of 256 bytes a centroid
    static constexpr int code_bits = B <= 2 ? 2 : B <= 4 ? 4 : B <= 8 ? 8 : 16;
    static constexpr int code_words = code_bits / 2;  // a lane's codes of a k block: 16
    static constexpr bool narrow = N == 8;            // weights are mma's A, else x is
    // The kernels for few rows of x, of which registers leave room for most.
    static constexpr bool lean = SHARED && M <= 2 && N <= 16 && V < 16 && PHASES <= 1;
    // Of 32 rows, that a warp multiplies: a fragment of x is read once for all of them.
    static constexpr bool sums_fit = V <= 8 && N == 32 && SHARED && PHASES <= 1;  // registers, for 32 rows of x, too
    static constexpr int row_blocks = lean || (M == 1 && sums_fit) ? 2 : 1;
    static constexpr int x_tiles = narrow ? 1 : N / 16;  // of the rows of x in an mma
    static constexpr int x_tile_rows = narrow ? 8 : 16;
    static constexpr int w_tiles = narrow ? 2 : 4;                    // of the rows of W in an mma, in 32
    static constexpr int fragment_bytes = lanes * (narrow ? 8 : 16);  // of x
    static constexpr int x_bytes = steps * pieces * quarters * x_tiles * fragment_bytes;  // of a k block
    static constexpr bool scaled = !X::is_half;  // x comes under a power of two for each row and k block
    // Codebooks at once: registers don't hold what more bring from L2, or in vectors of 16.
    static constexpr int books = SHARED && (V < 16 || M <= 2) ? M : 1;
    // K blocks whose codes are in registers before they are looked up.
    static constexpr int set_words = books * row_blocks * code_words;
    static constexpr int ahead = lean && narrow && set_words <= 8 ? 2 : set_words <= (lean ? 16 : 12) ? 1 : 0;
    static constexpr bool scales_ahead =
        !scaled || (SHARED && M != 2);  // registers hold the next group's scales as well
    // Registers decide.
    static constexpr int most_threads = lean && M * V == 4 ? 512 : 256;
};
