"""What the test of kernels finds: every way to break the interface, in a sentence that says which."""

import re
import time

import numpy as np
import pytest
from emulator.gpu import emulated
from support.kernels import Twice

import codegemm
from codegemm import CodebookWeight, Cost, devices
from codegemm.baselines.cuda.dense import Dense
from codegemm.engines.cpu.dequant import Dequant
from codegemm.testing import check_kernel, checks, conformance
from codegemm.testing.problems import Problem


class Right(Twice):
    """Twice, for fewer weights; what its products are is to be spoilt."""

    weights = codegemm.E8PWeight

    def refuses(self, product, device):
        return None if product.n <= 3 else f"n={product.n}: it takes up to 3 rows"


def beyond(array):
    """Its memory with a number more."""
    return np.lib.stride_tricks.as_strided(array, (array.size + 1,), (array.itemsize,))


class Sevens(Right):
    def run(self, prepared, x, out, workspace, stream):
        out[...] = 7


class Unwritten(Right):
    def run(self, prepared, x, out, workspace, stream):
        out.ravel()[:-1] = (2 * (x @ prepared.T)).ravel()[:-1]


class BeyondY(Right):
    def run(self, prepared, x, out, workspace, stream):
        super().run(prepared, x, out, workspace, stream)
        beyond(out)[-1] = 0


class BeyondWorkspace(Right):
    def workspace(self, product, device):
        return 16

    def run(self, prepared, x, out, workspace, stream):
        super().run(prepared, x, out, workspace, stream)
        beyond(workspace)[-1] = 0


class WorkspaceIsZero(BeyondWorkspace):
    def run(self, prepared, x, out, workspace, stream):
        workspace[:4].view(np.float32)[...] += 1
        out[...] = 2 * (x @ prepared.T) + workspace[:4].view(np.float32)


class BeyondX(Right):
    def run(self, prepared, x, out, workspace, stream):
        super().run(prepared, x, out, workspace, stream)
        out[...] += beyond(x)[-1]


class WritesX(Right):
    def run(self, prepared, x, out, workspace, stream):
        x *= 2
        out[...] = x @ prepared.T


class HoldsTheWeight(Right):
    def prepare(self, weight, device):
        return weight

    def run(self, prepared, x, out, workspace, stream):
        out[...] = x @ prepared.dequantize(np.float64).T


class CannotBeCopied(Right):
    def prepare(self, weight, device):
        dense = super().prepare(weight, device)
        return lambda x: 2 * (x @ dense.T) + self.__dict__.setdefault("once", 0), (i for i in ())

    def run(self, prepared, x, out, workspace, stream):
        out[...] = prepared[0](x)


class HidesNaN(Right):
    def run(self, prepared, x, out, workspace, stream):
        super().run(prepared, np.nan_to_num(x, posinf=0, neginf=0), out, workspace, stream)


class SpreadsNaN(Right):
    def run(self, prepared, x, out, workspace, stream):
        super().run(prepared, x, out, workspace, stream)
        out[...] += 0 * x.astype(np.float32).sum()


class DependsOnThreads(Right):
    def run(self, prepared, x, out, workspace, stream):
        super().run(prepared, x, out, workspace, stream)
        out[...] *= 1 + 1e-2 * self.tolerance(None) * (codegemm.get_num_threads() == 3)

    def tolerance(self, product):
        return 0.5


class DependsOnTheRun(DependsOnThreads):
    runs = 0

    def run(self, prepared, x, out, workspace, stream):
        super().run(prepared, x, out, workspace, stream)
        self.runs += 1
        out[...] *= 1 + 1e-3 * (self.runs % 50)


class SharesMemory(Right):
    """Of what it prepared, between threads."""

    def prepare(self, weight, device):
        return {"dense": super().prepare(weight, device)}

    def run(self, prepared, x, out, workspace, stream):
        prepared["x"] = x
        time.sleep(1e-4)
        super().run(prepared["dense"], prepared["x"], out, workspace, stream)


class AddsBiasLate(Right):
    adds_bias = True

    def run(self, prepared, x, out, workspace, stream, bias=None):
        super().run(prepared, x, out, workspace, stream)
        if bias is not None:
            out[...] = out + bias


class Forgets(Right):
    rearranged = ("qidxs",)


