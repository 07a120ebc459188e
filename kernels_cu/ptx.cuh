// The instructions that the kernels are made of, one function each: nothing else in this folder knows that it runs on a
// GPU. Compiled by a host compiler, the same names come from an emulator, which also counts what they cost.
#pragma once

constexpr int lanes = 32;  // of a warp

#ifndef __CUDACC__
#include "emulator.hpp"
#else

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

#define DEVICE __device__ __forceinline__
#define KERNEL __global__

namespace ptx {

// ---- where a thread is

DEVICE int lane() {
    return threadIdx.x & 31;
}
// The shuffle tells the compiler that it is the same in all lanes, so that loops over it can use uniform registers. All
// lanes must ask together: one that asks alone waits for the others for ever.
DEVICE int warp() {
    return __shfl_sync(0xffffffffu, threadIdx.x >> 5, 0);
}
DEVICE int warps() {
    return blockDim.x >> 5;
}

DEVICE long long clock() {
    return clock64();
}

// ---- shared memory, all of it dynamic. Addresses are those of shared memory's own space, 32 bits: with C++ pointers
// some compilers compute in 64.

using Shared = u32;

DEVICE Shared shared_memory() {
    extern __shared__ __align__(1024) u8 memory[];
    return Shared(__cvta_generic_to_shared(memory));
}

DEVICE void shared_load(Shared address, float& value) {
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address));
}

DEVICE void shared_load(Shared address, u16& value) {
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(value) : "r"(address));
}

DEVICE void shared_load(Shared address, u32& value) {
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address));
}

DEVICE void shared_load(Shared address, float2& value) {
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(value.x), "=f"(value.y) : "r"(address));
}

DEVICE void shared_load(Shared address, uint2& value) {
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "r"(address));
}

DEVICE void shared_load(Shared address, uint4& value) {
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(address));
}

DEVICE void shared_load(Shared address, float4& value) {
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
                 : "r"(address));
}

DEVICE void shared_store(Shared address, float value) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}

DEVICE void shared_store(Shared address, u32 value) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

DEVICE void shared_store(Shared address, float2 value) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(value.x), "f"(value.y) : "memory");
}

DEVICE void shared_store(Shared address, float4 value) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(value.x), "f"(value.y), "f"(value.z),
                 "f"(value.w)
                 : "memory");
}

DEVICE void shared_store(Shared address, uint2 value) {
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(value.x), "r"(value.y) : "memory");
}

DEVICE void shared_store(Shared address, uint4 value) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(value.x), "r"(value.y), "r"(value.z),
                 "r"(value.w)
                 : "memory");
}

template <class T>
DEVICE T shared_load(Shared address) {
    T value;
    shared_load(address, value);
    return value;
}

// ---- global memory

// Codes are read once: they must not push x, scales and centroids out of L1.
DEVICE uint4 load_once(const uint4* address) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(address));
    return v;
}

DEVICE uint2 load_once(const uint2* address) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(address));
    return v;
}

DEVICE u32 load_once(const u32* address) {
    u32 v;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(address));
    return v;
}

// What no block of this launch writes.
template <class T>
DEVICE T load(const T* address) {
    return __ldg(address);
}

// The same in the order of the source, as far as the compiler's last stage keeps to it: what is needed first is to be
// asked for first, for memory serves in turn.
DEVICE uint2 load_in_order(const uint2* address) {
    uint2 v;
    asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(address));
    return v;
}

DEVICE uint4 load_in_order(const uint4* address) {
    uint4 v;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(address));
    return v;
}

DEVICE float4 load_in_order(const float4* address) {
    float4 v;
    asm volatile("ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(address));
    return v;
}

// The same before `wait_for_previous`, behind which the compiler's last stage would put any other load.
DEVICE u32 load_early(const u32* address) {
    u32 v;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(v) : "l"(address));
    return v;
}

DEVICE uint2 load_early(const uint2* address) {
    uint2 v;
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(address));
    return v;
}

DEVICE uint4 load_early(const uint4* address) {
    uint4 v;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(address));
    return v;
}

DEVICE float4 load_early(const float4* address) {
    float4 v;
    asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(address));
    return v;
}

// What L1 could not hold: it is passed by.
DEVICE uint4 load_l2(const uint4* address) {
    return __ldcg(address);
}

template <class T>
DEVICE void store(T* address, T value) {
    *address = value;
}

