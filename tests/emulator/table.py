"""The tables of counters in docs/kernels.md: `make counters` writes them, a test checks that they are current."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import metadata
from itertools import starmap

import numpy as np
from support import ROOT, sass

from codegemm.engines.cuda import compiler, model, psumbook
from codegemm.engines.cuda import psumbook_layout as layout
from codegemm.engines.cuda.gpu import KNOWN
from codegemm.engines.cuda.kernel import CudaKernel
from codegemm.engines.cuda.psumbook_cut import BATCHES, cut_for
from codegemm.engines.cuda.steps import Steps
from codegemm.formats import random_weight
from codegemm.formats.weight import Weight
from codegemm.kernel import Product
from codegemm.registry import kernel_for, registered
from emulator import emulate

DOCUMENT = ROOT / "docs" / "kernels.md"
PACKAGE = "nvidia-cuda-nvrtc-cu12"  # whose compiler makes the instructions, and gives them registers
NOTE = r"NVRTC \d+(\.\d+)+"
SHAPE = (512, 1024)
CONFIGS = ("m1v4g128", "m2v8g128", "m1v8g128", "m3v8g-1", "m1v4g16", "m1v4b4g128", "m1v4b2g128")
# A product of every kernel; weights as large as those where every thread block has much to do.
COMPARED = [
    ("psumbook", "m1v4g128", (1, 4)), ("psumbook", "m2v8g128", (1, 4)), ("dequant", "m1v4g128", (1, 16, 32)),
    ("dequant", "m2v8g128", (1, 16, 32)), ("dequant", "m1v8b16g-1", (1, 16)), ("aqlm", "m2v8g-1", (1, 4)),
    ("aqlm", "m1v8b16g-1", (1, 4)), ("lutgemm", "q2g128", (1, 4)), ("quip", "e8p", (1, 8)), ("qtip", "qtip", (1, 8)),
]  # fmt: skip
# Loops of products, as they are compiled, and how many lookups each has at least.
LOOP_LOOKUPS = {"psumbook": 32, "lutgemm": 32, "quip": 64, "qtip": 32}
LOOPS = [
    ("psumbook", "m1v4g128", (1,)), ("psumbook", "m2v8g128", (1,)), ("lutgemm", "q2g128", (1, 4)),
    ("quip", "e8p", (1, 8)), ("qtip", "qtip", (1, 8)), ("qtip", "qtip3", (1, 8)), ("qtip", "qtip4", (1, 8)),
]  # fmt: skip
COLUMNS = (
    "weights", "N", "wavefronts a lookup", "instructions a lookup", "table wavefronts, of the least",
    "code bytes read, of those stored", "sectors of codes and scales, of the least", "registers",
)  # fmt: skip


COMPARED_COLUMNS = (
    "kernel", "weights", "N", "wavefronts of loads, for 1024 weights", "sectors asked for, for 1024 weights",
    "block barriers", "launches",
)  # fmt: skip

LOOP_COLUMNS = (
    "kernel", "weights", "N", "instructions for 1024 weights", "wavefronts of lookups", "clocks of both, the longer",
    "clocks of codes from memory",
)  # fmt: skip


def rows() -> list[tuple[str, ...]]:
    """A row for every configuration and batch, then the published layout's."""
    lines = []
    products = [("psumbook", config, n) for config in CONFIGS for n in BATCHES]
    steps = list(starmap(_steps, products))
    emulate.compile_steps(steps)
    instances = [step.launches[0].instance for step in steps]
    lookups_of = [32 * cut_for(_weight(config).spec, n, emulate.SMALL_GPU).rows for _, config, n in products]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        counted = list(pool.map(compiled, instances, lookups_of))
    for (name, config, n), (instructions, registers) in zip(products, counted):
        weight, [report] = _weight(config), _reports(name, config, n)
        lookups, stores = report.of("add"), report.of("store_entries", "store")
        codes = report.of("load_codes", space="global")
        loads = [codes]
        if layout.phases(weight.spec):
            loads.append(report.of("load_scales", space="global"))
        lines.append((
            config, str(n),
            f"{lookups.wavefronts / lookups.instructions:.3f}",
            f"{instructions:.2f}",
            f"{stores.wavefronts / stores.least_wavefronts:.3f}",
            f"{codes.bytes / (weight.codes.size * layout.container_bits(weight.config.b) / 8):.3f}",
            f"{sum(c.sectors for c in loads) / sum(c.least_sectors for c in loads):.3f}",
            str(registers),
        ))  # fmt: skip
    published = published_lookups(np.random.default_rng(0))
    ratio = published.wavefronts / published.instructions
    return [*lines, ("published table layout", "1", f"{ratio:.3f}", *["" for _ in COLUMNS[3:]])]


def published_lookups(rng: np.random.Generator) -> emulate.Counts:
    """Of random codes in the published layout."""
    codes = rng.integers(0, 256, (64, 32), np.uint8)
    shape = (1, 1), (32,), 64 * 512
    return emulate.launch("published_layout.cu", "published_layout", *shape, [codes], folder=emulate.HERE).of("look_up")


