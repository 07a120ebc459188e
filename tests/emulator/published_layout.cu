// The table layout of the published kernel, for its bank conflicts: fp16 [position][256], lane = row of W.
#include "ptx.cuh"

DEVICE u16 look_up(ptx::Shared tables, int position, u8 code) {
    return ptx::shared_load<u16>(tables + position * 512 + code * 2);
}

// codes: [64 positions][32 rows]
DEVICE void published_layout(const u8* codes) {
    const ptx::Shared tables = ptx::shared_memory();
    for (int i = ptx::lane(); i < 64 * 128; i += 32) ptx::shared_store(tables + 4 * i, 0u);
    ptx::sync_block();
    for (int position = 0; position < 64; position++)
        look_up(tables, position, ptx::load(codes + position * 32 + ptx::lane()));
}

#define ENTRY(name, instance)                      \
    extern "C" KERNEL void name(const u8* codes) { \
        instance(codes);                           \
    }
