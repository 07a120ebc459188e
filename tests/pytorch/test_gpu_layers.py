"""Layers on a real GPU: `make gpu`. Elsewhere everything here is skipped."""

import copy

import numpy as np
import pytest

from codegemm import devices
from codegemm.formats.format import random_weight, registered
from codegemm.torch import CodebookLinear, linear

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(devices.unavailable() is not None, reason=str(devices.unavailable())),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
]

EXAMPLES = [text for format in registered() for text in format.examples]


def error(y, x, weight, bias=None):
    truth = x.double().cpu() @ torch.from_numpy(weight.dequantize(np.float64)).T
    truth = truth if bias is None else truth + bias.double().cpu()
    return float((y.double().cpu() - truth).norm() / truth.norm())


def layer_of(config, shape=(256, 512), bias=None):
    weight = random_weight(shape, config, 1)
    return CodebookLinear(weight.to("cuda"), bias), weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("config", EXAMPLES)
def test_products(config, dtype):
    bias = torch.randn(256, device="cuda")
    layer, weight = layer_of(config, bias=bias)
    limit = {torch.float16: 4e-3, torch.bfloat16: 2e-2, torch.float32: 4e-3}[dtype]
    for shape in ((512,), (1, 512), (3, 5, 512), (300, 512)):
        x = torch.randn(shape, device="cuda", dtype=dtype)
        assert error(layer(x), x, weight, bias) < limit
        assert torch.equal(linear(x, layer.tensors(), layer.layout, layer.bias), layer(x))
    assert layer.to_weight() == weight
    stored = weight.stored().tensors
    for twin in (layer, copy.deepcopy(layer)):
        assert all(np.array_equal(tensor.cpu().numpy(), stored[name]) for name, tensor in twin.state_dict().items()
                   if name != "bias")  # fmt: skip
    assert layer.cpu().to_weight() == weight


def test_nothing_waits_or_is_allocated(monkeypatch):
    """But the output."""
    import cupy

    layer, _ = layer_of("m1v4g128", (1024, 1024), torch.randn(1024, device="cuda", dtype=torch.float16))
    x = torch.randn(1, 1024, device="cuda", dtype=torch.float16)
    with torch.no_grad():
        layer(x)
        torch.cuda.synchronize()
        monkeypatch.setattr(devices, "synchronize", None)
        before = cupy.get_default_memory_pool().total_bytes(), torch.cuda.memory_allocated()
        y = layer(x)
        taken = torch.cuda.memory_allocated() - before[1]
        assert cupy.get_default_memory_pool().total_bytes() == before[0]
        assert y.nbytes <= taken <= max(512, 2 * y.nbytes)


@pytest.mark.parametrize("config", ["m1v4g128", "m2v8g-1+rotated", "e8p"])
def test_a_cuda_graph_captures_layers(config):
    first, second = layer_of(config, (512, 512), torch.randn(512, device="cuda"))[0], layer_of(config, (256, 512))[0]
    x = torch.randn(2, 512, device="cuda", dtype=torch.float16)
    with torch.no_grad():
        second(first(x))
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = second(first(x))
        for _ in range(3):
            x.copy_(torch.randn_like(x))
            y.fill_(torch.nan)
            graph.replay()
            assert torch.equal(y, second(first(x)))


def test_codes_are_held_once():
    """By the two libraries' allocators."""
    import cupy

    def used():
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated() + cupy.get_default_memory_pool().used_bytes()

    x = torch.randn(1, 4096, device="cuda", dtype=torch.float16)
    weights = [random_weight((4096, 4096), "m1v4g128", i) for i in range(4)]
    with torch.no_grad():
        layer_of("m1v4g128", (4096, 4096))[0](x)
        before = used()
        layers = [CodebookLinear(weight.to("cuda")) for weight in weights]
        for layer in layers:
            layer(x)
        assert used() - before <= 1.2 * sum(weight.nbytes for weight in weights)


def test_streams_and_compiled_graphs():
    layer, weight = layer_of("m1v4g128", (512, 512))
    x = torch.randn(4, 512, device="cuda", dtype=torch.float16)
    expected = layer.prepare(4, x.dtype)(x)
    with torch.cuda.stream(torch.cuda.Stream()):
        y = layer(x + 0)
    torch.cuda.synchronize()
    assert torch.equal(y, expected)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    g = x.clone().requires_grad_()
    compiled(g).sum().backward()
    assert torch.equal(compiled(x), expected)
    dense = torch.from_numpy(weight.dequantize()).cuda()
    assert (g.grad.float() - dense.sum(0)).norm() < 1e-2 * 4 * dense.sum(0).norm()
