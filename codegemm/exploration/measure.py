"""Size, error and time of one candidate; what was measured once is read from the user's cache."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from codegemm import cache, choice, tables
from codegemm.comparison import measure as timing
from codegemm.config import CodebookConfig
from codegemm.devices import Device
from codegemm.engines.cpu import get_num_threads, isa
from codegemm.exploration.candidates import Candidate
from codegemm.exploration.matrices import Matrix
from codegemm.formats.weight import Weight
from codegemm.kernel import Product
from codegemm.quantize.scaling import row_blocks
from codegemm.quantize.stored import key_parts, quantized

_FORMAT = "1"
# The kernel and the dense product take turns, so that both see the same of what else the machine does.
_TURNS = 5


@dataclass(frozen=True)
class Settings:
    """rows: of x. seconds: for the measurement of one product."""

    engine: str
    rows: int = 1
    seed: int = 0
    seconds: float = 0.25

    @property
    def device(self) -> Device:
        """Where products are measured."""
        return Device.parse(self.engine)

    @property
    def dtype(self) -> np.dtype:
        """Of x and of the dense product: what a model uses on that engine."""
        return np.dtype(np.float32 if self.engine == "cpu" else np.float16)


@dataclass(frozen=True)
class Measured:
    """One candidate's figures.

    error: |W - W'|^2 / |W|^2, or that of the outputs where there is a calibration. seconds: the median of the product
    by `kernel`, which `auto` takes; dense_seconds: that of the dense product, measured in turns with it.
    """

    config: str
    rotate: bool
    bits_per_weight: float
    nbytes: int
    error: float
    kernel: str
    seconds: float
    dense_seconds: float

    @property
    def parsed(self) -> CodebookConfig:
        """The configuration."""
        return CodebookConfig.parse(self.config)

    @property
    def point(self) -> tuple[float, float, float]:
        """What is traded: size, error and time."""
        return self.bits_per_weight, self.error, self.seconds


class Bench:
    """Measures the candidates of one matrix."""

    def __init__(self, matrix: Matrix, settings: Settings) -> None:
        self._matrix, self._settings = matrix, settings
        self._dense: timing.Candidate | None = None  # one for all: its time depends on the shape alone

    def measure(self, candidate: Candidate) -> Measured:
        """Quantised and measured, or as it was found in the cache.

        Raises ValueError where the matrix can't be quantised so.
        """
        key = cache.key(self._key, str(candidate))
        entry = cache.lookup("measured", key, ".json")
        if entry is not None:
            return Measured(**json.loads(entry.read_text()))
        measured = self._measure(candidate)
        cache.store("measured", key, ".json", lambda path: path.write_text(json.dumps(asdict(measured))))
        return measured

    def _measure(self, candidate: Candidate) -> Measured:
        matrix, seed = self._matrix, self._settings.seed
        weight = quantized(
            matrix.values, candidate.config, seed, rotate=candidate.rotate, calibration=matrix.calibration
        )
        kernel, seconds, dense_seconds = self._time(weight)
        return Measured(
            str(candidate.config),
            candidate.rotate,
            weight.bits_per_weight,
            weight.nbytes,
            energy(matrix.values, self._moments, weight.dequantize(np.float32)) / self._whole,
            kernel,
            seconds,
            dense_seconds,
        )

    def _time(self, weight: Weight) -> tuple[str, float, float]:
        """The kernel that `auto` takes, the median seconds of its product and of the dense one."""
        settings = self._settings
        here = weight.to(settings.device)
        if self._dense is None:
            self._dense = self._product(here, "dense")
        kernel = choice.select(Product.of(here.spec, settings.rows, settings.dtype), settings.device)
        product = self._product(here, kernel.full_name)
        x = timing.inputs(weight.shape[1], settings.rows, settings.dtype)
        times: tuple[list[float], list[float]] = [], []
        for _ in range(_TURNS):
            for one, seconds in zip((product, self._dense), times):
                seconds += one.measure(x, settings.seconds / _TURNS)[1].seconds
        return kernel.name, statistics.median(times[0]), statistics.median(times[1])

    def _product(self, weight: Weight, name: str) -> timing.Candidate:
        settings = self._settings
        kernel = choice.select(Product.of(weight.spec, settings.rows, settings.dtype), settings.device, name)
        return timing.Candidate(kernel, weight, [settings.rows], settings.dtype)

    @cached_property
    def _whole(self) -> float:
        """What errors are relative to; ValueError where that is nothing."""
        whole = energy(self._matrix.values, self._moments)
        if not whole > 0:
            raise ValueError(f"{self._matrix.name}: its outputs for the calibration are zero")
        return whole

    @property
    def _moments(self) -> npt.NDArray[np.float64] | None:
        calibration = self._matrix.calibration
        return None if calibration is None else calibration.H

    @cached_property
    def _key(self) -> str:
        """Of everything but the candidate that a measurement depends on, the kernels' sources and choices included."""
        settings = self._settings
        return cache.key(
            _FORMAT,
            *key_parts(self._matrix.values, self._matrix.calibration),
            repr(settings),
            tables.machine_key(settings.device),
            repr(tables.tuned(settings.device)),
            f"{isa.chosen().name} {get_num_threads()}" if settings.engine == "cpu" else "",
        )


def energy(
    matrix: npt.NDArray, moments: npt.NDArray[np.float64] | None = None, less: npt.NDArray | None = None
) -> float:
    """|A|^2 of A [M, K], or tr(A H A^T) with moments H [K, K]: that of A's outputs for such x. In float64.

    A is matrix, or matrix - less.
    """
    total = 0.0
    for rows in row_blocks(matrix):
        block = matrix[rows].astype(np.float64)
        if less is not None:
            block -= less[rows]
        total += float(np.vdot(block, block if moments is None else block @ moments))
    return total
