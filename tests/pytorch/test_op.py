"""`codegemm::linear` as an operation of torch's: what it computes, its derivatives, graphs that it is in."""

from functools import partial

import pytest
from emulator import cases
from support.layers import LIMITS, at_once, canonical, check, dense_of, torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import codegemm
from codegemm.formats.format import registered
from codegemm.testing.problems import example
from codegemm.torch import op
from codegemm.torch.bound import settle
from codegemm.torch.tensors import joined, text_of

OPS = torch.ops.codegemm
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch itself uses it
functional = torch.nn.functional
DTYPES = tuple(LIMITS)


@pytest.fixture(autouse=True)
def no_graphs():
    """Nothing compiled before."""
    torch._dynamo.reset()


def operands(*weights):
    """The tensors and the layout of weights that share x."""
    tensors = [tensor for weight in weights for tensor in canonical(weight).values()]
    return tensors, joined([text_of(weight.stored()) for weight in weights])


def leaf(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_()


def opcheck(weights, dtype, biased):
    tensors, layout = operands(*weights)
    rows, columns = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
    bias = leaf(rows) if biased else None
    for operation, operands_of in (
        (OPS.linear.default, (leaf(3, columns, dtype=dtype), tensors, layout, bias, "full")),
        (OPS.linear_backward.default, (leaf(3, rows, dtype=dtype), tensors, layout, "full")),
    ):
        assert set(torch.library.opcheck(operation, operands_of).values()) == {"SUCCESS"}


SOME = [text for format in registered() for text in format.examples[:: 1 if cases.ALL else len(format.examples) - 1]]


@pytest.mark.parametrize("config", SOME)
def test_torchs_own_checks(config, rng):
    """With and without a bias, in float32 and halves, in turn."""
    number = SOME.index(config)
    dtype = (torch.float32, torch.float16, torch.bfloat16)[number % 3]
    opcheck([example(config).weight(int(rng.integers(1 << 31)))], dtype, biased=number % 2 == 0)


def test_torchs_own_checks_of_several_parts(make_weight):
    opcheck([make_weight(31, 96, "m2v4g32", 3)], torch.float32, biased=True)
    opcheck([make_weight(rows, 96, "m1v4g16") for rows in (5, 1, 24)], torch.float16, biased=False)
    opcheck([make_weight(33, 96, "m2v4g32+rotated16+offsets", 2)], torch.bfloat16, biased=True)


def views(columns, dtype):
    """x of every shape and layout, by what it is."""
    wide = torch.randn(6, 2 * columns).to(dtype)
    return {
        "vector": wide[0, :columns].clone(),
        "rows": wide[:, :columns].clone(),
        "batches": wide.reshape(2, 3, -1)[..., columns:].clone(),
        "none": wide[:0, :columns],
        "empty batches": wide.new_empty(2, 0, columns),
        "every other column": wide[:, ::2],
        "transposed": wide[:, :columns].T.contiguous().T,
        "one row, expanded": wide[:1, :columns].expand(4, -1),
        "one column, expanded": wide[:, :1].expand(-1, columns),
        "in the midst of memory": wide.reshape(-1)[3 : 3 + columns],
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns", "config", "parts"), [(320, 960, "m1v4g32", 1), (77, 384, "m2v4g32", 3)])
def test_products(rows, columns, config, parts, dtype, make_weight):
    weight = make_weight(rows, columns, config, parts)
    dense, (tensors, layout) = dense_of(weight), operands(weight)
    for name, x in views(columns, dtype).items():
        for bias in (None, torch.randn(rows)):
            print(name)
            y = op.linear(x, tensors, layout, bias)
            check(y, functional.linear(x.double(), dense, None if bias is None else bias.double()), dtype)
            assert y.is_contiguous()


def test_parts_are_side_by_side(make_weight):
    weights = [make_weight(rows, 96, config) for rows, config in ((5, "m1v4g16"), (300, "m1v4g16"))]
    tensors, layout = operands(*weights)
    x = torch.randn(3, 96)
    check(op.linear(x, tensors, layout), x.double() @ torch.cat([dense_of(weight) for weight in weights]).T)
    gradient = OPS.linear_backward(torch.ones(305), tensors, layout, "full")
    check(gradient, sum(dense_of(weight).sum(0) for weight in weights))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32])
def test_biases(dtype, make_weight):
    """Of every dtype, each another, though one may come to lie where the one before it was."""
    weight = make_weight(320, 96, "m1v4g32")
    tensors, layout = operands(weight)
    zeros = torch.zeros(1, 96)
    for number in range(1000):
        assert op.linear(zeros, tensors, layout, torch.full((320,), number % 100, dtype=dtype))[0, 7] == number % 100
    bias = torch.arange(320).to(dtype)
    assert torch.equal(op.linear(zeros, tensors, layout, bias)[0], bias.float())
    bias += 1
    assert torch.equal(op.linear(zeros, tensors, layout, bias)[0], bias.float())
    with torch.inference_mode():  # where torch counts no changes
        bias = torch.arange(320).to(dtype)
        for _ in range(2):
            assert torch.equal(op.linear(zeros, tensors, layout, bias)[0], bias.float())
            bias += 1


