// std::atomic whose operations now and then take long, as they do for a thread that the system takes the processor
// from. To be included before anything else: from here on `std::atomic` is it.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <random>
#include <thread>

namespace std {

template <class T>
class slow_atomic : public atomic<T> {
    static void wait() {
        thread_local minstd_rand random(hash<thread::id>()(this_thread::get_id()));
        if (random() % 64 == 0) this_thread::sleep_for(chrono::microseconds(random() % 128));
    }

 public:
    using atomic<T>::atomic;

    T load(memory_order order = memory_order_seq_cst) const {
        wait();
        return atomic<T>::load(order);
    }
    void store(T value, memory_order order = memory_order_seq_cst) {
        wait();
        atomic<T>::store(value, order);
    }
    bool compare_exchange_weak(T& expected, T value, memory_order order = memory_order_seq_cst) {
        wait();
        return atomic<T>::compare_exchange_weak(expected, value, order);
    }
};

}  // namespace std

#define atomic slow_atomic
