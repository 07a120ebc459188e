"""Products of weights around a core: rotated halves, third parties' kernels, and how a kernel is chosen."""

import copy

import numpy as np
import pytest
from support.cpu import product, usable
from support.errors import FULL, error
from support.kernels import Twice, joined

import codegemm
from codegemm import KernelError, Product, tuning
from codegemm.choice import Lookup, choose, select
from codegemm.comparison import runner
from codegemm.comparison.selection import compared_kernels
from codegemm.devices import CPU
from codegemm.engines.cpu import costs, device
from codegemm.engines.cpu.costs import Work
from codegemm.engines.cuda.gpu import KNOWN
from codegemm.engines.transformed import TransformedKernel
from codegemm.formats import random_weight
from codegemm.formats.format import spec_of
from codegemm.measuring import sources
from codegemm.prediction import predict
from codegemm.quantize.progress import Progress
from codegemm.tables import Choice


def test_rotated_halves_do_not_overflow(make_weight):
    weight = make_weight(16, 4096, "m1v4g128+rotated")
    x = (6e4 * weight.signs)[None].astype(np.float16)  # all of it in one number of x'
    truth = x.astype(np.float64) @ weight.dequantize(np.float64).T
    for name in set(usable(weight, 1)) - {"dense_bf16", "psumbook_fast", "dequant_fast"}:
        assert error(product(weight, x, name, np.float32), truth) <= 1e-3, name


def test_products_plans_and_warmup(make_weight, rng):
    weight = make_weight(48, 96, "m1v4g24+rotated+offsets")
    x = rng.standard_normal((2, 3, 96)).astype(np.float32)
    truth = x.astype(np.float64) @ weight.dequantize(np.float64).T
    assert error(codegemm.matmul(x, weight.T), truth) <= 2e-4
    assert error(codegemm.linear(x, weight, np.zeros(48)), truth) <= 2e-4
    bound = codegemm.plan(weight, 16)
    assert bound.kernel is select(Product.of(weight.spec, 16, np.float32), CPU)
    out = np.empty((6, 48), np.float32)
    assert error(bound(x.reshape(6, 96), out), truth.reshape(6, 48)) <= 2e-4
    bound.prepared = copy.deepcopy(bound.prepared)
    assert error(bound(x[0, 0]), truth[0, 0]) <= 2e-4
    codegemm.warmup([weight.spec, (48, 96)], [1, 16], "m1v4g24+rotated+offsets", np.float32, "cpu")
    with pytest.raises(KernelError, match="'quip' can't run here: it multiplies E8PWeights"):
        codegemm.plan(weight, 1, kernel="quip")


def test_a_third_partys_kernel_gets_the_core(make_weight, rng):
    """Where it knows CodebookWeights alone."""

    def refuses(product, device):
        return None if isinstance(product.spec, codegemm.CodebookSpec) and product.n <= 4 else "no"

    def prepare(weight, device):
        assert isinstance(weight, codegemm.CodebookWeight)
        return weight.dequantize(np.float64)

    def run(prepared, x, out, workspace, stream):
        assert len(workspace) >= 64
        out[...] = x @ prepared.T

    mine = Twice(name="mine", weights=codegemm.CodebookWeight, refuses=refuses, prepare=prepare, run=run)
    mine.workspace = lambda product, device: 64
    with joined(mine):
        for config in ("m1v4g24+rotated+offsets", "m1v4g24+offsets", "m1v4g24+terms2"):
            weight = make_weight(48, 96, config)
            x = rng.standard_normal((3, 96))
            y = codegemm.matmul(x, weight.T, kernel="mine")
            assert error(y, x @ weight.dequantize(np.float64).T) <= FULL
            with pytest.raises(KernelError, match="'mine' can't run here: no"):
                codegemm.matmul(np.ones((5, 96)), weight.T, kernel="mine")


