"""What ncu counts of the two main kernels on this machine's GPU, beside what the emulator counts of the same launches.

python -m benchmarks.counters does the products alone, which ncu then looks at.
"""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codegemm.comparison import measure
from codegemm.comparison.sources import random_weight
from codegemm.dispatch import registered
from codegemm.engines import cuda
from codegemm.formats.weight import Weight
from codegemm.kernel import Kernel

ROOT = Path(__file__).parent.parent
DTYPE = np.dtype(np.float16)
SHAPE = (2048, 2048)  # as much as the emulator does in seconds
PRODUCTS = [
    ("psumbook", "m1v4g128", 1), ("psumbook", "m2v8g128", 1), ("psumbook", "m1v4g128", 4),
    ("dequant", "m1v4g128", 1), ("dequant", "m1v4g128", 16), ("dequant", "m2v8g128", 16),
]  # fmt: skip
WAVEFRONTS = "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum"
READ, WRITTEN = "dram__bytes_read.sum", "dram__bytes_write.sum"
REFUSED = ("ERR_NVGPUCTRPERM", "Failed to initialize", "No kernels were profiled", "==ERROR==")


@dataclass(frozen=True)
class Counted:
    """A launch. dram_*: bytes. emulated_sector_bytes: 32 for each sector that warps ask for, from whatever cache;
    bytes_read: the least, every byte once."""

    kernel: str
    config: str
    batch: int
    wavefronts: float
    emulated_wavefronts: int
    dram_read: float
    dram_written: float
    bytes_read: int
    emulated_sector_bytes: int


def run(seconds: float) -> list[dict[str, Any]]:
    """A row for every product; none, and a warning, where ncu is missing or refused."""
    command = shutil.which("ncu")
    if command is None:
        print("warning: ncu is not installed; nothing was counted")
        return []
    arguments = [
        command, "--csv", "--page", "raw", "--print-units", "base", "--metrics", f"{WAVEFRONTS},{READ},{WRITTEN}",
        "--kernel-name", "regex:^codegemm_(psumbook|dequant)", "--cache-control", "all", "--clock-control", "none",
        sys.executable, "-m", "benchmarks.counters",
    ]  # fmt: skip
    try:
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        print(f"warning: ncu took more than {seconds:.0f} s; nothing was counted")
        return []
    launches = parse(done.stdout)
    if len(launches) != len(products()):
        said = [line for line in (done.stdout + done.stderr).splitlines() if any(text in line for text in REFUSED)]
        reason = said[0] if said else f"{len(launches)} launches were seen of {len(products())}"
        print(f"warning: ncu is refused here: {reason}")
        return []
    sys.path.append(str(ROOT / "tests"))
    from emulator.gpu import emulated

    rows = []
    with emulated(cuda.gpu("cuda:0")):
        for (kernel, config, n), launch in zip(products(), launches):
            rows.append(counted(kernel, config, n, launch))
            print(rows[-1], flush=True)
    return [asdict(row) for row in rows]


def products() -> list[tuple[Kernel, str, int]]:
    """Those whose kernels there are."""
    known = {kernel.name: kernel for kernel in registered("cuda")}
    return [(known[name], config, n) for name, config, n in PRODUCTS if name in known]


def multiply_all() -> None:
    """One launch of each product."""
    for kernel, weight, x in _operands():
        import cupy

        from codegemm import plan

        there = weight.to("cuda:0")
        plan(there, len(x), DTYPE, kernel.full_name)(
            cupy.asarray(x), out=cupy.empty((len(x), weight.shape[0]), np.float32)
        )
        cuda.synchronize()


def counted(kernel: Kernel, config: str, n: int, launch: dict[str, float]) -> Counted:
    """What ncu told of a launch, beside the same one in the emulator, which is `cuda:0` meanwhile."""
    from emulator.gpu import multiply

    weight = random_weight(SHAPE, config)
    _, reports = multiply(kernel, weight, measure.inputs(SHAPE[1], n, DTYPE))
    moved = [(space, kind, counts) for report in reports for (_, _, space, kind), counts in report.counts.items()]
    return Counted(
        kernel=kernel.name,
        config=config,
        batch=n,
        wavefronts=launch[WAVEFRONTS],
        emulated_wavefronts=sum(counts.wavefronts for space, _, counts in moved if space == "shared"),
        dram_read=launch[READ],
        dram_written=launch[WRITTEN],
        bytes_read=kernel.cost(weight.spec, n, DTYPE).bytes_read,
        emulated_sector_bytes=sum(32 * c.sectors for space, kind, c in moved if (space, kind) == ("global", "load")),
    )


def parse(text: str) -> list[dict[str, float]]:
    """ncu's metrics of every launch, in order, from its raw page as CSV: names, units, then a line for each launch."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    names, _, *launches = [*csv.reader(io.StringIO("\n".join(lines)))] or [[], []]
    wanted = [(name, names.index(name)) for name in (WAVEFRONTS, READ, WRITTEN) if name in names]
    return [{name: float(launch[place].replace(",", "")) for name, place in wanted} for launch in launches]


def _operands() -> Iterator[tuple[Kernel, Weight, np.ndarray]]:
    for kernel, config, n in products():
        yield kernel, random_weight(SHAPE, config), measure.inputs(SHAPE[1], n, DTYPE)


if __name__ == "__main__":
    multiply_all()
