"""QTIP's layout (Tseng et al., 2024), of its HYB code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from codegemm import devices
from codegemm.checkpoints.arguments import as_array, refusing, vector
from codegemm.errors import CheckpointError
from codegemm.formats import trellis as code
from codegemm.formats.incoherent import BITS
from codegemm.formats.qtip import QtipWeight

# What `quip_params` of a model's config.json must say; K, the bits, may be one of several.
_PARAMS = {
    "decode_mode": "quantlut_sym", "L": code.WINDOW, "V": code.PAIR, "tlut_bits": code.TABLE.bit_length() - 1,
    "td_x": code.TILE, "td_y": code.TILE,
}  # fmt: skip


@refusing()
def from_qtip(
    trellis: Any, tlut: Any, SU: Any, SV: Any, *, rcp: Any = None, quip_params: Mapping[str, Any] | None = None
) -> QtipWeight:
    """The weight of a QTIP layer.

    trellis: int16 [M/16 * K/16, 16k], k = 2, 3 or 4 bits a weight. tlut: float16 [512, 2].
    SU, SV: float16 (or bfloat16, float32, float64) [K], [M]; kept as float16 or float32.
    rcp: the layer's, a number; only 0 is known: whole Hadamard transforms, not such as were split for tensor
        parallelism. It may be left out but where quip_params has `split_for_tp`.
    quip_params: of the model's config.json, to be checked where it is given; of `decode_mode`s only `quantlut_sym`.

    Raises CheckpointError.
    """
    if quip_params is not None:
        _check_params(quip_params)
    if rcp is None and quip_params is not None and quip_params.get("split_for_tp"):
        raise CheckpointError("rcp: must be given where quip_params has split_for_tp")
    split = devices.to_host(0 if rcp is None else rcp, "rcp")
    if split.size != 1 or split.dtype.kind not in "iu" or split.item() != 0:
        raise CheckpointError(
            f"rcp={split.tolist()!r}: must be 0: Hadamard transforms split for tensor parallelism are not read"
        )
    codes, table = as_array("trellis", trellis, ("int16",), 2), as_array("tlut", tlut, ("float16",), 2)
    weight = QtipWeight(codes, table, vector("SU", SU), vector("SV", SV))
    if quip_params is not None and quip_params.get("K", weight.bits) != weight.bits:
        raise CheckpointError(f"quip_params: K={quip_params['K']!r}, trellis is of {weight.bits} bits")
    return weight


def _check_params(params: Mapping[str, Any]) -> None:
    """CheckpointError unless the model is of the code that is read here."""
    if not isinstance(params, Mapping):
        raise CheckpointError(f"quip_params: {type(params).__name__}, must be a mapping")
    if "decode_mode" not in params:
        raise CheckpointError("quip_params: no decode_mode: of a QuIP# model, whose layers from_quip reads")
    for name, known in _PARAMS.items():
        if params.get(name, known) != known:
            raise CheckpointError(f"quip_params: {name}={params[name]!r}, must be {known!r}")
    if params.get("K", BITS[0]) not in BITS:
        raise CheckpointError(f"quip_params: K={params['K']!r}, must be one of {', '.join(map(str, BITS))}")
