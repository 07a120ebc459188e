// The types of x and y.
#pragma once

#include "ptx.cuh"

struct Half {
    using storage = u16;
    static constexpr bool is_half = true;
    DEVICE static float widen(u16 value) { return ptx::half_to_float(value); }
    DEVICE static u16 narrow(float value) { return ptx::float_to_half(value); }
};

struct Bfloat {
    using storage = u16;
    static constexpr bool is_half = false;
    DEVICE static float widen(u16 value) { return ptx::bits_to_float(u32(value) << 16); }
    DEVICE static u16 narrow(float value) { return ptx::float_to_bfloat(value); }
};

struct Float {
    using storage = float;
    static constexpr bool is_half = false;
    DEVICE static float widen(float value) { return value; }
    DEVICE static float narrow(float value) { return value; }
};

// Four neighbours as they lie in memory, aligned to all four.
template <class X>
struct Four {
    uint2 pairs;

    DEVICE static Four load(const u16* address) { return {ptx::load(reinterpret_cast<const uint2*>(address))}; }
    DEVICE static Four load_in_order(const u16* address) {
        return {ptx::load_in_order(reinterpret_cast<const uint2*>(address))};
    }
    DEVICE static Four load_early(const u16* address) {
        return {ptx::load_early(reinterpret_cast<const uint2*>(address))};
    }
    DEVICE static Four zeros() { return {make_uint2(0, 0)}; }
    DEVICE float4 widen() const {
        return make_float4(X::widen(u16(pairs.x)), X::widen(u16(pairs.x >> 16)), X::widen(u16(pairs.y)),
                           X::widen(u16(pairs.y >> 16)));
    }
};

template <>
struct Four<Float> {
    float4 floats;

    DEVICE static Four load(const float* address) { return {ptx::load(reinterpret_cast<const float4*>(address))}; }
    DEVICE static Four load_in_order(const float* address) {
        return {ptx::load_in_order(reinterpret_cast<const float4*>(address))};
    }
    DEVICE static Four load_early(const float* address) {
        return {ptx::load_early(reinterpret_cast<const float4*>(address))};
    }
    DEVICE static Four zeros() { return {make_float4(0, 0, 0, 0)}; }
    DEVICE float4 widen() const { return floats; }
};

template <class X>
DEVICE float4 load_four(const typename X::storage* address) {
    return Four<X>::load(address).widen();
}
