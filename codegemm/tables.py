"""What was measured, for `auto` to look up: choices tuned on a device, and crossovers of a GPU's architecture.

`codegemm tune` writes the former, one file a device, into the user's cache; its name covers the device, the package's
version and the engine's code, so that what was measured with another is not found. The latter come with the package.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path

from codegemm import cache as store
from codegemm.devices import Device
from codegemm.engines.cpu import machine as cpu_machine
from codegemm.engines.cuda import machine as cuda_machine
from codegemm.version import __version__

FORMAT = "1"
CROSSOVERS = Path(__file__).parent / "engines" / "cuda" / "crossovers.json"
MACHINES = {"cpu": cpu_machine, "cuda": cuda_machine}
_KIND, _SUFFIX = "tuned", ".json"


@dataclass(frozen=True)
class Choice:
    """What was measured: `kernel` is the fastest from batch `batches[0]` to `batches[1]`."""

    weights: str
    shape: tuple[int, int]
    batches: tuple[int, int]
    dtype: str
    kernel: str

    def distance(self, n: int) -> float:
        """How many times n is larger or smaller than the nearest measured batch, at least 1."""
        low, high = self.batches
        return max(low / n, n / high, 1.0)


def tuned(device: Device) -> tuple[Choice, ...]:
    """The choices stored for `cpu` or `cuda:<number>`; none where there is no file or it is damaged."""
    return _stored(machine_key(device))


@lru_cache(maxsize=64)
def _stored(key: str) -> tuple[Choice, ...]:
    try:
        path = store.lookup(_KIND, key, _SUFFIX)
        return () if path is None else _parse(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, KeyError):
        return ()


def save(device: Device, choices: Iterable[Choice]) -> Path:
    """Add choices to those of a device, in place of what they are for, and return the file.

    Raises PermissionError where the cache can't be written to.
    """
    key = machine_key(device)
    _stored.cache_clear()  # another process may have written, too
    kept = {(c.weights, c.shape, c.batches, c.dtype): c for c in (*_stored(key), *choices)}
    text = json.dumps([asdict(choice) for choice in kept.values()], indent=1)
    place = store.store(_KIND, key, _SUFFIX, lambda path: path.write_text(text))
    for older in place.parent.glob(f"{key}-*{_SUFFIX}"):
        if older != place:
            older.unlink(missing_ok=True)
    _stored.cache_clear()
    return place


@cache
def crossovers(arch: int, path: Path = CROSSOVERS) -> tuple[Choice, ...]:
    """The choices measured on GPUs of a compute capability (times ten); none where nothing was measured."""
    if not path.exists():
        return ()
    return _parse(json.loads(path.read_text()).get(str(arch), []))


def forget() -> None:
    """Read the tables anew at the next look."""
    _stored.cache_clear()
    crossovers.cache_clear()
    _code.cache_clear()


def _parse(records: list[dict]) -> tuple[Choice, ...]:
    return tuple(Choice(**record | {name: _pair(record[name]) for name in ("shape", "batches")}) for record in records)


def _pair(values: list[int]) -> tuple[int, int]:
    first, second = map(int, values)
    return first, second


def machine_key(device: Device) -> str:
    """The key of what was measured on `device`: of this package's version, and of what its engine says of the machine
    and of its own code."""
    return store.key(FORMAT, __version__, *MACHINES[device.engine].identity(device), _code(device.engine))


@cache
def _code(engine: str) -> str:
    return store.key(*(path.read_bytes() for path in MACHINES[engine].files()))
