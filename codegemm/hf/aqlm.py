"""Models that AQLM quantised: their layers as files hold them, and what these become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch

from codegemm.checkpoints.additive import from_aqlm
from codegemm.checkpoints.readers import aqlm_config
from codegemm.errors import CheckpointError
from codegemm.formats.format import parse
from codegemm.hf.config import AQLM, CodegemmConfig
from codegemm.torch.layer import CodebookLinear


def config_of(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """AQLM's entry of config.json as one of ours, of tensors laid out in AQLM's way; CheckpointError for one that can't
    be. where: for messages."""
    config, dense = aqlm_config(entry, where)
    return CodegemmConfig(config, modules_to_not_convert=dense, layout=AQLM).to_dict()


class AqlmLinear(torch.nn.Module):  # type: ignore[misc]
    """The tensors of a layer as AQLM stores them, to be loaded and replaced.

    codes: int8 or int16 [M, K/v, m]; codebooks [m, 2**b, 1, v] and scales [M, 1, 1, 1] of float32, which holds those of
    any dtype that there is; bias.
    """

    @classmethod
    def blank(cls, config: str, shape: tuple[int, int], bias: torch.Tensor | None = None) -> Self:
        """On the meta device."""
        layer, each, (rows, columns) = cls(), parse(config), shape
        codes = torch.int8 if each.b <= 8 else torch.int16
        for name, form, dtype in (
            ("codes", (rows, columns // each.v, each.m), codes),
            ("codebooks", (each.m, each.centroids, 1, each.v), torch.float32),
            ("scales", (rows, 1, 1, 1), torch.float32),
        ):
            empty = torch.empty(form, dtype=dtype, device="meta")
            layer.register_parameter(name, torch.nn.Parameter(empty, requires_grad=False))
        layer.register_parameter("bias", bias)
        return layer


def replace(model: Any) -> None:
    """Put CodebookLinears in the places of AqlmLinears, one by one; CheckpointError names one that can't be, ValueError
    one that is offloaded."""
    for name, module in list(model.named_modules()):
        if isinstance(module, AqlmLinear):
            if module.codes.is_meta:
                raise ValueError(f"{name}: is on disk; convert an AQLM model first: codegemm convert IN OUT")
            for own, parameter in module.named_parameters():
                if not getattr(parameter, "_is_hf_initialized", False):
                    raise CheckpointError(f"{name}.{own}: missing")
            tensors = [each.detach().cpu() for each in (module.codes, module.codebooks, module.scales)]
            try:
                weight = from_aqlm(*tensors).to(module.codes.device)
            except CheckpointError as error:
                raise CheckpointError(f"{name}: {error}") from None
            layer = CodebookLinear(weight, module.bias).train(module.training)
            for parameter in layer.parameters():
                parameter._is_hf_initialized = True
            model.set_submodule(name, layer)
