"""What a call can ask for, checked before anything is done."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from codegemm.counts import count
from codegemm.hf.allocation.candidates import configurations
from codegemm.hf.blockwise.group import SHARDS
from codegemm.torch.tunable import check_tunable


def workers_for(wanted: int | None, device: str) -> int:
    """How many processes there are to be on this machine."""
    if wanted is not None:
        return count("workers", wanted)
    return torch.cuda.device_count() if device == "cuda" else min(len(os.sched_getaffinity(0)), SHARDS)


def configurations_of(config: Any, bits: float | None, calibration: Any) -> Sequence[Any]:
    """The configuration, or those to choose from for `bits`; ValueError where something is missing for either."""
    if bits is None:
        if config is None:
            raise ValueError("config: None, must name a configuration where there are no `bits` to choose by")
        return (config,)
    if calibration is None:
        raise ValueError(f"bits={bits!r}: there is no calibration to measure layers on")
    return configurations(config)


def check_trainable(configs: Iterable[tuple[str, str]]) -> None:
    """ValueError for a layer whose configuration's weights are not trained."""
    for name, config in configs:
        try:
            check_tunable(config)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
