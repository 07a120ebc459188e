// Trellis codes of QTIP (Tseng et al., 2024) as operands of tensor cores.
//
// A tile of 16 x 16 weights is 128 steps of two weights; a step's state is 16 bits of the tile's, BITS * 2 further on
// than the step's before, and cyclic. Lane l has the pairs of steps 4l .. 4l + 3, which are the four words of an A
// operand of mma.m16n8k16 in their order: its own bits, and the first ones of the next lane's, hold their states.
#pragma once

#include "replicated.cuh"

constexpr int table_pairs = 512;
constexpr int table_bytes = table_pairs * row_bytes;
constexpr int block_tiles = 4;  // two by two, whose codes lie together
constexpr int block_side = 32;  // weights

// Two fp16 weights for each of 512 entries, in shared memory, made by all threads of a block.
struct Pairs {
    ptx::Shared memory;
    u32 copy;  // of this lane

    DEVICE Pairs(ptx::Shared memory, const u32* table) : memory(memory), copy(ptx::lane() * 4) {
        stage_table<row_bytes>(table, table_pairs, memory);
        ptx::sync_block();
    }

    // Of a state in the lower half, whatever is above it: bits 6 to 14 of s (s + 1) name an entry, and bit 15 negates
    // the first of its weights.
    DEVICE u32 gather(u32 state) const {
        const u32 hash = state * state + state;
        const u32 entry = ptx::shared_load<u32>(memory + ptx::and_or(hash << 1, (table_pairs - 1) * row_bytes, copy));
        return entry ^ (hash & 0x8000);
    }
};

// One lane's codes of 2 x 2 tiles: tile i's are BITS bytes, the first bit on top.
template <int BITS>
struct Codes {
    u32 word[BITS] = {};

    // index: of the 2 x 2 tiles. early: before `wait_for_previous`.
    DEVICE void load_codes(const u32* codes, u32 index, bool early = false) {
        const u32* from = codes + (index * lanes + ptx::lane()) * BITS;
        if (BITS == 3) {
#pragma unroll
            for (int i = 0; i < 3; i++) word[i] = early ? ptx::load_early(from + i) : ptx::load_once(from + i);
        } else if (BITS == 2) {
            const uint2* pair = reinterpret_cast<const uint2*>(from);
            const uint2 v = early ? ptx::load_early(pair) : ptx::load_once(pair);
            word[0] = v.x, word[1] = v.y;
        } else {
            const uint4* four = reinterpret_cast<const uint4*>(from);
            const uint4 v = early ? ptx::load_early(four) : ptx::load_once(four);
            word[0] = v.x, word[1] = v.y, word[BITS - 2] = v.z, word[BITS - 1] = v.w;
        }
    }

    // Those of the next lane, whose bits follow this one's; the last lane's are followed by the first's.
    DEVICE Codes next() const {
        Codes other;
#pragma unroll
        for (int i = 0; i < BITS; i++) other.word[i] = ptx::shuffle(word[i], (ptx::lane() + 1) % lanes);
        return other;
    }

    // Tile i's, below others.
    DEVICE u32 tile(int i) const {
        const int at = 8 * BITS * i, first = at / 32, shift = at % 32;
        const u32 low = word[first] >> shift;
        return shift + 8 * BITS <= 32 ? low : low | word[first + 1] << (32 - shift);
    }
};

// Tile i's four words of the A operand. `next`: of the next lane.
template <int BITS>
DEVICE void decode(const Pairs& pairs, const Codes<BITS>& codes, const Codes<BITS>& next, int i, u32 (&a)[4]) {
    const u32 mine = codes.tile(i), following = next.tile(i) << (32 - 8 * BITS);
#pragma unroll
    for (int step = 0; step < 4; step++) {
        const int beyond = 2 * BITS * step + 16 - 8 * BITS;  // bits of the state that are the next lane's
        a[step] = pairs.gather(beyond > 0 ? ptx::funnel(mine, following, beyond) : mine >> -beyond);
    }
}
