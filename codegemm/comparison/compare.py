"""`codegemm.compare`: a comparison as a call, its rows as data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from codegemm.comparison import runner, selection
from codegemm.comparison.result import Result
from codegemm.counts import count
from codegemm.formats.weight import Weight
from codegemm.kernel import Kernel
from codegemm.measuring import conditions, sources
from codegemm.measuring.sources import Case
from codegemm.quantize.matrix import as_matrix
from codegemm.quantize.progress import Progress
from codegemm.registry import PRECISIONS

SECONDS, ROUNDS, BATCHES = 0.25, 7, (1, 4, 16)


def compare(
    weights: str | Path | Mapping[str, Any] | None = None,
    *,
    tensors: str | Iterable[str] = (),
    shapes: Iterable[tuple[int, int]] = (),
    configs: Any = None,
    batches: int | Iterable[int] = BATCHES,
    kernels: str | Kernel | type[Kernel] | Iterable[str | Kernel | type[Kernel]] | None = None,
    precision: str | None = None,
    paths: str | Iterable[str] | None = None,
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
    kernels: names like "psumbook" and "cpu:psumbook"; or kernels, or classes of them without arguments, which need not
        be registered; all by default. How many times as fast as a dense product they are is told where "dense" is
        among them.
    precision: "full" or "fast": only kernels of that precision beside dense ones.
    paths: instruction sets for the CPU kernels, like "avx2".
    engine: "cpu", "cuda", or "auto": that of the kernels where some are given, else of the GPU if there is one.
    threads: of the CPU kernels; all processors by default.
    seconds: for one kernel, weight and batch, in so many `rounds` altogether.
    progress: show a bar on standard error.

    Returns a `Result`: `rows`, one for each kernel, weight and batch (`comparison.result.Row`), `machine`, `wrong` rows
    and `noisy` ones, what was `left_out`, `skipped` or `failed`.

    Raises TypeError and ValueError for what can't be, and where no product is left; CheckpointError for files that
    can't be read, MemoryError where there is too little memory.
    """
    names = _listed("kernels", kernels)
    if names is not None:
        names = [each() if isinstance(each, type) else each for each in names]
    if engine == "auto" and names:
        engine = next((each.engine for each in names if isinstance(each, Kernel)), engine)
    engine = conditions.engine_of(engine)
    if names is not None and precision is not None:
        raise ValueError("kernels and precision: give one of them")
    if precision not in (None, *PRECISIONS):
        raise ValueError(f"precision={precision!r}: must be one of {', '.join(PRECISIONS)}")
    if not isinstance(seconds, (int, float)) or not seconds >= 0:
        raise ValueError(f"seconds={seconds!r}: must be a number of at least 0")
    settings = runner.Settings(
        engine,
        selection.compared_kernels(engine, names, precision),
        selection.compared_paths(engine, _listed("paths", paths)),
        sorted({count("batches", n) for n in _listed("batches", batches) or ()}),
        seconds,
        count("rounds", rounds),
    )
    cases = _cases(weights, _listed("tensors", tensors or None), shapes, _listed("configs", configs))
    uses_torch = any(kernel.name in selection.TORCH for kernel in settings.kernels)
    with conditions.threads(threads, uses_torch), Progress("comparing", progress) as bar:
        return runner.run(cases, settings, bar)


def _cases(weights: Any, tensors: list[str] | None, shapes: Any, configs: list[Any] | None) -> list[Case]:
    """In the order of the arguments, each once."""
    made = [sources.shape_case(shape, configs) for shape in dict.fromkeys(map(_shape, shapes))]
    if tensors is not None and not isinstance(weights, (str, Path)):
        raise ValueError(f"tensors: {', '.join(tensors)}, are those of a file, and weights={weights!r} is none")
    if weights is None:
        return made or sources.default_cases(configs)
    if isinstance(weights, (str, Path)):
        return sources.file_cases(weights, list(dict.fromkeys(tensors or ())), configs) + made
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights: {type(weights).__name__}, must be a path, or weights and matrices by name")
    if not weights:
        raise ValueError("weights: names none")
    return [_case(name, weight, configs) for name, weight in weights.items()] + made


def _case(name: str, weight: Any, configs: list[Any] | None) -> Case:
    if isinstance(weight, Weight):
        return sources.weight_case(name, weight, configs)
    return sources.matrix_case(name, as_matrix(weight), configs)


def _listed(name: str, values: Any) -> list[Any] | None:
    """Several values, or the only one; None for None. ValueError for none of them."""
    if values is None:
        return None
    found = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else [values]
    if not found:
        raise ValueError(f"{name}: names none")
    return found


def _shape(shape: Any) -> tuple[int, int]:
    try:
        rows, columns = shape
    except (TypeError, ValueError):
        raise ValueError(f"shapes: {shape!r}, must be (out_features, in_features)") from None
    return count("shapes", rows), count("shapes", columns)
