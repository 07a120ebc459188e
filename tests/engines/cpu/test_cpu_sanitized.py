"""AddressSanitizer, UBSan and ThreadSanitizer over the CPU engine: all kernels again, in processes of their own."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from emulator import cases
from support import ROOT
from support.processes import under

from codegemm.engines.cpu import isa

# Each in a workspace of exactly as many bytes as are promised to suffice.
PRODUCTS = f"""
import sys
from concurrent.futures import ThreadPoolExecutor
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import numpy as np
import codegemm
from codegemm.formats import random_weight
from codegemm.engines.cpu.kernel import CpuKernel
from codegemm.registry import registered
from support import cpu

compiled = {{kernel.name for kernel in registered("cpu") if isinstance(kernel, CpuKernel)}}
codegemm.set_num_threads(3)
rng = np.random.default_rng()
done = set()
for rows, columns, config in (
    (300, 512, "m1v4g128"), (77, 528, "m2v8g-1"), (33, 7, "m8v1b1g1"), (65, 390, "m3v13b6g26"),
    (5, 264, "m1v8b12g-1"), (130, 256, "m1v4b4g4"), (64, 256, "m2v8b8g-1"), (48, 768, "e8p"),
    (600, 312, "q2g24"), (77, 90, "q3v5g15"), (64, 1152, "qtip"), (96, 192, "qtip3"), (32, 64, "qtip4"),
    (600, 4096, "m2v4g128"),  # pieces of K
    (77, 252, "m1v4g12+ordered+rotated+offsets"), (65, 132, "m1v4b4g44+terms3"),
):
    weight = random_weight((rows, columns), config, int(rng.integers(1 << 31)))
    for n in (1, 2, 5, 19, 130):
        names = compiled & set(cpu.usable(weight, n))
        if not names:
            continue
        x = rng.standard_normal((n, columns)).astype(np.float32)
        cpu.check_products(weight, x, names)
        x[:, : columns // 3] *= 1e3  # beyond what tables of integers hold where a few weights are large
        x[-1, 0] *= 1e3
        cpu.check_products(weight, x, names)
        done.update(names)
for config in ("qtip", "qtip3", "qtip4"):  # whose quantiser is compiled, too
    if "qtip" in compiled:
        codegemm.quantize(rng.standard_normal((32, 96)), config)
weight, x = random_weight((600, 2048), "m2v4g128", 0), rng.standard_normal((2, 2048)).astype(np.float32)
y = x @ weight.T


def is_right(threads):
    codegemm.set_num_threads(threads)
    return all(np.array_equal(x @ weight.T, y) for _ in range(5))


with ThreadPoolExecutor(4) as callers:  # who take turns, with other numbers of threads
    assert all(callers.map(is_right, (1, 2, 3, 4) * 5))
print(*sorted(done))
"""


def run(path, sanitizers, libraries, *kernels):
    return under(
        libraries, "-c", PRODUCTS, *kernels,
        CXX="g++",
        CXXFLAGS=f"-O1 -g1 -fsanitize={sanitizers} -fno-sanitize-recover=all",
        ASAN_OPTIONS="detect_leaks=0",
        TSAN_OPTIONS="exitcode=66:ignore_noninstrumented_modules=1",
        OPENBLAS_NUM_THREADS="1",
        **{isa.VARIABLE: path},
    )  # fmt: skip


KERNELS = {"psumbook", "psumbook_fast", "dequant"}
BASELINES = {"aqlm", "quip", "qtip", "lutgemm"}


@pytest.mark.skipif(not cases.ALL, reason="for make test-all")
def test_no_kernel_errs_beyond_its_arrays_or_between_threads():
    """The paths differ in how they look up, not in how their threads work together; and the baselines share these."""
    paths = [each.name for each in isa.available()]
    wanted = [(path, "address,undefined", ("asan", "ubsan")) for path in paths]
    wanted.append((paths[0], "thread", ("tsan",)))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for done in pool.map(lambda how: run(*how), wanted):
            assert not done.returncode, done.stdout[-2000:] + done.stderr[-4000:]
            assert set(done.stdout.split()) >= KERNELS | BASELINES
