"""Compiles the engine's C++ at first use with the system's compiler; libraries are kept in the user's cache."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from codegemm import cache as store
from codegemm.engines.builds import CompilerError, cached
from codegemm.engines.cpu import isa
from codegemm.engines.cpu.isa import InstructionSet

SOURCES = Path(__file__).parent / "src"

# No -ffast-math: NaNs and infinities must be seen, and sums keep their order.
FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-shared", "-pthread",
    "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast",
)  # fmt: skip


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


def build(source: Path, instructions: InstructionSet | None = None) -> Path:
    """The shared library of one source file (headers: its folder and the engine's), compiled unless it is cached.

    instructions: those of this processor (`isa.chosen`) unless named. Raises CompilerError with what the compiler
    printed.
    """
    compiler = find_compiler()
    instructions = instructions or isa.chosen()
    folders = dict.fromkeys((source.parent, SOURCES))
    headers = [header for folder in folders for header in sorted(folder.glob("*.hpp"))]
    key = store.key(
        *compiler, version(compiler), platform.machine(), *options(instructions), source.name,
        *(path.read_bytes() for path in (source, *headers)),
    )  # fmt: skip
    suffix = ".dylib" if sys.platform == "darwin" else ".so"

    def compile_to(path: Path) -> None:
        done = subprocess.run(
            [*compiler, *options(instructions), *(f"-I{folder}" for folder in folders), str(source), "-o", str(path)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise CompilerError(
                f"{shlex.join(compiler)} could not compile {source.name}:\n{done.stderr.strip()[-2000:]}"
            )

    return cached("cpu", key, suffix, f"{source.name} for {instructions.name}", compile_to)


def options(instructions: InstructionSet) -> tuple[str, ...]:
    """Of every source that is compiled for those instructions; $CXXFLAGS come last."""
    return (*FLAGS, *instructions.flags, *shlex.split(os.environ.get("CXXFLAGS", "")))


@cache
def version(compiler: tuple[str, ...]) -> str:
    """What the compiler's command says of itself."""
    return subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout
