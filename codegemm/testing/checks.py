"""What a kernel owes, a function each; all raise AssertionError with a sentence that says what was wrong."""

from __future__ import annotations

import copy
import gc
import math
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from codegemm import devices
from codegemm.devices import CPU
from codegemm.engines.cpu.library import get_num_threads, set_num_threads
from codegemm.kernel import Cost, Product
from codegemm.products import Plan
from codegemm.testing.guarded import unwritten
from codegemm.testing.trial import Trial

THREADS = (1, 2, 3)
_BAD = (np.nan, np.inf, -np.inf)
_TIMES = 3  # that each of two threads multiplies


def check_numbers(trial: Trial) -> None:
    """What it says of a product is what can be."""
    for product in trial.in_turn():
        cost = trial.ask(product, "cost", product, trial.device)
        if not isinstance(cost, Cost) or not (cost.bytes_read > 0 and cost.bytes_written > 0):
            trial.fail(product, f"`cost` is {cost}, must be a Cost of positive numbers of bytes")
        numbers = {
            "estimate": trial.ask(product, "estimate", product, trial.device),
            "bits_per_weight": trial.ask(product, "bits_per_weight", product.spec),
            "tolerance": trial.ask(product, "tolerance", product),
        }
        for name, number in numbers.items():
            if not 0 < number < math.inf:
                trial.fail(product, f"`{name}` is {number}, must be a positive number")


def check_products(trial: Trial) -> None:
    """Every product that it takes is what the weight's definition says."""
    for product in trial.many():
        y = trial.multiply(product, trial.x_of(product))
        trial.check_close(product, y, trial.rows_of(product))


