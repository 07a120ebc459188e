"""Size, error and time of one candidate; what was measured once is read from the user's cache."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm import cache, choice, tables
from codegemm.devices import Device
from codegemm.engines.cpu import get_num_threads, isa
from codegemm.exploration.matrices import Matrix
from codegemm.formats.format import parse
from codegemm.formats.transformed import TransformedConfig
from codegemm.formats.weight import Weight
from codegemm.kernel import Product
from codegemm.measuring import stopwatch
from codegemm.measuring.accuracy import inputs
from codegemm.measuring.conditions import dtype_of
from codegemm.quantize.scaling import row_blocks
from codegemm.quantize.stored import key_parts, made, quantized

_FORMAT = "2"
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
        """Of x and of the dense product."""
        return dtype_of(self.engine)


@dataclass(frozen=True)
class Measured:
    """One configuration's figures.

    config: its text. error: |W - W'|^2 / |W|^2, or that of the outputs where there is a calibration. seconds: the
    median of the product by `kernel`, which `auto` takes; dense_seconds: of the dense product, in turns with it.
    """

    config: str
    bits_per_weight: float
    nbytes: int
    error: float
    kernel: str
    seconds: float
    dense_seconds: float

    @property
    def core(self) -> Any:
        """The configuration, without a rotation."""
        config = parse(self.config)
        return config.core if isinstance(config, TransformedConfig) else config

    @property
    def point(self) -> tuple[float, float, float]:
        """What is traded: size, error and time."""
        return self.bits_per_weight, self.error, self.seconds


class Bench:
    """Measures the configurations of one matrix."""

    def __init__(self, matrix: Matrix, settings: Settings) -> None:
        self._matrix, self._settings = matrix, settings
        self._moments = None if matrix.calibration is None else matrix.calibration.H
        self._dense: stopwatch.Candidate | None = None  # one for all: its time depends on the shape alone

    def measure(self, config: str) -> Measured:
        """Quantised and measured, or as it was found in the cache.

        Raises ValueError where the matrix can't be quantised so.
        """
        key = cache.key(self._key, made(config))
        entry = cache.lookup("measured", key, ".json")
        if entry is not None:
            return Measured(**json.loads(entry.read_text()))
        measured = self._measure(config)
        cache.store("measured", key, ".json", lambda path: path.write_text(json.dumps(asdict(measured))))
        return measured

    def _measure(self, config: str) -> Measured:
        matrix = self._matrix
        weight = quantized(matrix.values, config, self._settings.seed, calibration=matrix.calibration)
        error = energy(matrix.values, self._moments, weight.dequantize(np.float32)) / self._whole
        return Measured(config, weight.bits_per_weight, weight.nbytes, error, *self._time(weight))

    def _time(self, weight: Weight) -> tuple[str, float, float]:
        """The kernel that `auto` takes, the median seconds of its product and of the dense one."""
        settings = self._settings
        here = weight.to(settings.device)
        kernel, product = self._product(here, "auto")
        self._dense = self._dense or self._product(here, "dense")[1]
        x = inputs(weight.shape[1], settings.rows, settings.dtype)
        times: tuple[list[float], list[float]] = [], []
        for _ in range(_TURNS):
            for one, seconds in zip((product, self._dense), times):
                seconds += one.measure(x, settings.seconds / _TURNS)[1].seconds
        return kernel, statistics.median(times[0]), statistics.median(times[1])

    def _product(self, weight: Weight, name: str) -> tuple[str, stopwatch.Candidate]:
        """By the kernel of that name, or the one that `auto` stands for: which, and it to be timed."""
        settings = self._settings
        kernel = choice.select(Product.of(weight.spec, settings.rows, settings.dtype), settings.device, name)
        return kernel.name, stopwatch.Candidate(kernel, weight, [settings.rows], settings.dtype)

    @cached_property
    def _whole(self) -> float:
        """What errors are relative to; ValueError where that is nothing."""
        whole = energy(self._matrix.values, self._moments)
        if not whole > 0:
            raise ValueError(f"{self._matrix.name}: its outputs for the calibration are zero")
        return whole

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
