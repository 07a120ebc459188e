"""Which configurations matrices can get, in how many bits, and how much worse one is than another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from codegemm.formats.format import fitted, parse, spec_of
from codegemm.hf.allocation.knapsack import Item, Option
from codegemm.hf.config import CodegemmConfig
from codegemm.hf.matrices import Matrix, Plan, named_config, pool_of
from codegemm.quantize import configured
from codegemm.quantize.stored import quantized

# About 2, 3 and 4 bits by vectors that all kernels take; m1v2b6 for matrices in which three codebooks are too much.
USUAL = ("m1v4g-1", "m1v4g128", "m2v8g128", "m3v8g128", "m1v2b6g128", "m1v2g128")
_ROWS, _COLUMNS, _STEP = 512, 512, 64  # of the normal numbers that configurations are compared by


@dataclass(frozen=True)
class Pool:
    """Matrices that get the same configuration: one, or those of all experts of a layer.

    options: by the configuration as it was asked for, those that each of them has, fitted to its rows. None where the
    user said what they get.
    """

    matrices: Sequence[Matrix]
    options: Mapping[str, Sequence[str]] | None

    @property
    def size(self) -> int:
        """The number of weights."""
        return sum(prod(matrix.shape) for matrix in self.matrices)

    def item(self, divergence: float, errors: Mapping[str, float]) -> Item:
        """For the knapsack. divergence: that of errors of 1 relative to the matrices; errors: by configuration."""
        if self.options is None:
            own = [matrix.config for matrix in self.matrices]
            return Item(self.size, {own[0]: Option(_bits(self.matrices, own), 0.0)})
        return Item(
            self.size,
            {
                config: Option(_bits(self.matrices, own), divergence * errors[config])
                for config, own in self.options.items()
            },
        )


def configurations(config: Any) -> tuple[str, ...]:
    """Those to choose from: `USUAL` for None, one, or those of a list. ValueError or TypeError for what is none, and
    where there is no quantiser for it."""
    given = USUAL if config is None else config if isinstance(config, (list, tuple)) else (config,)
    if not given:
        raise ValueError(f"config={config!r}: must name a configuration to choose from")
    return tuple(dict.fromkeys(str(configured(each)) for each in given))


def pools(made: Plan, asked: CodegemmConfig, configs: Sequence[str]) -> dict[str, Pool]:
    """What can be chosen for the matrices of a plan, by their names or the pattern of those of all experts.

    ValueError for a matrix that none of the configurations can hold.
    """
    together: dict[str, list[Matrix]] = {}
    fixed = {}
    for name, matrix in made.matrices.items():
        if named_config(asked, name) is None:
            together.setdefault(pool_of(matrix), []).append(matrix)
        else:
            fixed[name] = Pool([matrix], None)
    free = {name: Pool(matrices, _options(name, matrices, configs)) for name, matrices in together.items()}
    return {**free, **fixed}


@lru_cache(maxsize=256)
def error(config: str) -> float:
    """|W - W'|^2 / |W|^2 of a matrix of normal numbers, the same for all; its weight stays in the cache."""
    columns = next((each for each in range(_COLUMNS, 2 * _COLUMNS, _STEP) if _fits(config, each)), _COLUMNS)
    matrix = np.random.default_rng(0).standard_normal((_ROWS, columns)).astype(np.float32)
    gap = quantized(matrix, fitted(config, columns), 0).dequantize(np.float32) - matrix
    return float(np.square(gap).sum() / np.square(matrix).sum())


def _options(name: str, matrices: Sequence[Matrix], configs: Sequence[str]) -> dict[str, list[str]]:
    found, reason = {}, ""
    for config in configs:
        own = [str(fitted(config, matrix.shape[1])) for matrix in matrices]
        try:
            _bits(matrices, own)
        except ValueError as error:
            reason = reason or str(error)
        else:
            found[config] = own
    if not found:
        raise ValueError(f"{name}: none of {', '.join(configs)} can hold it: {reason}")
    return found


def _bits(matrices: Sequence[Matrix], configs: Sequence[str]) -> int:
    """Of all of them, everything counted."""
    return sum(spec_of(matrix.shape, config).packed_bits for matrix, config in zip(matrices, configs))


def _fits(config: str, columns: int) -> bool:
    try:
        spec_of((_ROWS, columns), fitted(parse(config), columns))
    except ValueError:
        return False
    return True
