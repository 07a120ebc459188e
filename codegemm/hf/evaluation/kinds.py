"""Which kind of model a configuration is of: what can be asked of it."""

from __future__ import annotations

from enum import Enum
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING


class Kind(Enum):
    """Causal models say how likely the next token is; encoders give every token of a text a vector."""

    CAUSAL = "causal"
    ENCODER = "encoder"


def kind_of(config: Any, name: str) -> Kind:
    """ValueError for other models: those that read one text and write another, and those of no text.

    name: of the model, for the message.
    """
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    if not getattr(config, "is_encoder_decoder", False):
        # Many encoders, BERT among them, can be made causal ones, too; their configuration then says is_decoder.
        if masked and not getattr(config, "is_decoder", False):
            return Kind.ENCODER
        if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
            return Kind.CAUSAL
    raise ValueError(
        f"{name}: a model of type {config.model_type!r} can't be evaluated: must be a causal language model "
        "(AutoModelForCausalLM knows it) or an encoder like BERT"
    )


def positions_of(config: Any) -> int | None:
    """How many positions a model has; None where it has no bound."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if found is None or found <= 0 else int(found)