// What other blocks of this launch wrote, never from L1, which is not coherent: value[i][s] from the numbers at
// `from[i]` + (first + s) * stride, zeros from `count` on and where there is no address. One round trip to L2.
template <int ITEMS, int COUNT>
DEVICE void load_foreign(float4 (&value)[ITEMS][COUNT], const float* const (&from)[ITEMS], size_t stride, int first,
                         int count) {
#pragma unroll
    for (int i = 0; i < ITEMS; i++)
#pragma unroll
        for (int s = 0; s < COUNT; s++) {
            value[i][s] = make_float4(0, 0, 0, 0);
            if (from[i] != nullptr && first + s < count)
                value[i][s] = __ldcg(reinterpret_cast<const float4*>(from[i] + (first + s) * stride));
        }
}

// A hint that these bytes (16-byte aligned) are about to be read.
DEVICE void prefetch(const void* address, u32 bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(address), "r"(bytes) : "memory");
#endif
}

// Begins to copy 16, 8 or 4 bytes into shared memory. What was begun since the last end is a group: it is there once
// this thread has waited until at most COUNT later ones are under way.
DEVICE void copy_async(Shared to, const uint4* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
DEVICE void copy_async(Shared to, const uint2* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(from) : "memory");
}
DEVICE void copy_async(Shared to, const u32* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}
DEVICE void end_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int COUNT>
DEVICE void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(COUNT) : "memory");
}

// Counts one more and says how many were there before. Releases what this thread has stored or seen so far, acquires
// what those released that counted before.
DEVICE u32 arrive(u32* counter) {
    u32 before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    return before;
}

// ---- between kernels that follow each other on a stream

// The next one may start as soon as all blocks have said so, if it was launched as one that depends (dependent.py).
DEVICE void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Until the one before has ended and what it wrote is seen: before that nobody may touch x, y or the workspace.
DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// ---- between the threads of a block and of a warp

DEVICE void sync_block() {
    __syncthreads();
}
DEVICE void sync_warp() {
    __syncwarp();
}

// ---- between the thread blocks of a cluster, where there are clusters; else a block is one of its own

DEVICE int cluster_size() {
    u32 size = 1;
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
#endif
    return int(size);
}

DEVICE int cluster_rank() {
    u32 rank = 0;
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
    return int(rank);
}

// Of the clusters that share a slice: along the grid's last axis, on which they lie.
DEVICE int cluster_index() {
    u32 y = blockIdx.y, z = blockIdx.z;
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%clusterid.y;" : "=r"(y));
    asm("mov.u32 %0, %%clusterid.z;" : "=r"(z));
#endif
    return int(gridDim.z > 1 ? z : y);
}

// Every thread of every block arrives and, before it touches the others' shared memory, waits until all have.
DEVICE void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
DEVICE void cluster_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
#endif
}

// One thread, before it arrives: eight bytes that count what is sent to this block, in phases of so many bytes each.
DEVICE void make_counter(Shared counter) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(counter) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// One thread: how many bytes there will be in this phase.
DEVICE void expect(Shared counter, u32 bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(counter), "r"(bytes) : "memory");
#endif
}

// To the block of that rank, at the address and the counter that are its own for these.
DEVICE void send(Shared address, Shared counter, int rank, float value) {
#if __CUDA_ARCH__ >= 900
    u32 there, counted;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(counted) : "r"(counter), "r"(rank));
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(there), "f"(value),
                 "r"(counted)
                 : "memory");
#endif
}

DEVICE void send(Shared address, Shared counter, int rank, float2 value) {
#if __CUDA_ARCH__ >= 900
    u32 there, counted;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(counted) : "r"(counter), "r"(rank));
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(there),
                 "f"(value.x), "f"(value.y), "r"(counted)
                 : "memory");
#endif
}

// Begins to send bytes of global memory there, 16-byte aligned and whole pieces of 16. One thread.
DEVICE void send_bulk(Shared address, Shared counter, const u8* from, u32 bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(address),
        "l"(from), "r"(bytes), "r"(counter)
        : "memory");
#endif
}

// Until all that was expected there has come. parity: of the phase's number, from 0.
DEVICE void wait_for_sent(Shared counter, u32 parity = 0) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(counter),
        "r"(parity)
        : "memory");
#endif
}

template <class T>
DEVICE T shuffle(T value, int source) {
    return __shfl_sync(0xffffffffu, value, source);
}

template <class T>
DEVICE T shuffle_xor(T value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}

DEVICE u32 ballot(bool predicate) {
    return __ballot_sync(0xffffffffu, predicate);
}

// ---- arithmetic

// Bytes of (low, high), numbered 0..3 and 4..7, picked by the four nibbles of the selector.
DEVICE u32 permute_bytes(u32 low, u32 high, u32 selector) {
    return __byte_perm(low, high, selector);
}

// (value & mask) | bits in one instruction, which a compiler makes two of where both are constants.
DEVICE u32 and_or(u32 value, u32 mask, u32 bits) {
    u32 result;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(value), "r"(mask), "r"(bits));
    return result;
}

