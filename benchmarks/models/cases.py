"""What is measured: configurations, and the ways in which models get to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PLAIN, CALIBRATED, DISTILLED = "plain", "calibrated", "distilled"
NEAREST, FED_BACK = "nearest", "GPTQ"
# Each by what it takes beside the weights: nothing; a text's inputs; the dense model's predictions, too.
WAYS = {
    PLAIN: "codebooks, by the weights alone",
    CALIBRATED: "codebooks, by what the layers' inputs are",
    DISTILLED: "the same, and then by the dense model's predictions",
    NEAREST: "integers, each weight rounded to the nearest",
    FED_BACK: "integers, errors fed back by what the inputs are",
}
INTEGERS = (NEAREST, FED_BACK)


@dataclass(frozen=True)
class Case:
    """config: of the package; or several and a mean of bits, for which each layer gets one of them (`qtip,qtip3@2.55`);
    or like `int4g128`, where the way is one of integers. way: one of WAYS."""

    config: str
    way: str

    @property
    def asked(self) -> tuple[list[str], float | None]:
        """Configurations, and the bits by which layers get them; None: there is one for all."""
        configs, _, bits = self.config.partition("@")
        return configs.split(","), float(bits) if bits else None

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.config}-{self.way.lower()}"


def _all(ways: Sequence[str], *configs: str) -> list[Case]:
    return [Case(config, way) for config in configs for way in ways]


CASES = (
    *_all((PLAIN, CALIBRATED, DISTILLED), "m1v4g192"),
    *_all((CALIBRATED, DISTILLED), "m1v4g32", "m2v4b6g192"),
    *_all((CALIBRATED,), "e8p", "qtip", "qtip,qtip3@2.55", "qtip3", "qtip4"),
    *_all((NEAREST,), "int3g-1"),
    *_all(INTEGERS, "int3g64", "int4g64"),
)


def chosen(part: str | None, cases: Sequence[Case] = CASES) -> list[Case]:
    """The cases of a way, of a configuration or of one name, or all; ValueError for a part that none is of."""
    found = [case for case in cases if part is None or part.lower() in (case.name, case.config, case.way.lower())]
    if not found:
        parts = dict.fromkeys([*(case.way for case in cases), *(case.config for case in cases)])
        raise ValueError(f"part {part!r}: must be one of {', '.join(parts)}, or both with a hyphen between")
    return found
