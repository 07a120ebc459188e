// Looking codes up in the tables of a unit: one permute, one shared load and one addition a lookup.
#pragma once

#include "psumbook_layout.cuh"

// Offsets of a lane's positions, three steps a register. The highest byte stays zero: `permute_bytes` takes the upper
// half of an address from it.
struct Offsets {
    u32 word[11];

    // `phase_steps` positions of one scale at a time, rotated by the lane: `positions` in psumbook_layout.py. Three
    // bytes at once, for positions are below 32, so that their sums don't carry.
    template <class S>
    DEVICE static Offsets of(int lane) {
        constexpr u32 each = 0x010101, inside = S::phase_steps - 1, turns = 31 & ~inside;
        const u32 low = (u32(lane) & inside) * each, high = (u32(lane) & turns) * each;
        Offsets offsets;
#pragma unroll
        for (int i = 0; i < 11; i++) {
            u32 steps = 0;
#pragma unroll
            for (int k = 0; k < 3; k++) steps |= u32(3 * i + k) << 8 * k;
            const u32 position =
                ((low + (steps & inside * each)) & inside * each) | ((high + (steps & turns * each)) & turns * each);
            offsets.word[i] = (i < 10 ? position : position & 0xffff) * S::entry_bytes;
            ptx::keep(offsets.word[i]);  // the loop must not compute it anew
        }
        return offsets;
    }

    // centroid << 8 | offset, the centroid being byte `step % 4` of `codes`.
    DEVICE u32 address(int step, u32 codes) const {
        return ptx::permute_bytes(word[step / 3], codes, 0x3300u | u32(4 + step % 4) << 4 | u32(step % 3));
    }
};

// A lane's codes of a unit.
template <class S>
struct Codes {
    static constexpr int words = S::code_bits;  // of a position row: 32 codes
    u32 word[S::rows][words];

    // at: this lane's first chunk of the unit's first position row, counted in chunks.
    DEVICE void load_codes(const Psumbook& w, u32 at) {
#pragma unroll
        for (int row = 0; row < S::rows; row++) {
            const u8* from = w.codes + size_t(at + row * S::row_chunks(w)) * S::chunk_bytes;
#pragma unroll
            for (int chunk = 0; chunk < S::chunks; chunk++) {
                const u8* address = from + chunk * lanes * S::chunk_bytes;
                if constexpr (S::chunk_bytes == 16)
                    put_words(word[row] + 4 * chunk, ptx::load_once(reinterpret_cast<const uint4*>(address)));
                else
                    put_words(word[row], ptx::load_once(reinterpret_cast<const uint2*>(address)));
            }
        }
    }

    // A register whose byte i is the code of step 4 * quad + i, `unit_bits` above it: the unit's place in the tile,
    // shifted by b, in every byte.
    DEVICE u32 quad(int row, int quad, u32 unit_bits) const {
        if constexpr (S::tile_units == 1) return word[row][quad];
        if constexpr (S::code_bits == 8) return word[row][quad] | unit_bits;
        if constexpr (S::code_bits == 4) return (word[row][quad / 2] >> quad % 2 * 4 & 0x0f0f0f0fu) | unit_bits;
        return (word[row][quad / 4] >> quad % 4 * 2 & 0x03030303u) | unit_bits;
    }
};

// A lane's scales of a unit, two to a register.
template <class S>
struct Scales {
    u32 word[S::scale_rows][S::scale_words ? S::scale_words : 1];

    // at: this lane's first chunk of each set, counted in chunks.
    DEVICE void load_scales(const Psumbook& w, const u32 (&at)[S::scale_rows]) {
        constexpr int chunk = S::scale_chunk;
#pragma unroll
        for (int row = 0; row < S::scale_rows; row++) {
            const u16* from = w.scales + size_t(at[row]) * chunk;
#pragma unroll
            for (int c = 0; c < S::scale_chunks; c++) {
                const u16* address = from + c * lanes * chunk;
                if constexpr (chunk == 1) {
                    word[row][0] = ptx::load(address);
                } else if constexpr (chunk == 2) {
                    word[row][0] = ptx::load(reinterpret_cast<const u32*>(address));
                } else if constexpr (chunk == 4) {
                    put_words(word[row], ptx::load(reinterpret_cast<const uint2*>(address)));
                } else {
                    put_words(word[row] + 4 * c, ptx::load(reinterpret_cast<const uint4*>(address)));
                }
            }
        }
    }

    DEVICE float at(int row, int phase) const {
        return ptx::half_to_float(u16(word[row][phase / 2] >> phase % 2 * 16));
    }
};

// The sum of up to 64 entries, added with indices 0, 1, ... known to the compiler. fp16 entries are added eight at a
// time, then in fp32.
template <int N>
struct Sum;

template <>
struct Sum<1> {
    float part[4];

