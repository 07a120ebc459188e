"""QuIP#'s layout (Tseng et al., 2024)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.checkpoints.arguments import as_array, number, refusing, single, vector
from codegemm.errors import CheckpointError
from codegemm.formats.codebook import check_finite
from codegemm.formats.e8p import E8PWeight

# Bits of a weight by QuIP#'s name of the codebook.
CODEBOOKS = {"E8P12": 2, "E8P12RVQ3B": 3, "E8P12RVQ4B": 4}


@refusing()
def from_quip(
    qidxs: Any,
    SU: Any,
    SV: Any,
    codebook: str = "E8P12",
    resid_scale: float | None = None,
    wscale: float = 1.0,
    scale_wh: Any = None,
    fuse_scales: Any = None,
    fuse_sizes: Any = None,
) -> E8PWeight:
    """The weight of a QuIP# layer.

    qidxs: int64 [M, K/32] (E8P12), [M, 3K/64] (E8P12RVQ3B) or [M, K/16] (E8P12RVQ4B).
    SU, SV: float16 (or bfloat16, float32, float64) [K], [M]; kept as float16 or float32.
    codebook: its name in the checkpoint's config; only version 0 of E8P12RVQ3B is known.
    resid_scale: `resid_scale_override` of the config; None or a number that isn't positive leaves the default.
    wscale: `Wscale`, folded into SV.
    scale_wh: `scaleWH` [K], divided out of x, so folded into SU.
    fuse_scales, fuse_sizes: of a layer that is several in one (q, k, v; up before gate): floats [parts], by which each
        part's outputs are multiplied, folded into SV, and integers [parts], the rows of each, M in all.

    What is folded must be a normal float32, or zero. Raises CheckpointError.
    """
    if not isinstance(codebook, str) or codebook not in CODEBOOKS:
        raise CheckpointError(f"codebook {codebook!r}: must be one of {', '.join(CODEBOOKS)}")
    qidxs = as_array("qidxs", qidxs, ("int64",), 2)
    su, sv = vector("SU", SU), vector("SV", SV)
    wanted = CODEBOOKS[codebook] * len(su) // 64
    if qidxs.shape != (len(sv), wanted):
        raise CheckpointError(f"qidxs: shape {qidxs.shape}, must be ({len(sv)}, {wanted}) for {codebook}")
    factors = _of_parts(fuse_scales, fuse_sizes, len(sv)) * number("wscale", wscale)
    if (factors != 1).any():
        sv = single("SV", sv * factors)
    if scale_wh is not None:
        divisor = vector("scale_wh", scale_wh).astype(np.float64)
        if divisor.shape != su.shape:
            raise CheckpointError(f"scale_wh: shape {divisor.shape}, must be {su.shape}")
        check_finite("scale_wh", divisor)
        if not divisor.all():
            raise CheckpointError(f"scale_wh: is 0 at {int(np.argmin(divisor != 0))}, must not be")
        su = single("SU", su / divisor)
    if resid_scale is not None and (resid_scale := number("resid_scale", resid_scale)) <= 0:
        resid_scale = None
    return E8PWeight(qidxs, su, sv, resid_scale)


def _of_parts(scales: Any, sizes: Any, rows: int) -> npt.NDArray[np.float64]:
    """The factor of each row, float64 [M]."""
    if (scales is None) != (sizes is None):
        raise CheckpointError("fuse_scales and fuse_sizes: one says nothing without the other")
    if scales is None or sizes is None:
        return np.ones(rows)
    factors = vector("fuse_scales", scales).astype(np.float64)
    counts = as_array("fuse_sizes", sizes, ("int32", "int64"), 1).tolist()
    if not np.isfinite(factors).all():
        raise CheckpointError(f"fuse_scales: {factors}, must be finite")
    if len(counts) != len(factors) or min(counts, default=0) < 1 or sum(counts) != rows:
        raise CheckpointError(
            f"fuse_sizes: {counts}, must be {len(factors)} positive numbers, as fuse_scales, that sum to {rows}"
        )
    return np.repeat(factors, counts)
