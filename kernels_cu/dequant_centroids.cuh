// Codes in registers, and the tables of centroids that they are looked up in (dequant_layout.cuh).
#pragma once

#include "dequant_layout.cuh"

// A lane's codes of a k block for one block of 32 rows and one codebook: of rows 8 * tile + r and steps 0 .. 3.
template <class S>
struct RowCodes {
    u32 word[S::code_words];

    DEVICE void load_codes(const u8* from) {
        const u8* address = from + ptx::lane() * (S::code_words < 4 ? S::code_words * 4 : 16);
        if constexpr (S::code_words == 1) {
            word[0] = ptx::load_once(reinterpret_cast<const u32*>(address));
        } else if constexpr (S::code_words == 2) {
            put_words(word, ptx::load_once(reinterpret_cast<const uint2*>(address)));
        } else {
#pragma unroll
            for (int i = 0; i < S::code_words / 4; i++)
                put_words(word + 4 * i, ptx::load_once(reinterpret_cast<const uint4*>(address) + i * lanes));
        }
    }

    // A register whose byte i is the code of step i, for codes of up to 8 bits.
    DEVICE u32 bytes(int tile) const {
        if constexpr (S::code_bits == 8) return word[tile];
        if constexpr (S::code_bits == 4) return word[tile / 2] >> tile % 2 * 4 & 0x0f0f0f0fu;
        return word[0] >> tile * 2 & 0x03030303u;
    }

    DEVICE u32 code(int tile, int step) const {
        if constexpr (S::code_bits == 16) return word[2 * tile + step / 2] >> step % 2 * 16 & 0xffffu;
        return bytes(tile) >> step * 8 & 0xffu;
    }
};

// What a lookup loads: four components of a k-vector for each mma that they feed.
template <int QUARTERS>
struct PieceOf {
    using type = uint4;
};
template <>
struct PieceOf<1> {
    using type = uint2;
};

// Where centroids come from.
template <class S>
struct Centroids {
    using Piece = typename PieceOf<S::quarters>::type;

    ptx::Shared tables;
    u32 copy;          // this lane's, as an offset
    const u16* books;  // of the slice's part

    // The piece's fragments of B, in pairs.
    DEVICE void look_up(u32 (&b)[2 * S::quarters], const RowCodes<S>& codes, int book, int tile, int step,
                        int piece) const {
        if constexpr (S::shared) {
            const int table = S::v == 16 ? book : book / 2, line = S::v == 16 ? piece : book % 2;
            const ptx::Shared from = tables + table * (S::centroids * line_bytes) + line * 128 +
                                     ptx::permute_bytes(copy, codes.bytes(tile), 0x3300u | u32(4 + step) << 4);
            put_words(b, ptx::shared_load<Piece>(from));
        } else {
            const u16* from = books + (size_t(book) * S::centroids + codes.code(tile, step)) * S::v + piece * 8;
            put_words(b, ptx::load(reinterpret_cast<const Piece*>(from)));
        }
    }

    // The same of codebooks book and book + 1 together, if there is another among COUNT: their sum in fp16.
    template <int COUNT>
    DEVICE void look_up_pair(u32 (&b)[2 * S::quarters], const RowCodes<S> (&codes)[COUNT], int first_book, int book,
                             int tile, int step, int piece) const {
        look_up(b, codes[book], first_book + book, tile, step, piece);
        if (book + 1 == COUNT) return;
        u32 more[2 * S::quarters];
        look_up(more, codes[book + 1], first_book + book + 1, tile, step, piece);
#pragma unroll
        for (int i = 0; i < 2 * S::quarters; i++) b[i] = ptx::add_half2(b[i], more[i]);
    }
};

// Copies the codebooks of a part into the tables, every piece as often as it takes to fill 128 bytes, by all threads of
// the block; who reads synchronises first.
template <class S>
struct Copies {
    using Piece = typename PieceOf<S::quarters>::type;
    static constexpr int copies = 128 / int(sizeof(Piece)), items = S::m * S::centroids * S::pieces;
    static constexpr int in_flight = items < 512 ? 1 : items / 256;  // loads of a thread

    Piece value[in_flight];

    DEVICE void load(const u16* books, int first) {
#pragma unroll
        for (int i = 0; i < in_flight; i++) {
            const int item = min(first + i * int(blockDim.x), items - 1);
            value[i] = ptx::load_in_order(reinterpret_cast<const Piece*>(books) + item);
        }
    }

    // A thread writes all copies of a piece, its neighbours each another one at a time: they meet in no bank.
    DEVICE void copy_codebooks(ptx::Shared tables, int first) const {
#pragma unroll
        for (int i = 0; i < in_flight; i++) {
            const u32 piece = first + i * blockDim.x;
            if (piece >= u32(items)) break;
            const u32 book = piece / (S::centroids * S::pieces), rest = piece % (S::centroids * S::pieces);
            const u32 centroid = rest / S::pieces, line = S::v == 16 ? rest % S::pieces : book % 2;
            const u32 table = S::v == 16 ? book : book / 2;
            const ptx::Shared to = tables + (table * S::centroids + centroid) * line_bytes + line * 128;
#pragma unroll 4
            for (u32 copy = 0; copy < copies; copy++)
                ptx::shared_store(to + (piece + copy) % copies * u32(sizeof(Piece)), value[i]);
        }
    }

    // What is loaded, and all behind it.
    DEVICE void finish(const u16* books, ptx::Shared tables) {
        copy_codebooks(tables, threadIdx.x);
        for (int first = threadIdx.x + in_flight * blockDim.x; first < items; first += in_flight * blockDim.x) {
            load(books, first);
            copy_codebooks(tables, first);
        }
    }
};
