// Where things lie: the order of codes and scales in a prepared weight, and the tables in shared memory.
// `psumbook_layout.py` in the engine arranges the weight in the same way.
//
// A *position* is a pair (k-vector, codebook): one lookup of every row of W. 32 consecutive k-vectors of one codebook
// are a *position row*; position rows are numbered k block by k block, codebooks inside. A *unit* is what one line of
// 256 bytes a centroid holds: two position rows of 4-byte entries, or one of 8-byte entries (or one of 4-byte entries,
// a line half empty, where a small M makes building the table the larger part).
//
//   table[unit][centroid][256 bytes]
//   byte address of a lookup = unit << (8 + b) | centroid << 8 | position * entry bytes (+ 128 in a second position
//   row)
//
// A tile is the units that fit 64 KiB, so that the address's second byte is a code and the unit above it.
//
// Lane = row of W, bank = position: at step s lane l looks up position(l, s), and positions of a step lie in 32
// different banks whatever the codes are. The codes of a row are stored in the order of the steps.
#pragma once

#include "splits.cuh"

constexpr int line_bytes = 256;

// Everything about a product but x and y.
struct Psumbook {
    const u8* codes;       // [position row][block of 32 rows][chunk][lane][chunk bytes]
    const u16* codebooks;  // fp16 [part][codebook][centroid][v rounded up to 4]
    const u16* scales;     // fp16 [group][block][chunk][lane][phases], or [block][lane]
    int out_features;
    int in_features;
    int row_blocks;       // padded rows of all parts / 32
    int scale_shift;      // log2 of the k blocks that share their scales
    int units;            // of the whole of K
    int units_per_tile;   // whose tables are in shared memory together, at most 256 >> b
    int units_per_split;  // that one thread block sums up
    int partials;         // sums that meet in the workspace, of each row: one of every cluster of splits
    float table_scale;    // a power of two that brings fp16 entries into range
    Slices slices;        // gridDim.x of them
};

// V: vector length, M: codebooks, B: bits of a code, N: rows of x (1, 2 or 4), X: their type, ROWS: position rows a
// unit, PHASES: scales of a row in 32 k-vectors, 0 for one scale a row of W.
template <int V, int M, int B, int PHASES, int N, class X, int ROWS>
struct Shape {
    static constexpr int v = V, m = M, n = N, rows = ROWS, phases = PHASES;
    using x_type = X;

    static constexpr int quarters = (V + 3) / 4;  // a centroid in pieces of four, the last padded with zeros
    static constexpr int centroids = 1 << B;
    static constexpr int table_bytes = centroids * line_bytes;
    static constexpr int entry_bytes = N == 4 ? 8 : 4;  // fp32, or fp16 for each row of x

    static constexpr int tile_units = 256 >> B;  // that fit the 64 KiB which a byte of centroids addresses
    static constexpr int code_bits = B <= 2 ? 2 : B <= 4 ? 4 : 8;
    static constexpr int block_bytes = lanes * 32 * code_bits / 8;        // codes of 32 rows in a position row
    static constexpr int chunk_bytes = code_bits == 2 ? 8 : 16;           // a lane's load
    static constexpr int chunk_steps = chunk_bytes * 8 / code_bits;       // lookups that a load feeds
    static constexpr int chunks = 32 / chunk_steps;                       // loads a position row
    static constexpr int phase_steps = PHASES ? 32 / PHASES : 32;         // lookups under one scale
    static constexpr bool one_k_block = ROWS == 2 && M % 2 == 0;          // both position rows of a unit share scales
    static constexpr int scale_rows = one_k_block ? 1 : ROWS;             // sets of scales a unit
    static constexpr int scale_words = PHASES < 2 ? PHASES : PHASES / 2;  // registers a set
    static constexpr int scale_chunk = PHASES < 8 ? PHASES : 8;           // scales that a lane loads at once
    static constexpr int scale_chunks = PHASES < 8 ? PHASES > 0 : PHASES / 8;  // loads a set
    // Few enough to hold the next unit's as well.
    static constexpr bool scales_ahead = scale_rows * scale_words < (N == 4 && V > 12 ? 8 : 16);

    // Loads from one position row to the next.
    DEVICE static u32 row_chunks(const Psumbook& w) { return w.row_blocks * (lanes * chunks); }
};
