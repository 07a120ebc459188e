// y = y' + bias, rounded once: behind kernels that leave their float sums y' in the workspace.
#include "floats.cuh"

constexpr int most_threads = 256;

struct AddBias {
    int rows;  // M
    int y_is_float;
    u64 sums;  // where in the workspace: float y' [n][M]
};

// bias: float [M], where other kernels have x. A thread block has up to 256 columns of a row of y.
template <class X>
DEVICE void add_bias(const void* bias, void* y, u8* workspace, const AddBias& a) {
    const int blocks = (a.rows + blockDim.x - 1) / blockDim.x;  // of a row of y
    const int column = blockIdx.x % blocks * blockDim.x + threadIdx.x;
    ptx::wait_for_previous();
    if (column >= a.rows) return;
    const size_t at = size_t(blockIdx.x / blocks) * a.rows + column;
    const float sum = ptx::load(reinterpret_cast<const float*>(workspace + a.sums) + at);
    store_y<X>(y, a.y_is_float, at, sum + ptx::load(static_cast<const float*>(bias) + column));
}

#define ENTRY(name, ...)                                                                                            \
    extern "C" KERNEL void __launch_bounds__(most_threads) name(const void* x, void* y, u8* workspace, AddBias a) { \
        ptx::let_next_start();                                                                                      \
        __VA_ARGS__(x, y, workspace, a);                                                                            \
    }