// (a ^ b) & mask in one instruction, even where a ^ b serves twice.
DEVICE u32 xor_and(u32 a, u32 b, u32 mask) {
    u32 result;
    asm("lop3.b32 %0, %1, %2, %3, 0x28;" : "=r"(result) : "r"(a), "r"(b), "r"(mask));
    return result;
}

// (high : low) << shift, its upper half.
DEVICE u32 funnel(u32 high, u32 low, int shift) {
    return __funnelshift_l(low, high, shift);
}

// d += A B with fp16 A [16 x 16], B [16 x 8] and fp32 d [16 x 8]. Lane 4r + q holds
//   a0: A[r][2q..], a1: A[r+8][2q..], a2: A[r][2q+8..], a3: A[r+8][2q+8..], b0: B[2q..][r], b1: B[2q+8..][r],
//   d0, d1: D[r][2q..], d2, d3: D[r+8][2q..], two neighbours each.
DEVICE void mma(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// d += A B with unsigned bytes A [16 x 32], signed bytes B [32 x 8] and int32 d [16 x 8]. Lane 4r + q holds
//   a0: A[r][4q..], a1: A[r+8][4q..], a2: A[r][4q+16..], a3: A[r+8][4q+16..], b0: B[4q..][r], b1: B[4q+16..][r], four
//   neighbours each, d as above.
DEVICE void mma(int (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// ---- products of a warpgroup, four warps of a block side by side, on sm_90 alone. They are asynchronous: until a wait
// has seen them done, nobody may touch their registers, nor overwrite B. All threads of the warpgroup go together.

// Before products whose registers have been written since the last one.
DEVICE void begin_wgmma() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// The products since the last end are a group, to be waited for together.
DEVICE void end_wgmma() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until at most COUNT groups are under way.
template <int COUNT>
DEVICE void wait_wgmma() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(COUNT) : "memory");
}

// B in shared memory as wgmma has it described, fp16 [N / 8][two halves of k][eight columns][eight k]: neighbours in k
// are 128 bytes apart, those in N 256, and all that is told in units of 16 bytes.
struct WgmmaB {
    u32 place;

    // In a cluster, addresses have a thread block's rank above the 18 bits that are the place in its shared memory.
    DEVICE static WgmmaB at(Shared address) { return {((address & 0x3ffff) >> 4) + (128 >> 4 << 16)}; }
    DEVICE WgmmaB behind(int bytes) const { return {place + (bytes >> 4)}; }
    DEVICE u64 bits() const { return u64(256 >> 4) << 32 | place; }
};

// d += A B with fp16 A [64 x 16], B [16 x N] and fp32 d [64 x N]. Warp w of the warpgroup has rows 16w .. of A and d:
// lane 4r + q as in mma, with d[4j ..] for the columns 8j ...
DEVICE void wgmma(float (&d)[32], const u32 (&a)[4], WgmmaB b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
        "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, 1, 1, 1, 0;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
          "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
          "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
          "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.bits()));
}

DEVICE void wgmma(float (&d)[64], const u32 (&a)[4], WgmmaB b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
        "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
        "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "
        "%59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
          "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
          "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
          "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]),
          "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]),
          "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
          "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),
          "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.bits()));
}

// Two fp16 in a register, the first in the lower half.
DEVICE u32 add_half2(u32 a, u32 b) {
    u32 sum;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
    return sum;
}

DEVICE u32 fma_half2(u32 a, u32 b, u32 c) {
    u32 sum;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
    return sum;
}

DEVICE u32 pack_half2(float low, float high) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

DEVICE float half_to_float(u16 value) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value));
    return wide;
}

DEVICE u16 float_to_half(float value) {
    u16 narrow;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow) : "f"(value));
    return narrow;
}

DEVICE u16 float_to_bfloat(float value) {
    u16 narrow;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow) : "f"(value));
    return narrow;
}

// The nearest integer, even of two; 0 for NaN and the last one there is beyond them.
DEVICE int round_to_int(float value) {
    return __float2int_rn(value);
}

// A value as one that the compiler knows nothing of: it keeps what it has, in place of computing it anew in a loop, or
// computes anew what it would else keep through one.
DEVICE void keep(u32& value) {
    asm volatile("" : "+r"(value));
}
DEVICE void keep(float& value) {
    asm volatile("" : "+f"(value));
}

DEVICE float bits_to_float(u32 bits) {
    return __uint_as_float(bits);
}
DEVICE u32 float_to_bits(float value) {
    return __float_as_uint(value);
}

}  // namespace ptx
#endif
