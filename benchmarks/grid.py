"""What `pytest benchmarks` measures: every product of the paper's experiments, by each kernel that its method has."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.targets import MAIN
from codegemm.comparison.selection import DENSE
from codegemm.engines import cpu, cuda
from codegemm.formats.format import parse
from codegemm.reproduction import ALL
from codegemm.reproduction.cells import ANY, Shape
from codegemm.reproduction.methods import OPPONENTS, Method
from codegemm.reproduction.runner import products

OWN = {"cpu": cpu.KERNELS, "cuda": cuda.KERNELS}
# What two minutes are enough for: a small layer and a large one, and of a method's configurations the main ones.
QUICK_SHAPES, QUICK_BATCHES = ((1024, 4096), (14336, 4096)), (1, 4)
QUICK_CONFIGS = {str(parse(config)) for config in (*MAIN, *(its.config for its in OPPONENTS.values() if its.config))}


@dataclass(frozen=True, order=True)
class Benchmark:
    """A product of a weight by a kernel, which the engine may not have. batch: rows of x."""

    shape: Shape
    config: str
    kernel: str
    batch: int

    @property
    def name(self) -> str:
        """The same in every commit that has the kernel; a dense product's has no configuration."""
        shape = "x".join(map(str, self.shape))
        return "-".join([shape, f"n{self.batch}", self.kernel, *[self.config] * (self.kernel not in DENSE)])

    @property
    def quick(self) -> bool:
        """Whether it is of the part that takes two minutes."""
        return self.shape in QUICK_SHAPES and self.batch in QUICK_BATCHES and self.config in QUICK_CONFIGS


def benchmarks(engine: str) -> list[Benchmark]:
    """All, each once; those of a shape follow one another, of these those of a weight and of these a kernel's."""
    return sorted({
        Benchmark(cell.shape, cell.config or str(parse(ANY)), kernel, cell.batch)
        for cell in products([ALL])
        for kernel in kernels(cell.method, engine)
    })  # fmt: skip


def kernels(method: Method, engine: str) -> list[str]:
    """By name: that of an opponent, or all of the engine's own, each of which multiplies by this project's weights."""
    return [kernel.name for kernel in OWN[engine]] if method.ours else [method.kernel]
