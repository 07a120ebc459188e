"""Products of tensors are nodes of torch's graph: gradients of x and of a bias, none of the weight."""

from functools import partial

import numpy as np
import pytest
from emulator.cases import ALL
from support.cpu import usable

import codegemm
from codegemm.engines.cpu import dequant
from codegemm.formats import random_weight

torch = pytest.importorskip("torch")

CONFIGS = (
    "m1v4g16",
    "m3v4b5g16",
    "m1v8b11g-1",
    "m2v4b4g32+rotated16+offsets",
    "m1v4b4g32+terms2",
    "q2g32",
    "m1v4g16+ordered",
    "m2v4b4g32+ordered+rotated16",
    "e8p",
    "e8p3+rotated",
    "qtip",
)


def weight_of(config, rows=64, columns=128):
    if "+" in config or config in ("e8p", "qtip"):
        return random_weight((rows, columns), config, 3)
    return codegemm.concat([random_weight((each, columns), config, each) for each in (7, rows - 7)])


def dense_of(weight, dtype=torch.float64):
    return torch.from_numpy(weight.dequantize(np.float64)).to(dtype)


def leaf(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_()


@pytest.mark.parametrize("config", CONFIGS)
def test_gradcheck(config):
    weight = weight_of(config, 32, 64)
    x, bias = leaf(2, 1, 64, dtype=torch.float64), leaf(32, dtype=torch.float64)

    def linear(x, bias):
        return codegemm.linear(x, weight, bias, kernel="reference")

    forward = config == CONFIGS[0]  # is made of the same products, whatever the weight
    assert torch.autograd.gradcheck(linear, (x, bias), check_forward_ad=forward, fast_mode=not ALL)
    assert torch.autograd.gradgradcheck(linear, (x, bias), check_fwd_over_rev=forward, fast_mode=True)
    left = leaf(64, 2, dtype=torch.float64)
    multiply = partial(codegemm.matmul, weight, kernel="reference")
    assert torch.autograd.gradcheck(multiply, (left,), fast_mode=not ALL)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("config", CONFIGS)
def test_every_kernel_has_the_gradients_of_a_dense_layer(config, dtype):
    """In a residual block: what is added to the product keeps its own."""
    weight, limit = weight_of(config), {torch.float32: 2e-4, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]
    branch = torch.randn(128, 64, dtype=torch.float64).to(dtype)
    for n in (1, 3, 200):
        x, bias, upstream = leaf(n, 128, dtype=dtype), leaf(64, dtype=dtype), torch.randn(n, 64).to(dtype)
        wide_x, wide_bias = (value.detach().double().requires_grad_() for value in (x, bias))
        expected = torch.nn.functional.linear(wide_x, dense_of(weight), wide_bias) + wide_x @ branch.double()
        truth = torch.autograd.grad(expected, (wide_x, wide_bias), upstream.double())
        for name in sorted({"auto", *usable(weight, n)} - {"dense_bf16", "psumbook_fast", "dequant_fast"}):
            y = codegemm.linear(x, weight, bias, kernel=name) + x @ branch
            assert y.dtype == dtype
            for gradient, exact, given in zip(torch.autograd.grad(y, (x, bias), upstream), truth, (x, bias)):
                assert gradient.dtype == given.dtype
                assert torch.linalg.norm(gradient.double() - exact) <= limit * torch.linalg.norm(exact), (name, n)


@pytest.mark.parametrize("config", CONFIGS)
def test_gradients_of_no_rows(config):
    weight = weight_of(config)
    for shape in ((0, 128), (3, 0, 128)):
        x, bias = leaf(*shape), leaf(64)
        of_x, of_bias = torch.autograd.grad(codegemm.linear(x, weight, bias).sum(), (x, bias))
        assert of_x.shape == shape
        assert not of_bias.any()


def test_gradients_of_what_is_asked_for():
    weight = weight_of("m1v4g16")
    x, bias = torch.randn(3, 128), leaf(64)
    (gradient,) = torch.autograd.grad(codegemm.linear(x, weight, bias).sum(), bias)
    assert torch.equal(gradient, torch.full((64,), 3.0))
    x = leaf(3, 128)
    for fixed in (bias.detach(), bias.detach().numpy(), None):
        (gradient,) = torch.autograd.grad(codegemm.linear(x, weight, fixed).sum(), x)
        assert torch.allclose(gradient.double(), dense_of(weight).sum(0).expand(3, -1), atol=1e-4)
    (gradient,) = torch.autograd.grad(codegemm.linear(x[:0], weight, bias).sum(), bias)
    assert not gradient.any()
    half = leaf(64, dtype=torch.float16)  # of another dtype than x
    (gradient,) = torch.autograd.grad(codegemm.linear(x, weight, half).sum(), half)
    assert gradient.dtype == torch.float16
    (gradient,) = torch.func.grad(lambda x: codegemm.matmul(x, weight.T).sum())(x.detach()[0])[None]
    assert torch.allclose(gradient.double(), dense_of(weight).sum(0), atol=1e-4)


def test_second_derivatives_know_nothing_of_a_bias():
    weight = weight_of("m1v4g16")
    for bias in ([5.0] * 64, np.full(64, 5.0), torch.full((64,), 5.0), leaf(64)):
        x, upstream, direction = leaf(2, 128), leaf(2, 64), torch.randn(2, 128)
        (gradient,) = torch.autograd.grad(codegemm.linear(x, weight, bias), x, upstream, create_graph=True)
        (second,) = torch.autograd.grad(gradient, upstream, direction)
        exact = direction.double() @ dense_of(weight).T
        assert torch.linalg.norm(second.double() - exact) <= 2e-4 * torch.linalg.norm(exact)


@pytest.mark.filterwarnings("ignore:.torch.jit.script")  # which its forward-mode formulas are made with
@pytest.mark.parametrize("config", CONFIGS)
def test_torchs_transformations(config):
    """Against those of a dense layer."""
    weight = weight_of(config, 32, 64)
    dense = dense_of(weight)
    x, bias = leaf(3, 64, dtype=torch.float64).detach(), leaf(32, dtype=torch.float64).detach()
    tangent, biases = torch.randn_like(x), torch.randn(3, 32, dtype=torch.float64)

    def mine(x, bias=bias):
        return codegemm.linear(x, weight, bias, kernel="reference").tanh() + x[..., :1]

    def theirs(x, bias=bias):
        return torch.nn.functional.linear(x, dense, bias).tanh() + x[..., :1]

    func = torch.func
    for transform in (
        lambda f: func.jvp(f, (x,), (tangent,)),
        lambda f: func.jvp(f, (x, bias), (tangent, bias)),
        lambda f: func.jvp(lambda bias: f(x, bias), (bias,), (bias,)),
        lambda f: func.vmap(f)(x),
        lambda f: func.vmap(f, in_dims=1)(x.T),
        lambda f: func.vmap(f)(x, biases),
        lambda f: func.vmap(f, in_dims=(None, 0))(x[0], biases),
        lambda f: func.jacfwd(f)(x[0]),
        lambda f: func.jacrev(f)(x[0]),
        lambda f: func.jacrev(f, argnums=1)(x[0], bias),
        lambda f: func.hessian(lambda x: f(x).sum())(x[0]),
        lambda f: func.vmap(func.grad(lambda x: f(x).sum()))(x),
    ):
        torch.testing.assert_close(transform(mine), transform(theirs))


def test_forward_mode_is_not_lost():
    weight, forward_ad = weight_of("m1v4g16"), torch.autograd.forward_ad
    x, tangent = torch.randn(2, 128), torch.randn(2, 128)
    plan = codegemm.plan(weight, 2)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, tangent)
        y = forward_ad.unpack_dual(codegemm.linear(dual, weight) + dual[:, :64])
        torch.testing.assert_close(y.tangent, codegemm.linear(tangent, weight) + tangent[:, :64])
        torch.testing.assert_close(plan(x), y.primal - x[:, :64], rtol=1e-4, atol=1e-4)
        with pytest.raises(RuntimeError, match="transformed by torch, and a plan has no graph"):
            plan(dual)
        with pytest.raises(RuntimeError, match="out: torch keeps a graph"):
            codegemm.matmul(dual, weight.T, out=torch.empty(2, 64))
    with pytest.raises(RuntimeError, match="transformed by torch, and a plan has no graph"):
        torch.func.vmap(plan)(x)


