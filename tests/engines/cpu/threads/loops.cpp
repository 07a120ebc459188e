// Short and long loops by turns on several threads, for some seconds: every task of a loop runs once, before it ends.
#include <cstdio>
#include <cstdlib>
#include <vector>

extern "C" void codegemm_set_threads(int count);
extern "C" void codegemm_parallel_for(int tasks, void (*task)(void*, int), void* context);

int main(int, char** arguments) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(arguments[1]));
    codegemm_set_threads(4);
    for (int tasks = 2; std::chrono::steady_clock::now() < end; tasks = 42 - tasks) {
        std::vector<int> runs(64);
        codegemm_parallel_for(
            tasks, [](void* context, int i) { ++(*static_cast<std::vector<int>*>(context)).at(i); }, &runs);
        for (int i = 0; i < int(runs.size()); ++i)
            if (runs[i] != (i < tasks)) {
                std::printf("task %d of %d ran %d times\n", i, tasks, runs[i]);
                std::fflush(stdout);
                std::_Exit(1);
            }
    }
    std::_Exit(0);  // the workers stay
}
