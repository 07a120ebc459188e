"""Locks that a forked child may take."""

import threading

from support.processes import run_script

from codegemm.locks import ForkSafeLock


def test_a_forked_child_takes_what_another_thread_holds():
    """The thread does not exist in the child: a plain lock would wait for it for ever."""
    run_script("""
        from codegemm.locks import ForkSafeLock
        lock = ForkSafeLock()
        done = holding(lock)
        def takes_it_twice():
            with lock, lock:
                return True
        assert in_a_child(takes_it_twice)
        taken = []
        waiting = threading.Thread(target=lambda: taken.append(lock.__enter__()))
        waiting.start()
        waiting.join(0.2)
        assert not taken  # the parent's is held as before
        done.set()
        waiting.join()
        assert taken
    """)


def test_who_forks_within_a_lock_leaves_it_in_both():
    run_script("""
        from codegemm.locks import ForkSafeLock
        lock = ForkSafeLock()
        with lock:
            child = os.fork()
        with lock:
            pass
        if child == 0:
            os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    """)


def test_products_are_decided_in_a_child_whatever_was_locked():
    """Each of the package's locks is held by another thread when it forks."""
    run_script("""
        from codegemm import formats, registry
        from codegemm.engines import builds
        from codegemm.engines.cpu import library
        y = x @ w.T
        locks = [registry._kernels._lock, formats.format._formats._lock, library._lock, *builds._locks.values()]
        assert len(locks) >= 4  # two compiled sources' among them
        holding(*locks)
        def multiplies():
            codegemm.set_num_threads(2)
            library.forget()  # what is compiled is looked for again
            registry.changed()
            other = random_weight((32, 64), "m1v4g64")
            return np.array_equal(x @ w.T, y) and codegemm.plan(other).kernel
        assert in_a_child(multiplies)
    """)


def test_a_lock_is_one_threads_and_may_be_taken_twice():
    lock, seen = ForkSafeLock(), []

    def enter(name):
        with lock, lock:
            seen.append(name)

    with lock:
        thread = threading.Thread(target=enter, args=("other",))
        thread.start()
        enter("mine")
        thread.join(0.1)
        assert seen == ["mine"]
    thread.join()
    assert seen == ["mine", "other"]
