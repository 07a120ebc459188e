"""torch tensors on the CPU, and the bfloat16 baseline."""

import numpy as np
import pytest

import codegemm

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tensors_come_back_as_tensors(dtype, make_weight):
    weight = make_weight(24, 32, "m1v4g16")
    x = torch.randn(2, 3, 32, dtype=getattr(torch, dtype))
    y = codegemm.matmul(x, weight.T)
    assert isinstance(y, torch.Tensor)
    assert y.dtype == x.dtype
    truth = x.double().numpy() @ weight.dequantize(np.float64).T
    tolerance = {"float16": 2e-3, "bfloat16": 2e-2}.get(dtype, 1e-5) * np.abs(truth).max()
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
        assert torch.allclose(codegemm.linear(x, weight, given).double(), truth, atol=1e-4)
    assert np.allclose(codegemm.linear(x.numpy(), weight, bias), truth, atol=1e-4)


def test_integers_are_refused(make_weight):
    with pytest.raises(TypeError, match="x: dtype int64"):
        codegemm.matmul(torch.ones(32, dtype=torch.int64), make_weight(24, 32, "m1v4g16").T)


def test_quantize_takes_tensors():
    matrix = torch.randn(32, 64).to(torch.bfloat16)
    assert codegemm.quantize(matrix, "m1v4b4") == codegemm.quantize(matrix.float().numpy(), "m1v4b4")