def test_a_cores_tables_count_where_there_are_none_for_the_weight():
    core = Lookup("m1v4g128", (64, 96), 4, "float16")
    product = Lookup("m1v4g128+rotated", (64, 96), 4, "float16", core)
    tuned = [
        Choice("m1v4g128", (64, 96), (4, 4), "float16", "b"),
        Choice(product.weights, (64, 96), (4, 4), "half", "c"),
    ]
    times = {"a": 1.0, "b": 2.0, "c": 3.0}
    assert choose(product, times) == "a"
    assert choose(product, times, tuned) == choose(product, times, (), tuned[:1]) == "b"
    own = Choice("m1v4g128+rotated", (64, 96), (4, 4), "float16", "c")
    assert choose(product, times, [*tuned, own]) == choose(product, times, (), [*tuned, own]) == "c"
    assert choose(product, times, [own], tuned) == "c"


def test_costs_count_what_is_around_the_core():
    spec = random_weight((512, 1024), "m2v8g128+rotated+offsets").spec
    wanted, core = Product.of(spec, 2, np.float16), Product.of(spec.core, 2, np.float32)
    add = costs.seconds(Work("around", {"add": 1}))
    for name in ("psumbook", "dequant"):
        kernel = select(wanted, CPU, name)
        assert isinstance(kernel, TransformedKernel)
        inner = kernel.inner.cost(core, CPU)
        cost = kernel.cost(wanted, CPU)
        x, y, sums, addends = 2 * 1024, 2 * 512, 2 * 8, 8 * 512
        assert cost.bytes_read == inner.bytes_read + 2 * x + 4 * (1024 + y + sums + addends)
        assert cost.bytes_written == 4 * (y + x + sums) + 2 * y
        assert kernel.bits_per_weight(spec) == pytest.approx(spec.bits_per_weight)
        # Adding groups up and rotating.
        around = add * 2 * (1024 * 10 + 1024 + 512 * 8)
        assert kernel.estimate(wanted, CPU) == pytest.approx(kernel.inner.estimate(core, CPU) + around)
        # An order is read and moves x; nothing else changes.
        moved, alone = (Product.of(spec_of((512, 1024), f"m2v8g128{more}"), 2, np.float32) for more in ("+ordered", ""))
        cost, inner = kernel.cost(moved, CPU), kernel.inner.cost(alone, CPU)
        assert cost.bytes_read == inner.bytes_read + 4 * 1024 + 4 * 2 * 1024
        assert cost.bytes_written == inner.bytes_written + 4 * 2 * 1024
        assert kernel.bits_per_weight(moved.spec) == pytest.approx(alone.spec.bits_per_weight + 32 / 512)
        around = add * 2 * 1024
        assert kernel.estimate(moved, CPU) == pytest.approx(kernel.inner.estimate(alone, CPU) + around)


def test_random_weights_are_tuned_compared_and_predicted(monkeypatch):
    monkeypatch.setattr(device, "measure_bandwidth", lambda: 1e10)
    monkeypatch.setattr(device, "last_level_cache", lambda: 1 << 12)  # else thousands of copies of so small a weight
    config = "m1v4g32+rotated+offsets"
    [case] = [sources.shape_case((64, 128), [config])]
    [found] = tuning._measure(case.weight(config), [1], np.dtype(np.float32), 0)
    assert found.choice.weights == config
    assert set(found.seconds) == {"psumbook", "dequant"}
    kernels = compared_kernels("cpu", ["psumbook", "dense", "aqlm"])
    result = runner.run([case], runner.Settings("cpu", kernels, [""], [2], 0, 1), Progress("", False))
    assert list(result.left_out) == ["aqlm"]
    assert {row.kernel for row in result.rows} == {"psumbook", "dense"}
    assert all(row.error < 1e-3 and row.config in ("", config) for row in result.rows)
    rows = predict(KNOWN["h100"], [(4096, 4096)], ["m2v8g128", "m2v8g128+rotated"], [1])
    times = {(row.kernel, row.config): row.seconds for row in rows}
    assert times["psumbook", "m2v8g128"] < times["psumbook", "m2v8g128+rotated"]
    assert sum(row.chosen for row in rows) == 2
