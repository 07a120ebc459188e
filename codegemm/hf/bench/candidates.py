"""Which models take turns: what each is called, how many bytes it takes, and how it is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from codegemm import registry
from codegemm.arrays import float_dtype
from codegemm.devices import Device
from codegemm.formats.format import parse, spec_of
from codegemm.hf import generation
from codegemm.hf.bench import layers, llama
from codegemm.hf.sizes import sizes
from codegemm.kernel import Product
from codegemm.measuring import memory
from codegemm.torch import FUSED, CodebookLinear, fuse_
from codegemm.torch.replace import quantized_layers

# Of other projects: what it is called, the kernel, and the configuration.
BASELINES = (
    ("AQLM 2x8", "aqlm", "m2v8g-1"),
    ("AQLM 1x16", "aqlm", "m1v8b16g-1"),
    ("QuIP#", "quip", "e8p"),
    ("QTIP", "qtip", "qtip"),
    ("LUT-GEMM", "lutgemm", "q2g128"),
)
_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Candidate:
    """A model that takes turns. needed: bytes, at least, of its weights as they are held; dense: whether its linear
    layers are torch's; config, kernel: of the others, by a kernel of that name, or `auto`."""

    name: str
    needed: int
    make: Callable[[], Any]
    dense: bool = False
    config: str = ""
    kernel: str = ""


@dataclass(frozen=True)
class Choice:
    """Those that can take part, and why others can't, by name."""

    candidates: list[Candidate]
    left_out: dict[str, str]


def dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """Of dense models; the first is that of the quantised ones' activations."""
    return (torch.float16,) if device.type == "cuda" else (torch.float32, torch.bfloat16)


def random_models(model: Any, configs: Sequence[str], batches: Sequence[int], device: torch.device) -> Choice:
    """Of a Llama's configuration: dense, in each of `configs` as `CodebookLinear`s, each by itself and fused, and by
    the kernels of other projects. ValueError for a configuration that can't be or that its matrices don't fit."""
    shapes, blocks = list(llama.linear_shapes(model).values()), model.num_hidden_layers
    numbers, dtype, most = sum(rows * columns for rows, columns in shapes), dtypes(device)[0], max(batches)
    rest = llama.others(model)
    where = Device.parse(device.type)

    def specs(config: str) -> list[Any]:
        return [spec_of(shape, config) for shape in shapes]

    def maker(layer: llama.Made, kind: torch.dtype = dtype, finish: llama.Finish = llama.leave) -> Callable[[], Any]:
        return lambda: llama.random_model(model, device, kind, layer, finish)

    found, left_out = [], {}
    for kind in dtypes(device):
        make = maker(partial(layers.dense, device=device, dtype=kind), kind)
        found.append(Candidate(f"dense {_NAMES[kind]}", (blocks * numbers + rest) * kind.itemsize, make, True))
    for config in dict.fromkeys(str(parse(each)) for each in configs):
        needed = blocks * sum(spec.packed_bits // 8 for spec in specs(config)) + rest * dtype.itemsize
        layer = partial(layers.quantised, config=config, device=where)
        for name, finish in ((config, _settle), (f"{config}, fused", _fuse)):
            make = maker(layer, finish=partial(finish, dtype=dtype))
            found.append(Candidate(name, needed, make, False, config, "auto"))
    for name, kernel, config in BASELINES:
        products = [Product.of(spec, most, float_dtype(dtype)) for spec in specs(config)]
        reason = next(filter(None, (_refusal(kernel, product, where) for product in products)), None)
        if reason is not None:
            left_out[name] = reason
            continue
        own = sum(memory.taken(_kernel(kernel, product, where), [product], where).own for product in products)
        needed = blocks * (own + sum(product.spec.packed_bits // 8 for product in products)) + rest * dtype.itemsize
        layer = partial(layers.planned, config=config, device=where, n=most, dtype=dtype, kernel=kernel)
        found.append(Candidate(name, needed, maker(layer), False, config, kernel))
    return Choice(found, left_out)


def folder_models(folder: Path, device: torch.device) -> Choice:
    """Of a quantised model's folder: its dequantised self, it as it is, and fused. ValueError for a dense one."""

    def as_it_is() -> Any:
        return generation.open_model(folder, device)

    def fused() -> Any:
        model = as_it_is()
        fuse_(model, _groups(model))
        return model

    def dequantised(dtype: torch.dtype) -> Callable[[], Any]:
        return lambda: _dense_twin(as_it_is(), dtype)

    model = as_it_is()
    quantised = quantized_layers(model)
    if not quantised:
        raise ValueError(f"{folder}: has no quantised layer, and nothing to be compared with")
    taken, together = sizes(model), _groups(model)
    config = ", ".join(sorted({layer.config for layer in quantised.values()}))
    found = [
        Candidate(f"dequantised {_NAMES[kind]}", taken.half // 2 * kind.itemsize, dequantised(kind), True)
        for kind in dtypes(device)
    ]
    found.append(Candidate("as it is", taken.held, as_it_is, False, config, "auto"))
    if not together:
        return Choice(found, {"fused": "no module has the layers of q, k, v or of gate and up, quantised"})
    return Choice([*found, Candidate("fused", taken.held, fused, False, config, "auto")], {})


def _kernel(name: str, product: Product[Any], where: Device) -> Any:
    """What multiplies so under a kernel's name, or None."""
    return next((each for each in registry.registered(where.engine, product.spec) if each.name == name), None)


def _refusal(name: str, product: Product[Any], where: Device) -> str | None:
    kernel = _kernel(name, product, where)
    return f"no kernel {name!r} on {where}" if kernel is None else registry.refusal(kernel, product, where)


def _settle(block: Any, dtype: torch.dtype) -> None:
    """Have codes held once before the next block is made: what torch lets go of on a GPU it keeps from CuPy."""
    for layer in quantized_layers(block).values():
        layer.prepare(1, dtype)


def _fuse(block: Any, dtype: torch.dtype) -> None:
    fuse_(block)
    _settle(block, dtype)


def _groups(model: Any) -> list[tuple[str, ...]]:
    """Of the names of layers that are fused as a rule those that a module has, quantised."""
    return [
        group
        for group in FUSED
        if any(
            all(isinstance(getattr(module, part, None), CodebookLinear) for part in group) for module in model.modules()
        )
    ]


def _dense_twin(model: Any, dtype: torch.dtype) -> Any:
    """The model with `torch.nn.Linear`s of the dequantised matrices, in their places."""
    for name, layer in quantized_layers(model).items():
        model.set_submodule(name, layer.to_linear(dtype))
    return model.to(dtype)
