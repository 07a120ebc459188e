"""What a model's config.json says of its quantised layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from transformers.utils.quantization_config import QuantizationConfigMixin

from codegemm import model_config
from codegemm.errors import CheckpointError
from codegemm.formats.format import parse
from codegemm.formats.native import FORMAT
from codegemm.model_config import VERSION
from codegemm.quantize import checked_seed, configured
from codegemm.quantize.stopping import check

METHOD, AQLM = FORMAT, "aqlm"
LAYOUTS = (METHOD, AQLM)


class CodegemmConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """How the linear layers of a model are quantised, for `from_pretrained(..., quantization_config=)`.

    config: of every layer, like `m1v4g128`. A row whose length its group size does not divide gets the largest smaller
        one that does.
    layers: configurations of some, by full names or patterns of them (`*.down_proj`, as `fnmatch` reads them; the last
        that fits counts). They are also how to quantise what stays dense otherwise. An expert's matrices have the names
        of the checkpoint: `model.layers.0.mlp.experts.3.down_proj`.
    modules_to_not_convert: what stays dense beside output heads, embeddings, routers of experts and layers that share
        their weight, by names, beginnings or ends of names, or regular expressions, as in transformers; of a module
        that has such a name, all layers. What a model was saved with is the list of all that did.
    seed, time_limit: as of `codegemm.quantize`, the seconds for each matrix. A model does not keep them.

    TypeError or ValueError for what these can't be, and for a version of the entry that is not known.
    """

    def __init__(
        self,
        config: Any = "m1v4g128",
        layers: Mapping[str, Any] | None = None,
        modules_to_not_convert: Sequence[str] | None = None,
        *,
        seed: int = 0,
        time_limit: float | None = None,
        version: int = VERSION,
        layout: str = METHOD,
    ) -> None:
        if type(version) is not int or version != VERSION:
            raise ValueError(f"quantization_config: version {version!r}, this package reads {VERSION}")
        if layout not in LAYOUTS:
            raise ValueError(f"quantization_config: layout {layout!r}, must be one of {', '.join(LAYOUTS)}")
        if layers is not None and not isinstance(layers, Mapping):
            raise TypeError(f"layers: {layers!r}, must be configurations by the layers' names")
        listed = () if modules_to_not_convert is None else modules_to_not_convert
        if not isinstance(listed, (list, tuple)) or not all(isinstance(name, str) for name in listed):
            raise TypeError(f"modules_to_not_convert: {modules_to_not_convert!r}, must be a list of names")
        self.quant_method = METHOD
        self.version = version
        self.config = str(parse(config))
        self.layers = {name: _text(name, each) for name, each in (layers or {}).items()}
        self.modules_to_not_convert = None if modules_to_not_convert is None else list(modules_to_not_convert)
        self.seed, self.time_limit, self.layout = checked_seed(seed), time_limit, layout
        check(time_limit)

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Of an entry of config.json, whose other keys are left alone."""
        known = ("config", "layers", "modules_to_not_convert", "version", "layout", "seed", "time_limit")
        for key in ("config", "version"):
            if key not in config_dict:
                raise ValueError(f"quantization_config: has no {key!r}: {dict(config_dict)}")
        try:
            made = cls(**{key: config_dict[key] for key in known if key in config_dict})
        except TypeError as error:
            raise CheckpointError(f"quantization_config: {error}") from None
        return (made, kwargs) if return_unused_kwargs else made

    def to_dict(self) -> dict[str, Any]:
        """The entry of config.json."""
        kept = model_config.entry(self.config, self.layers, self.modules_to_not_convert or ())
        return kept if self.layout == METHOD else {**kept, "layout": self.layout}

    def check_quantizable(self) -> Self:
        """Itself; ValueError where one of the configurations has no quantiser."""
        for config in (self.config, *self.layers.values()):
            configured(config)
        return self


def _text(name: str, config: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"layers: {name!r}, must be the name of a layer")
    try:
        return str(parse(config))
    except (TypeError, ValueError) as error:
        raise type(error)(f"layers: {name}: {error}") from None