def check_bad_rows(trial: Trial) -> None:
    """A NaN or an infinity makes all of its row of y such, and changes no other row."""
    for product in trial.in_turn():
        x, rows = trial.x_of(product).copy(), range(trial.turn % 2 if product.n > 1 else 0, product.n, 2)
        for row in rows:
            x[row, trial.rng.integers(x.shape[1])] = _BAD[(row // 2 + trial.turn) % len(_BAD)]
        y = trial.multiply(product, x)
        for row in rows:
            finite = np.flatnonzero(np.isfinite(y[row].astype(np.float64)))
            if len(finite):
                bad = x[row][~np.isfinite(x[row].astype(np.float64))][0]
                number = y[row, finite[0]]
                trial.fail(product, f"row {row} of x has a {bad}, and y[{row}, {finite[0]}] is the number {number}")
        if product.n > 1:
            first, every = 1 - trial.turn % 2, trial.rows_of(product)
            others = slice(every.start + first, every.stop, 2)
            of = "beside rows with NaNs and infinities its error"
            trial.check_close(product, y[first::2], others, of=of)


def check_repeats(trial: Trial) -> None:
    """The same bits in every run, on any number of threads, and by `bind`."""
    for product in trial.ends():
        x = trial.x_of(product)
        first = trial.multiply(product, x).tobytes()
        if trial.multiply(product, x, bound=True).tobytes() != first:
            trial.fail(product, "a second run, by `bind`, gave other bits")
        for threads in THREADS if trial.device == CPU else ():
            with _threads(threads):
                again = trial.multiply(product, x).tobytes()
            if again != first:
                trial.fail(product, f"on {threads} threads it gave other bits than on {get_num_threads()}")


def check_two_at_a_time(trial: Trial) -> None:
    """Two threads may multiply by one weight."""
    for product in trial.ends():
        both = trial.x_of(product), trial.x_of(product)[::-1] * -2
        alone = [trial.multiply(product, x).tobytes() for x in both]
        together = threading.Barrier(len(both))

        def multiply(x: np.ndarray, product: Product = product, together: threading.Barrier = together) -> set[bytes]:
            together.wait()
            return {trial.multiply(product, x).tobytes() for _ in range(_TIMES)}

        with ThreadPoolExecutor(len(both)) as pool:
            for bits, expected in zip(pool.map(multiply, both), alone):
                if bits != {expected}:
                    trial.fail(product, "in two threads at a time it gave other bits than in one")


def check_bias(trial: Trial) -> None:
    """A bias is added before y is rounded, so that nothing is lost where they cancel."""
    for product in trial.many() if trial.kernel.adds_bias else ():
        if product.out_dtype != product.dtype or product.dtype.itemsize == 8:  # to those of float64 it is added later
            continue
        rows, product = trial.rows_of(product), replace(product, biased=True)
        of_all_rows = (-0.9 * trial.truth.y[rows]).astype(np.float32)
        bias = of_all_rows if trial.device == CPU and (product.n + trial.turn) % 2 else of_all_rows[0]
        y = trial.multiply(product, trial.x_of(product), bias)
        trial.check_close(product, y, rows, bias)


def check_copies(trial: Trial) -> None:
    """A copy of what `prepare` made multiplies as that does."""
    for product in trial.ends():
        try:
            duplicate = copy.deepcopy(trial.prepared)
        except Exception as error:
            trial.fail(product, f"copy.deepcopy of what `prepare` made raised {type(error).__name__}: {error}")
        x = trial.x_of(product)
        if trial.multiply(product, x, prepared=duplicate).tobytes() != trial.multiply(product, x).tobytes():
            trial.fail(product, "a copy.deepcopy of what `prepare` made gives other bits")


def check_let_go(trial: Trial) -> None:
    """A weight that let go of what is `rearranged` is the same weight still."""
    product, weight = trial.taken[0], trial.weight.twin()
    if unknown := set(trial.kernel.rearranged) - weight.arrays.keys():
        trial.fail(product, f"`rearranged` names {', '.join(sorted(unknown))}, which the weight doesn't have")
    trial.ask(product, "let_go", weight, trial.prepared)
    try:
        same = weight == trial.weight
    except Exception as error:
        trial.fail(product, f"`restore` raised {type(error).__name__}: {error}")
    if not same:
        trial.fail(product, "`restore` makes other arrays than the weight had")


def check_plan(trial: Trial) -> None:
    """As the package calls it: for up to so many rows, x any view (a contiguous one by the short way), `out` given."""
    last = list(trial.in_turn())[-1]
    largest = replace(last, out_dtype=last.dtype)
    try:
        plan = Plan(trial.weight, largest, trial.kernel)
    except Exception as error:
        trial.fail(largest, f"a plan for it raised {type(error).__name__}: {error}")
    dtype = largest.dtype
    wide = np.full((largest.n, 2 * trial.spec.in_features), np.nan, dtype)
    wide[:, ::2] = trial.x_of(largest)
    strided = devices.move(wide, trial.device)[:, ::2]
    views = {"strided": strided, "contiguous": devices.move(trial.x_of(largest), trial.device)}
    for product in trial.taken:
        if product.dtype != dtype or product.n > largest.n or (dtype.itemsize == 8 and product.out_dtype != dtype):
            continue
        for layout, x in views.items():
            out = devices.move(unwritten((product.n, trial.spec.out_features), product.out_dtype), trial.device)
            try:
                plan(x[: product.n], out=out)
            except Exception as error:
                trial.fail(product, f"a plan for {largest.n} rows raised {type(error).__name__}: {error}")
            of = f"of a {layout} x by a plan for {largest.n} rows its error"
            trial.check_close(product, devices.to_host(out), trial.rows_of(product), of=of)


def check_weight_is_freed(trial: Trial) -> None:
    """What `prepare` made does not keep the weight; the trial is over."""
    product, weight = trial.taken[0], weakref.ref(trial.weight)
    trial.forget_weight()
    if weight() is not None:
        gc.collect()
    if weight() is not None:
        trial.fail(product, "what `prepare` made holds the weight, which holds that: neither is ever freed")


CHECKS = (
    check_numbers,
    check_products,
    check_bad_rows,
    check_repeats,
    check_two_at_a_time,
    check_bias,
    check_copies,
    check_let_go,
    check_plan,
    check_weight_is_freed,
)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = get_num_threads()
    set_num_threads(count)
    try:
        yield
    finally:
        set_num_threads(before)
