"""The instruction sets for which the engine's C++ is compiled, and the one that this processor's products take."""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

VARIABLE = "CODEGEMM_CPU"


@dataclass(frozen=True)
class InstructionSet:
    """One for which everything is compiled.

    flags: the compiler's, all of them explicit. needs: a processor's, in the words of /proc/cpuinfo.
    """

    name: str
    machines: tuple[str, ...]
    flags: tuple[str, ...] = ()
    needs: frozenset[str] = frozenset()


_X86 = ("x86_64", "amd64")
_ARM = ("aarch64", "arm64")
_AVX2 = ("avx2", "fma", "f16c", "bmi2")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl")
_VNNI = (*_AVX512, "avx512_vnni")
_VBMI = (*_VNNI, "avx512vbmi")
_BF16 = (*_VBMI, "avx512_bf16")
_AMX = (*_BF16, "amx_tile", "amx_bf16")
# Where the compiler has another word than /proc/cpuinfo.
_OPTIONS = {"avx512_vnni": "avx512vnni", "avx512_bf16": "avx512bf16", "amx_tile": "amx-tile", "amx_bf16": "amx-bf16"}

# GCC halves vectors of 64 bytes on its own where it thinks that wide registers lower the clock.
_WHOLE_REGISTERS = "-mprefer-vector-width=512"


# The number of arch_prctl, its request, and the state that Linux keeps for the tiles of AMX.
_ARCH_PRCTL, _REQUEST_STATE, _TILE_DATA = 158, 0x1023, 18


def _x86(name: str, needs: tuple[str, ...], *more: str) -> InstructionSet:
    return InstructionSet(name, _X86, (*(f"-m{_OPTIONS.get(need, need)}" for need in needs), *more), frozenset(needs))


# The fastest first. `plain` is C++ for the oldest processors.
ALL = (
    _x86("amx", _AMX, _WHOLE_REGISTERS),
    _x86("bf16", _BF16, _WHOLE_REGISTERS),
    _x86("vbmi", _VBMI, _WHOLE_REGISTERS),
    _x86("vnni", _VNNI, _WHOLE_REGISTERS),
    _x86("avx512", _AVX512, _WHOLE_REGISTERS),
    _x86("avx2", _AVX2),
    InstructionSet("neon", _ARM, ("-march=armv8-a",)),
    InstructionSet("plain", (*_X86, *_ARM)),
)


def available() -> tuple[InstructionSet, ...]:
    """Those that this processor has and the system lets this process use, the fastest first."""
    return _usable(platform.machine().lower(), _features())


@cache
def _supported(machine: str, features: frozenset[str]) -> tuple[InstructionSet, ...]:
    sets = tuple(each for each in ALL if machine in each.machines and each.needs <= features)
    return sets or (ALL[-1],)


@cache
def _usable(machine: str, features: frozenset[str]) -> tuple[InstructionSet, ...]:
    return tuple(each for each in _supported(machine, features) if not _refused(each))


def _refused(instructions: InstructionSet) -> str | None:
    """Why the system does not let this process use what the processor has, or None."""
    return _tiles_refused() if "amx_tile" in instructions.needs else None


@cache
def _tiles_refused() -> str | None:
    """Asks Linux, once, for the tiles' state, for all threads of this process and what it forks."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_ARCH_PRCTL, _REQUEST_STATE, _TILE_DATA) == 0:
        return None
    return f"Linux does not permit the tiles of AMX: {os.strerror(ctypes.get_errno())}"


@cache
def asked() -> str:
    """What $CODEGEMM_CPU names, or nothing; what was compiled for that is kept as long (`library.forget`)."""
    return os.environ.get(VARIABLE, "")


def chosen() -> InstructionSet:
    """The fastest, or the one that $CODEGEMM_CPU names; ValueError if this processor hasn't it or may not use it."""
    here = available()
    wanted = asked()
    if not wanted:
        return here[0]
    for each in here:
        if each.name == wanted:
            return each
    for each in _supported(platform.machine().lower(), _features()):
        if each.name == wanted:
            raise ValueError(f"{VARIABLE}={wanted}: {_refused(each)}")
    raise ValueError(f"{VARIABLE}={wanted}: this processor has {', '.join(each.name for each in here)}")


@cache
def _features() -> frozenset[str]:
    return frozenset(told("/proc/cpuinfo", "flags").split())


def told(path: str, name: str) -> str:
    """What the system says in a file of /proc behind the first of such a name, or nothing."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
