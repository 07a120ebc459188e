"""torch tensors on the CPU, and the bfloat16 baseline."""

import numpy as np
import pytest

import codegemm
from codegemm import arrays
from codegemm.devices import Device
from codegemm.files import File

torch = pytest.importorskip("torch")
functional = torch.nn.functional


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tensors_come_back_as_tensors(dtype, make_weight):
    weight = make_weight(24, 32, "m1v4g16")
    x = torch.randn(2, 3, 32, dtype=getattr(torch, dtype))
    y = codegemm.matmul(x, weight.T)
    assert isinstance(y, torch.Tensor)
    assert y.dtype == x.dtype
    truth = x.double().numpy() @ weight.dequantize(np.float64).T
    tolerance = {"float16": 2e-3, "bfloat16": 2e-2}.get(dtype, 2e-4) * np.abs(truth).max()
    assert np.abs(y.double().numpy() - truth).max() <= tolerance
    out = torch.full((2, 3, 24), torch.nan, dtype=x.dtype)
    assert codegemm.matmul(x, weight.T, out=out) is out
    assert torch.equal(out, y)
    wide = torch.full((2, 3, 24), torch.nan, dtype=torch.float64 if dtype == "float64" else torch.float32)
    codegemm.plan(weight, 6, dtype)(x, out=wide)
    assert np.abs(wide.double().numpy() - truth).max() <= tolerance
    assert torch.equal(x @ weight.T, y)
    assert torch.equal(codegemm.matmul(weight, x.mT.contiguous()), y.mT)


def test_linear_with_a_bias(make_weight):
    weight = make_weight(24, 32, "m1v4g16")
    x, bias = torch.randn(5, 32), torch.randn(24)
    truth = x.double() @ torch.from_numpy(weight.dequantize(np.float64)).T + bias
    for given in (bias, bias.numpy(), bias.clone().requires_grad_(True)):
        assert torch.allclose(codegemm.linear(x, weight, given).double(), truth, atol=2e-3)
    assert np.allclose(codegemm.linear(x.numpy(), weight, bias), truth, atol=2e-3)


def test_integers_are_refused(make_weight):
    with pytest.raises(TypeError, match="x: dtype int64"):
        codegemm.matmul(torch.ones(32, dtype=torch.int64), make_weight(24, 32, "m1v4g16").T)


def test_quantize_takes_tensors():
    matrix = torch.randn(32, 64).to(torch.bfloat16)
    assert codegemm.quantize(matrix, "m1v4b4") == codegemm.quantize(matrix.float().numpy(), "m1v4b4")


def tensors_of(weight):
    """A weight's arrays as tensors of their own memory."""
    signed = {np.dtype(np.uint16): np.int16}
    return {
        name: torch.from_numpy(array.copy().view(signed.get(array.dtype, array.dtype)))
        for name, array in weight.arrays.items()
    }


def test_weights_are_made_of_tensors(make_weight, rng):
    """And do not change when somebody writes to these."""
    x = torch.randn(3, 64)
    for config in ("m1v4g16", "e8p"):
        weight = make_weight(16, 64, config)
        tensors = tensors_of(weight)
        made = type(weight)(**tensors, **weight.options)
        assert made == weight
        for tensor in tensors.values():
            tensor.zero_()
        assert made == weight
        assert torch.equal(x @ made.T, x @ weight.T)
    core, signs = make_weight(16, 64, "m1v4g16"), torch.from_numpy(rng.choice([-1.0, 1.0], 64))
    offsets = torch.randn(16, 4).half().requires_grad_()
    order = torch.randperm(64)
    made = codegemm.TransformedWeight(core, signs=signs, offsets=offsets, order=order)
    expected = codegemm.TransformedWeight(
        core, signs=signs.numpy(), offsets=offsets.detach().numpy(), order=order.numpy()
    )
    assert made == expected
    with torch.no_grad():
        for tensor in (signs, offsets, order):
            tensor.zero_()
    assert made == expected
    crooked = core.codebooks.copy()[..., ::-1].copy()
    made = codegemm.CodebookWeight(core.codes, torch.from_numpy(crooked).flip(-1), core.scales)
    assert made == core
    scales = torch.from_numpy(core.scales.copy())
    for view in (scales.numpy(), np.from_dlpack(scales)):
        view.flags.writeable = False  # not for the tensor
        made = codegemm.CodebookWeight(core.codes, core.codebooks, view)
        scales.mul_(2)
        assert made == core
        scales.div_(2)
    with pytest.raises(ValueError, match="codebooks: dtype bfloat16, must be float16"):
        codegemm.CodebookWeight(core.codes, torch.from_numpy(core.codebooks.copy()).bfloat16(), core.scales)


