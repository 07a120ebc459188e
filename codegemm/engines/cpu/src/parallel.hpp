// How a kernel spreads its tasks over threads. The pool is a library of its own (threads.cpp), shared by all kernels:
// each takes a pointer to its loop, so that compiled kernels need not be linked with each other.
#pragma once

namespace codegemm {

// Runs task(context, i) for every i in 0 .. tasks-1, in any order and on any thread, and returns when all are done.
// It begins and ends within a microsecond as long as workers look for work, within some when they sleep: tasks of ten
// and more gain by it.
using ParallelFor = void (*)(int tasks, void (*task)(void* context, int index), void* context);

// The same for a callable.
template <class Task>
void parallel_for(ParallelFor loop, int tasks, Task&& task) {
    auto call = [](void* context, int index) { (*static_cast<Task*>(context))(index); };
    loop(tasks, call, &task);
}

// run(first, end) for pieces of `size` of `count`, the last of what is left.
template <class Run>
void parallel_pieces(ParallelFor loop, int count, int size, Run&& run) {
    parallel_for(loop, (count + size - 1) / size, [&](int task) {
        const int first = task * size;
        run(first, first + size < count ? first + size : count);
    });
}

}  // namespace codegemm
