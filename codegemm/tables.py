"""What was measured, for `auto` to look up: choices tuned on a device, and crossovers of a GPU's architecture.

`codegemm tune` writes the former, one file a device, into the user's cache; its name covers the device, the package's
version and the kernels' sources, so that what was measured with others is not found. The latter come with the package.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache, lru_cache
from pathlib import Path

from codegemm import cache as store
from codegemm.choice import Choice
from codegemm.version import __version__

FORMAT = "1"
CROSSOVERS = Path(__file__).parent / "engines" / "cuda" / "crossovers.json"
_KIND, _SUFFIX = "tuned", ".json"


@lru_cache(maxsize=64)
def tuned(device: str) -> tuple[Choice, ...]:
    """The choices stored for `cpu` or `cuda:<number>`; none where there is no file or it is damaged."""
    return _stored(device)


def _stored(device: str) -> tuple[Choice, ...]:
    try:
        found = store.lookup(_KIND, machine_key(device), _SUFFIX)
        return () if found is None else _parse(json.loads(found.read_text()))
    except (OSError, ValueError, TypeError, KeyError):
        return ()


def save(device: str, choices: Iterable[Choice]) -> Path:
    """Add choices to those of a device, in place of what they are for, and return the file.

    Raises PermissionError where the cache can't be written to.
    """
    kept = {(c.weights, c.shape, c.batches, c.dtype): c for c in (*_stored(device), *choices)}
    text = json.dumps([asdict(choice) for choice in kept.values()], indent=1)
    key = machine_key(device)
    place = store.store(_KIND, key, _SUFFIX, lambda path: _write(path, text))
    for older in place.parent.glob(f"{key}-*{_SUFFIX}"):
        if older != place:
            older.unlink(missing_ok=True)
    tuned.cache_clear()
    return place


@cache
def crossovers(arch: int, path: Path = CROSSOVERS) -> tuple[Choice, ...]:
    """The choices measured on GPUs of a compute capability (times ten); none where nothing was measured."""
    if not path.exists():
        return ()
    return _parse(json.loads(path.read_text()).get(str(arch), []))


def forget() -> None:
    """Read the tables anew at the next look."""
    tuned.cache_clear()
    crossovers.cache_clear()
    machine_key.cache_clear()


def _parse(records: list[dict]) -> tuple[Choice, ...]:
    return tuple(
        Choice(
            weights=str(record["weights"]),
            shape=_pair(record["shape"]),
            batches=_pair(record["batches"]),
            dtype=str(record["dtype"]),
            kernel=str(record["kernel"]),
        )
        for record in records
    )


def _pair(values: list[int]) -> tuple[int, int]:
    first, second = map(int, values)
    return first, second


def _write(path: Path, text: str) -> None:
    path.write_text(text)


@cache
def machine_key(device: str) -> str:
    """The key of what was measured on `cpu` or `cuda:<number>`: of this package's version and these kernels there."""
    return store.key(FORMAT, __version__, device_name(device), *_sources(device.partition(":")[0]))


def device_name(device: str) -> str:
    """What the makers call `cpu` or `cuda:<number>`."""
    if device == "cpu":
        from codegemm.engines.cpu import device as processor

        return processor.name()
    from codegemm.engines import cuda

    return cuda.name(device)


def _sources(engine: str) -> list[bytes]:
    """Of the engine's compiled kernels."""
    from codegemm import baselines, kernels_cu
    from codegemm.engines.cpu import compiler

    if engine == "cuda":
        files = sorted(kernels_cu.FOLDER.glob("*.cu*"))
    else:
        files = sorted([*compiler.SOURCES.glob("*.[ch]pp"), *Path(str(baselines.__file__)).parent.glob("*.cpp")])
    return [path.read_bytes() for path in files]
