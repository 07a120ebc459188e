// The thread pool of the CPU engine: workers sleep on a condition variable between loops, the caller works too.
//
// One loop runs at a time; a second caller waits for its turn. Which thread runs a task never changes a result, because
// kernels cut their work by shape alone. A forked child starts with a fresh pool, since threads do not survive a fork.
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace {

struct Loop {
    int tasks;
    void (*task)(void*, int);
    void* context;
    std::atomic<int> next{0};

    void work() {
        for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(context, i);
    }
};

// Waking a thread takes longer than many products: for a moment it looks for work before it sleeps, not for long.
constexpr std::chrono::microseconds spin_time(50);

template <class Condition>
void spin_until(Condition&& condition) {
    const auto end = std::chrono::steady_clock::now() + spin_time;
    while (!condition() && std::chrono::steady_clock::now() < end) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }
}

class Pool {
 public:
    void run(Loop& loop, int threads) {
        std::lock_guard<std::mutex> turn(turn_);
        std::unique_lock<std::mutex> lock(mutex_);
        try {
            for (; workers_ < threads - 1; ++workers_) std::thread(&Pool::serve, this).detach();
        } catch (const std::system_error&) {
            // The system gives no more threads: those that are there do the work.
        }
        loop_ = &loop;
        seats_ = workers_ < threads - 1 ? workers_ : threads - 1;  // once larger, the others stay asleep
        for (int i = 0; i < seats_; ++i) wake_.notify_one();
        lock.unlock();
        loop.work();
        lock.lock();
        seats_ = 0;
        loop_ = nullptr;
        lock.unlock();
        spin_until([this] { return busy_ == 0; });
        lock.lock();
        done_.wait(lock, [this] { return busy_ == 0; });
    }

 private:
    void serve() {
        for (;;) {
            spin_until([this] { return seats_ > 0; });
            std::unique_lock<std::mutex> lock(mutex_);
            wake_.wait(lock, [this] { return seats_ > 0; });
            --seats_;
            ++busy_;
            Loop* loop = loop_;
            lock.unlock();
            loop->work();
            lock.lock();
            if (--busy_ == 0) done_.notify_one();
        }
    }

    std::mutex turn_;
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    Loop* loop_ = nullptr;
    int workers_ = 0;
    std::atomic<int> seats_{0}, busy_{0};  // changed under the mutex, looked at without it
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
    const int threads = thread_count.load() < tasks ? thread_count.load() : tasks;
    Loop loop{tasks, task, context};
    if (threads <= 1)
        loop.work();
    else
        pool.load()->run(loop, threads);
}
}
