// Walsh-Hadamard transforms of what the threads of a block hold, and its largest.
#pragma once

#include "floats.cuh"

// Sylvester's matrix of order `length`, a power of two, times each `length` of the numbers: number e * blockDim.x +
// threadIdx.x is this thread's value[e]. More than one are blockDim.x apart, and then all of them are one `length`.
//
// shared: two words a number, in two halves used in turns, so that one barrier a step is enough.
template <int EACH>
DEVICE void walsh_hadamard(float (&value)[EACH], int length, ptx::Shared shared) {
    for (int step = 1; step < length / EACH; step *= 2) {
        if (step < lanes) {
#pragma unroll
            for (int e = 0; e < EACH; e++) {
                const float other = ptx::shuffle_xor(value[e], step);
                value[e] = threadIdx.x & step ? other - value[e] : value[e] + other;
            }
        } else {
            const ptx::Shared half = shared + (step & 0x55555555 ? EACH * blockDim.x * 4 : 0);
#pragma unroll
            for (int e = 0; e < EACH; e++) ptx::shared_store(half + (e * blockDim.x + threadIdx.x) * 4, value[e]);
            ptx::sync_block();
#pragma unroll
            for (int e = 0; e < EACH; e++) {
                const float other = ptx::shared_load<float>(half + (e * blockDim.x + (threadIdx.x ^ step)) * 4);
                value[e] = threadIdx.x & step ? other - value[e] : value[e] + other;
            }
        }
    }
#pragma unroll
    for (int step = 1; step < EACH; step *= 2)
#pragma unroll
        for (int e = 0; e < EACH; e++)
            if (!(e & step)) {
                const float low = value[e], high = value[e | step];
                value[e] = low + high;
                value[e | step] = low - high;
            }
}

// The largest of all threads. shared: a word a warp.
DEVICE u32 largest_of_block(u32 value, ptx::Shared shared) {
    value = largest_of_warp(value);
    const int mine = ptx::warp();
    if (ptx::lane() == 0) ptx::shared_store(shared + mine * 4, value);
    ptx::sync_block();
    for (int warp = 0; warp < ptx::warps(); warp++) value = larger(ptx::shared_load<u32>(shared + warp * 4), value);
    return value;
}

// What the threads of a block hold, added: first a word a warp in shared memory, then, behind a barrier, those.
DEVICE void store_sum_of_warp(float value, ptx::Shared shared) {
    const float sum = sum_of_warp(value);
    if (ptx::lane() == 0) ptx::shared_store(shared + threadIdx.x / lanes * 4, sum);
}

DEVICE float add_warps(ptx::Shared shared) {
    float sum = 0;
#pragma unroll 4
    for (int warp = 0; warp < ptx::warps(); warp++) sum += ptx::shared_load<float>(shared + warp * 4);
    return sum;
}
