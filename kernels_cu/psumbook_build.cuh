// Building a tile's tables: inner products of all centroids with 32 k-vectors of x, by tensor cores.
//
// mma's B is 32 k-vectors in four octets, one in each quarter of its k axis: lane 4r + q holds four components of
// k-vector 8q + r. A is 16 centroids, of which row r keeps its four components in quarter (s + r) & 3 only, zeros in
// the others. Row r of D then is centroid r times octet (s + r) & 3, so that the eight rows that store together fill
// different banks: every store is conflict-free, with no selects behind the mma. Four s cover the octets; components
// beyond four are further mma into the same D.
//
// x becomes fp16 under a power of two for each 32 k-vectors; float32 x becomes two fp16 for tables of fp32 entries.
// Entries of fp16 keep that power (`unscale`, in shared memory), fp32 entries are freed of it here.
#pragma once

#include "floats.cuh"
#include "psumbook_layout.cuh"

// Components 4h .. 4h+3 of one k-vector as they come from memory, beyond v one by one.
template <class S, bool WHOLE = S::v % 4 == 0>
struct Quarter {
    Four<typename S::x_type> four;

    // inside: whether there is such a k-vector, and such a row of x; else zeros.
    DEVICE void load(const typename S::x_type::storage* k_vector, int h, bool inside) {
        four = inside ? Four<typename S::x_type>::load_in_order(k_vector + 4 * h) : Four<typename S::x_type>::zeros();
    }
    DEVICE float4 widen() const { return four.widen(); }
};

template <class S>
struct Quarter<S, false> {
    float4 floats;

    DEVICE void load(const typename S::x_type::storage* k_vector, int h, bool inside) {
        using X = typename S::x_type;
        const auto* from = k_vector + 4 * h;
        floats = make_float4(0, 0, 0, 0);
        if (!inside) return;
        floats.x = X::widen(ptx::load(from));
        if (4 * h + 1 < S::v) floats.y = X::widen(ptx::load(from + 1));
        if (4 * h + 2 < S::v) floats.z = X::widen(ptx::load(from + 2));
        if (4 * h + 3 < S::v) floats.w = X::widen(ptx::load(from + 3));
    }
    DEVICE float4 widen() const { return floats; }
};

// Of the warp's largest |x|.
template <int Q>
DEVICE u32 common_exponent(const float4 (&x)[Q]) {
    u32 largest = 0;  // magnitudes compare as their bits do
#pragma unroll
    for (int h = 0; h < Q; h++) {
        const float f[4] = {x[h].x, x[h].y, x[h].z, x[h].w};
#pragma unroll
        for (int i = 0; i < 4; i++) largest = larger(magnitude(f[i]), largest);
    }
    return half_exponent(largest_of_warp(largest));
}

template <class S>
struct Operand {
    static constexpr bool exact = S::x_type::is_half && S::n == 1;  // fp16 as it is
    static constexpr int parts = S::n == 1 && sizeof(typename S::x_type::storage) == 4 ? 2 : 1;
    uint2 pairs[parts][S::quarters];
    float unscale;

    DEVICE void convert(const Quarter<S> (&x)[S::quarters]) {
        if constexpr (exact && S::v % 4 == 0) {
            unscale = 1;
#pragma unroll
            for (int h = 0; h < S::quarters; h++) pairs[0][h] = x[h].four.words;
            return;
        }
        float4 f[S::quarters];
#pragma unroll
        for (int h = 0; h < S::quarters; h++) f[h] = x[h].widen();
        u32 exponent = 127;
        if constexpr (!exact) exponent = common_exponent(f);
        const float scale = power_of_two(exponent);
        unscale = inverse_power(exponent);
#pragma unroll
        for (int h = 0; h < S::quarters; h++) {
            float4 rest = make_float4(f[h].x * scale, f[h].y * scale, f[h].z * scale, f[h].w * scale);
#pragma unroll
            for (int p = 0; p < parts; p++) {
                const u32 low = ptx::pack_half2(rest.x, rest.y), high = ptx::pack_half2(rest.z, rest.w);
                pairs[p][h] = make_uint2(low, high);
                rest.x -= ptx::half_to_float(u16(low));
                rest.y -= ptx::half_to_float(u16(low >> 16));
                rest.z -= ptx::half_to_float(u16(high));
                rest.w -= ptx::half_to_float(u16(high >> 16));
            }
        }
    }
};

