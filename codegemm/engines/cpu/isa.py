"""The instruction sets for which the engine's C++ is compiled, and the one that this processor's products take."""

from __future__ import annotations

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
_VBMI = (*_AVX512, "avx512vbmi")

# GCC halves vectors of 64 bytes on its own where it thinks that wide registers lower the clock.
_WHOLE_REGISTERS = "-mprefer-vector-width=512"


def _x86(name: str, needs: tuple[str, ...], *more: str) -> InstructionSet:
    return InstructionSet(name, _X86, (*(f"-m{need}" for need in needs), *more), frozenset(needs))


# The fastest first. `plain` is C++ for the oldest processors.
ALL = (
    _x86("vbmi", _VBMI, _WHOLE_REGISTERS),
    _x86("avx512", _AVX512, _WHOLE_REGISTERS),
    _x86("avx2", _AVX2),
    InstructionSet("neon", _ARM, ("-march=armv8-a",)),
    InstructionSet("plain", (*_X86, *_ARM)),
)


def available() -> tuple[InstructionSet, ...]:
    """Those that this processor has, the fastest first."""
    return _supported(platform.machine().lower(), _features())


@cache
def _supported(machine: str, features: frozenset[str]) -> tuple[InstructionSet, ...]:
    sets = tuple(each for each in ALL if machine in each.machines and each.needs <= features)
    return sets or (ALL[-1],)


@cache
def asked() -> str:
    """What $CODEGEMM_CPU names, or nothing; what was compiled for that is kept as long (`library.forget`)."""
    return os.environ.get(VARIABLE, "")


def chosen() -> InstructionSet:
    """The fastest, or the one that $CODEGEMM_CPU names; ValueError if this processor hasn't it."""
    here = available()
    wanted = asked()
    if not wanted:
        return here[0]
    for each in here:
        if each.name == wanted:
            return each
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
