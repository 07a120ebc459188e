"""What a measurement was made on and with: all that another run must have alike to be compared with it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from codegemm import devices
from codegemm.engines.builds import CompilerError
from codegemm.engines.cpu import compiler, device, isa, library
from codegemm.engines.cuda import compiler as cuda_compiler
from codegemm.measuring import conditions
from codegemm.measuring.bounds import Rates
from codegemm.reporting import counted
from codegemm.version import __version__

__all__ = ["Machine"]

_BUSY = 0.1  # of the processors taken by others, of all
_CHANGED = 0.8  # of the bandwidth: less at one end of a run than this share of the other
_VARIABLES = re.compile(r"(CODEGEMM|OMP|OPENBLAS|MKL|KMP|CUDA)_\w+|CXX|CXXFLAGS")


@dataclass(frozen=True)
class Machine:
    """The machine and its libraries when a run began.

    bandwidths: bytes a second that the processor reads or a GPU's copy moves, before and after all else; bandwidth: the
    larger, of which shares are told. loads: processes that wanted a processor in the last minute, before and after.
    processors: that this process may use; others: how many of them others kept busy, on average. commit: of the
    checkout that the package runs from, if it does. blas: the libraries behind NumPy, with their versions and threads.
    compiler: of the engine's kernels; flags: of the CPU's, by instruction set. libraries: versions of others that are
    installed. environment: the variables that these heed. multiply_adds, lookups: a second, by which products are bound
    beside memory; 0 where that was not measured.
    """

    engine: str
    device: str
    threads: int
    bandwidth: float
    bandwidths: tuple[float, ...] = ()
    version: str = __version__
    commit: str | None = None
    date: str = ""
    processor: str = ""
    processors: int = 1
    loads: tuple[float, ...] = ()
    others: float | None = None
    system: str = field(default_factory=platform.platform)
    python: str = field(default_factory=platform.python_version)
    blas: tuple[dict[str, Any], ...] = ()
    compiler: str | None = None
    flags: dict[str, str] = field(default_factory=dict)
    libraries: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    multiply_adds: float = 0
    lookups: float = 0
    clock: Clock | None = field(default=None, repr=False, compare=False)

    @classmethod
    def here(cls, engine: str, paths: Sequence[str] = ("",)) -> Machine:
        """This machine, its bandwidth measured now. paths: the instruction sets that will be measured."""
        clock, load = Clock.now(), _load()
        bandwidth, multiply_adds = conditions.bandwidth(engine), conditions.multiply_adds(engine)
        return cls(
            engine,
            *conditions.machine(engine),
            bandwidth,
            (bandwidth,),
            commit=_commit(),
            date=datetime.now().astimezone().isoformat(timespec="seconds"),
            processor=device.name(),
            processors=library.processors(),
            loads=load,
            blas=_blas(),
            **_built(engine, paths),
            libraries=_libraries(engine),
            environment={name: value for name, value in os.environ.items() if _VARIABLES.fullmatch(name)},
            multiply_adds=multiply_adds,
            lookups=conditions.lookups(engine, multiply_adds),
            clock=clock,
        )

    def again(self) -> Machine:
        """With bandwidth and load measured once more."""
        others = None if self.clock is None else self.clock.others()
        bandwidths = (*self.bandwidths, conditions.bandwidth(self.engine))
        loads = (*self.loads, *_load())
        return replace(self, bandwidth=max(bandwidths), bandwidths=bandwidths, loads=loads, others=others)

    @property
    def rates(self) -> Rates:
        """What products are bound by."""
        return Rates(self.bandwidth, self.multiply_adds, self.lookups)

    def as_json(self) -> dict[str, Any]:
        """What is told of it, as plain data."""
        told = asdict(self)
        del told["clock"]
        return told

    def disturbances(self) -> list[str]:
        """Signs that others were at work while this run measured, each in words; none on a quiet machine."""
        found = []
        if self.others is not None and self.others > _BUSY * self.processors:
            load = f" (load {max(self.loads):.1f})" if self.loads else ""
            found.append(f"others took {self.others:.1f} of {counted(self.processors, 'processor')}{load}")
        if self.bandwidths and min(self.bandwidths) < _CHANGED * max(self.bandwidths):
            first, *_, last = (each / 1e9 for each in (*self.bandwidths, *self.bandwidths))
            found.append(f"the memory bandwidth was {first:.1f} GB/s at the start and {last:.1f} GB/s at the end")
        return found


@dataclass(frozen=True)
class Clock:
    """Seconds since some time, of all and of the allowed processors at work: for whomever, and for this process."""

    seconds: float
    busy: float
    own: float

    @classmethod
    def now(cls) -> Clock | None:
        """None where the system doesn't tell."""
        try:
            lines = Path("/proc/stat").read_text().splitlines()
            allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        except (OSError, AttributeError):
            return None
        # user, nice, system, idle, iowait, irq, softirq, steal, in ticks
        ticks = [list(map(int, line.split()[1:9])) for line in lines if line.split()[0] in allowed]
        busy = sum(sum(each) - each[3] - each[4] for each in ticks) / os.sysconf("SC_CLK_TCK")
        return cls(time.monotonic(), busy, sum(os.times()[:4]))

    def others(self) -> float | None:
        """How many processors others have kept busy since then, on average."""
        now = Clock.now()
        if now is None or now.seconds <= self.seconds:
            return None
        return max(0.0, (now.busy - self.busy - (now.own - self.own)) / (now.seconds - self.seconds))


def _load() -> tuple[float, ...]:
    """The load of the last minute; nothing where the system doesn't say."""
    try:
        return os.getloadavg()[:1]
    except OSError:
        return ()


def _commit() -> str | None:
    """Of the repository that this file belongs to; not of one that an installed package happens to lie in."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return git("describe", "--always", "--dirty", "--exclude", "*")
    except (OSError, subprocess.SubprocessError):
        return None


def _blas() -> tuple[dict[str, Any], ...]:
    """As threadpoolctl tells them; nothing without it."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return ()
    told = ("internal_api", "version", "architecture", "num_threads")
    return tuple(
        {key: pool[key] for key in told if key in pool} for pool in threadpool_info() if pool["user_api"] == "blas"
    )


def _libraries(engine: str) -> dict[str, str]:
    found = {}
    for name in ("numpy", "torch", *(("cupy-cuda12x", "cupy-cuda13x") if engine == "cuda" else ())):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if engine == "cuda":
        import cupy

        found["CUDA driver"] = devices.version_name(cupy.cuda.runtime.driverGetVersion())
    return found


def _built(engine: str, paths: Sequence[str]) -> dict[str, Any]:
    """`compiler` and `flags`; nothing where kernels run in NumPy."""
    if engine == "cuda":
        return {"compiler": f"NVRTC {'.'.join(map(str, cuda_compiler.version()))}"}
    try:
        command = compiler.find_compiler()
    except CompilerError:
        return {}
    sets = [each for each in isa.available() if each.name in paths] or [isa.chosen()]
    flags = {each.name: shlex.join(compiler.options(each)) for each in sets}
    return {"compiler": f"{shlex.join(command)}: {compiler.version(command).splitlines()[0]}", "flags": flags}
