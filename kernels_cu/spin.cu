// Keeps the GPU busy for some clocks, so that what is timed behind it has been queued before it starts: the host's time
// for a launch is longer than a small product.
#include "ptx.cuh"

DEVICE void spin(long long clocks) {
    const long long begin = ptx::clock();
    while (ptx::clock() - begin < clocks) {
    }
}

#define ENTRY(name, instance)                       \
    extern "C" KERNEL void name(long long clocks) { \
        instance(clocks);                           \
    }
