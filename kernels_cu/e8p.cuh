// E8P code words of QuIP# (Tseng et al., 2024) as fp16 operands of tensor cores.
//
// A word of a table is eight nibbles n; its coordinate c stands in nibble (0, 4, 1, 5, 2, 6, 3, 7)[c], so that the two
// halves of a register hold neighbours. Base vectors have n = 2v + 8, odd: a sign is ^ 14, and bit 0 is free to say
// that the vector moves by -1/4 in place of +1/4. The ball of the 3-bit form has the same, even, and nothing is
// flipped.
#pragma once

#include "ptx.cuh"

constexpr int table_words = 256;
constexpr u32 nibbles = 0x11111111;

// Eight weights twice as large as they are, two in a register.
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

// Signs and moves of a lane's four code words: bit 4j + i of `signs` is bit j of word i's sign byte.
struct Flips {
    u32 signs;   // bit 0 of each byte turned over where its parity is odd
    u32 parity;  // of word i in bit i of every nibble

    DEVICE explicit Flips(u32 packed) {
        parity = packed ^ ptx::permute_bytes(packed, packed, 0x1032);
        parity ^= ptx::permute_bytes(parity, parity, 0x2301);
        parity ^= parity >> 4 | parity << 28;
        signs = packed ^ (parity & 15);
    }

    // What is flipped in the base vector of word i.
    DEVICE u32 of(int i) const { return (signs >> i & nibbles) * 14 + (parity >> i & nibbles); }
};

// A table [word][lane]: a copy in each bank. All threads of a block.
DEVICE void stage_table(const u32* table, ptx::Shared to) {
    for (int i = threadIdx.x; i < table_words * 32; i += blockDim.x)
        ptx::shared_store(to + i * 4, ptx::load(table + i / 32));
}

// A word of this lane's copy. indices: four, a byte each.
DEVICE u32 gather(ptx::Shared copy, u32 indices, int i) {
    return ptx::shared_load<u32>(copy + ptx::permute_bytes(indices, 0, 0x4440 + i) * 128);
}
