"""What a measurement was made on and with: all that another run must have alike to be compared with it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from codegemm import devices
from codegemm.engines.builds import CompilerError
from codegemm.engines.cpu import compiler, device, isa, library
from codegemm.measuring import conditions
from codegemm.reporting import counted
from codegemm.version import __version__

__all__ = ["Machine"]

_BUSY = 0.25  # processors at work for others, as a share of all
_CHANGED = 0.8  # of the bandwidth: less at one end of a run than this share of the other


@dataclass(frozen=True)
class Machine:
    """The machine and its libraries when a run began.

    bandwidths: bytes a second that the processor reads or a GPU's copy moves, before and after all else; bandwidth: the
    larger, of which shares are told. loads: processes that wanted a processor in the last minute, before and after.
    processors: that this process may use. commit: of the checkout that the package runs from, if it does. blas: the
    libraries behind NumPy, with their versions and threads. compiler, flags: of the CPU engine. libraries: versions of
    others that are installed.
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
    system: str = field(default_factory=platform.platform)
    python: str = field(default_factory=platform.python_version)
    blas: tuple[dict[str, Any], ...] = ()
    compiler: str | None = None
    flags: str | None = None
    libraries: dict[str, str] = field(default_factory=dict)

    @classmethod
    def here(cls, engine: str) -> Machine:
        """This machine, its bandwidth measured now."""
        load = _load()
        bandwidth = conditions.bandwidth(engine)
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
            compiler=_compiler(),
            flags=shlex.join(compiler.options(isa.chosen())),
            libraries=_libraries(engine),
        )

    def again(self) -> Machine:
        """With bandwidth and load measured once more."""
        bandwidths = (*self.bandwidths, conditions.bandwidth(self.engine))
        return replace(self, bandwidth=max(bandwidths), bandwidths=bandwidths, loads=(*self.loads, *_load()))

    def disturbances(self) -> list[str]:
        """Signs that others were at work while this run measured, each in words; none on a quiet machine."""
        found = []
        own = (0, self.threads)  # before and after
        others = max((load - threads for load, threads in zip(self.loads, own)), default=0.0)
        if others > _BUSY * self.processors:
            found.append(f"other processes had a load of {others:.1f} on {counted(self.processors, 'processor')}")
        if self.bandwidths and min(self.bandwidths) < _CHANGED * max(self.bandwidths):
            first, *_, last = (each / 1e9 for each in (*self.bandwidths, *self.bandwidths))
            found.append(f"the memory bandwidth was {first:.1f} GB/s at the start and {last:.1f} GB/s at the end")
        return found


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
    told = ("user_api", "internal_api", "version", "architecture", "num_threads")
    return tuple({key: pool[key] for key in told if key in pool} for pool in threadpool_info())


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


def _compiler() -> str | None:
    """What the CPU engine is compiled by."""
    try:
        command = compiler.find_compiler()
    except CompilerError:
        return None
    return f"{shlex.join(command)}: {compiler.version(command).splitlines()[0]}"
