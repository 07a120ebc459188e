"""Where a model goes that is made of another: a file or a folder as that is, which appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from codegemm.errors import CheckpointError
from codegemm.files import File, check_folder_of, check_writable, same
from codegemm.shards import Model, open_model, write_index

# Ends of the names of files with weights in other forms, and of their indices.
_WEIGHTS = (
    ".bin", ".ckpt", ".ggml", ".gguf", ".h5", ".index.json", ".msgpack", ".onnx", ".onnx_data", ".ot", ".pt", ".pth",
    ".safetensors", ".tflite",
)  # fmt: skip


@dataclass(frozen=True)
class Destination:
    """path: where it goes, links followed.

    copies: the other files of the model's folder that go along, relative to it; left_out: those that don't.
    """

    model: Model
    path: Path
    copies: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def paths(self) -> list[Path]:
        """Of the files with tensors that are written."""
        return [self.path] if self.model.folder is None else [self.path / file.path.name for file in self.model.files]

    def write(
        self, work: Path, write_file: Callable[[File, Path], None], instead: Mapping[str, bytes] | None = None
    ) -> None:
        """Write the file; or all that goes into the folder, in the folder `work`, and rename that.

        write_file: writes what becomes of one of the model's files to a path. instead: contents of others of the
        folder's files, which are not copied. CheckpointError, and what is at the path stays as it was, where that
        fails.
        """
        if self.model.folder is None:
            write_file(self.model.files[0], self.path)
            return
        new, old = work / "new", work / "old"
        if work.is_dir() and (others := {each.name for each in work.iterdir()} - {new.name, old.name}):
            raise CheckpointError(f"{work}: holds {min(others)}, which would be lost: move it elsewhere")
        try:
            if old.exists() and not self.path.exists():  # a process was killed in the middle of `_exchange`
                os.rename(old, self.path)
            shutil.rmtree(work, ignore_errors=True)
            new.mkdir(parents=True)
            for file in self.model.files:
                write_file(file, new / file.path.name)
            for name in self.copies:
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.model.folder / name, new / name)
            for name, content in (instead or {}).items():
                (new / name).write_bytes(content)
            if self.model.index is not None:
                shards = [File(new / file.path.name) for file in self.model.files]
                write_index(new / self.model.index.name, shards, self.model.index_metadata)
            _exchange(self.path, new, old)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise CheckpointError(f"{self.path}: could not be written: {error.strerror or error}") from None
        finally:
            shutil.rmtree(new, ignore_errors=True)
            with suppress(OSError):  # not where what was at the path could not be put back
                work.rmdir()


def destination(
    model: Model, target: Path, others: Sequence[Path], force: bool, added: Collection[str] = ()
) -> Destination:
    """Where a model goes that is made of its files and `others`, such as a calibration; added: names of files that are
    written beside it.

    CheckpointError where that can't be made, is or holds something that is read, exists (without force), or is a folder
    with more in it than a model.
    """
    path, inputs = Path(os.path.realpath(target)), [*model.paths, *others]
    if model.folder is None:
        check_writable(path)
        read = [each for each in inputs if same(each, path)]
        found, is_there, more = Destination(model, path), path.exists(), set[str]()
    else:
        check_folder_of(path)
        if path.is_file() or path.suffix == ".safetensors":
            raise CheckpointError(f"{target}: must be a folder, as {model.folder} is one")
        read = [each for each in (model.folder, *inputs) if same(each, path) or path in each.resolve().parents]
        found, held = Destination(model, path, *_others(model, model.folder, path)), _held(path)
        ours = {each.name for each in (*model.paths, *_paths(path))} | {*found.copies, *added}
        is_there, more = bool(held), held - ours
    if read:
        raise CheckpointError(f"{target}: would replace {read[0]}, which is read")
    if is_there and not force:
        raise CheckpointError(f"{target}: exists, and is replaced only by force (--force)")
    if more:
        raise CheckpointError(f"{target}: holds {min(more)}, which would be lost: move it elsewhere")
    return found


def _exchange(path: Path, new: Path, old: Path) -> None:
    """Rename a new folder to `path`, and what was there to `old`; or leave it there."""
    if path.exists():
        os.rename(path, old)
    try:
        os.rename(new, path)
    except BaseException:
        if old.exists():
            os.rename(old, path)
        raise


def _others(model: Model, folder: Path, target: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The files of a model's folder, hidden ones and the target's aside, that go along and that don't."""
    own = {path.name for path in model.paths}
    copies, left_out = [], []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if (
            str(name) in own
            or any(part.startswith(".") for part in name.parts)
            or Path(os.path.realpath(path)).is_relative_to(target)
        ):
            continue
        if os.path.isdir(path):
            if not os.access(path, os.R_OK | os.X_OK):
                raise CheckpointError(f"{path}: can't be read, and would be left out")
        elif os.path.isfile(path) and not name.name.lower().endswith(_WEIGHTS):
            if not os.access(path, os.R_OK):
                raise CheckpointError(f"{path}: can't be read, and would be left out")
            copies.append(str(name))
        elif os.path.isfile(path) or path.is_symlink():
            left_out.append(str(name))
    return tuple(copies), tuple(left_out)


def _held(folder: Path) -> set[str]:
    """All files that a folder has, relative to it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


def _paths(folder: Path) -> list[Path]:
    """Of the model that lies in a folder, if one does."""
    try:
        return open_model(folder).paths
    except CheckpointError:
        return []
