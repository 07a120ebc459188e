"""Compiles the engine's C++ at first use with the system's compiler; libraries are kept in the user's cache."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

from codegemm import cache as store

SOURCES = Path(__file__).parent / "src"

# No -ffast-math: NaNs and infinities must pass through, and sums keep their order.
FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-shared", "-pthread",
    "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast",
)  # fmt: skip
# GCC halves vectors of 64 bytes on its own where it thinks that wide registers lower the clock.
_X86_FLAGS = ("-march=native", "-mprefer-vector-width=512")
_ARM_FLAGS = ("-mcpu=native",)
_SLOW_BUILD = 1.0


class CompilerError(RuntimeError):
    """No C++ compiler, or it failed; the message says what to install or what it printed."""


@cache
def find_compiler() -> tuple[str, ...]:
    """The C++ compiler's command: $CXX, else the first of g++, clang++ and c++; CompilerError if there is none."""
    wanted = shlex.split(os.environ.get("CXX", ""))
    for name, *arguments in [wanted] if wanted else (["g++"], ["clang++"], ["c++"]):
        path = shutil.which(name)
        if path:
            return path, *arguments
    raise CompilerError(
        f"no C++ compiler ({f'CXX={shlex.join(wanted)} is not there' if wanted else 'g++, clang++ or c++'}): "
        "install g++ 12 or later (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++) or clang 15 or later"
    )


@cache
def machine() -> str:
    """What -march=native depends on: the processor's model and instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    kept = ("model", "flags", "Features", "CPU part", "vendor_id")
    return "\n".join(line for line in lines if line.startswith(kept))


def build(source: Path) -> Path:
    """The shared library of one source file (headers: its folder and the engine's), compiled unless it is cached.

    Raises CompilerError with what the compiler printed.
    """
    compiler = find_compiler()
    native = _ARM_FLAGS if platform.machine() in ("arm64", "aarch64") else _X86_FLAGS
    folders = dict.fromkeys((source.parent, SOURCES))
    flags = (*FLAGS, *native, *(f"-I{folder}" for folder in folders))
    headers = [header for folder in folders for header in sorted(folder.glob("*.hpp"))]
    key = store.key(
        *compiler, _version(compiler), *FLAGS, *native, machine(), source.name,
        *(path.read_bytes() for path in (source, *headers)),
    )  # fmt: skip
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    found = store.lookup("cpu", key, suffix)
    if found:
        return found

    def compile_to(path: Path) -> None:
        start = time.perf_counter()
        made = subprocess.run(
            [*compiler, *flags, str(source), "-o", str(path)], capture_output=True, text=True, check=False
        )
        if made.returncode:
            raise CompilerError(
                f"{shlex.join(compiler)} could not compile {source.name}:\n{made.stderr.strip()[-2000:]}"
            )
        seconds = time.perf_counter() - start
        if seconds > _SLOW_BUILD:
            print(
                f"codegemm: compiled {source.name} for this CPU in {seconds:.1f} s (kept for later runs)",
                file=sys.stderr,
            )

    return store.store("cpu", key, suffix, compile_to)


@cache
def _version(compiler: tuple[str, ...]) -> str:
    return subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout
