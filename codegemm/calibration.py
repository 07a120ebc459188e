"""What a layer's inputs look like: H = X^T X, summed in a stream, by which `quantize` weighs the errors of a weight.

A file of calibrations holds `<name>.gram` (float64 [K, K]) and, under `<name>` in its metadata, the number of rows.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm import arrays, devices
from codegemm.counts import count
from codegemm.errors import CheckpointError
from codegemm.files import File, RawTensor, write
from codegemm.formats.codebook import check_finite
from codegemm.formats.native import check_name

__all__ = ["Calibration", "load", "save"]

_ROWS = 1024  # of x multiplied at a time: so few that sums of float32 stay exact enough
_PART = ".gram"


class Calibration:
    """The sum of x^T x over the rows of a layer's inputs, of `in_features` each.

    Rows come in any number of calls; a block of them is multiplied in float32, the blocks are added in float64.
    """

    def __init__(self, in_features: int) -> None:
        try:
            self.in_features = operator.index(in_features)
        except TypeError:
            raise ValueError(f"in_features={in_features!r}: must be an integer") from None
        if self.in_features < 1:
            raise ValueError(f"in_features={in_features}: must be at least 1")
        self.rows = 0
        self._sum = np.zeros((self.in_features, self.in_features))

    @property
    def H(self) -> npt.NDArray[np.float64]:
        """X^T X [K, K], read-only; not divided by the number of rows."""
        view = self._sum.view()
        view.flags.writeable = False
        return view

    def update(self, x: Any) -> None:
        """Add the rows of x [..., K]: floats of NumPy, CuPy or torch, multiplied where they are.

        Raises ValueError for another K and for numbers that are not finite, TypeError for another dtype; then nothing
        of x was added.
        """
        x = x.detach() if arrays.is_torch(x) and x.is_cuda else arrays.as_array(x, "x")
        arrays.check_float("x", x)
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x: shape {tuple(x.shape)}, its last axis must be in_features={self.in_features}")
        rows = x.reshape(-1, self.in_features)
        added = np.zeros_like(self._sum)
        for first in range(0, len(rows), _ROWS):
            added += _gram(rows[first : first + _ROWS])
        if not np.isfinite(np.diagonal(added)).all():
            column = int(np.argmin(np.isfinite(np.diagonal(added))))
            raise ValueError(f"x: column {column} has a NaN, an infinity or a square above float32's largest number")
        self._sum = self._sum + added  # what was given away before stays as it is
        self.rows += len(rows)

    @classmethod
    def of(cls, H: Any, rows: int) -> Calibration:
        """From a matrix X^T X [K, K] of so many rows, of any library; ValueError unless it is symmetric, finite and may
        be one."""
        given = devices.to_host(H, "H")
        if np.iscomplexobj(given):
            raise ValueError(f"H: {given.dtype}, must be real numbers")
        matrix = np.array(given, np.float64)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"H: shape {matrix.shape}, must be [in_features, in_features]")
        check_finite("H", matrix)
        diagonal = np.diagonal(matrix)
        if (diagonal < 0).any():
            raise ValueError(f"H: {diagonal.min():.3g} on its diagonal, must be sums of squares")
        if not np.allclose(matrix, matrix.T, rtol=1e-3, atol=1e-3 * float(diagonal.max(initial=0))):
            raise ValueError("H: must be symmetric")
        lengths = np.sqrt(diagonal)
        for first in range(0, len(matrix), _ROWS):  # of two columns no product is larger than their lengths'
            some = slice(first, first + _ROWS)
            most = np.outer(lengths[some], lengths) + 1e-3 * float(diagonal.max(initial=0))
            if (np.abs(matrix[some]) > most).any():
                row, column = np.argwhere(np.abs(matrix[some]) > most)[0] + (first, 0)
                raise ValueError(
                    f"H: {matrix[row, column]:.3g} at [{row}, {column}], must be at most "
                    f"{most[row - first, column]:.3g} beside its diagonal"
                )
        calibration = cls(len(matrix))
        calibration._sum, calibration.rows = matrix, count("rows", rows, 0)
        return calibration

    def __repr__(self) -> str:
        return f"Calibration(in_features={self.in_features}, rows={self.rows})"


def save(path: str | os.PathLike[str], calibrations: Mapping[str, Calibration]) -> None:
    """Write calibrations by the name of their weight; an existing file is replaced only when everything is written.

    Raises ValueError for names that a file can't hold, CheckpointError where writing fails.
    """
    for name in calibrations:
        check_name("calibration", name)
    tensors = {name + _PART: RawTensor.of(one.H) for name, one in calibrations.items()}
    write(path, tensors, {name: str(one.rows) for name, one in calibrations.items()})


def load(path: str | os.PathLike[str]) -> dict[str, Calibration]:
    """The calibrations of a file by name; CheckpointError for a file that has none or is broken."""
    return dict(CalibrationFile(path))


class CalibrationFile(Mapping[str, Calibration]):
    """The calibrations of a file by name, each read when it is asked for: those of a whole model fill no memory.

    CheckpointError for a file that has none or is broken; for numbers that can't be, when they are read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = File(path)
        held = self._file.tensors
        self._names = [tensor.removesuffix(_PART) for tensor in held if tensor.endswith(_PART)]
        for name in self._names:
            gram, rows = held[name + _PART], self._file.metadata.get(name)
            if not gram.is_matrix or gram.shape[0] != gram.shape[1]:
                raise CheckpointError(f"{self._file.path}: {name}: H is {gram}, must be [in_features, in_features]")
            if rows is None or not rows.isdecimal():
                raise CheckpointError(f"{self._file.path}: {name}: rows={rows!r}, must be a number")
        if not self._names:
            raise CheckpointError(
                f"{self._file.path}: holds no calibration (codegemm.calibration.save writes such a file)"
            )

    def in_features(self, name: str) -> int:
        """Of the inputs of one, which is not read for that."""
        return self._file.tensors[name + _PART].shape[0]

    def __getitem__(self, name: str) -> Calibration:
        try:
            held = self._file.tensors[name + _PART]
            return Calibration.of(held.numpy(), int(self._file.metadata[name]))
        except ValueError as error:
            raise CheckpointError(f"{self._file.path}: {name}: {error}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _gram(rows: Any) -> npt.NDArray[np.float64]:
    """x^T x of a few rows, multiplied in float32."""
    if arrays.is_torch(rows):
        with sys.modules["torch"].autocast("cuda", enabled=False):  # which would multiply in half
            rows = rows.float()
            return (rows.T @ rows).double().cpu().numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        rows = rows.astype(np.float32)
        gram = (rows.T @ rows).astype(np.float64)
    return gram.get() if hasattr(gram, "get") else gram
