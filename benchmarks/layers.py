"""Times every kernel on the linear layers of a model, on this machine's GPU.

Products are captured in CUDA graphs and timed as they replay, with weights rotated through more copies than the L2
cache holds. Every one that is timed is checked: against float64 for some rows of a codebook weight, against float32
behind rotations in float64 for E8P, which can't be multiplied by a part.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from codegemm import choice, devices
from codegemm.comparison import measure, sources
from codegemm.comparison.targets import Outcome, Timed, outcomes
from codegemm.devices import FIRST_GPU
from codegemm.engines.cuda import timing
from codegemm.engines.cuda.gpu import gpu_of
from codegemm.formats.codebook import CodebookWeight
from codegemm.formats.e8p import E8PWeight
from codegemm.formats.hadamard import transform
from codegemm.formats.names import spec_of
from codegemm.formats.weight import Weight
from codegemm.kernel import Kernel, Product
from codegemm.registry import refusal
from codegemm.version import __version__

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
CONFIGS = sources.RANDOM_CONFIGS
DTYPE = np.dtype(np.float16)
DEVICE = FIRST_GPU
WRONG = 1e-2  # no kernel of float16 errs so much
_EACH = 0.05  # seconds for one measurement, if there is time
_CHECKED_ROWS = 256


@dataclass(frozen=True)
class Row(Timed):
    """seconds: the median of `calls` replays, or calls: `timed` says which. error: ||y - y_ref|| / ||y_ref||."""

    quartiles: tuple[float, float]
    calls: int
    timed: str
    bytes_read: int
    times_dense: float | None
    error: float


@dataclass
class Report:
    """What was measured, on what, and what was not.

    bandwidths: bytes a second that a copy moves, before and after; shares are told of the larger.
    """

    device: str
    arch: int
    bandwidths: list[float]
    version: str = __version__
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def bandwidth(self) -> float:
        """That shares are told of."""
        return max(self.bandwidths)

    def measure_bandwidth(self) -> None:
        """Once more; shares are told anew."""
        self.bandwidths.append(timing.measure_bandwidth(DEVICE))
        self.rows = [replace(row, bandwidth_share=row.bytes_read / row.seconds / self.bandwidth) for row in self.rows]

    def outcomes(self) -> list[Outcome]:
        """What the rows say of the targets that they are about."""
        return [outcome for outcome in outcomes(self.rows, self.bandwidth) if outcome.found is not None]

    def as_json(self) -> dict:
        """Plain data."""
        return asdict(self) | {"bandwidth": self.bandwidth, "targets": [asdict(outcome) for outcome in self.outcomes()]}

    @property
    def wrong(self) -> list[Row]:
        """Products that are not what they should be."""
        return [row for row in self.rows if not row.error < WRONG]


class Clock:
    """Shares out the seconds of a part among its measurements."""

    def __init__(self, seconds: float, measurements: int) -> None:
        self._end, self._left = time.monotonic() + seconds, measurements

    def is_over(self) -> bool:
        """Whether nothing more must be begun."""
        return time.monotonic() >= self._end

    def next(self) -> float:
        """Seconds for the next measurement: half of its share, since it must be prepared, too."""
        share = (self._end - time.monotonic()) / max(1, self._left) / 2
        self._left -= 1
        return min(_EACH, max(0.0, share))


class Truth:
    """The right products of x [n, K] with a weight, or with some of its rows."""

    def __init__(self, weight: Weight, x: np.ndarray, seed: int = 0) -> None:
        rows = weight.shape[0]
        if isinstance(weight, CodebookWeight):
            chosen = np.random.default_rng(seed).choice(rows, min(rows, _CHECKED_ROWS), replace=False)
            self._rows = np.union1d(chosen, [0, rows - 1])
            part = CodebookWeight(weight.codes[self._rows], weight.part_codebooks[0], weight.scales[self._rows])
            self._products = measure.exact(part, x)
        else:
            assert isinstance(weight, E8PWeight)
            self._rows = np.arange(rows)
            rotated = transform(x.astype(np.float64) * weight.SU, transpose=True)
            product = rotated.astype(np.float32) @ weight.lattice(np.float32).T
            self._products = transform(product.astype(np.float64)) * weight.SV

    def error(self, y: np.ndarray) -> float:
        """Of y [n or fewer, M]; not a number where an element is none."""
        return measure.relative_error(y[:, self._rows], self._products[: len(y)])


def run(
    shapes: Sequence[tuple[int, int]],
    seconds: float,
    save: Callable[[Report], None],
    batches: Sequence[int] = BATCHES,
    configs: Sequence[str] = CONFIGS,
) -> Report:
    """Measure all shapes within about so many seconds; `save` is called whenever a shape is done."""
    report = Report(devices.name(DEVICE), gpu_of(DEVICE).arch, [timing.measure_bandwidth(DEVICE)])
    cases = [(shape, config) for shape in shapes for config in configs if _fits(shape, config, report)]
    clock = Clock(seconds, len(_planned(cases, batches)))
    dense: dict[tuple[tuple[int, int], int], float] = {}
    for place, (shape, config) in enumerate(cases):
        if clock.is_over():
            report.left_out += [f"{_name(*case)}: no time was left" for case in cases[place:]]
            break
        for row in _measure(shape, config, batches, clock, report, dense):
            report.rows.append(row)
            print(line(row), flush=True)
        if (shape, config) == cases[-1] or cases[place + 1][0] != shape:
            report.measure_bandwidth()
            save(report)
    save(report)
    return report


def builds(shapes: Sequence[tuple[int, int]]) -> Iterator[Callable[[], object]]:
    """What `run` compiles."""
    cases = [(shape, config) for shape in shapes for config in CONFIGS if _unfit(shape, config) is None]
    for kernel, product in _planned(cases, BATCHES):
        yield from kernel.builds(product, DEVICE)


def _planned(cases: Sequence[tuple[tuple[int, int], str]], batches: Sequence[int]) -> list[tuple[Kernel, Product]]:
    products = [Product.of(spec_of(*case), n, DTYPE) for case in cases for n in batches]
    return [(kernel, product) for product in products for kernel in _kernels() if not refusal(kernel, product, DEVICE)]


def line(row: Row) -> str:
    """A row for people."""
    dense = "" if row.times_dense is None else f"{row.times_dense:6.2f} x dense"
    marks = f"{' *' if row.chosen else ''}{' call by call' if row.timed == 'calls' else ''}"
    return (
        f"{row.shape[0]:6} x {row.shape[1]:<6} {row.config:11} N={row.batch:<4} {row.kernel:14} "
        f"{row.seconds * 1e6:9.1f} us {row.bytes_read / row.seconds / 1e9:7.0f} GB/s "
        f"{100 * row.bandwidth_share:5.1f} % of copy {dense} error {row.error:.0e}{marks}"
    )


def compared(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Two runs of a part that tells times, as its JSON has them, product by product: their times and how many times as
    fast the second is, `~` where their quartiles overlap; the geometric mean last. ValueError for other data."""
    known = {_product(row): row for row in _rows(before)}
    lines, ratios = [f"{_what(before)} -> {_what(after)}"], []
    for row in _rows(after):
        old = known.get(_product(row))
        if old is None:
            continue
        ratios.append(old["seconds"] / row["seconds"])
        (low, high), (old_low, old_high) = _quartiles(row), _quartiles(old)
        apart = low > old_high or high < old_low
        lines.append(
            f"{row['shape'][0]:6} x {row['shape'][1]:<6} {row['config']:11} N={row['batch']:<4} {row['kernel']:14} "
            f"{old['seconds'] * 1e6:9.1f} us {row['seconds'] * 1e6:9.1f} us {ratios[-1]:6.2f} x{'' if apart else ' ~'}"
        )
    if not ratios:
        raise ValueError("nothing to compare: no product is in both")
    return [*lines, f"{len(ratios)} products, geometric mean {statistics.geometric_mean(ratios):.3f} x"]