def test_biases_of_several_threads(make_weight):
    """Each its own, with one weight."""
    tensors, layout = operands(make_weight(320, 96, "m1v4g32"))
    zeros, biases = torch.zeros(2, 96), torch.randn(8, 320).half()

    def products(bias):
        return [op.linear(zeros, tensors, layout, bias.clone()) for _ in range(100)]

    for ys, bias in zip(at_once([partial(products, bias) for bias in biases]), biases):
        assert all(torch.equal(y, bias.float().expand(2, -1)) for y in ys)


def test_what_x_can_not_be(make_weight):
    tensors, layout = operands(make_weight(24, 96, "m1v4g32"))
    x = torch.randn(2, 96)
    for wrong in (x[:, 1:], x[0, 0], x[:0, :0], x.requires_grad_()[:, 1:]):
        with pytest.raises(ValueError, match=r"x: shape \(.*\), its last axis must be in_features=96 of the weight"):
            op.linear(wrong, tensors, layout)
    for wrong in (x.int(), x.bool(), x.to(torch.complex64)):
        with pytest.raises(TypeError, match=r"x: dtype (int32|bool|complex64), must be one of float16, bfloat16"):
            op.linear(wrong, tensors, layout)
    with pytest.raises(TypeError, match="x is a torch tensor on meta:0 and the weight is on cpu"):
        op.linear(x.to("meta"), tensors, layout)
    meta = [tensor.to("meta") for tensor in tensors]
    with pytest.raises(TypeError, match="x is a torch tensor on cpu and the weight is on meta:0"):
        op.linear(x, meta, layout)
    assert op.linear(x.to("meta"), meta, layout).shape == (2, 24)
    for wrong, message in (
        (torch.zeros(23), r"bias: shape \(23,\), must be \(24,\)"),
        (torch.zeros(24).cfloat(), "bias: dtype"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            op.linear(x, tensors, layout, wrong)


def test_changes_of_the_tensors_are_seen(make_weight):
    weight = make_weight(320, 96, "m1v4g32")
    tensors, layout = operands(weight)
    x = torch.randn(2, 96)
    check(op.linear(x, tensors, layout), x.double() @ dense_of(weight).T)
    tensors[2] *= 2
    check(op.linear(x, tensors, layout), 2 * x.double() @ dense_of(weight).T)
    other = make_weight(320, 96, "m1v4g32")
    for tensor, array in zip(tensors, canonical(other).values()):
        tensor.copy_(array)
    check(op.linear(x, tensors, layout), x.double() @ dense_of(other).T)


def test_codes_that_were_let_go_of_are_told_apart(make_weight):
    """Though they are all empty and lie nowhere."""
    weights = [make_weight(320, 960, "m1v4g32") for _ in range(3)]
    (tensors, layout), (single, own) = operands(*weights[:2]), operands(weights[2])
    x = torch.randn(2, 960)
    tensors = settle(tensors, layout, "full", 1, torch.float32)
    single[1:] = tensors[4:]
    single = settle(single, own, "full", 1, torch.float32)
    exact = [codegemm.CodebookWeight(weights[i].codes, weights[1].codebooks, weights[1].scales) for i in (1, 2)]
    for codes, weight in zip((tensors[3], single[0]), exact):
        assert not codes.numel()
        y = op.linear(x, [*tensors[:3], codes, *tensors[4:]], layout)
        check(y, x.double() @ torch.cat([dense_of(weights[0]), dense_of(weight)]).T)


def test_gradcheck(make_weight):
    """Of a linear function, whose differences may be large: what kernels err by is divided by them."""
    for config in ("m1v4g32", "m2v4g32+rotated16+offsets"):
        tensors, layout = operands(make_weight(9, 32, config))
        x, bias = leaf(2, 1, 32, dtype=torch.float64), leaf(9, dtype=torch.float64)
        for given in ((x, bias), (x,), (x.detach(), bias)):

            def linear(x, bias=None, tensors=tensors, layout=layout):
                return op.linear(x, tensors, layout, bias)

            assert torch.autograd.gradcheck(linear, given, eps=0.1, atol=2e-2)
        assert torch.autograd.gradgradcheck(linear, (x, bias), eps=0.1, atol=2e-2)
        g = leaf(2, 1, 9, dtype=torch.float64)

        def back(g, tensors=tensors, layout=layout):
            return OPS.linear_backward(g, tensors, layout, "full")

        assert torch.autograd.gradcheck(back, (g,), eps=0.1, atol=2e-2)
        assert torch.autograd.gradgradcheck(back, (g,), eps=0.1, atol=2e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 3, 200])
def test_gradients_of_a_dense_layer(n, dtype, make_weight):
    """In a residual block, for a bias of its own dtype."""
    weight = make_weight(320, 960, "m1v4g32")
    tensors, layout = operands(weight)
    for bias_dtype in {dtype, torch.float32, torch.float16}:
        x, bias, upstream = leaf(n, 960, dtype=dtype), leaf(320, dtype=bias_dtype), torch.randn(n, 320).to(dtype)
        wide_x, wide_bias = (value.detach().double().requires_grad_() for value in (x, bias))
        y = op.linear(x, tensors, layout, bias) + x[:, :320]
        exact = functional.linear(wide_x, dense_of(weight), wide_bias) + wide_x[:, :320]
        truth = torch.autograd.grad(exact, (wide_x, wide_bias), upstream.double())
        for gradient, expected, given in zip(torch.autograd.grad(y, (x, bias), upstream), truth, (x, bias)):
            check(gradient, expected, given.dtype)


def test_tensors_that_graphs_keep(make_weight):
    """Codes that were let go of are found though hooks put copies in their place; what was written to since is not."""
    weight = make_weight(320, 960, "m1v4g32")
    tensors, layout = operands(weight)
    tensors = settle(tensors, layout, "full", 1, torch.float32)
    assert not tensors[0].numel()
    x, exact = leaf(2, 960), dense_of(weight).sum(0).expand(2, -1)
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
        y = op.linear(x, tensors, layout)
    check(torch.autograd.grad(y.sum(), x)[0], exact)

    def forward(x):
        return op.linear(x, tensors, layout)

    for reentrant in (False, True):
        y = torch.utils.checkpoint.checkpoint(forward, x, use_reentrant=reentrant)
        y.sum().backward()
        check(x.grad, exact)
        x.grad = None
    y = forward(x)
    tensors[2].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_torchs_transformations(make_weight):
    """Against those of a dense layer."""
    weight = make_weight(9, 96, "m2v4g32")
    dense, (tensors, layout) = dense_of(weight), operands(weight)
    x, tangent = torch.randn(2, 3, 96, dtype=torch.float64)
    bias, biases = torch.randn(9, dtype=torch.float64), torch.randn(3, 9, dtype=torch.float64)
    func, forward_ad = torch.func, torch.autograd.forward_ad

    def mine(x, bias=bias):
        return op.linear(x, tensors, layout, bias).square()

    def theirs(x, bias=bias):
        return functional.linear(x, dense, bias).square()

    def dual(f):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(f(forward_ad.make_dual(x, tangent))).tangent

    def second(f):
        """torch.func inside a graph."""
        outer = x.clone().requires_grad_()
        return torch.autograd.grad(func.grad(lambda x: f(x).sum())(outer).square().sum(), outer)[0]

    for transform in (
        dual,
        second,
        lambda f: func.jvp(f, (x,), (tangent,))[1],
        lambda f: func.jvp(f, (x, bias), (tangent, biases[0]))[1],
        lambda f: func.vmap(f)(x, biases),
        lambda f: func.vmap(func.grad(lambda x: f(x).sum()))(x),
        lambda f: func.grad(lambda bias: f(x, bias).sum())(bias),
        lambda f: func.jacrev(f)(x),
        lambda f: func.hessian(lambda x: f(x).sum())(x[0]),
    ):
        check(transform(mine), transform(theirs), torch.float64)


def test_no_gradient_of_the_tensors_is_made_up(make_weight):
    tensors, layout = operands(make_weight(9, 96, "m1v4g32"))
    (codes, codebooks, scales), x = tensors, torch.randn(2, 96)
    message = "scales: codegemm::linear has no gradient of these: call requires_grad_\\(False\\)"
    with pytest.raises(RuntimeError, match=message):
        op.linear(x, [codes, codebooks, scales.requires_grad_()], layout).sum().backward()
    with torch.no_grad():
        assert not op.linear(x, tensors, layout).requires_grad
    with pytest.raises(RuntimeError, match="codebooks, scales: codegemm"):
        op.linear(x, [codes, codebooks.requires_grad_(), scales], layout).sum().backward()

    def of_scales(scales):
        return op.linear(x, [codes, codebooks.detach(), scales], layout).sum()

    plain = scales.detach()
    for transform in (
        lambda: torch.func.grad(of_scales)(plain),
        lambda: torch.func.jvp(of_scales, (plain,), (plain,)),
        lambda: torch.func.vmap(of_scales)(torch.stack([plain, plain])),
    ):
        with pytest.raises(RuntimeError, match=message):
            transform()


def test_compiled_graphs(make_weight):
    """One serves every weight of a configuration and every number of rows, and has gradients."""
    weights = [make_weight(48, 960, "m2v4g32+rotated") for _ in range(3)]
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=counter, fullgraph=True)
    def block(x, tensors, layout, bias):
        return op.linear(x.tanh(), tensors, layout, bias) + x[:, :48]

    for n in (3, 5, 70):
        for weight in weights:
            tensors, layout = operands(weight)
            x, bias = leaf(n, 960), leaf(48)
            y = block(x, tensors, layout, bias)
            wide_x, wide_bias = (value.detach().double().requires_grad_() for value in (x, bias))
            exact = functional.linear(wide_x.tanh(), dense_of(weight), wide_bias) + wide_x[:, :48]
            check(y, exact)
            g = torch.randn(n, 48)
            for gradient, expected in zip(
                torch.autograd.grad(y, (x, bias), g), torch.autograd.grad(exact, (wide_x, wide_bias), g.double())
            ):
                check(gradient, expected)
    assert counter.frame_count <= 2  # for the first number of rows, and for any


