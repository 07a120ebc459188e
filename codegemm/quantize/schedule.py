"""How much work a matrix gets: a pure function of the configuration and the shape."""

from __future__ import annotations

from dataclasses import dataclass

from codegemm.config import CodebookConfig

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
    """Codebooks from each start take `trial` rounds of search and least squares, the best `rounds` more.

    sample: vectors of a round. beams: of the rounds, for an equal share of them each. forget: what a round keeps of
    the sums before it.
    """

    starts: tuple[str, ...]
    trial: int
    rounds: int
    sample: int
    beams: tuple[int, ...]
    forget: float
    passes: tuple[Pass, ...]

    @classmethod
    def of(cls, config: CodebookConfig, rows: int, columns: int) -> Schedule:
        """For matrix [rows, columns]."""
        vectors = rows * columns // config.v
        fine = config.group_size(columns) <= _FINE_GROUP
        sample = max(_SAMPLE, 64 * config.centroids)
        if config.m == 1:
            return cls(
                starts=("residual",),
                trial=0,
                rounds=min(max(vectors >> 14, 12), 100),
                sample=2 * sample,
                beams=(1,),
                forget=0.7,
                passes=(Pass(1, (0.95, 1.0, 1.05) if fine else (1.0,)), Pass(1), Pass(1)),
            )
        exhaustive = config.centroids if config.m == 2 and config.b <= 8 else 0
        large = vectors > sample
        return cls(
            starts=("product", "residual") if config.v % config.m == 0 else ("residual",),
            trial=3,
            rounds=min(max(vectors >> 15, 9), 60),
            sample=sample,
            beams=(8, 16, exhaustive or 16) if large else (8,),
            forget=0.7,
            passes=(
                Pass(8, (0.95, 1.0, 1.05) if fine else (1.0,)),
                Pass(exhaustive or 16),
            ),
        )
