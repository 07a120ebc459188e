"""The processor: its name, its last-level cache, how fast it reads memory."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Iterator
from ctypes import c_int, c_long, c_void_p
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np

from codegemm.engines.cpu import compiler, isa, library

_PROBE_BYTES = 1 << 29
_PIECES = 64
_SMALLEST_CACHE = 32 << 20
_GROUPS, _GROUP_FOLDERS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# Of a control group with memory, by the version's folder: its limit, what it has, what of that would be given back.
_GROUP_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


@cache
def name() -> str:
    """The processor's model name."""
    return isa.told("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def last_level_cache() -> int:
    """Bytes of the largest cache that the system reports, at least 32 MiB."""
    sizes = [_SMALLEST_CACHE]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 0)
        if factor and text[:-1].isdecimal():
            sizes.append(int(text[:-1]) * factor)
    return max(sizes)


def available_memory() -> int:
    """Bytes of memory that are free to use, as far as the system and this process's control groups say."""
    if kibibytes := isa.told("/proc/meminfo", "MemAvailable"):
        free = int(kibibytes.split()[0]) << 10
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return max(0, min([free, *_left_in_groups()]))


def _left_in_groups() -> Iterator[int]:
    """Of the memory of each control group that limits it: this process's and those around them."""
    lines = _GROUPS.read_text().splitlines() if _GROUPS.exists() else []
    for _, controllers, place in (line.split(":", 2) for line in lines):
        version = "memory" if "memory" in controllers.split(",") else controllers
        if version not in _GROUP_FILES:
            continue
        limit, used, reclaimable = _GROUP_FILES[version]
        inner = PurePosixPath(place.lstrip("/"))  # in a container it may not be there, but the outermost is
        for group in (_GROUP_FOLDERS / version / each for each in (inner, *inner.parents)):
            try:
                most, now = (group / limit).read_text().strip(), int((group / used).read_text())
                stat = dict(line.partition(" ")[::2] for line in (group / "memory.stat").read_text().splitlines())
            except OSError:
                continue
            if most.isdecimal():
                yield int(most) - now + int(stat.get(reclaimable, 0))


def measure_bandwidth(repeats: int = 7) -> float:
    """Bytes a second that the engine's threads read: the best of some passes over a buffer larger than the caches."""
    size = min(max(_PROBE_BYTES, 2 * last_level_cache()), available_memory() // 4) // 4
    size -= size % (_PIECES * 1024)
    data = np.ones(size, np.float32)
    read = library.function(compiler.SOURCES / "stream.cpp", "stream_read", c_void_p, c_long, c_int, c_void_p)
    sums, vector = np.empty(_PIECES, np.float32), np.ones(1024, np.float32)
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        if read is None:
            data.reshape(-1, 1024) @ vector
        else:
            read(library.address(data), size, _PIECES, library.address(sums))
        times.append(time.perf_counter() - begin)
    return data.nbytes / min(times)


def measure_multiply_adds(repeats: int = 5, size: int = 1024) -> float:
    """Multiply-adds a second of NumPy's product of two matrices of so many rows in float32: by the median."""
    one = np.ones((size, size), np.float32)
    two, out = one.copy(), np.empty_like(one)
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        np.matmul(one, two, out=out)
        times.append(time.perf_counter() - begin)
    return size**3 / statistics.median(times[1:])
