// The thread pool of the CPU engine: workers look for work for a while after a loop, then sleep; the caller works too.
//
// One loop runs at a time; a second caller waits for its turn, and a loop inside a task is that thread's alone. Which
// thread runs a task never changes a result, because kernels cut their work by shape alone. A forked child starts with
// a fresh pool, since threads do not survive a fork.
#include <pthread.h>
#ifdef __linux__
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>

namespace {

using Task = void (*)(void* context, int index);

// Waking a thread takes longer than many products, and so does what their caller does in between.
constexpr std::chrono::microseconds work_time(200), finish_time(50);
constexpr int looks = 16;  // between two at the clock

// Whether the condition came true in that time; without waiting for it any longer once it is hopeless.
template <class Condition, class Hopeless>
bool spin_until(Condition&& condition, std::chrono::microseconds time, Hopeless&& hopeless) {
    const auto end = std::chrono::steady_clock::now() + time;
    do {
        for (int i = 0; i < looks; ++i) {
            if (condition()) return true;
#if defined(__x86_64__)
            __builtin_ia32_pause();
#elif defined(__aarch64__)
            asm volatile("yield");
#endif
        }
    } while (std::chrono::steady_clock::now() < end && !hopeless());
    return false;
}

// The number of this thread's, negative where the system doesn't tell.
int processor() {
#ifdef __linux__
    return sched_getcpu();
#else
    return -1;
#endif
}

thread_local bool works = false;  // on a task

class Pool {
 public:
    void run(int tasks, Task task, void* context, int threads) {
        std::lock_guard<std::mutex> turn(turn_);
        hire(threads - 1);
        processor_.store(processor(), std::memory_order_relaxed);
        tasks_.store(tasks, std::memory_order_relaxed);
        task_.store(task, std::memory_order_relaxed);
        context_.store(context, std::memory_order_relaxed);
        finished_.store(0, std::memory_order_relaxed);
        const uint64_t loop = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
        ticket_.store(loop << 32 | uint32_t(tasks), std::memory_order_release);
        invite(std::min(workers_, threads - 1));
        work();
        seats_.store(0);  // nothing is left to be taken
        const auto all_finished = [&] { return finished_.load() == tasks; };
        if (spin_until(all_finished, finish_time, [] { return false; })) return;
        std::unique_lock<std::mutex> lock(mutex_);
        waits_.store(true);
        done_.wait(lock, all_finished);
        waits_.store(false);
    }

 private:
    void hire(int workers) {
        try {
            for (; workers_ < workers; ++workers_) std::thread(&Pool::serve, this).detach();
        } catch (const std::system_error&) {
            // The system gives no more threads: those that are there do the work.
        }
    }

    // So many workers may come; where there are more, the others stay away.
    void invite(int seats) {
        seats_.store(seats);
        if (sleepers_.load() == 0) return;
        std::lock_guard<std::mutex> lock(mutex_);
        for (int i = std::min(seats, sleepers_.load()); i > 0; --i) wake_.notify_one();
    }

    void serve() {
        const auto invited = [this] { return seats_.load() > 0; };
        // On the caller's processor it would only keep that one from working; woken, it is given another if one is
        // idle.
        const auto in_the_way = [this] {
            const int here = processor();
            return here >= 0 && here == processor_.load(std::memory_order_relaxed);
        };
        for (;;) {
            if (!spin_until(invited, work_time, in_the_way)) {
                std::unique_lock<std::mutex> lock(mutex_);
                ++sleepers_;
                wake_.wait(lock, invited);
                --sleepers_;
            }
            int seats = seats_.load();
            while (seats > 0 && !seats_.compare_exchange_weak(seats, seats - 1)) {
            }
            if (seats > 0) work();
        }
    }

    // Takes tasks as long as there are some. A ticket has the number of the loop and how many tasks are left: as long
    // as that is not 0 the loop can't end, so the exchange that takes one shows that what was read before is of this
    // loop.
    void work() {
        works = true;
        int tasks = 0, done = 0;
        for (uint64_t ticket = ticket_.load(std::memory_order_acquire);;) {
            const int left = int(uint32_t(ticket));
            if (left == 0) break;
            const int count = tasks_.load(std::memory_order_relaxed);
            const Task task = task_.load(std::memory_order_relaxed);
            void* context = context_.load(std::memory_order_relaxed);
            if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acquire)) continue;
            task(context, count - left);
            tasks = count;
            ++done, --ticket;
        }
        works = false;
        if (done && finished_.fetch_add(done) + done == tasks && waits_.load()) {
            std::lock_guard<std::mutex> lock(mutex_);
            done_.notify_one();
        }
    }

    std::mutex turn_;
    std::mutex mutex_;  // of those who sleep
    std::condition_variable wake_, done_;
    int workers_ = 0;
    std::atomic<int> processor_{-1};  // the caller's
    // Of the loop; each part on a cache line of its own, since others write to it.
    alignas(64) std::atomic<uint64_t> ticket_{0};
    std::atomic<int> tasks_{0};
    std::atomic<Task> task_{nullptr};
    std::atomic<void*> context_{nullptr};
    alignas(64) std::atomic<int> seats_{0}, sleepers_{0};
    alignas(64) std::atomic<int> finished_{0};
    std::atomic<bool> waits_{false};
};

// Never destroyed: its workers may outlive static destructors.
std::atomic<Pool*> pool{nullptr};
std::atomic<int> thread_count{1};

void make_pool() {
    pool.store(new Pool);
}

[[maybe_unused]] const int registered = [] {
    make_pool();
    return pthread_atfork(nullptr, nullptr, make_pool);
}();

}  // namespace

extern "C" {

void codegemm_set_threads(int count) {
    thread_count.store(count < 1 ? 1 : count);
}

void codegemm_parallel_for(int tasks, void (*task)(void*, int), void* context) {
    const int threads = std::min(thread_count.load(), tasks);
    if (threads > 1 && !works)
        pool.load()->run(tasks, task, context, threads);
    else
        for (int i = 0; i < tasks; ++i) task(context, i);
}
}
