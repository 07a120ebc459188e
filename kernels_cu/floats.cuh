// The types of x and y, their numbers' powers of two, sums over a warp, and the words of a load.
#pragma once

#include "ptx.cuh"

DEVICE void put_words(u32* to, const uint2& words) {
    to[0] = words.x, to[1] = words.y;
}
DEVICE void put_words(u32* to, const uint4& words) {
    to[0] = words.x, to[1] = words.y, to[2] = words.z, to[3] = words.w;
}

struct Half {
    using storage = u16;
    using four = uint2;
    static constexpr bool is_half = true;
    DEVICE static float widen(u16 value) { return ptx::half_to_float(value); }
    DEVICE static u16 narrow(float value) { return ptx::float_to_half(value); }
};

struct Bfloat {
    using storage = u16;
    using four = uint2;
    static constexpr bool is_half = false;
    DEVICE static float widen(u16 value) { return ptx::bits_to_float(u32(value) << 16); }
    DEVICE static u16 narrow(float value) { return ptx::float_to_bfloat(value); }
};

struct Float {
    using storage = float;
    using four = float4;
    static constexpr bool is_half = false;
    DEVICE static float widen(float value) { return value; }
    DEVICE static float narrow(float value) { return value; }
};

// Four neighbours as they lie in memory, aligned to all four.
template <class X>
struct Four {
    using Place = const typename X::storage*;
    typename X::four words;

    DEVICE static Four load(Place from) { return {ptx::load(words_at(from))}; }
    DEVICE static Four load_in_order(Place from) { return {ptx::load_in_order(words_at(from))}; }
    DEVICE static Four load_early(Place from) { return {ptx::load_early(words_at(from))}; }
    DEVICE static Four zeros() { return {}; }
    DEVICE float4 widen() const {
        if constexpr (sizeof(words) == 16)
            return words;
        else
            return make_float4(X::widen(u16(words.x)), X::widen(u16(words.x >> 16)), X::widen(u16(words.y)),
                               X::widen(u16(words.y >> 16)));
    }

 private:
    DEVICE static const typename X::four* words_at(Place from) {
        return reinterpret_cast<const typename X::four*>(from);
    }
};

template <class X>
DEVICE float4 load_four(const typename X::storage* address) {
    return Four<X>::load(address).widen();
}

// y[at] in X or float32.
template <class X>
DEVICE void store_y(void* y, int is_float, size_t at, float value) {
    if (is_float)
        ptx::store(static_cast<float*>(y) + at, value);
    else
        ptx::store(static_cast<typename X::storage*>(y) + at, X::narrow(value));
}

// Magnitudes compare as their bits do.
DEVICE u32 magnitude(float value) {
    return ptx::float_to_bits(value) & 0x7fffffffu;
}
DEVICE u32 larger(u32 a, u32 b) {
    return a > b ? a : b;
}

DEVICE u32 largest_of_warp(u32 value) {
#pragma unroll
    for (int mask = lanes / 2; mask; mask /= 2) value = larger(ptx::shuffle_xor(value, mask), value);
    return value;
}
DEVICE float sum_of_warp(float value) {
#pragma unroll
    for (int mask = lanes / 2; mask; mask /= 2) value += ptx::shuffle_xor(value, mask);
    return value;
}

// Powers of two by their biased exponents. The nearest exponent for which the power and its inverse are normal numbers:
DEVICE int normal_exponent(int exponent) {
    return exponent < 1 ? 1 : min(exponent, 253);
}
// Such an exponent of the power that brings `largest`, a magnitude's bits, to 2^13 .. 2^14; the power, and its inverse:
DEVICE u32 half_exponent(u32 largest) {
    const u32 exponent = largest >> 23;
    return 267u - (exponent < 14u ? 14u : exponent);
}
DEVICE float power_of_two(u32 exponent) {
    return ptx::bits_to_float(exponent << 23);
}
DEVICE float inverse_power(u32 exponent) {
    return ptx::bits_to_float((254 - exponent) << 23);
}