def fake(x):
    """A tensor of which only shape and dtype are real."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        return mode.from_tensor(x)


@pytest.mark.parametrize(
    "wrong",
    [torch.Tensor.to_sparse, lambda x: x.to("meta"), lambda x: x.to(torch.float8_e4m3fn), torch._neg_view, fake],
    ids=["sparse", "meta", "float8", "negated", "fake"],
)
def test_tensors_without_memory_are_refused(wrong, make_weight, tmp_path):
    weight, x = make_weight(24, 24, "m1v4g8"), torch.randn(24, 24)
    square, vector, out = wrong(x), wrong(x[0]), wrong(x.clone())
    message = (
        r"tensor of torch\.float.* on (cpu|meta), must be dense, on the CPU or a GPU, of a dtype that NumPy has \("
    )
    for name, call in {
        "scales": lambda: codegemm.CodebookWeight(weight.codes, weight.codebooks, square),
        "signs": lambda: codegemm.TransformedWeight(weight, signs=vector),
        "W": lambda: codegemm.quantize(square, "m1v4b2"),
        "x": lambda: codegemm.Calibration(24).update(square),
        "H": lambda: codegemm.Calibration.of(square, 24),
        "norm": lambda: codegemm.save_all(tmp_path / "file.safetensors", {"layer": weight}, {"norm": square}),
        "qidxs": lambda: codegemm.checkpoints.from_quip(square, vector, vector),
    }.items():
        with pytest.raises(TypeError, match=rf"{name}: {message}"):
            call()
    for name, call in {
        "x": lambda: square @ weight.T,
        "out": lambda: codegemm.matmul(x, weight.T, out=out),
        "bias": lambda: codegemm.linear(x, weight, vector),
    }.items():
        with pytest.raises(TypeError, match=rf"{name}: {message}|{name}: dtype float8|{name} is .*on meta"):
            call()


def test_tensors_come_in_on_their_memory():
    for dtype in (torch.bfloat16, torch.float16, torch.int64, torch.bool):
        tensor = torch.zeros(3, 4, dtype=dtype)
        array = arrays.as_array(tensor.T)
        assert type(array) is np.ndarray
        assert (array.shape, array.dtype.name) == ((4, 3), str(dtype).removeprefix("torch."))
        array[1, 2] = 1
        assert tensor[2, 1] == 1


def test_devices_and_dtypes_by_torchs_names(make_weight):
    weight = make_weight(16, 64, "m1v4g16")
    x = torch.ones(2, 64)
    for device in (x.device, torch.device("cpu", 0)):
        assert weight.to(device) is weight
    assert [Device.parse(torch.device(name)) for name in ("cuda", "cuda:2")] == ["cuda:0", "cuda:2"]
    for device in (torch.device("meta"), torch.device("mps"), 0, None):
        with pytest.raises(ValueError, match="must be 'cpu', 'cuda' or 'cuda:<number>'"):
            weight.to(device)
    for name in ("float16", "bfloat16", "float32", "float64"):
        dtype = getattr(torch, name)
        assert codegemm.plan(weight, dtype=dtype)(x[0].to(dtype)).dtype == dtype
        dense = weight.dequantize(dtype)
        assert np.array_equal(dense, weight.dequantize(name))
        assert dense.dtype.name == name
        assert codegemm.Product.of(weight.spec, 1, dtype) == codegemm.Product.of(weight.spec, 1, name)
        codegemm.warmup([weight.spec], [1], dtype=dtype, device=x.device)
    for refused in (torch.int8, torch.float8_e4m3fn, torch.complex64, np.int32, "bf16", torch):
        for call in (
            weight.dequantize,
            lambda dtype: codegemm.plan(weight, dtype=dtype),
            lambda dtype: codegemm.warmup([weight.spec], [1], dtype=dtype, device="cpu"),
            lambda dtype: codegemm.Product.of(weight.spec, 1, dtype),
        ):
            with pytest.raises(TypeError, match="must be one of float16, bfloat16, float32, float64"):
                call(refused)


def test_tensors_of_any_library_are_saved(make_weight, tmp_path):
    weight, path = make_weight(16, 64, "m1v4g16"), tmp_path / "file.safetensors"
    norm = torch.randn(64).bfloat16().requires_grad_()
    codegemm.save_all(path, {"layer": weight}, {"norm": norm, "strided": torch.arange(12).view(3, 4).T})
    file = File(path)
    assert torch.equal(arrays.to_torch(file.tensors["norm"].numpy().copy()), norm)
    assert np.array_equal(file.tensors["strided"].numpy(), np.arange(12).reshape(3, 4).T)
    assert codegemm.load(path, device=torch.device("cpu")) == weight
    assert codegemm.load_all(path, device="cpu") == {"layer": weight}
    for read in (codegemm.load, codegemm.load_all):
        with pytest.raises(ValueError, match="device 'tpu': must be 'cpu'"):
            read(path, device="tpu")


def test_torchs_own_functions_take_weights(make_weight):
    weight, x, bias = make_weight(24, 32, "m1v4g16"), torch.randn(2, 3, 32), torch.randn(24, requires_grad=True)
    y = codegemm.matmul(x, weight.T)
    out = torch.empty(2, 3, 24)
    assert torch.matmul(x, weight.T, out=out) is out
    for product in (torch.matmul(x, weight.T), x.matmul(weight.T), x @ weight.T, functional.linear(x, weight), out):
        assert torch.equal(product, y)
    for product in (
        torch.matmul(input=x, other=weight.T),
        torch.linalg.matmul(x, weight.T),
        functional.linear(input=x, weight=weight, bias=torch.zeros(24)),
    ):
        assert torch.equal(product, y)
    # Another number of rows may be another kernel's.
    assert torch.allclose(torch.stack([torch.mm(rows, mat2=weight.T) for rows in x]), y, atol=5e-3)
    assert torch.equal(torch.matmul(weight, x.mT), y.mT)
    assert torch.equal(torch.mv(weight, x[0, 0]), x[0, 0] @ weight.T)
    assert torch.equal(functional.linear(x, weight, bias), codegemm.linear(x, weight, bias))
    assert functional.linear(x, weight, bias).requires_grad
    for wrong in (
        lambda: torch.add(x, weight),
        lambda: functional.bilinear(x, x, weight),
        lambda: torch.stack([x, weight]),
    ):
        with pytest.raises(TypeError, match=r"torch's \w+ takes no quantised weight: x @ w\.T, torch\.matmul"):
            wrong()
    with pytest.raises(TypeError, match=r"linear: w is w\.T, must be a quantised weight"):
        functional.linear(x, weight.T)
    with pytest.raises(TypeError, match="matmul of Tensor and CodebookWeight"):
        torch.matmul(x, weight)
