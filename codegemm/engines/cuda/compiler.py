"""Compiles the kernels by NVRTC at first use, each instance for one architecture; cubins are kept in the user's cache.

CuPy's own cache would not see a change in an included file; this one's key covers every file of `kernels_cu`. Nothing
here needs a GPU or a driver.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from codegemm import cache as store
from codegemm.engines.builds import CompilerError, cached
from codegemm.kernels_cu import FOLDER

ARCHITECTURES = (80, 86, 89, 90, 100, 120)  # that the kernels are built for and tested on; others from 80 on may work
OPTIONS = ("--std=c++17", "-default-device")


@cache
def version() -> tuple[int, int]:
    """NVRTC's version; CompilerError if it is not there."""
    return _nvrtc().getVersion()


def entry_name(instance: str) -> str:
    """What the kernel of a template's instance is called: `psumbook<4, Half>` is codegemm_psumbook_4_Half."""
    return "codegemm_" + re.sub(r"\W+", "_", instance).strip("_")


def target(arch: int) -> str:
    """What an architecture is called by the compiler: Hopper with what only Hopper has, which is wgmma."""
    return f"sm_{arch}a" if arch == 90 else f"sm_{arch}"


def build(source: str, instance: str, arch: int, folder: Path = FOLDER) -> Path:
    """The cubin of one instance of a kernel in `source`, whose entry is `entry_name(instance)`, compiled unless cached.

    Raises CompilerError with what NVRTC printed.
    """
    elsewhere = key_elsewhere(source, instance, arch, folder)
    key = store.key(*map(str, version()), elsewhere)
    compiled = store.lookup("cuda", key, ".cubin") or store.lookup("cuda", elsewhere, ".cubin")
    if compiled:
        return compiled

    def compile_to(path: Path) -> None:
        path.write_bytes(compile_instance(source, instance, arch, folder=folder)[0])

    return cached("cuda", key, ".cubin", f"{instance} for sm_{arch}", compile_to)


def key_elsewhere(source: str, instance: str, arch: int, folder: Path = FOLDER) -> str:
    """The key of a cubin that another machine's NVRTC made of the same sources: whichever version that was."""
    files = _files(folder)
    return store.key(str(arch), *OPTIONS, source, instance, *files, *files.values())


def adopt(folder: Path) -> int:
    """Copy the cubins of a folder, whoever owns it, into the user's cache; how many there were.

    The folder has what `python -m benchmarks.cubins` wrote: `<key_elsewhere>.cubin`. Raises FileNotFoundError where
    there is no such folder.
    """
    cubins = [path for path in sorted(folder.iterdir()) if path.suffix == ".cubin"]
    for path in cubins:
        store.store("cuda", path.stem, ".cubin", partial(shutil.copyfile, path))
    return len(cubins)


@dataclass(frozen=True)
class Build:
    """A call of `build` that is known beforehand."""

    source: str
    instance: str
    arch: int

    def __call__(self) -> Path:
        return build(self.source, self.instance, self.arch)


def compile_instance(
    source: str, instance: str, arch: int, options: tuple[str, ...] = (), folder: Path = FOLDER
) -> tuple[bytes, str]:
    """The cubin and NVRTC's log."""
    nvrtc = _nvrtc()
    files = _files(folder)
    headers = [name for name in files if name != source]
    code = f"{files[source].decode()}\nENTRY({entry_name(instance)}, {instance})\n"
    program = nvrtc.createProgram(code, source, [files[name] for name in headers], [name.encode() for name in headers])
    try:
        nvrtc.compileProgram(program, (*OPTIONS, f"--gpu-architecture={target(arch)}", *options))
        return nvrtc.getCUBIN(program) + b"\0", nvrtc.getProgramLog(program)  # CuPy drops the last byte
    except nvrtc.NVRTCError as error:
        said = nvrtc.getProgramLog(program).strip() or str(error)
        nvrtc_version = ".".join(map(str, version()))
        raise CompilerError(
            f"NVRTC {nvrtc_version} could not compile {instance} for sm_{arch}:\n{said:.2000}"
        ) from None
    finally:
        nvrtc.destroyProgram(program)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.cu*"))}


@cache
def _nvrtc() -> Any:
    try:
        from cupy_backends.cuda.libs import nvrtc

        nvrtc.getVersion()
    except Exception as error:  # a missing library: every version raises another type
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CompilerError(
            f"NVRTC, CUDA's run-time compiler, is missing: {reason}; pip install 'codegemm[cuda12]' (or cuda13)"
        ) from None
    return nvrtc
