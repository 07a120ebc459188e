"""Products as a report has them, measured or predicted: of rows as files hold them, which may lack what is optional."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from codegemm.measuring.stopwatch import varies
from codegemm.reporting import by

FAST = "psumbook_fast"  # of less precision than the others, which it is not measured by
OWN = ("psumbook", FAST, "dequant", "dequant_dense")  # this package's; all others are there to be beaten


@dataclass(frozen=True, kw_only=True)
class Product:
    """One kernel, weight and batch; what is not known is None.

    config: empty for a dense product. seconds, and their quartiles. bytes_per_second: read. bound: what takes the least
    time that it could be, which is the share bound_share of its time. predicted: whether the time is a cost model's.
    """

    case: str
    shape: tuple[int, int]
    kernel: str
    path: str
    config: str
    bits_per_weight: float | None
    batch: int
    seconds: float
    quartiles: tuple[float, float] | None
    times_dense: float | None
    bytes_per_second: float | None
    bound: str
    bound_share: float | None
    error: float | None
    error_to_original: float | None
    chosen: bool
    noisy: bool
    wrong: bool
    predicted: bool = False

    @property
    def name(self) -> str:
        """Kernel and weights; some are called alike."""
        return " ".join(dict.fromkeys(filter(None, (self.kernel, self.config))))

    @property
    def own(self) -> bool:
        """Whether the kernel is this package's."""
        return self.kernel in OWN


def product(row: Mapping[str, Any], predicted: bool = False) -> Product:
    """Of a row; KeyError, TypeError or ValueError for one that is no product's time."""
    out_features, in_features = row["shape"]
    shape, seconds = (int(out_features), int(in_features)), float(row["seconds"])
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds={seconds!r}: must be more than 0")
    quartiles = row.get("quartiles")
    lower, upper = map(float, quartiles or (seconds, seconds))
    error, tolerance = _number(row, "error"), _number(row, "tolerance")
    wrong = error is not None and tolerance is not None and error > tolerance
    bytes_read, bound_seconds = _number(row, "bytes_read"), _number(row, "bound_seconds")
    return Product(
        case=str(row.get("case") or by(shape)),
        shape=shape,
        kernel=str(row["kernel"]),
        path=str(row.get("path") or ""),
        config=str(row["config"]),
        bits_per_weight=_number(row, "bits_per_weight"),
        batch=int(row["batch"]),
        seconds=seconds,
        quartiles=(lower, upper) if quartiles else None,
        times_dense=_number(row, "times_dense"),
        bytes_per_second=None if bytes_read is None else bytes_read / seconds,
        bound=str(row.get("bound") or "memory") if bound_seconds else "memory",
        bound_share=bound_seconds / seconds if bound_seconds else _number(row, "bandwidth_share"),
        error=error,
        error_to_original=_number(row, "error_to_original"),
        chosen=bool(row.get("chosen")),
        noisy=bool(row.get("noisy", varies(seconds, (lower, upper)))),
        wrong=bool(row.get("wrong", wrong)),
        predicted=predicted,
    )


def several_paths(products: Iterable[Product]) -> bool:
    """Whether kernels were measured on several instruction sets."""
    return len({each.path for each in products} - {""}) > 1


def _number(row: Mapping[str, Any], name: str) -> float | None:
    """None for what is missing or no finite number."""
    value = row.get(name)
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None
