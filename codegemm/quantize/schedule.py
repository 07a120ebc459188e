"""How much work a matrix gets: a pure function of the configuration and the shape."""

from __future__ import annotations

from dataclasses import dataclass

from codegemm.formats.codebook_config import CodebookConfig

_SAMPLE = 1 << 16
_FINE_GROUP = 256  # up to so many weights a search for the scale gains something


@dataclass(frozen=True)
class Pass:
    """One way over the whole matrix. factors: of the present scales, tried for each group."""

    beam: int
    factors: tuple[float, ...] = (1.0,)

    @property
    def cost(self) -> float:
        """In rounds, roughly: for the progress bar."""
        return 4.0 * len(self.factors)


@dataclass(frozen=True)
class Schedule:
    """What codebooks are fitted by, and what follows.

    by_parts: whether each codebook starts with its own part of the coordinates, else with what others leave.
    rounds: of search and least squares, each on a sample of so many vectors. beams: of the rounds, for an equal share
    of them each. passes: over the whole matrix.
    """

    by_parts: bool
    rounds: int
    sample: int
    beams: tuple[int, ...]
    passes: tuple[Pass, ...]

    @classmethod
    def of(cls, config: CodebookConfig, rows: int, columns: int) -> Schedule:
        """For matrix [rows, columns]."""
        vectors = rows * columns // config.v
        fine = config.group_size(columns) <= _FINE_GROUP
        narrow, wide = ((0.9, 1.0, 1.1), (0.8, 0.9, 1.0, 1.1, 1.2)) if fine else ((1.0,), (1.0,))
        sample = max(_SAMPLE, 64 * config.centroids)
        if config.m == 1:
            rounds = min(max(vectors >> 14, 12), 100)
            return cls(False, rounds, 2 * sample, (1,), (Pass(1, wide), Pass(1, narrow), Pass(1)))
        every = config.centroids if config.m == 2 and config.b <= 8 else 16  # every pair, or a wide beam
        rounds = min(max(vectors >> 15, 8), 60)
        large = rounds >= 16  # Enough for the start that leads to less error, but slowly.
        return cls(
            by_parts=large and config.m == 2 and config.v % 2 == 0,
            rounds=rounds,
            sample=sample,
            beams=(16, 16, every) if large else (4, 8),
            passes=(Pass(8, narrow), Pass(every if large else min(every, 32))),
        )
