"""Products on the CPU that are one call of compiled code: which of them go the short way, and that they are right."""

from weakref import ref

import numpy as np
import pytest

import codegemm
from codegemm import arrays, products
from codegemm.arrays import to_torch
from codegemm.engines.cpu.psumbook import Psumbook

ROWS, COLUMNS = 72, 96


@pytest.fixture
def no_long_way(monkeypatch):
    def fail(*arguments, **named):
        raise AssertionError("the long way")

    monkeypatch.setattr(products, "_multiply", fail)


def operands(rng, library, dtype, n):
    """x, an output and a bias, and x in float64."""
    x = rng.standard_normal((n, COLUMNS)).astype(arrays.float_dtype(dtype))
    given = x, np.full((n, ROWS), np.nan, x.dtype), rng.standard_normal(ROWS).astype(np.float32)
    return *(map(to_torch, given) if library == "torch" else given), x.astype(np.float64)


def calls(weight, x, out, bias, dtype):
    """Products without and with the bias."""
    plan, biased = (codegemm.plan(weight, len(x), dtype, "psumbook", bias=each) for each in (None, bias))
    named = {"kernel": "psumbook"}
    without = (
        lambda: plan(x, out=out), lambda: plan(x), lambda: x @ weight.T,
        lambda: codegemm.matmul(x, weight.T, out=out, **named), lambda: codegemm.matmul(x, weight.T, **named),
        lambda: codegemm.linear(x, weight, **named),
    )  # fmt: skip
    return without, (lambda: biased(x, out=out), lambda: biased(x), lambda: codegemm.linear(x, weight, bias, **named))


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("config", ["m1v4g32", "m1v4g32+rotated", "m1v4g32+offsets", "m1v4g32+ordered+rotated+offsets"])
def test_arrays_as_kernels_take_them_need_no_long_way(library, dtype, n, config, make_weight, rng, no_long_way):
    if library == "torch":
        pytest.importorskip("torch")
    weight = make_weight(ROWS, COLUMNS, config)
    x, out, bias, wide = operands(rng, library, dtype, n)
    truth = wide @ weight.dequantize(np.float64).T
    for some, wanted in zip(calls(weight, x, out, bias, dtype), (truth, truth + arrays.as_array(bias)), strict=True):
        for call in some:
            y = call()
            assert type(y) is type(x)
            assert y.dtype == x.dtype
            error = np.linalg.norm(arrays.as_array(y).astype(np.float64) - wanted) / np.linalg.norm(wanted)
            assert error <= (2e-4 if dtype == "float32" else 5e-3)


@pytest.mark.parametrize("dtypes", [("float16", "float16"), ("bfloat16", "float32"), ("float32", "float32"),
                                    ("float64", "float64")])  # fmt: skip
@pytest.mark.parametrize(
    "around", ["", "+rotated", "+offsets", "+ordered", "+rotated+offsets", "+rotated8+added+terms2"]
)
@pytest.mark.parametrize("n", [1, 3, 20])
def test_both_ways_give_the_same_bits(dtypes, around, n, make_weight, rng, monkeypatch):
    weight = make_weight(ROWS, COLUMNS, "m1v4g24" + around)
    x, bias = rng.standard_normal((n, COLUMNS)), rng.standard_normal(ROWS).astype(np.float32)
    x = x.astype(arrays.float_dtype(dtypes[0]))
    for kernel in ("psumbook", "dequant", "dequant_dense"):
        found = []
        for bind in (products._bind, lambda *arguments: None):
            with monkeypatch.context() as patch:
                patch.setattr(products, "_bind", bind)
                for added in (None, bias):
                    out = np.full((n, ROWS), np.nan, arrays.float_dtype(dtypes[1]))
                    codegemm.plan(weight, n, x.dtype, kernel, bias=added)(x, out=out)
                    found.append(out)
        assert not np.isnan(found[0].astype(np.float32)).any()
        np.testing.assert_array_equal(found[0], found[2])
        np.testing.assert_array_equal(found[1], found[3])


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_others_need_it(library, make_weight, rng, no_long_way):
    """Those that have to be copied, refused or recorded."""
    weight = make_weight(ROWS, COLUMNS, "m1v4g32")
    x, out, bias, _ = operands(rng, library, "float32", 3)
    if library == "torch":
        torch = pytest.importorskip("torch")
        crooked = (x.T.contiguous().T, x.to(torch.int32), torch._neg_view(x), x[:, :-1], x[:, 0])
        crooked += (x.to_sparse(), x.to_sparse_csr(), x.to_mkldnn())
        outs = (torch.empty(ROWS, 3).T, torch._neg_view(out), out.to(torch.float64), out[:2])
        outs += (out.to_sparse_csr(), out.to_mkldnn())
        biases = (bias.double(), torch.cat([bias, bias])[::2])
    else:
        read_only = out.copy()
        read_only.flags.writeable = False
        unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
        crooked = (np.asfortranarray(x), x.astype(">f4"), x.astype(np.int32), unaligned, x[:, :-1], x[:, 0], x.tolist())
        outs = (np.empty((ROWS, 3), np.float32).T, read_only, out.astype(">f4"), out.astype(np.float64), out[:2])
        biases = (bias.astype(np.float64), np.repeat(bias, 2)[::2], bias.astype(">f4"), bias.tolist())
    wrong = [*(lambda each=each: codegemm.matmul(each, weight.T) for each in crooked)]
    wrong += [lambda each=each: codegemm.matmul(x, weight.T, out=each) for each in outs]
    wrong += [lambda each=each: codegemm.linear(x, weight, each) for each in biases]
    for call in wrong:
        with pytest.raises(AssertionError, match="the long way"):
            call()


def test_what_overlaps_needs_it(rng, make_weight, no_long_way):
    weight = make_weight(COLUMNS, COLUMNS, "m1v4g32")
    memory = rng.standard_normal(3 * COLUMNS).astype(np.float32)
    for begin in (0, 1, COLUMNS - 1):
        x, out = memory[:COLUMNS], memory[begin : begin + COLUMNS]
        with pytest.raises(AssertionError, match="the long way"):
            codegemm.matmul(x, weight.T, out=out)
    codegemm.matmul(memory[:COLUMNS], weight.T, out=memory[COLUMNS : 2 * COLUMNS])


def test_a_call_keeps_its_weights_arrays(make_weight):
    """Compiled code reads them without Python's lock, while another thread may compact the weight."""
    weight, dtype = make_weight(ROWS, COLUMNS, "m1v4g32"), np.dtype(np.float32)
    kernel = Psumbook()
    prepared = kernel.prepared(weight)
    codes = ref(prepared.arguments.arrays["codes"])
    call = kernel.bound(prepared, products.Product.of(weight.spec, 1, dtype))
    del prepared
    weight.memo.clear()
    assert codes() is not None
    del call
    assert codes() is None