// Two neighbouring entries, d[n][from] and d[n][from + 1] of all rows n of x.
template <class S>
DEVICE void store_entries(ptx::Shared address, const float (&d)[S::n][4], int from, float factor) {
    if constexpr (S::n == 1) {
        ptx::shared_store(address, make_float2(d[0][from] * factor, d[0][from + 1] * factor));
    } else {
        u32 entries[2][S::n / 2];
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int n = 0; n < S::n; n += 2)
                entries[i][n / 2] = ptx::pack_half2(d[n][from + i] * factor, d[n + 1][from + i] * factor);
        if constexpr (S::n == 2)
            ptx::shared_store(address, make_uint2(entries[0][0], entries[1][0]));
        else
            ptx::shared_store(address, make_uint4(entries[0][0], entries[0][1], entries[1][0], entries[1][1]));
    }
}

// What a warp multiplies at once, as it comes from memory: 16 centroids of a codebook and 32 k-vectors of all rows of
// x. Items of a tile are numbered position row by position row.
template <class S>
struct Item {
    static constexpr int row_tiles = S::centroids < 16 ? 1 : S::centroids / 16;  // of 16 centroids, in a position row
    // Of a warp, that registers hold beside codes that are under way.
    static constexpr int ahead = S::n * S::quarters <= 2 ? 2 : S::n * S::quarters <= 4 ? 1 : 0;

    uint2 upper[S::quarters], lower[S::quarters];  // centroids r and r + 8
    Quarter<S> x[S::n][S::quarters];

    DEVICE void load_centroids(const Psumbook& w, int part, int first_unit, int item) {
        constexpr int last = S::centroids - 1;  // of tables of fewer than 16 centroids
        const int centroid = u32(item) % row_tiles * 16 + (ptx::lane() >> 2);
        const int position_row = first_unit * S::rows + int(u32(item) / row_tiles);
        const u16* book = w.codebooks + size_t(part * S::m + position_row % S::m) * S::centroids * S::quarters * 4;
#pragma unroll
        for (int h = 0; h < S::quarters; h++) {
            const auto* from = reinterpret_cast<const uint2*>(book) + h;
            upper[h] = ptx::load_in_order(from + (last >= 15 ? centroid : min(centroid, last)) * S::quarters);
            lower[h] = ptx::load_in_order(from + (last >= 15 ? centroid + 8 : min(centroid + 8, last)) * S::quarters);
        }
    }

    DEVICE void load_x(const Psumbook& w, const typename S::x_type::storage* rows, int batch, int first_unit,
                       int item) {
#pragma unroll
        for (int n = 0; n < S::n; n++) load_row(w, rows, batch, first_unit, item, n);
    }

    DEVICE void load_row(const Psumbook& w, const typename S::x_type::storage* rows, int batch, int first_unit,
                         int item, int n) {
        const int position_row = first_unit * S::rows + int(u32(item) / row_tiles);
        const int vector = position_row / S::m * 32 + 8 * (ptx::lane() & 3) + (ptx::lane() >> 2);
#pragma unroll
        for (int h = 0; h < S::quarters; h++)
            x[n][h].load(rows + size_t(n) * w.in_features + size_t(vector) * S::v, h,
                         n < batch && vector * S::v < w.in_features);
    }
};