def test_wrong_calls_are_found_when_they_are_compiled(make_weight):
    tensors, layout = operands(make_weight(24, 96, "m1v4g32"))
    compiled = torch.compile(op.linear, backend="eager", fullgraph=True)
    for wrong, message in ((torch.zeros(2, 95), "in_features=96"), (torch.zeros(2, 96).int(), "x: dtype int32")):
        with pytest.raises(Exception, match=message):
            compiled(wrong, tensors, layout)


class Seen(TorchDispatchMode):
    """What is called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **kwargs or {})


def test_whoever_watches_sees_the_operation(make_weight):
    weight = make_weight(24, 96, "m1v4g32")
    tensors, layout = operands(weight)
    x = torch.randn(5, 96)
    y = op.linear(x, tensors, layout)
    with Seen() as seen:
        again = op.linear(x, tensors, layout)
    assert torch.equal(again, y)
    assert seen.names == ["codegemm.linear.default"]
    graph = make_fx(lambda x: op.linear(x, tensors, layout))(x)
    assert [node.target for node in graph.graph.nodes if node.op == "call_function"] == [OPS.linear.default]
    assert torch.equal(graph(x), y)
    counter = FlopCounterMode(display=False, custom_mapping={OPS.linear: lambda x, *_, out_shape, **__: 7})
    with counter:
        op.linear(x, tensors, layout)
    assert counter.get_total_flops() == 7
    with torch._subclasses.FakeTensorMode() as mode:
        fake = op.linear(mode.from_tensor(x), [mode.from_tensor(tensor) for tensor in tensors], layout)
    assert (fake.shape, fake.dtype, fake.device) == (y.shape, y.dtype, y.device)


def test_what_is_plain():
    x, bias = torch.randn(2, 96), torch.randn(24)
    assert op.is_plain(x, bias)
    assert op.is_plain(x, None, [bias])
    assert not op.is_plain(torch.nn.Parameter(x, requires_grad=False), bias)
    assert not op.is_plain(x.to("meta"), bias)
    grown = bias.clone().requires_grad_()
    for tracked in ((x.clone().requires_grad_(), None), (x, grown), (x, None, [bias, grown])):
        assert not op.is_plain(*tracked)
        with torch.no_grad():
            assert op.is_plain(*tracked)
    with torch.inference_mode():
        assert op.is_plain(x, grown)
    inside = {}
    for name, context in {
        "dispatch": Seen(),
        "function": torch.overrides.BaseTorchFunctionMode(),
        "device": torch.device("cpu"),
        "autocast": torch.autocast("cpu", torch.bfloat16),
        "dual": torch.autograd.forward_ad.dual_level(),
        "flops": FlopCounterMode(display=False),
    }.items():
        with context:
            inside[name] = op.is_plain(x, bias)
    for name, transform in {
        "grad": lambda f: torch.func.grad(f)(x),
        "vmap": lambda f: torch.func.vmap(f)(x),
        "jvp": lambda f: torch.func.jvp(f, (x,), (x,)),
        "functionalize": lambda f: torch.func.functionalize(f)(x),
        "make_fx": lambda f: make_fx(f)(x),
        "jit": lambda f: torch.jit.trace(f, (x,), check_trace=False),
        "compile": lambda f: torch.compile(f, backend="eager", fullgraph=True)(x),
    }.items():

        def seen(x):
            inside[name] = op.is_plain(x, bias)  # noqa: B023
            return x.sum()

        transform(seen)
    assert not any(inside.values()), inside
    assert op.is_plain(x, bias)
