"""The work of quantising a model: matrix by matrix, each kept when it is finished; then what becomes of a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy.typing as npt

from codegemm.calibration import Calibration
from codegemm.files import File
from codegemm.formats.native import Stored, is_native, write_weights
from codegemm.quantize import quantize
from codegemm.quantize.parts import Parts, part_key
from codegemm.quantize.plan import Copied, Outcome, Quantized, kept_metadata, weight_name
from codegemm.quantize.progress import Progress, opener
from codegemm.shards import Model


@dataclass
class Work:
    """Quantises a model's matrices one by one. finished: the weights that are in the parts, by their tensors."""

    model: Model
    parts: Parts
    calibrations: Mapping[str, Calibration]
    seed: int
    time_limit: float | None
    finished: dict[str, Stored] = field(default_factory=dict)

    def find(self, outcomes: Sequence[Outcome]) -> int:
        """Take what an earlier run finished; how many matrices that is."""
        for one in outcomes if self.parts else ():
            if isinstance(one, Quantized):
                stored = self.parts.find(self._key(one, self.calibrations.get(one.name)))
                if stored is not None:
                    self.finished[one.tensor] = stored
        return len(self.finished)

    def run(
        self, outcomes: Sequence[Outcome], progress: bool | None, on_tensor: Callable[[Outcome], None] | None
    ) -> tuple[Outcome, ...]:
        """Quantise what is not finished; what became of each tensor."""
        matrices = [one for one in outcomes if isinstance(one, Quantized)]
        done, number = list[Outcome](), 0
        with opener(progress)("quantizing") as bar:
            bar.total(sum(one.size for one in matrices))
            bar.advance(sum(one.size for one in matrices if one.tensor in self.finished))
            for one in outcomes:
                number += isinstance(one, Quantized)
                if isinstance(one, Quantized) and one.tensor not in self.finished:
                    bar.name(f"{number} of {len(matrices)} matrices")
                    done.append(self._quantize(one, bar))
                    bar.advance(one.size)
                else:
                    done.append(one)
                if on_tensor is not None:
                    on_tensor(done[-1])
        return tuple(done)

    def _quantize(self, one: Quantized, bar: Progress) -> Outcome:
        calibration = self.calibrations.get(one.name)
        try:
            weight = quantize(
                self._matrix(one), one.config, calibration=calibration, seed=self.seed, time_limit=self.time_limit,
                progress=bar.beneath,
            )  # fmt: skip
        except ValueError as error:
            return Copied(one.tensor, str(error), one.source_bytes)
        self.finished[one.tensor] = self.parts.keep(self._key(one, calibration), weight)
        return one

    def write(self, file: File, path: Path) -> None:
        """What becomes of one of the model's files."""
        tensors = file.tensors
        weights = {weight_name(name): self.finished[name] for name in tensors if name in self.finished}
        others = {name: held for name, held in tensors.items() if name not in self.finished}
        version = int(file.metadata["version"]) if is_native(file) else 1
        write_weights(path, weights, others, kept_metadata(file.metadata), version)

    def _key(self, one: Quantized, calibration: Calibration | None) -> str:
        return part_key(self._matrix(one), calibration, one.config, self.seed, self.time_limit)

    def _matrix(self, one: Quantized) -> npt.NDArray:
        return self.model.tensors[one.tensor].numpy()
