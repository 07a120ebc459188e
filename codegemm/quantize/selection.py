"""Which of a model's matrices are to be quantised, by their tensors' names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

USUAL = r".*\.weight"
# What looks rows up, and what few bits would cost most, by the modules' names in Hugging Face's models and the original
# ones. A layer's own gate_proj, and modules like o_proj and output.dense, are none of these.
_SPARED = {
    "an output head": re.compile(
        r"(.*\.)?(lm_head|embed_out|output_layer|cls\.predictions\.decoder)(\..+)?|(model\.|transformer\.)?(output|head)|proj_out"
    ),
    "an embedding": re.compile(
        r"(.*\.)?(wte|wpe|\w*embed\w*|embd|relative_attention_bias)|(.*\.)?embeddings?\..+|(model\.|transformer\.)?shared"
    ),
    "a router of experts": re.compile(r"(.*\.)?(gate|\w*router|shared_expert_gate)(\.\w+)*"),
}


def spared(tensor: str) -> str | None:
    """What a tensor of such a name is that is left alone unless somebody names it; None for a layer's."""
    module = tensor.removesuffix(".weight")
    return next((kind for kind, pattern in _SPARED.items() if pattern.fullmatch(module)), None)


@dataclass(frozen=True)
class Selection:
    """By regular expressions of whole names. include: None for the weights that `spared` doesn't name.

    ValueError for an expression that is none.
    """

    include: str | None = None
    exclude: str | None = None

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            try:
                re.compile(getattr(self, name) or "")
            except re.error as error:
                raise ValueError(f"{name} {getattr(self, name)!r}: {error}") from None

    def wants(self, tensor: str) -> bool:
        """Whether it was asked for; `spares` may still say why not."""
        return self._included.fullmatch(tensor) is not None and not (
            self._excluded and self._excluded.fullmatch(tensor)
        )

    def spares(self, tensor: str) -> str | None:
        """Why it is left alone though its name matches, or None."""
        return spared(tensor) if self.include is None else None

    def __str__(self) -> str:
        include = f"include {self._included.pattern!r}"
        return include if self.exclude is None else f"{include} without exclude {self.exclude!r}"

    @cached_property
    def _included(self) -> re.Pattern[str]:
        return re.compile(USUAL if self.include is None else self.include)

    @cached_property
    def _excluded(self) -> re.Pattern[str] | None:
        return None if self.exclude is None else re.compile(self.exclude)
