"""What quantising a model for a text takes: counted multiply-adds, and by them the hours of other models.

Of SmolLM2 it was measured how long its matrices took, and how long its lessons; of these it is known how many
multiply-adds they are, which gives the processor's rate. The search for codes grows with the weights. What grows
faster, products with X^T X, and what goes through the model, are counted at that rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Products of M K^2 multiply-adds for a matrix [M, K] that is quantised for inputs: W as it is corrected, the gradients
# of two fits of codebooks (quantize/output_fit.py), and the pulls of errors in four sweeps (quantize/sweep.py).
_PRODUCTS = 1 + 2 * 9 + 4


@dataclass(frozen=True)
class Decoder:
    """A model like Llama. keys: out_features of its key and value projections, each. words: tokens of its head."""

    name: str
    hidden: int
    inner: int
    keys: int
    blocks: int
    words: int

    @property
    def stages(self) -> tuple[tuple[int, int, bool], ...]:
        """Of a block, what is quantised together: in_features, out_features of all, whether they are added to the
        hidden states."""
        return (
            (self.hidden, self.hidden + 2 * self.keys, False),
            (self.hidden, self.hidden, True),
            (self.hidden, 2 * self.inner, False),
            (self.inner, self.hidden, True),
        )

    @property
    def weights(self) -> int:
        """In quantised layers."""
        return self.blocks * sum(k * m for k, m, _ in self.stages)

    @property
    def products(self) -> int:
        """Multiply-adds with matrices [K, K] while the layers are quantised: theirs, and one solution a stage."""
        return self.blocks * sum(_PRODUCTS * m * k * k + 4 * k**3 // 3 for k, m, _ in self.stages)

    @property
    def reading(self) -> int:
        """Multiply-adds for a token of the text: both models up to each stage and through the block, and sums over the
        inputs. Attention itself, which is little beside these, is left out."""
        sizes = [k * m for k, m, _ in self.stages]
        through = 2 * (sum(sum(sizes[:stage]) for stage in range(len(sizes))) + sum(sizes))
        sums = sum(2 * k * k + (k * m if added else 0) for k, m, added in self.stages)
        return self.blocks * (through + sums)

    @property
    def learning(self) -> int:
        """Multiply-adds for a token of a lesson: both models, and the way back for inputs and weights; the head's
        weights don't change."""
        return 4 * self.weights + 3 * self.words * self.hidden


SMOLLM2 = Decoder("SmolLM2-135M", 576, 1536, 192, 30, 49152)
LLAMAS = (Decoder("Llama-3 8B", 4096, 14336, 1024, 32, 128256), Decoder("Llama-3 70B", 8192, 28672, 1024, 80, 128256))


@dataclass(frozen=True)
class Hours:
    """Of one core. matrices: the search for codes. products: with X^T X. reading: the text. learning: from it."""

    matrices: float
    products: float
    reading: float
    learning: float


def hours(model: Decoder, seconds: Mapping[str, float], tokens: Mapping[str, int]) -> Hours:
    """Of a model on a core that took so many seconds for SmolLM2's `matrices` and `distilling`, for as many tokens
    `calibrated` and `distilled`."""
    rate = SMOLLM2.learning * tokens["distilled"] / seconds["distilling"] * 3600
    return Hours(
        seconds["matrices"] / 3600 * model.weights / SMOLLM2.weights,
        model.products / rate,
        model.reading * tokens["calibrated"] / rate,
        model.learning * tokens["distilled"] / rate,
    )
