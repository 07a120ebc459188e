"""What a model's config.json says of its quantised layers, for who loads the model by it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from codegemm.formats.native import FORMAT

VERSION = 1  # of the entry


def entry(config: str, layers: Mapping[str, str], dense: Iterable[str]) -> dict[str, Any]:
    """The `quantization_config`. config: of all layers but those that `layers` names; dense: names of modules."""
    return {
        "quant_method": FORMAT,
        "version": VERSION,
        "config": config,
        "layers": dict(layers),
        "modules_to_not_convert": list(dense),
    }


def content(config: Mapping[str, Any], said: Mapping[str, Any]) -> bytes:
    """Of config.json, with such an entry and all else as it was."""
    text = json.dumps({**config, "quantization_config": said}, indent=2, ensure_ascii=False)
    return text.encode() + b"\n"