def test_transformed_weights_are_decoded_by_compiled_code(monkeypatch):
    decoded, slices = [], dequant.dense_slices
    monkeypatch.setattr(dequant, "dense_slices", lambda *given: decoded.append(given) or slices(*given))
    for config in ("m1v4g16", "m2v4b4g32+ordered+rotated16+offsets", "m1v4b4g32+terms2"):
        x = leaf(2, 128)
        codegemm.linear(x, weight_of(config)).sum().backward()
        assert len(decoded) == 1
        decoded.clear()


def test_graphs_hear_of_what_is_written_to():
    weight = weight_of("m1v4g16")
    x, a, out = torch.randn(3, 128), leaf(3, 64), torch.ones(3, 64)
    for write in (lambda: codegemm.matmul(x, weight.T, out=out), lambda: codegemm.plan(weight, 3)(x, out=out)):
        needs_out = (a * out).sum()
        write()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            needs_out.backward()


def test_no_graph_where_none_is_kept():
    weight = weight_of("m1v4g16")
    x, bias = leaf(3, 128), leaf(64)
    with torch.no_grad():
        assert not codegemm.linear(x, weight, bias).requires_grad
        out = torch.empty(3, 64)
        assert codegemm.matmul(x, weight.T, out=out) is out
    with torch.inference_mode():
        assert not (x @ weight.T).requires_grad
    assert not codegemm.linear(x.detach(), weight, bias.detach()).requires_grad


def test_what_can_have_no_graph_says_so():
    weight = weight_of("m1v4g16")
    x, bias, out = leaf(3, 128), leaf(64), torch.empty(3, 64)
    with pytest.raises(RuntimeError, match="out: torch keeps a graph"):
        codegemm.matmul(x, weight.T, out=out)
    with pytest.raises(RuntimeError, match="out: torch keeps a graph"):
        codegemm.matmul(x.detach(), weight.T, out=out.requires_grad_())
    with pytest.raises(RuntimeError, match="bias requires grad and x is ndarray"):
        codegemm.linear(x.detach().numpy(), weight, bias)
    with pytest.raises(RuntimeError, match="bias requires grad, and a plan has no graph"):
        codegemm.plan(weight, 3, bias=bias)
    plan = codegemm.plan(weight, 3, bias=bias.detach())
    with pytest.raises(RuntimeError, match="a plan has no graph"):
        plan(x)
    with torch.no_grad():
        assert torch.equal(plan(x), codegemm.linear(x, weight, bias))
    assert torch.equal(plan(x.detach()), codegemm.linear(x.detach(), weight, bias.detach()))
