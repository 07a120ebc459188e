"""What ncu counts of the two main kernels on this machine's GPU, beside what the emulator counts of the same launches.

python -m benchmarks.counters NUMBER does one of the products alone, which ncu then looks at.
"""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.layers import DEVICE, DTYPE
from codegemm import devices, plan
from codegemm.engines.cuda.gpu import Gpu, gpu_of
from codegemm.formats import random_weight
from codegemm.formats.format import spec_of
from codegemm.kernel import Kernel, Product
from codegemm.measuring.accuracy import inputs
from codegemm.registry import registered

ROOT = Path(__file__).parent.parent
SHAPE = (2048, 2048)  # as much as the emulator does in seconds
PRODUCTS = [
    ("psumbook", "m1v4g128", 1), ("psumbook", "m2v8g128", 1), ("psumbook", "m1v4g128", 4),
    ("dequant", "m1v4g128", 1), ("dequant", "m1v4g128", 16), ("dequant", "m2v8g128", 16),
]  # fmt: skip
# Of loads and stores of shared memory, and of all that the same pipe serves beside them.
WAVEFRONTS, PIPE = "memory_l1_wavefronts_shared", "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum"
READ, WRITTEN = "dram__bytes_read.sum", "dram__bytes_write.sum"
METRICS = (WAVEFRONTS, PIPE, READ, WRITTEN)
_NCU_SECONDS = 90


def run(seconds: float) -> list[dict[str, Any]]:
    """A row for every product; a warning and no more rows where ncu is missing or refused, or time is up."""
    command = shutil.which("ncu")
    if command is None:
        print("warning: ncu is not installed; nothing was counted")
        return []
    sys.path.append(str(ROOT / "tests"))
    end = time.monotonic() + seconds
    rows: list[dict[str, Any]] = []
    for place, product in enumerate(products()):
        if time.monotonic() > end:
            print(f"warning: time was up after {place} products")
            break
        seen = _measure(command, place)
        if seen is None:
            break
        rows.append(counted(*product, seen, gpu_of(DEVICE)))
        print(rows[-1], flush=True)
    return rows


def _measure(ncu: str, place: int) -> dict[str, float] | None:
    """ncu's counts of one of `PRODUCTS`, multiplied by another process; None, and a warning, where it has none."""
    arguments = [
        ncu, "--csv", "--page", "raw", "--print-units", "base", "--metrics", ",".join(METRICS),
        "--kernel-name", "regex:^codegemm_", "--cache-control", "all", "--clock-control", "none",
        sys.executable, "-m", "benchmarks.counters", str(place),
    ]  # fmt: skip
    try:
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False, timeout=_NCU_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"warning: ncu took more than {_NCU_SECONDS} s for one product")
        return None
    launches = parse(done.stdout)
    if not launches:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("==ERROR", "==WARNING"))]
        print(f"warning: ncu is refused here: {said[0] if said else 'it saw no launch'}")
        return None
    return {metric: sum(launch[metric] for launch in launches) for metric in METRICS}


def products() -> list[tuple[Kernel, str, int]]:
    """Those whose kernels there are."""
    kernels = registered("cuda")
    return [(kernel, config, n) for name, config, n in PRODUCTS for kernel in kernels if kernel.name == name]


def builds() -> Iterator[Callable[[], object]]:
    """What the products compile."""
    for kernel, config, n in products():
        yield from kernel.builds(Product.of(spec_of(SHAPE, config), n, DTYPE), DEVICE)


def multiply_once(place: int) -> None:
    """One of the products, for ncu to look at."""
    import cupy

    kernel, config, n = products()[place]
    weight = random_weight(SHAPE, config).to(DEVICE)
    x = cupy.asarray(inputs(SHAPE[1], n, DTYPE))
    plan(weight, n, DTYPE, kernel.full_name)(x, out=cupy.empty((n, SHAPE[0]), np.float32))
    devices.synchronize()


def counted(kernel: Kernel, config: str, n: int, seen: dict[str, float], gpu: Gpu) -> dict[str, Any]:
    """What ncu saw of a product on `gpu`, which is `DEVICE`, beside the same one in the emulator.

    dram_*: bytes. emulated_sector_bytes: 32 for each sector that warps ask for, from whatever cache; bytes_read: the
    least, every byte once.
    """
    from emulator.emulate import multiply

    weight = random_weight(SHAPE, config)
    _, reports = multiply(kernel, weight, inputs(SHAPE[1], n, DTYPE), gpu=gpu)
    moved = [(space, kind, counts) for report in reports for (_, _, space, kind), counts in report.counts.items()]
    return {
        "kernel": kernel.name,
        "config": config,
        "batch": n,
        "wavefronts": seen[WAVEFRONTS],
        "emulated_wavefronts": sum(counts.wavefronts for space, _, counts in moved if space == "shared"),
        "pipe_wavefronts": seen[PIPE],
        "dram_read": seen[READ],
        "dram_written": seen[WRITTEN],
        "bytes_read": kernel.cost(Product.of(weight.spec, n, DTYPE), DEVICE).bytes_read,
        "emulated_sector_bytes": sum(32 * c.sectors for space, kind, c in moved if (space, kind) == ("global", "load")),
    }


def parse(text: str) -> list[dict[str, float]]:
    """ncu's metrics of every launch, in order, from its raw page as CSV: names, units, then a line for each launch."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    names, _, *launches = [*csv.reader(io.StringIO("\n".join(lines)))] or [[], []]
    return [{name: float(launch[names.index(name)].replace(",", "")) for name in METRICS} for launch in launches]


if __name__ == "__main__":
    multiply_once(int(sys.argv[1]))