class RestoresZeros(Forgets):
    def restore(self, prepared, name):
        return np.zeros((len(prepared), prepared.shape[1] // 8), np.int64)


class MissesTheShortWay(Dequant):
    """Does nothing where a plan calls compiled code at once."""

    name = "twice"

    def bound(self, prepared, product):
        return lambda *arguments: None


class IsWrongInOneConfiguration(Right):
    weights = CodebookWeight

    def run(self, prepared, x, out, workspace, stream):
        super().run(prepared, x, out, workspace, stream)
        out[...] *= 1 + (x.shape[1] == 390)


WHERE = r"^kernel cpu:twice, .* \[\d+, \d+\].*, x \[\d+, \d+\] \w+, y \w+.*: "


@pytest.mark.parametrize(
    ("kernel", "complaint"),
    [
        (Sevens, r"its error is \d.* of y's norm, its tolerance 2\.00e-04"),
        (Unwritten, r"it left 1 of 64 numbers of y unwritten, y\[0, 63\]"),
        (BeyondY, "it wrote beyond y"),
        (BeyondWorkspace, "it wrote beyond its workspace of 16 bytes"),
        (WorkspaceIsZero, r"y\[0, 0\] is nan, must be -?\d"),
        (BeyondX, r"y\[0, 0\] is nan, must be -?\d"),
        (WritesX, "it wrote to x"),
        (HoldsTheWeight, "what `prepare` made holds the weight, which holds that: neither is ever freed"),
        (CannotBeCopied, r"copy.deepcopy of what `prepare` made raised TypeError: cannot pickle"),
        (HidesNaN, r"row \d of x has a (nan|-?inf), and y\[\d, 0\] is the number "),
        (SpreadsNaN, r"y\[\d, 0\] is nan, must be -?\d"),
        (DependsOnThreads, "on 3 threads it gave other bits than on"),
        (DependsOnTheRun, "a second run, by `bind`, gave other bits"),
        (SharesMemory, "in two threads at a time it gave other bits than in one"),
        (AddsBiasLate, "its error is .* of y's norm"),
        (Forgets, "`restore` raised NotImplementedError: kernel 'twice' has no qidxs to restore"),
        (RestoresZeros, "`restore` makes other arrays than the weight had"),
        (Right(rearranged=("codes",)), "`rearranged` names codes, which the weight doesn't have"),
        (MissesTheShortWay, r"y\[0, 0\] is nan, must be -?\d"),
        (IsWrongInOneConfiguration, r"its error is \S+ of y's norm"),
        (Right(tolerance=lambda product: 1e-12), r"its error is \S+ of y's norm, its tolerance 1\.00e-12"),
        (Right(tolerance=lambda product: 0), "`tolerance` is 0, must be a positive number"),
        (Right(estimate=lambda product, device: -1.0), r"`estimate` is -1\.0, must be a positive number"),
        (Right(cost=lambda product, device: Cost(0, 1)), r"`cost` is Cost\(bytes_read=0, bytes_written=1, .*\), must"),
        (Right(run=lambda *arguments: 1 / 0), "`run` raised ZeroDivisionError: division by zero"),
        (Right(prepare=lambda weight, device: weight.tables), "`prepare` raised AttributeError: .*'tables'"),
        (Right(workspace=lambda product, device: None), "`workspace` is None, must be a number of bytes"),
        (Right(batches=lambda n: (n + 1) / 0), "a plan for it raised ZeroDivisionError"),
        (Right(refuses=lambda product, device: product.n == 2 or None), "`refuses` raised TypeError: .* returned True"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)  # fmt: skip
def test_a_broken_kernel_is_told_what_is_wrong(kernel, complaint):
    with pytest.raises(AssertionError, match=WHERE + complaint):
        check_kernel(kernel)


@pytest.mark.parametrize(
    ("kernel", "complaint"),
    [
        (Right(refuses=lambda product, device: True), "kernel 'twice': `refuses` returned True"),
        (Right(refuses=lambda product, device: "not now"), "kernel cpu:twice refuses every product: .*; not now"),
        (Right(name=""), "kernel <class '.*Right'>: has no name: set `name = 'right'`"),
        (object(), "lacks name, engine, refuses"),
    ],
)
def test_what_can_not_be_registered_or_used_is_wrong_too(kernel, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_kernel(kernel)


def test_a_right_kernel_is_told_what_it_was_held_to():
    checked = check_kernel(Right)
    assert {"e8p", "e8p3", "e8p4", "e8p+rotated"} <= set(checked.taken)
    assert checked.products == len(checked.taken) * 3 * 7  # rows; dtypes of x and y
    assert checked.refused["m1v4g128"] == "it multiplies E8PWeights"
    assert check_kernel(Right(), seed=5, tolerance=1e-6).taken == checked.taken
    assert "twice" not in {info.name for info in codegemm.kernels()}
    assert codegemm.testing.check_kernel is check_kernel


def test_a_kernel_may_be_held_to_less_than_it_promises():
    with pytest.raises(AssertionError, match=r"its tolerance 1\.00e-15"):
        check_kernel(Right, tolerance=1e-15)


def test_what_is_not_there_is_not_checked():
    reason = re.escape(devices.unavailable() or "")
    if reason:
        with pytest.raises(RuntimeError, match=f"kernel cuda:dense can't be checked: {reason}"):
            check_kernel(Dense)
    with pytest.raises(RuntimeError, match="can't be checked: it needs a moon"):
        check_kernel(Right(unavailable=lambda: "it needs a moon"))


class LeavesCounters(Dense):
    def run(self, prepared, x, out, workspace, stream, bias=None):
        super().run(prepared, x, out, workspace, stream, bias)
        workspace[:1] = 1


def test_a_gpus_kernels_are_checked_there(monkeypatch):
    """On the emulator, which knows cuBLAS's products, one thread at a time."""
    alone = [check for check in checks.CHECKS if check is not checks.check_two_at_a_time]
    monkeypatch.setattr(conformance, "CHECKS", alone)
    monkeypatch.setattr(conformance, "problems", lambda: [Problem(100, 512, "m1v4g128"), Problem(64, 128, "e8p")])
    with emulated():
        with pytest.raises(AssertionError, match=r"^kernel cuda:dense, .* other than 0 in the first 65536 bytes"):
            check_kernel(LeavesCounters)
        assert check_kernel(Dense).products == 2 * 7 * 5