// The entries of an item into the tables; lines of `unscale` [unit][position row][n] for n > 1.
template <class S>
DEVICE void store_item(ptx::Shared tables, ptx::Shared unscale, const Item<S>& item, const Operand<S> (&operands)[S::n],
                       int place, float table_scale) {
    constexpr int row_tiles = Item<S>::row_tiles;
    const int lane = ptx::lane(), r = lane >> 2, q = lane & 3;
    const int row = u32(place) / row_tiles, centroid = u32(place) % row_tiles * 16 + r;
    if (S::n > 1 && place % row_tiles == 0 && lane == 0)
#pragma unroll
        for (int n = 0; n < S::n; n++)
            ptx::shared_store(unscale + 4 * (row * S::n + n), operands[n].unscale / table_scale);
    const float factor = S::n == 1 ? operands[0].unscale : table_scale;
    const ptx::Shared to = tables + row / S::rows * S::table_bytes + row % S::rows * 128 + centroid * line_bytes;
#pragma unroll(S::n* S::quarters* Operand<S>::parts > 2 ? 1 : 4)  // enough of them are in flight; registers are not
    for (int s = 0; s < 4; s++) {
        const int octet = (s + r) & 3;
        const bool kept = q == octet;
        float d[S::n][4] = {};
#pragma unroll
        for (int h = 0; h < S::quarters; h++) {
            const u32 a0 = kept ? item.upper[h].x : 0, a1 = kept ? item.lower[h].x : 0;
            const u32 a2 = kept ? item.upper[h].y : 0, a3 = kept ? item.lower[h].y : 0;
#pragma unroll
            for (int n = 0; n < S::n; n++)
#pragma unroll
                for (int p = 0; p < Operand<S>::parts; p++)
                    ptx::mma(d[n], a0, a1, a2, a3, operands[n].pairs[p][h].x, operands[n].pairs[p][h].y);
        }
        const ptx::Shared entries = to + (8 * octet + 2 * q) * S::entry_bytes;
        if (S::centroids >= 8 || centroid < S::centroids) store_entries<S>(entries, d, 0, factor);
        if (S::centroids >= 16) store_entries<S>(entries + 8 * line_bytes, d, 2, factor);
    }
}

// A warp's items of a tile. Of the block's first tile some are loaded long before they are wanted: their centroids
// when the kernel starts, their x when it may be read.
template <class S>
struct Items {
    static constexpr int ahead = Item<S>::ahead;

    int warp;
    Item<S> item[ahead ? ahead : 1];

    DEVICE int place(int i) const { return warp + i * ptx::warps(); }
    DEVICE bool exists(int i, int units) const { return place(i) < units * S::rows * Item<S>::row_tiles; }

    DEVICE void load_centroids(const Psumbook& w, int part, int first_unit, int units) {
#pragma unroll
        for (int i = 0; i < ahead; i++)
            if (exists(i, units)) item[i].load_centroids(w, part, first_unit, place(i));
    }

    DEVICE void load_x(const Psumbook& w, const typename S::x_type::storage* x, int batch, int first_unit, int units) {
#pragma unroll
        for (int i = 0; i < ahead; i++)
            if (exists(i, units)) item[i].load_x(w, x, batch, first_unit, place(i));
    }

    // The tables of `units` units from `first_unit` on, at `tables`, and `unscale` behind them. All threads of the
    // block take part; who reads the tables synchronises first. are_loaded: what is ahead.
    DEVICE void build(ptx::Shared tables, ptx::Shared unscale, const Psumbook& w, const typename S::x_type::storage* x,
                      int batch, int part, int first_unit, int units, bool are_loaded) {
        if (!are_loaded) {
            load_centroids(w, part, first_unit, units);
            load_x(w, x, batch, first_unit, units);
        }
#pragma unroll
        for (int i = 0; i < ahead; i++) {
            if (!exists(i, units)) return;
            Operand<S> operands[S::n];
#pragma unroll
            for (int n = 0; n < S::n; n++) operands[n].convert(item[i].x[n]);
            store_item<S>(tables, unscale, item[i], operands, place(i), w.table_scale);
        }
        for (int i = ahead; exists(i, units); i++) {
            Item<S> next;
            next.load_centroids(w, part, first_unit, place(i));
            Operand<S> operands[S::n];
#pragma unroll
            for (int n = 0; n < S::n; n++) {
                next.load_row(w, x, batch, first_unit, place(i), n);
                operands[n].convert(next.x[n]);
            }
            store_item<S>(tables, unscale, next, operands, place(i), w.table_scale);
        }
    }
};
