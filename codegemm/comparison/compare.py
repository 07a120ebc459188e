"""`codegemm.compare`: a comparison as a call, its rows as data."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from codegemm.comparison import runner, selection
from codegemm.comparison.result import Result
from codegemm.formats.weight import Weight
from codegemm.kernel import Kernel
from codegemm.measuring import conditions, sources
from codegemm.measuring.sources import Case
from codegemm.quantize.progress import Progress
from codegemm.registry import PRECISIONS

SECONDS, ROUNDS, BATCHES = 0.25, 7, (1, 4, 16)


def compare(
    weights: str | Path | Mapping[str, Any] | None = None,
    *,
    tensors: Iterable[str] = (),
    shapes: Iterable[tuple[int, int]] = (),
    configs: Iterable[Any] | None = None,
    batches: Iterable[int] = BATCHES,
    kernels: Iterable[str | Kernel] | None = None,
    precision: str | None = None,
    paths: Iterable[str] | None = None,
    engine: str = "auto",
    threads: int | None = None,
    seconds: float = SECONDS,
    rounds: int = ROUNDS,
    progress: bool = False,
) -> Result:
    """Multiply by quantised weights with every kernel of this machine: times, bytes and errors as data.

    weights: a safetensors file or a model's folder; or quantised weights and dense matrices [out_features, in_features]
        by name. tensors: those of the file; else its layers' first matrix of each shape.
    shapes: (out_features, in_features), of random codes. Without weights and shapes: trained layers of MiniLM and the
        shapes of Llama-3-8B.
    configs: configurations of the weights that are made, like "m1v4g128"; by default some of each format.
    batches: rows of x.
    kernels: names like "psumbook" and "cpu:psumbook", or kernels, which need not be registered; all by default.
    precision: "full" or "fast": only kernels of that precision beside dense ones.
    paths: instruction sets for the CPU kernels, like "avx2".
    engine: "cpu", "cuda", or "auto".
    threads: of the CPU kernels; all processors by default.
    seconds: for one kernel, weight and batch, in so many `rounds` altogether.
    progress: show a bar on standard error.

    Returns a `Result`: `rows`, one for each kernel, weight and batch (`comparison.result.Row`), `machine`, `wrong` rows
    and `noisy` ones, what was `left_out`, `skipped` or `failed`.

    Raises ValueError for what can't be (`runner.NothingToMeasure` where no product is left), CheckpointError for files
    that can't be read, MemoryError where there is too little memory.
    """
    engine = conditions.engine_of(engine)
    if kernels is not None and precision is not None:
        raise ValueError("kernels and precision: give one of them")
    if precision not in (None, *PRECISIONS):
        raise ValueError(f"precision={precision!r}: must be one of {', '.join(PRECISIONS)}")
    settings = runner.Settings(
        engine,
        selection.compared_kernels(engine, kernels, precision),
        selection.compared_paths(engine, None if paths is None else list(paths)),
        sorted({_positive("batches", n) for n in batches}),
        float(seconds),
        _positive("rounds", rounds),
    )
    if not settings.batches:
        raise ValueError("batches: names no number of rows")
    if not settings.seconds >= 0:
        raise ValueError(f"seconds={seconds!r}: must be at least 0")
    cases = _cases(weights, tuple(tensors), tuple(shapes), None if configs is None else tuple(configs))
    with conditions.threads(threads), Progress("comparing", progress) as bar:
        return runner.run(cases, settings, bar)


def _cases(weights: Any, tensors: Sequence[str], shapes: Sequence[tuple[int, int]], configs: Any) -> list[Case]:
    """In the order of the arguments, each once."""
    if weights is None and not shapes:
        return sources.default_cases(configs)
    cases: list[Case] = []
    if isinstance(weights, Mapping):
        for name, value in weights.items():
            make = sources.weight_case if isinstance(value, Weight) else sources.matrix_case
            cases.append(make(name, value, configs))
    elif weights is not None:
        cases += sources.file_cases(weights, tuple(dict.fromkeys(tensors)), configs)
    return cases + [sources.shape_case(shape, configs) for shape in dict.fromkeys(map(_shape, shapes))]


def _shape(shape: Any) -> tuple[int, int]:
    rows, columns = shape
    return _positive("shapes", rows), _positive("shapes", columns)


def _positive(name: str, number: Any) -> int:
    """ValueError unless it is an integer of at least 1."""
    try:
        value = operator.index(number)
    except TypeError:
        value = 0
    if value < 1:
        raise ValueError(f"{name}: {number!r}, must be an integer of at least 1")
    return value
