"""A safetensors file, or a model's folder, with its dense matrices quantised and all else copied."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codegemm import model_config
from codegemm.calibration import Calibration, CalibrationFile
from codegemm.destination import Destination, destination
from codegemm.model_card import with_note
from codegemm.quantize import checked_seed, configured
from codegemm.quantize.parts import Parts
from codegemm.quantize.plan import Copied, Outcome, Quantized, nothing, plan
from codegemm.quantize.selection import Selection
from codegemm.quantize.stopping import check
from codegemm.quantize.work import Work
from codegemm.shards import CONFIG, Model, open_model, read_config

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class QuantizedFile:
    """What became of each tensor, in the source's order, and the bytes of the files with tensors before and after.

    left_out: of a folder, the files with weights in other forms, which were not copied. resumed: how many matrices an
    earlier run had finished.
    """

    quantized: tuple[Quantized, ...]
    copied: tuple[Copied, ...]
    source_bytes: int
    target_bytes: int
    left_out: tuple[str, ...] = ()
    resumed: int = 0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C after some matrices were finished: so many `kept` of `total` in `folder`."""

    def __init__(self, kept: int, total: int, folder: Path) -> None:
        self.kept, self.total, self.folder = kept, total, folder
        super().__init__(kept, total, folder)

    def __str__(self) -> str:
        return f"{self.kept} of {self.total} matrices are kept in {self.folder}; the same call goes on from there"


def quantize_file(
    source: StrPath,
    target: StrPath,
    config: Any,
    *,
    include: str | None = None,
    exclude: str | None = None,
    calibration: StrPath | Mapping[str, Calibration] | None = None,
    rotate: bool = False,
    time_limit: float | None = None,
    seed: int = 0,
    progress: bool | None = None,
    on_tensor: Callable[[Quantized | Copied], None] | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> QuantizedFile:
    """Quantise the matrices of a safetensors file or of a model's folder and write them, and all else, to another.

    A matrix `name.weight` of float16, bfloat16, float32 or float64 becomes the weight `name`, one of any other name
    keeps it; `codegemm.load(target, name)` reads it. A group size that does not divide a matrix's rows becomes the
    largest smaller one that does. What can't be quantised is copied: tensors that are no matrices of floats, shapes
    that the configuration can't hold, matrices that would take more bits than they have or are not finite. So are,
    unless `include` names them, embeddings, output heads and routers of experts.

    source: a file; or a folder with `model.safetensors` or with shards and `model.safetensors.index.json`, or such an
        index. Then the target is a folder of the same form: shards of the same names, their index, and the other files
        copied, hidden ones and weights in other forms aside. Its config.json and README.md say how it is quantised and
        loaded, by `codegemm.hf`.
    config, rotate, seed, progress: as in `quantize`; time_limit: seconds for each matrix.
    include, exclude: regular expressions of whole tensor names: which matrices, and which of them not. include: None
        for those that end in `.weight`, but for the ones named above.
    calibration: the layers' inputs by the weights' names, or a file that `codegemm.calibration.save` wrote; a matrix
        that it does not name is quantised without.
    on_tensor: hears of each tensor when it is done, in the order of the file.
    force: replace an existing target, once all is written; of a folder only that of a model.
    dry_run: say what would become of each tensor, and of how many bytes, without quantising or writing.

    Finished matrices are kept in the folder `.<target>.parts` beside the target until that is whole. After Ctrl-C,
    which raises KeyboardInterrupt, or a failure the same call goes on from there: a matrix counts only if its bytes and
    all that its weight depends on are the same.

    Raises ValueError, before anything is quantised, for arguments that won't do, a calibration of no matrix or of other
    in_features, and names that one file can't hold, and where no matrix could be quantised; CheckpointError, one of
    them, where a file can't be read or written, shards and their index contradict each other, or the target would
    replace what is read, or exists without force; TypeError for arguments of another type.
    """
    selection = Selection(include, exclude)
    config = configured(config, rotate, calibrated=calibration is not None)
    seed = checked_seed(seed)
    check(time_limit)
    model, named, inputs = open_model(source), "calibration", list[Path]()
    if calibration is not None and not isinstance(calibration, Mapping):
        named, inputs = str(calibration), [Path(calibration)]
        calibration = CalibrationFile(calibration)
    place = destination(model, Path(target), inputs, force)
    outcomes = plan(model, config, selection, calibration or {}, named)
    if dry_run:
        if on_tensor is not None:
            for one in outcomes:
                on_tensor(one)
        return _result(outcomes, place, sum(one.nbytes for one in outcomes), 0)

    said = None if model.folder is None else read_config(model.folder)
    work = Work(model, Parts(place.path), calibration or {}, seed, time_limit)
    resumed = work.find(outcomes)
    try:
        outcomes = work.run(outcomes, progress, on_tensor)
        if not work.finished:
            raise nothing(model, outcomes, selection)
        place = destination(model, Path(target), inputs, force)  # which may have come to be there meanwhile
        place.write(work.parts.work, work.write, _told(said, model, str(config), outcomes))
    except KeyboardInterrupt:
        if not work.finished:
            raise
        total = sum(isinstance(one, Quantized) for one in outcomes)
        raise Interrupted(len(work.finished), total, work.parts.folder) from None
    work.parts.remove()
    return _result(outcomes, place, sum(path.stat().st_size for path in place.paths), resumed)


def _told(said: dict[str, Any] | None, model: Model, config: str, outcomes: Sequence[Outcome]) -> dict[str, bytes]:
    """A model's config.json, by which transformers finds the quantised layers (`codegemm.hf`), and its card; neither
    where there is no config.json and where that says already how the model is quantised."""
    if said is None or model.folder is None or said.get("quantization_config") is not None:
        return {}
    matrices = [one.tensor for one in outcomes if isinstance(one, Copied) and len(model.tensors[one.tensor].shape) > 1]
    dense = sorted({name.rpartition(".")[0] for name in matrices})
    own = {one.name: one.config for one in outcomes if isinstance(one, Quantized) and one.config != config}
    written = model_config.content(said, model_config.entry(config, own, dense))
    return {CONFIG: written, **with_note(model.folder, config)}


def _result(outcomes: Sequence[Outcome], place: Destination, target_bytes: int, resumed: int) -> QuantizedFile:
    return QuantizedFile(
        tuple(one for one in outcomes if isinstance(one, Quantized)),
        tuple(one for one in outcomes if isinstance(one, Copied)),
        place.model.nbytes,
        target_bytes,
        place.left_out,
        resumed,
    )