def _rows(report: Any) -> list[dict[str, Any]]:
    """What was timed, checked to be that."""
    rows = (report.get("rows") or report.get("cuts")) if isinstance(report, dict) else None
    needed = {"shape", "config", "batch", "kernel", "seconds"}
    if not isinstance(rows, list) or "device" not in report or not all(needed <= row.keys() for row in rows):
        raise ValueError("nothing to compare: must be what a part bench-* or cuts wrote, with times in it")
    return rows


def _quartiles(row: dict[str, Any]) -> tuple[float, float]:
    """Where none were kept, the median twice."""
    low, high = row.get("quartiles") or (row["seconds"], row["seconds"])
    return low, high


def _what(report: dict[str, Any]) -> str:
    return ", ".join(filter(None, (report["device"], report.get("version"))))


def _product(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row["shape"]), row["config"], row["batch"], row["kernel"], str(row.get("cut") or row.get("terms"))


def _measure(
    shape: tuple[int, int],
    config: str,
    batches: Sequence[int],
    clock: Clock,
    report: Report,
    dense: dict[tuple[tuple[int, int], int], float],
) -> Iterator[Row]:
    """A row for every kernel and batch; `dense` collects and gives the dense products' seconds."""
    host = sources.random_weight(shape, config)
    x = measure.inputs(shape[1], max(batches), DTYPE)
    truth = Truth(host, x)
    weight = host.to(DEVICE)
    products = {n: Product.of(weight.spec, n, DTYPE) for n in batches}
    bandwidth = report.bandwidth
    for kernel in _kernels():
        is_dense = kernel.name == "dense"
        if is_dense and (shape, batches[0]) in dense:
            continue  # its time depends on the shape alone
        fitting = [n for n, product in products.items() if not refusal(kernel, product, DEVICE)]
        what = f"{_name(shape, config)} {kernel.name}"
        try:
            candidate = measure.Candidate(kernel, weight, fitting, DTYPE) if fitting else None
            for n in fitting:
                if clock.is_over() or candidate is None:
                    report.left_out.append(f"{what} N={n}: no time was left")
                    continue
                y, timing = candidate.measure(x[:n], clock.next())
                seconds = timing.median
                if is_dense:
                    dense[shape, n] = seconds
                bytes_read = kernel.cost(products[n], DEVICE).bytes_read
                yield Row(
                    kernel=kernel.name,
                    config="" if is_dense else config,
                    shape=shape,
                    batch=n,
                    seconds=seconds,
                    bandwidth_share=bytes_read / seconds / bandwidth,
                    chosen=choice.select(products[n], DEVICE) is kernel,
                    quartiles=timing.quartiles,
                    calls=len(timing.seconds),
                    timed=timing.how,
                    bytes_read=bytes_read,
                    times_dense=dense[shape, n] / seconds if (shape, n) in dense else None,
                    error=truth.error(y),
                )
        except Exception as error:  # a kernel that fails must not take the others' times with it
            report.left_out.append(f"{what}: {type(error).__name__}: {error}")
        weight.memo.clear()


def _name(shape: tuple[int, int], config: str) -> str:
    return f"{shape[0]} x {shape[1]} {config}"


def _kernels() -> list[Kernel]:
    """The dense product first, since the others are told in its terms."""
    return sorted(measure.compared_kernels("cuda", None), key=lambda kernel: kernel.name != "dense")


def _fits(shape: tuple[int, int], config: str, report: Report) -> bool:
    reason = _unfit(shape, config)
    if reason:
        report.left_out.append(f"{_name(shape, config)}: {reason}")
    return reason is None


def _unfit(shape: tuple[int, int], config: str) -> str | None:
    """Why the shape can't be stored so, or None."""
    try:
        spec_of(shape, config)
    except ValueError as error:
        return str(error)
    return None
