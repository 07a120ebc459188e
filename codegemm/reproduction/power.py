"""What a product takes from the mains, where a driver tells it: nvidia-smi of a GPU, RAPL of a processor."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

_RAPL = Path("/sys/class/powercap")
_EVERY = 0.1  # seconds between two readings of a GPU's power
_SETTLING = 0.3  # of the time, in which a GPU's power rises


Meter = Callable[[Callable[[], object], float], float]  # watts, of a call and of the seconds that it is repeated for


def meter(engine: str) -> Meter | None:
    """Watts while a call is repeated for so many seconds; None where nothing tells them."""
    if engine == "cuda":
        return _of_gpu if _gpu_power() is not None else None
    return _of_processor if _joules() is not None else None


def _of_gpu(call: Callable[[], object], seconds: float) -> float:
    begin, due = time.monotonic(), 0.0
    read: list[float] = []
    while (now := time.monotonic() - begin) < seconds:
        call()
        if now >= due:
            due, power = now + _EVERY, _gpu_power()
            if power is not None and now >= _SETTLING * seconds:
                read.append(power)
    return statistics.fmean(read)


def _gpu_power() -> float | None:
    """Of the first GPU, now."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--id=0", "--query-gpu=power.draw.instant", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
        return float(said.strip())
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _of_processor(call: Callable[[], object], seconds: float) -> float:
    joules = -1.0
    while joules < 0:  # again where the counter began anew
        before, begin = _joules(), time.monotonic()
        while time.monotonic() - begin < seconds:
            call()
        after, taken = _joules(), time.monotonic() - begin
        joules = (after or 0) - (before or 0)
    return joules / taken


def _joules() -> float | None:
    """That all packages have taken so far; None where it may not be read."""
    counters = [path / "energy_uj" for path in _RAPL.glob("intel-rapl:?") if (path / "energy_uj").exists()]
    try:
        return sum(int(counter.read_text()) for counter in counters) / 1e6 if counters else None
    except (OSError, ValueError):
        return None
