"""Locks that a forked child may take."""

import threading

from support.processes import run_script

from codegemm.locks import ForkSafeLock


def test_a_forked_child_takes_what_another_thread_holds():
    """The thread does not exist in the child: a plain lock would wait for it for ever."""
    script = """
        import os, threading
        from codegemm.locks import ForkSafeLock
        lock, held, done = ForkSafeLock(), threading.Event(), threading.Event()
        def hold():
            with lock:
                held.set()
                done.wait()
        other = threading.Thread(target=hold)
        other.start()
        held.wait()
        child = os.fork()
        if child == 0:
            with lock, lock:
                os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        taken = []
        waiting = threading.Thread(target=lambda: taken.append(lock.__enter__()))
        waiting.start()
        waiting.join(0.2)
        assert not taken  # the parent's is held as before
        done.set()
        waiting.join()
        other.join()
        assert taken
    """
    run_script(script, 60)


def test_who_forks_within_a_lock_leaves_it_in_both():
    script = """
        import os
        from codegemm.locks import ForkSafeLock
        lock = ForkSafeLock()
        with lock:
            child = os.fork()
        with lock:
            pass
        if child == 0:
            os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    """
    run_script(script, 60)


def test_products_are_decided_in_a_child_whatever_was_locked():
    """Each of the package's locks is held by another thread when it forks."""
    script = """
        import os, threading
        import numpy as np, codegemm
        from codegemm import registry
        from codegemm.comparison.sources import random_weight
        from codegemm.engines import builds
        from codegemm.engines.cpu import library
        weight, x = random_weight((64, 128), "m1v4g128"), np.ones((1, 128), np.float32)
        y = x @ weight.T
        locks = [registry._lock, library._lock, *builds._locks.values()]
        assert len(locks) >= 4  # two compiled sources' among them
        held, done = threading.Event(), threading.Event()
        def hold():
            for lock in locks:
                lock.__enter__()
            held.set()
            done.wait()
        threading.Thread(target=hold, daemon=True).start()
        held.wait()
        child = os.fork()
        if child == 0:
            codegemm.set_num_threads(2)
            library.forget()  # what is compiled is looked for again
            registry.changed()
            other = random_weight((32, 64), "m1v4g64")
            os._exit(0 if np.array_equal(x @ weight.T, y) and codegemm.plan(other).kernel else 1)
        assert os.waitpid(child, 0)[1] == 0
        done.set()
    """
    run_script(script)


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