def compiled(instance: str, lookups: int) -> tuple[float, int]:
    """Instructions a lookup in the loop for sm_90, and registers."""
    path = compiler.build(psumbook.SOURCE, instance, 90)
    loop = sass.smallest_loop(path, "LDS", lookups)
    return loop.total() / lookups, sass.resources(path)["REG"]


def compared() -> list[tuple[str, ...]]:
    """A row for every kernel, configuration and batch, counted whole."""
    products = [(name, config, n) for name, config, batches in COMPARED for n in batches]
    emulate.compile_steps(starmap(_steps, products))
    lines = []
    for name, config, n in products:
        reports = _reports(name, config, n)
        loads = [
            (space, counts)
            for report in reports
            for (_, _, space, kind), counts in report.counts.items()
            if kind == "load"
        ]
        pieces = SHAPE[0] * SHAPE[1] / 1024
        lines.append((
            name, config, str(n),
            f"{sum(c.wavefronts for space, c in loads if space == 'shared') / pieces:.1f}",
            f"{sum(c.sectors for space, c in loads if space == 'global') / pieces:.1f}",
            str(sum(report.events.get("block barrier", 0) for report in reports)),
            str(len(reports)),
        ))  # fmt: skip
    return lines


def loops() -> list[tuple[str, ...]]:
    """A row for every kernel, configuration and batch of LOOPS."""
    products = [(name, config, n) for name, config, batches in LOOPS for n in batches]
    emulate.compile_steps(starmap(_steps, products))
    gpu = KNOWN["h200"]
    bytes_a_clock = gpu.bandwidth / gpu.multiprocessors / gpu.clock
    pieces = SHAPE[0] * SHAPE[1] / 1024
    lines = []
    for name, config, n in products:
        launches = _steps(name, config, n).launches
        middle = len(launches) // 2  # between rotations, where there are any
        report, launch = _reports(name, config, n)[middle], launches[middle]
        lookups = report.of("add" if name == "psumbook" else "gather")
        loop = sass.smallest_loop(compiler.build(launch.source, launch.instance, 90), "LDS", LOOP_LOOKUPS[name])
        instructions = loop.total() / loop["LDS"] * lookups.instructions / pieces
        bound = max(instructions / model.ISSUED, lookups.wavefronts / pieces)
        codes = report.of("load_codes", space="global").bytes / pieces
        lines.append((
            name, config, str(n), f"{instructions:.0f}", f"{lookups.wavefronts / pieces:.1f}",
            f"{bound:.1f}", f"{codes / bytes_a_clock:.1f}",
        ))  # fmt: skip
    return lines


@cache
def _weight(config: str) -> Weight:
    return random_weight(SHAPE, config, 0)


@cache
def _kernel(name: str, config: str) -> CudaKernel:
    kernels = {kernel.name: kernel for kernel in registered("cuda") if isinstance(kernel, CudaKernel)}
    return kernel_for(kernels[name], _weight(config).spec)


def _steps(name: str, config: str, n: int) -> Steps:
    """Of a kernel's product in the tables."""
    product = Product.of(_weight(config).spec, n, np.float16, np.float32)
    return _kernel(name, config).decide(product, emulate.SMALL_GPU)


@cache
def _reports(name: str, config: str, n: int) -> list[emulate.Report]:
    """Of its launches, which several tables count."""
    x = np.random.default_rng(n).standard_normal((n, SHAPE[1])).astype(np.float16)
    return emulate.multiply(_kernel(name, config), _weight(config), x)[1]


TABLES = {"counters": (COLUMNS, rows), "loops": (LOOP_COLUMNS, loops), "kernels": (COMPARED_COLUMNS, compared)}


def markdown(columns: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    """A table."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (columns, ("---",) * len(columns), *lines))


def compiler_here() -> str:
    """Named as in the document: to the patch where it is the package's, which NVRTC itself does not tell."""
    version = ".".join(map(str, compiler.version()))
    found = [made.version for made in metadata.distributions(name=PACKAGE)]
    return f"NVRTC {next((each for each in found if each.startswith(f'{version}.')), version)}"


def renewed(document: str, tables: Iterable[str] = TABLES) -> str:
    """The document with its tables replaced, or some of them, and the name of the compiler that they are of."""
    document = re.sub(NOTE, compiler_here(), document)
    for name, (columns, make) in ((name, TABLES[name]) for name in tables):
        begin, end = f"<!-- {name}: written by `make counters` -->\n", f"<!-- end of {name} -->\n"
        before, rest = document.split(begin)
        document = before + begin + markdown(columns, make()) + end + rest.split(end)[1]
    return document


if __name__ == "__main__":
    text = renewed(DOCUMENT.read_text())
    DOCUMENT.write_text(text)
    sys.stdout.write(text[text.index("<!-- counters") :])
