"""The quantiser that transformers calls while it loads and saves a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, revert_weight_conversion
from transformers.quantizers import HfQuantizer

from codegemm.errors import CheckpointError
from codegemm.formats.native import Stored, hf_metadata
from codegemm.hf import aqlm, checkpoint, experts, matrices
from codegemm.hf.config import AQLM, CodegemmConfig
from codegemm.quantize import quantize
from codegemm.torch.layer import CodebookLinear
from codegemm.torch.replace import quantized_layers
from codegemm.torch.tensors import parse


class CodegemmHfQuantizer(HfQuantizer):  # type: ignore[misc]
    """Loads models with CodebookLinears in the places of linear layers, or quantises them while they are loaded."""

    requires_calibration = False
    quantization_config: CodegemmConfig

    def __init__(self, quantization_config: CodegemmConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._names: experts.Names = {}
        self._plan = matrices.Plan({})
        self._failures: list[ValueError] = []
        self._files: Sequence[str] | None = None
        self._model: Any = None
        self._has_experts = False
        if not self.pre_quantized:
            quantization_config.check_quantizable()

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """ValueError where an AQLM model would be offloaded, whose layers are made after loading."""
        offloaded = isinstance(device_map, Mapping) and not {"disk", "cpu"}.isdisjoint(map(str, device_map.values()))
        if offloaded and len(set(map(str, device_map.values()))) > 1 and self.quantization_config.layout == AQLM:
            raise ValueError(f"device_map {dict(device_map)}: convert an AQLM model first: codegemm convert IN OUT")

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        if getattr(model.config, "distributed_config", None) is not None:
            raise ValueError("tensor parallelism: quantised layers are not split; take a device_map")
        self._names, config = experts.names_of(model), self.quantization_config
        if not self.pre_quantized:
            self._plan = matrices.plan(model, config, self._names)
            return
        held = None if checkpoint_files is None else checkpoint.names(checkpoint_files)
        self._plan = matrices.expected(model, config, self._names, held)
        if not self._plan.matrices:
            raise ValueError("quantization_config: modules_to_not_convert leaves no linear layer of the model")
        for matrix in self._plan.matrices.values():
            _put(model, matrix, self._names, _FOREIGN.get(config.layout, CodebookLinear.blank))
        for module in model.modules():
            if isinstance(module, experts.CodebookExperts):
                module.let_go()
        self._model, self._files = model, checkpoint_files

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any = None) -> list[Any]:
        """All conversions of names are known here: the files are looked at before anything is loaded."""
        if self._files is not None:
            files, self._files = self._files, None
            checkpoint.check(self._model, files, weight_conversions, list(self._plan.matrices))
        return weight_conversions

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        """Whether it is a dense matrix, or those of all experts, that is quantised while it is loaded."""
        return not self.pre_quantized and param_name in self._plan.by_parameter

    def param_element_size(self, model: Any, param_name: str, param: Any) -> float:
        """Bytes, for who plans where layers go."""
        if not self.param_needs_quantization(model, param_name):
            return float(param.element_size())
        return sum(matrix.nbytes for matrix in self._plan.by_parameter[param_name]) / param.numel()

    def get_quantize_ops(self) -> ConversionOps:
        """What makes the tensors of quantised matrices of a dense parameter."""
        return _Quantize(self._plan, self._names, self.quantization_config, self._failures)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if self.quantization_config.layout == AQLM:
            aqlm.replace(model)
        self.quantization_config = model.config.quantization_config = matrices.resolved(
            self.quantization_config, self._plan.of_layers(quantized_layers(model))
        )
        checkpoint.check_loaded(model)
        self._has_experts = any(isinstance(module, experts.CodebookExperts) for module in model.modules())
        for name, layer in quantized_layers(model).items():
            layer.__dict__.pop("weight", None)
            for own, parameter in layer.named_parameters():
                if own != "bias":
                    parameter.requires_grad_(False)
            if not any(parameter.is_meta for parameter in layer.parameters()):
                _prepare(name, layer, model.dtype)
        self._model, self._plan = None, matrices.Plan({})
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[None, dict[str, str]]:
        """What files say of the weights, under the names that they have there."""
        layers = quantized_layers(model)
        written = _in_files(model, list(layers))
        described = {}
        for name, layer in layers.items():
            [part] = parse(layer.layout).parts
            described[name] = described[written[name]] = Stored({}, dict(part.description), part.version)
        return None, hf_metadata(described)

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        offloaded = [name for name, parameter in model.named_parameters() if parameter.is_meta]
        if offloaded:
            raise ValueError(f"{offloaded[0]}: is offloaded; load the model without that to dequantize it")
        for name, module in list(model.named_modules()):
            if isinstance(module, experts.CodebookExperts):
                model.set_submodule(name, module.to_dense(dtype or model.dtype))
        for name, layer in quantized_layers(model).items():
            model.set_submodule(name, layer.to_linear(dtype or model.dtype))
        return model

    def is_serializable(self) -> bool:
        """Whatever is loaded can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters beside the layers are."""
        return True

    @property
    def is_compileable(self) -> bool:
        """In one graph, but for experts, which are found on the host."""
        return not self._has_experts


class _Quantize(ConversionOps):  # type: ignore[misc]
    """One dense parameter, quantised; the layers that hold its matrices are put in place."""

    def __init__(
        self, plan: matrices.Plan, names: experts.Names, config: CodegemmConfig, failures: list[ValueError]
    ) -> None:
        """failures: of the model so far; after one, of which transformers tells in the end, nothing is quantised."""
        self.plan, self.names, self.config, self.failures = plan, names, config, failures

    def convert(
        self,
        input_dict: dict[str, Any],
        *,
        full_layer_name: str,
        model: Any,
        missing_keys: set[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The tensors of the quantised matrices by their names."""
        if missing_keys is not None:
            missing_keys.discard(full_layer_name)
        if self.failures:
            return {}
        parts = self.plan.by_parameter[full_layer_name]
        [value] = input_dict.values()
        dense = value[0] if isinstance(value, list) else value
        made: dict[str, Any] = {}
        for matrix in parts:
            own = dense if matrix.expert is None else dense[matrix.expert, matrix.rows]
            try:
                weight = quantize(
                    own, matrix.config, seed=self.config.seed, time_limit=self.config.time_limit, progress=False
                )
            except ValueError as error:
                self.failures.append(ValueError(f"{matrix.name}: {error}"))
                raise self.failures[0] from None
            layer = CodebookLinear(weight.to(dense.device))
            _put(model, matrix, self.names, CodebookLinear.blank)
            made |= {f"{matrix.name}.{name}": tensor for name, tensor in layer.named_parameters()}
        if parts[0].expert is not None:
            delattr(model.get_submodule(parts[0].module), full_layer_name.rpartition(".")[2])
        return made