    DEVICE void add(int i, ptx::Shared entry) {
        const float value = ptx::shared_load<float>(entry);
        part[i % 4] = i < 4 ? value : part[i % 4] + value;
    }

    DEVICE void total(int count, float (&sum)[1]) const {
        const float even = count > 2 ? part[0] + part[2] : part[0];
        const float odd = count > 3 ? part[1] + part[3] : part[1];
        sum[0] = count > 1 ? even + odd : even;
    }
};

template <int N>
struct HalfSum {
    u32 part[2][N / 2];
    float wide[N];

    DEVICE void add(int i, const u32 (&entry)[N / 2]) {
        if (i && i % 8 == 0) promote(i);
#pragma unroll
        for (int p = 0; p < N / 2; p++)
            part[i % 2][p] = i % 8 < 2 ? entry[p] : ptx::add_half2(part[i % 2][p], entry[p]);
    }

    // Entries up to `end` into the wide sum.
    DEVICE void promote(int end) {
#pragma unroll
        for (int p = 0; p < N / 2; p++) {
            const u32 pair = end % 8 == 1 ? part[0][p] : ptx::add_half2(part[0][p], part[1][p]);
            const float low = ptx::half_to_float(u16(pair)), high = ptx::half_to_float(u16(pair >> 16));
            wide[2 * p] = end <= 8 ? low : wide[2 * p] + low;
            wide[2 * p + 1] = end <= 8 ? high : wide[2 * p + 1] + high;
        }
    }

    DEVICE void total(int count, float (&sum)[N]) {
        promote(count);
#pragma unroll
        for (int n = 0; n < N; n++) sum[n] = wide[n];
    }
};

template <>
struct Sum<2> : HalfSum<2> {
    DEVICE void add(int i, ptx::Shared entry) { HalfSum<2>::add(i, {ptx::shared_load<u32>(entry)}); }
};

template <>
struct Sum<4> : HalfSum<4> {
    DEVICE void add(int i, ptx::Shared entry) {
        const uint2 pair = ptx::shared_load<uint2>(entry);
        HalfSum<4>::add(i, {pair.x, pair.y});
    }
};

// A lane's place in the codes and scales of one unit, counted in its loads: half the registers of pointers.
template <class S>
struct Cursor {
    u32 codes;
    u32 scales[S::scale_rows];

    DEVICE static Cursor at(const Psumbook& w, int unit, int block) {
        Cursor cursor;
        cursor.codes = (unit * S::rows) * S::row_chunks(w) + block * (lanes * S::chunks) + ptx::lane();
#pragma unroll
        for (int row = 0; row < S::scale_rows; row++) {
            const u32 group = (unit * S::rows + row) / S::m >> w.scale_shift;
            cursor.scales[row] = (group * w.row_blocks + block) * (lanes * S::scale_chunks) + ptx::lane();
            ptx::keep(cursor.scales[row]);
        }
        ptx::keep(cursor.codes);
        return cursor;
    }

    DEVICE void advance(int blocks) {
        codes += blocks * (lanes * S::chunks);
#pragma unroll
        for (int row = 0; row < S::scale_rows; row++) scales[row] += blocks * (lanes * S::scale_chunks);
    }
};

// total[n] += what the lane's row of W gets from a unit. unscale: of the unit's first position row.
template <class S>
DEVICE void gather(float (&total)[S::n], ptx::Shared tables, u32 unit_bits, ptx::Shared unscale, const Offsets& offsets,
                   const Codes<S>& codes, const Scales<S>& scales) {
    constexpr int phases = S::phases ? S::phases : 1;
    constexpr int together = S::rows / S::scale_rows;  // position rows summed before they are scaled
#pragma unroll
    for (int set = 0; set < S::scale_rows; set++) {
        float scaled[S::n];
#pragma unroll
        for (int phase = 0; phase < phases; phase++) {
            Sum<S::n> sum;
#pragma unroll
            for (int i = 0; i < together * S::phase_steps; i++) {
                const int row = set * together + i / S::phase_steps;
                const int step = phase * S::phase_steps + i % S::phase_steps;
                sum.add(i, tables + row * 128 + offsets.address(step, codes.quad(row, step / 4, unit_bits)));
            }
            float part[S::n];
            sum.total(together * S::phase_steps, part);
#pragma unroll
            for (int n = 0; n < S::n; n++) {
                if (S::phases == 0)
                    scaled[n] = part[n];
                else
                    scaled[n] =
                        phase ? fmaf(scales.at(set, phase), part[n], scaled[n]) : scales.at(set, phase) * part[n];
            }
        }
#pragma unroll
        for (int n = 0; n < S::n; n++) {
            if constexpr (S::n == 1)
                total[n] += scaled[n];
            else
                total[n] =
                    fmaf(ptx::shared_load<float>(unscale + 4 * (set * together * S::n + n)), scaled[n], total[n]);
        }
    }
}
