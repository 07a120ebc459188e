"""What every format owes, as functions of a format and the text of one of its configurations."""

import copy
import json
import pickle

import numpy as np
import pytest
from emulator import emulate
from safetensors.numpy import load_file, save_file

import codegemm
from codegemm import CheckpointError, Product, files, formats, storage
from codegemm.engines.cuda.kernel import CudaKernel
from codegemm.formats.format import format_of
from codegemm.registry import kernel_for, multiplies, registered
from codegemm.testing.problems import example
from support import cpu


def weight_of(config, seed=0):
    """A random weight of the configuration."""
    return example(config).weight(seed)


def check_text(format, text):
    """Its text and its configuration say the same, and so does a weight's spec."""
    config = formats.parse(text)
    assert isinstance(config, format.config)
    assert formats.parse(config) == formats.parse(str(config)) == formats.parse(f" {text} ") == config
    assert hash(config) == hash(formats.parse(text))
    spec = weight_of(text).spec
    assert format_of(config) is format_of(spec) is format
    assert formats.spec_of(spec.shape, spec.name) == formats.spec_of(spec.shape, text) == spec


def check_memory(text):
    """A weight is what its spec says; copies and pickles are equal, other weights are not."""
    weight = weight_of(text)
    assert formats.random_weight(weight.shape, text, 0) == weight != formats.random_weight(weight.shape, text, 1)
    for other in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight)), weight.to("cpu")):
        assert other == weight
        assert other.spec == weight.spec
    scales = getattr(weight, "scales", None)
    assert scales is None or scales.shape == (weight.shape[0], weight.spec.groups)
    assert weight.nbytes == -(-weight.spec.packed_bits // 8)
    assert weight.spec.name in repr(weight)
    exact, single = weight.dequantize(np.float64), weight.dequantize()
    assert exact.shape == weight.shape
    assert np.abs(single - exact).max() <= 1e-5 * np.abs(exact).max()


def check_rows(text, folder):
    """Rows are a weight of their own, and join to the whole again; or it says that they can't."""
    weight = weight_of(text)
    dense, middle = weight.dequantize(), weight.shape[0] // 2
    try:
        parts = [weight[:middle], weight[middle:]]
    except TypeError as error:
        reason = str(error)
    else:
        reason = None
    if reason:
        assert "can't be split" in reason
        with pytest.raises(TypeError, match="can't be joined"):
            codegemm.concat([weight, weight])
        return
    assert np.array_equal(parts[1].dequantize(), dense[middle:])
    joined = codegemm.concat(parts)
    assert np.array_equal(joined.dequantize(), dense)
    joined.save(folder / "joined.safetensors")
    assert codegemm.load(folder / "joined.safetensors") == pickle.loads(pickle.dumps(joined)) == joined


def check_file(text, folder):
    """A file has it back, beside others; every tensor that is missing or of another type is named."""
    weight, path = weight_of(text), folder / "w.safetensors"
    others = {"norm": np.ones(3, np.float32)}
    storage.save_all(path, {"a.b": weight, "other": weight_of("m1v4g8")}, others)
    assert codegemm.load(path, "a.b") == weight
    assert np.array_equal(files.File(path).tensors["norm"].numpy(), others["norm"])
    weight.save(path)
    assert codegemm.load_all(path) == {"weight": codegemm.load(path)} == {"weight": weight}
    assert [entry.name for entry in folder.iterdir()] == [path.name]
    metadata, tensors = files.File(path).metadata, load_file(path)
    assert json.loads(metadata["weight"])["shape"] == list(weight.shape)
    for name, tensor in tensors.items():
        end = name.rpartition(".")[2]
        save_file({key: value for key, value in tensors.items() if key != name}, path, metadata)
        with pytest.raises(CheckpointError, match=f"weight: '{name}' is missing"):
            codegemm.load(path)
        save_file(tensors | {name: tensor.astype(np.bool_)}, path, metadata)
        with pytest.raises(CheckpointError, match=f"weight: {end}: .*bool"):
            codegemm.load(path)
        save_file(tensors | {name: tensor[:-1]}, path, metadata)
        with pytest.raises(CheckpointError, match="weight: "):
            codegemm.load(path)
    with pytest.raises(ValueError, match="is part of a weight"):
        storage.save_all(path, {"a": weight}, {f"a.{end}": np.ones(3)})


def check_products(text, rng):
    """Every kernel of the CPU that takes it against its definition, in poisoned outputs."""
    weight = weight_of(text)
    for n in (1, 3, 17):
        names = cpu.usable(weight, n)
        assert {"reference", "dense"} <= set(names)
        cpu.check_products(weight, rng.standard_normal((n, weight.shape[1])).astype(np.float32), names)


def check_emulated_products(text, rng):
    """Every CUDA kernel that takes it, on the emulator."""
    weight = weight_of(text)
    for n in (1, 20):
        x = rng.standard_normal((n, weight.shape[1])).astype(np.float16)
        truth = x.astype(np.float64) @ weight.dequantize(np.float64).T
        product = Product.of(weight.spec, n, x.dtype, np.float32)
        for kernel in (kernel_for(each, weight.spec) for each in registered("cuda")):
            if (
                isinstance(kernel, CudaKernel)
                and multiplies(kernel, weight.spec)
                and not kernel.unfit_for(product, emulate.SMALL_GPU)
            ):
                y, _ = emulate.multiply(kernel, weight, x)
                assert np.linalg.norm(y - truth) <= 3e-3 * np.linalg.norm(truth), (kernel.name, n)
