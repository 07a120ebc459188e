"""`torch.nn.Linear` with a quantised weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch

from codegemm.arrays import check_float
from codegemm.choice import check
from codegemm.formats.format import parse as parse_config
from codegemm.formats.format import spec_of
from codegemm.formats.weight import Weight
from codegemm.torch import op
from codegemm.torch.bound import Bound, bound_to, content, forget, making, settle
from codegemm.torch.fused import Fused
from codegemm.torch.tensors import blank, tensor_of, text_of


class CodebookLinear(torch.nn.Module):  # type: ignore[misc]
    """y = x @ W^T + bias with a quantised W, in place of a `torch.nn.Linear`: x [..., in_features] on W's device.

    Its parameters are the tensors that a file of codegemm holds of such a weight: `codes` (packed, uint8), `codebooks`
    and `scales` of a CodebookWeight, others of other formats (`codegemm.storage` says which), and `bias`. They don't
    require grad, and `.half()`, `.to(dtype)` leave all but the bias in the dtype that they have; x may have another.

    A kernel holds codes in an order of its own. From the first product on (under torch.compile: from `prepare` on) they
    are there only, and the parameter is empty: `state_dict`, `.to(device)`, `copy.deepcopy`, pickling and `to_weight`
    have them all the same, and `restore` puts them back.

    precision: `full` or `fast`, as of `codegemm.matmul`.
    """

    _parameters: dict[str, Any]

    def __init__(self, weight: Weight, bias: torch.Tensor | None = None, precision: str = "full") -> None:
        """weight: on the device where the layer is to be; on the CPU its arrays may become the layer's own.

        bias: [out_features] there, or None; a Parameter stays what it is. TypeError, ValueError for what can't be.
        """
        if not isinstance(weight, Weight):
            raise TypeError(f"weight: {type(weight).__name__}, must be a quantised weight")
        stored = weight.stored()
        with torch.inference_mode(False):
            tensors = {name: tensor_of(array).to(weight.device) for name, array in stored.tensors.items()}
        self._hold(tensors, text_of(stored), weight.spec.name, weight.shape, bias, precision)

    @classmethod
    def blank(
        cls, config: Any, shape: tuple[int, int], bias: torch.Tensor | None = None, precision: str = "full"
    ) -> Self:
        """A layer [out_features, in_features] on the meta device, whose parameters a loader puts in their places.

        config: of its weight, or the text of that; ValueError where the shape can't be stored so. bias, precision: as
        of the constructor.
        """
        layer = cls.__new__(cls)
        config = parse_config(config)
        tensors, layout = blank(shape, str(config))
        layer._hold(tensors, layout, str(spec_of(shape, config).name), shape, bias, precision)
        return layer

    def _hold(
        self,
        tensors: Mapping[str, torch.Tensor],
        layout: str,
        config: str,
        shape: tuple[int, int],
        bias: torch.Tensor | None,
        precision: str,
    ) -> None:
        super().__init__()
        check("auto", precision)
        self.out_features, self.in_features = shape
        self.precision, self.config, self.layout = precision, config, layout
        self._names = tuple(tensors)
        with torch.inference_mode(False):
            for name, tensor in tensors.items():
                self._set(name, tensor)
        self._fused: Fused | None = None
        if bias is not None:
            if not isinstance(bias, torch.Tensor) or bias.shape != shape[:1] or not bias.is_floating_point():
                said = f"{bias.dtype} {tuple(bias.shape)}" if isinstance(bias, torch.Tensor) else type(bias).__name__
                raise ValueError(f"bias: {said}, must be a tensor of floats ({self.out_features},)")
            bias = bias if isinstance(bias, torch.nn.Parameter) else torch.nn.Parameter(bias)
        self.register_parameter("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x @ W^T + bias in x's dtype, or in that of autocast where that is on."""
        bias, tensors = self._parameters["bias"], self.tensors()
        if self._fused is None and op.is_plain(x, bias, tensors):
            return self._settled(x, tensors).multiply(x, bias)
        if self._fused is not None:
            return self._fused.product(self, x)
        x = op.autocast(x)
        if not op.is_watched(x):
            self._settled(x, tensors)
        return op.linear(x, self.tensors(), self.layout, bias, self.precision)

    def tensors(self) -> list[torch.Tensor]:
        """Those of the weight, in the order of its layout."""
        parameters = self._parameters
        return [parameters[name] for name in self._names]

    def to_weight(self) -> Weight:
        """The weight, on the memory of the parameters or of what a kernel made of them: not to be kept longer than the
        layer stays as it is."""
        return bound_to(self.tensors(), self.layout, self.precision).weight

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The dense matrix [out_features, in_features] on the layer's device."""
        weight = self.to_weight()
        return tensor_of(weight.dequantize(dtype)).to(weight.device)

    def to_linear(self, dtype: torch.dtype = torch.float32) -> torch.nn.Linear:
        """A torch.nn.Linear of the dense matrix and the bias in a dtype, on the layer's device."""
        linear = torch.nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = torch.nn.Parameter(self.dequantize(dtype))
        if self.bias is not None:
            linear.bias = torch.nn.Parameter(self.bias.detach().to(dtype))
        return linear.train(self.training)

    def prepare(self, n: int = 1, dtype: torch.dtype = torch.float32) -> Self:
        """Decide, compile and arrange for products of n rows of x, as the first product does for one; the layer itself.

        Codes are held once then, in the order of the kernel of these products; others that read another order hold
        theirs beside it. Nothing is done where accelerate offloads the layer.
        """
        if self._fused is not None:
            self._fused.prepare(n, dtype)
        elif not self._is_offloaded():
            with making:
                self.take(settle(self.tensors(), self.layout, self.precision, n, dtype))
        return self

    def restore(self) -> Self:
        """Put the parameters back as they were before the first product; the layer itself."""
        with making:
            return self.take([content(tensor, name) for name, tensor in zip(self._names, self.tensors())])

    def take(self, tensors: list[torch.Tensor]) -> Self:
        """Have these as parameters, in the order of the layout; the layer itself."""
        for name, tensor in zip(self._names, tensors):
            if tensor is not self._parameters[name]:
                self._set(name, tensor)
        return self

    def extra_repr(self) -> str:
        """What `print` shows."""
        precision = "" if self.precision == "full" else f", precision={self.precision}"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"config={self.config}{precision}"
        )

    def _settled(self, x: torch.Tensor, tensors: list[torch.Tensor]) -> Bound:
        """What multiplies by the weight of the tensors, of which codes are held once from now on."""
        bound = bound_to(tensors, self.layout, self.precision)
        if not bound.settled:
            check_float("x", x)
            self.prepare(1, x.dtype)
        return bound

    def _is_offloaded(self) -> bool:
        """Whether accelerate puts the parameters in place for each call, of the shapes that it knows."""
        hook = getattr(self, "_hf_hook", None)
        return any(getattr(each, "offload", False) for each in getattr(hook, "hooks", (hook,)))

    def _set(self, name: str, tensor: torch.Tensor) -> None:
        if not isinstance(tensor, torch.nn.Parameter):
            tensor = torch.nn.Parameter(tensor, requires_grad=False)
        self.register_parameter(name, tensor)

    def _apply(self, function: Callable[[Any], Any], recurse: bool = True) -> Self:
        """What `.to`, `.cuda`, `.half` and `to_empty` come to: dtypes stay."""
        with making:
            self.restore()
            with torch.inference_mode(False):
                moved = {name: _moved(function, tensor) for name, tensor in zip(self._names, self.tensors())}
            before = self._parameters
            self._parameters = {name: tensor for name, tensor in before.items() if name not in moved}
            try:
                super()._apply(function, recurse)
                before = {**moved, **self._parameters}
            finally:
                self._parameters = before
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        with making:
            super()._save_to_state_dict(destination, prefix, keep_vars)
            for name, tensor in zip(self._names, self.tensors()):
                destination[prefix + name] = content(destination[prefix + name] if tensor.numel() else tensor, name)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        if not any(prefix + name in state_dict for name in self._names):
            super()._load_from_state_dict(state_dict, prefix, *arguments)
            return
        with making:
            self.restore()
            super()._load_from_state_dict(state_dict, prefix, *arguments)
            for tensor in self.tensors():
                forget(tensor)  # in inference mode nothing else tells that it was written to

    def __getstate__(self) -> dict[str, Any]:
        with making:
            self.restore()
            return dict(vars(self))


def _moved(function: Callable[[Any], Any], tensor: torch.Tensor) -> torch.nn.Parameter:
    """What `function` makes of it, in its own dtype."""
    moved = function(tensor.detach())
    if moved.dtype != tensor.dtype:
        moved = tensor.detach().to(moved.device)
    return torch.nn.Parameter(moved, requires_grad=False)
