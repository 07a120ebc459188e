"""A model's linear layers, replaced by quantised ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from codegemm.calibration import Calibration
from codegemm.formats.format import spec_of
from codegemm.formats.weight import Weight
from codegemm.quantize import configured, quantize
from codegemm.quantize.selection import spared
from codegemm.torch.fused import Fused
from codegemm.torch.layer import CodebookLinear

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # as Llama and many others call them


def quantize_(
    model: torch.nn.Module,
    config: Any,
    filter_fn: Callable[[torch.nn.Module, str], bool] | None = None,
    *,
    calibration: Mapping[str, Calibration] | None = None,
    precision: str = "full",
    **options: Any,
) -> None:
    """Quantise a model's linear layers in place, as torchao's function of that name does: each `torch.nn.Linear`
    becomes a `CodebookLinear`.

    config, options (seed, rotate, progress, time_limit, ...): as of `codegemm.quantize`.
    filter_fn: whether to take a layer, by the module and its full name, like `model.layers.0.mlp.up_proj`. None: all
        but output heads, routers of experts and those that share their weight with another module.
    calibration: inputs of layers by their full names; a layer that it does not name is quantised without.
    precision: as of `CodebookLinear`.

    Before anything is quantised: ValueError where no layer is taken, for a calibration of none of these, and for one
    that the configuration can't hold; TypeError for one that is no `torch.nn.Linear` itself. Whatever is raised, the
    model is as it was.
    """
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(f"filter_fn: {filter_fn!r}, must be a function of a layer and its name, or None")
    calibration = calibration or {}
    config = configured(config, options.pop("rotate", False), calibrated=bool(calibration))
    taken = _taken(model, filter_fn or _usual(model))
    unknown = sorted(calibration.keys() - taken.keys())
    if unknown:
        raise ValueError(f"calibration: of {', '.join(unknown)}, which no layer is that is quantised")
    for name, layer in taken.items():
        try:
            spec_of(tuple(layer.weight.shape), config)
        except ValueError as error:
            raise ValueError(f"{name}: {error} (filter_fn leaves layers as they are)") from None
    weights = {
        name: quantize(layer.weight, config, calibration=calibration.get(name), **options)
        for name, layer in taken.items()
    }
    replace_linear(model, weights, precision=precision)


def replace_linear(
    model: torch.nn.Module,
    weights: Mapping[str, Weight],
    *,
    fuse: Sequence[Sequence[str]] = (),
    precision: str = "full",
) -> None:
    """Replace a model's linear layers in place by `CodebookLinear`s of these weights, by the layers' full names.

    weights: as `codegemm.load_all` gives them; moved to the layers' devices. Biases stay.
    fuse, precision: as of `fuse_` and `CodebookLinear`.

    ValueError for a name that no layer has, a weight of another shape, and two weights of one layer; TypeError for a
    layer that is no `torch.nn.Linear` itself. Whatever is raised, the model is as it was.
    """
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights: {weights!r}, must be weights by name, as codegemm.load_all reads them from a file")
    modules = dict(model.named_modules(remove_duplicate=False))
    given: dict[torch.nn.Module, Weight] = {}
    for name, weight in weights.items():
        if name not in modules:
            raise ValueError(f"{name!r}: the model has no module of that name")
        layer = _checked(modules[name], name)
        if not isinstance(weight, Weight):
            raise TypeError(f"{name}: {type(weight).__name__}, must be a quantised weight")
        if tuple(layer.weight.shape) != weight.shape:
            raise ValueError(f"{name}: the weight is {weight.shape}, the layer's {tuple(layer.weight.shape)}")
        if layer in given and given[layer] != weight:
            raise ValueError(f"{name}: the layer has another name, too, and there another weight")
        given[layer] = weight
    made: dict[torch.nn.Module, CodebookLinear] = {}
    for layer, weight in given.items():
        device = layer.weight.device
        weight = weight if device.type == "meta" else weight.to(device)
        made[layer] = CodebookLinear(weight, layer.bias, precision).train(layer.training)
    before = _swap(model, {name: made[module] for name, module in modules.items() if module in made})
    try:
        fuse_(model, fuse)
    except BaseException:
        _swap(model, before)
        raise


def fuse_(model: torch.nn.Module, groups: Sequence[Sequence[str]] = FUSED) -> None:
    """Have layers with the same input, which must be `CodebookLinear`s, multiplied as one: each group of names in every
    module that has all of them.

    The module must call them with the same tensor, as attention does q_proj, k_proj and v_proj, and not write to it in
    between: that is seen only where torch counts it, not under torch.compile and in inference mode. Each keeps its own
    parameters and state_dict; a layer of two groups is of the later one. ValueError or TypeError, and nothing is fused,
    for a group that no module has and for layers whose weights can't be joined (`codegemm.concat`), as those of E8P.
    """
    fused: list[tuple[list[Any], Fused]] = []
    for group in groups:
        for name, module in model.named_modules():
            layers = [getattr(module, part, None) for part in group]
            if layers and all(isinstance(layer, CodebookLinear) for layer in layers):
                fused.append((layers, _joined(layers, f"{name or 'the model'}: {', '.join(group)}")))
    if groups and not fused:
        named = "; ".join(", ".join(group) for group in groups)
        raise ValueError(f"groups {named}: no module has all layers of one, each a CodebookLinear")
    for layers, together in fused:
        for layer in layers:
            if layer._fused is not None:
                layer._fused.dissolve()
        for layer in layers:
            layer._fused = together


def quantized_layers(model: torch.nn.Module) -> dict[str, CodebookLinear]:
    """A model's CodebookLinears by their full names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, CodebookLinear)}


def _joined(layers: Sequence[Any], what: str) -> Fused:
    try:
        fused = Fused(layers)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{what}: {error}") from None
    fused.prepare(1, torch.float32)  # at once: or else every code would be there twice
    return fused


def _taken(model: torch.nn.Module, filter_fn: Callable[[torch.nn.Module, str], bool]) -> dict[str, torch.nn.Module]:
    """The layers by name; ValueError where there are none."""
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    taken = {name: _checked(module, name) for name, module in linear.items() if filter_fn(module, name)}
    if not taken:
        done = sum(isinstance(module, CodebookLinear) for module in model.modules())
        beside = f"; {done} are quantised already" if done else ""
        raise ValueError(f"filter_fn: takes none of the model's {len(linear)} linear layers{beside}")
    return taken


def _usual(model: torch.nn.Module) -> Callable[[torch.nn.Module, str], bool]:
    """What `quantize_` takes unless told."""
    owners = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
    return lambda module, name: spared(f"{name}.weight") is None and owners[id(module.weight)] == 1


def _checked(module: torch.nn.Module, name: str) -> torch.nn.Module:
    """TypeError unless it is a layer that does nothing but multiply by its weight and add its bias."""
    if type(module) is not torch.nn.Linear:
        raise TypeError(f"{name}: {type(module).__name__}, must be a torch.nn.Linear itself")
    if not name:
        raise ValueError("the model is a torch.nn.Linear: make a CodebookLinear in its place")
    return module


def _swap(model: torch.nn.Module, modules: Mapping[str, torch.nn.Module]) -> dict[str, torch.nn.Module]:
    """Put modules in the places of these names, and return those that were there."""
    before = {name: model.get_submodule(name) for name in modules}
    for name, module in modules.items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, module)
    return before
