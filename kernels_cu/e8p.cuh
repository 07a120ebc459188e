// E8P code words of QuIP# (Tseng et al., 2024) as operands of tensor cores.
//
// A word of a table is eight nibbles n; its coordinate c stands in nibble (0, 2, 4, 6, 1, 3, 5, 7)[c], so that the low
// nibbles of its bytes are four neighbours, and the high ones. Base vectors have n = 2v + 8, odd: a sign is ^ 14, and
// bit 0 is free to say that the vector moves by -1/4 in place of +1/4. So a weight is (2n - 15) / 4, and what a sign
// byte turns over in a base vector is a word of another table. The ball of the 3-bit form has n = 2v + 8 too, even, and
// nothing is flipped.
#pragma once

#include "replicated.cuh"

constexpr int table_words = 256;
constexpr int ball_row_bytes = 64;  // a word for every second: a third table of the first kind would not fit all GPUs
constexpr int entry_bytes = 2 * row_bytes;
constexpr int tables_bytes = table_words * entry_bytes;
constexpr int ball_bytes = table_words * ball_row_bytes;

// Eight weights twice as large as they are, two in a register: coordinates 0, 2, 4, 6, 1, 3, 5, 7.
struct Weights {
    u32 pairs[4];
};

// A nibble n that begins at bit 2 of a half is 256 + n in fp16, at bit 6 16 + n; MOVED adds 1/2. All exact.
template <bool MOVED>
DEVICE Weights unpack(u32 word) {
    constexpr u32 at_2 = MOVED ? 0x5c025c02 : 0x5c005c00, at_6 = MOVED ? 0x4c204c20 : 0x4c004c00;
    constexpr u32 nibble_2 = 0x003c003c, nibble_6 = 0x03c003c0, minus_264 = 0xdc20dc20, minus_24 = 0xce00ce00;
    const u32 low = word << 2, high = word >> 6;
    return {{ptx::add_half2(ptx::and_or(low, nibble_2, at_2), minus_264),
             ptx::add_half2(ptx::and_or(low, nibble_6, at_6), minus_24),
             ptx::add_half2(ptx::and_or(high, nibble_2, at_2), minus_264),
             ptx::add_half2(ptx::and_or(high, nibble_6, at_6), minus_24)}};
}

// Tables in shared memory, made by all threads of a block: entries of a base vector's copies and those of a sign byte;
// then the ball's.
struct Tables {
    ptx::Shared memory;
    u32 copy;  // of this lane in a row

    DEVICE Tables(ptx::Shared memory, const u32* tables, bool has_ball) : memory(memory), copy(ptx::lane() * 4) {
        stage_table<row_bytes>(tables, 2 * table_words, memory);
        if (has_ball) stage_table<ball_row_bytes>(tables + 2 * table_words, table_words, memory + tables_bytes);
        ptx::sync_block();
    }

    // The base vector that byte i of `indices` names, and what byte i of `signs` turns over in it.
    DEVICE u32 gather_base(u32 indices, int i) const { return gather(memory, indices, i); }
    DEVICE u32 gather_flips(u32 signs, int i) const { return gather(memory + row_bytes, signs, i); }

    DEVICE u32 gather_ball(u32 indices, int i) const {
        const u32 row = ptx::permute_bytes(indices, 0, 0x4440 + i) * ball_row_bytes;
        return ptx::shared_load<u32>(memory + tables_bytes + row + copy % ball_row_bytes);
    }

 private:
    // An entry's number is the second byte of where it is.
    DEVICE u32 gather(ptx::Shared tables, u32 bytes, int i) const {
        return ptx::shared_load<u32>(tables + ptx::permute_bytes(bytes, copy, 0x7604 | i << 4));
    }
};
