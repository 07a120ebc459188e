"""QuIP#'s layout (Tseng et al., 2024)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.checkpoints.arguments import FLOATS, as_array, refusing
from codegemm.errors import CheckpointError
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
) -> E8PWeight:
    """The weight of a QuIP# layer.

    qidxs: int64 [M, K/32] (E8P12), [M, 3K/64] (E8P12RVQ3B) or [M, K/16] (E8P12RVQ4B).
    SU, SV: float16 (or bfloat16, float32) [K], [M].
    codebook: its name in the checkpoint's config; only version 0 of E8P12RVQ3B is known.
    resid_scale: `resid_scale_override` of the config; None or a number that isn't positive leaves the default.
    wscale: `Wscale`, folded into SV.
    scale_wh: `scaleWH` [K], divided out of x, so folded into SU.

    Raises CheckpointError.
    """
    if codebook not in CODEBOOKS:
        raise CheckpointError(f"codebook {codebook!r}: must be one of {', '.join(CODEBOOKS)}")
    qidxs = as_array("qidxs", qidxs, ("int64",), 2)
    su, sv = _vector("SU", SU), _vector("SV", SV)
    wanted = CODEBOOKS[codebook] * len(su) // 64
    if qidxs.shape != (len(sv), wanted):
        raise CheckpointError(f"qidxs: shape {qidxs.shape}, must be ({len(sv)}, {wanted}) for {codebook}")
    if not np.isfinite(wscale):
        raise CheckpointError(f"wscale={wscale}: must be finite")
    if wscale != 1.0:
        sv = sv.astype(np.float32) * np.float32(wscale)
    if scale_wh is not None:
        divisor = _vector("scale_wh", scale_wh).astype(np.float32)
        if divisor.shape != su.shape:
            raise CheckpointError(f"scale_wh: shape {divisor.shape}, must be {su.shape}")
        if not divisor.all():
            raise CheckpointError(f"scale_wh: is 0 at {int(np.argmin(divisor != 0))}, must not be")
        su = su.astype(np.float32) / divisor
    if resid_scale is not None and not resid_scale > 0:
        resid_scale = None
    return E8PWeight(qidxs, su, sv, resid_scale)


def _vector(name: str, values: Any) -> npt.NDArray:
    vector = as_array(name, values, (*FLOATS, "float64"), 1)
    return vector if vector.dtype == np.float16 else vector.astype(np.float32)