_FOREIGN = {AQLM: aqlm.AqlmLinear.blank}


def _put(model: Any, matrix: matrices.Matrix, names: experts.Names, blank: Any) -> None:
    """Put a layer without numbers in a matrix's place; what is there of it otherwise is taken over or removed."""
    dense = model.get_submodule(matrix.module)
    if matrix.expert is None:
        layer = blank(matrix.config, matrix.shape, dense.bias).train(dense.training)
    else:
        layer = blank(matrix.config, matrix.shape)
        if not isinstance(dense, experts.CodebookExperts):
            config = getattr(dense, "config", model.config.get_text_config())
            model.set_submodule(matrix.module, experts.CodebookExperts(config, dense, names))
    layer.weight = torch.empty(matrix.shape, device="meta")  # until all is loaded: some models begin it with numbers
    layer.weight._is_hf_initialized = True  # which is done already
    path, _, own = matrix.name.rpartition(".")
    setattr(model.get_submodule(path), own, layer)


def _prepare(name: str, layer: CodebookLinear, dtype: torch.dtype) -> None:
    """Hold its codes once; CheckpointError for numbers that make no weight."""
    try:
        layer.prepare(1, dtype)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from None


def _in_files(model: Any, names: Sequence[str]) -> dict[str, str]:
    """What `save_pretrained` calls modules of these names."""
    numbered = {f"{name}.codes": torch.tensor(number) for number, name in enumerate(names)}
    reverted = revert_weight_conversion(model, dict(numbered))
    return {names[int(number)]: key.removesuffix(".codes") for key, number in reverted.items()}
