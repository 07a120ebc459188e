"""The CUDA engine where there is no GPU, and its logic with a stand-in for CuPy."""

import contextlib
import copy
import gc
import re
import sys
import threading
import types
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
from emulator import cases, emulate
from emulator.gpu import Array, Tensor, emulated, host

import codegemm
from codegemm import Plan, Product, choice, devices, registry
from codegemm.devices import Device
from codegemm.engines.builds import CompilerError
from codegemm.engines.cuda import compiler, library, timing
from codegemm.engines.cuda.gpu import KNOWN, Gpu, gpu_of
from codegemm.engines.cuda.launch import Sequence

GPU = Device("cuda:0")


@pytest.fixture(autouse=True)
def forget():
    devices.unavailable.cache_clear()
    yield
    devices.unavailable.cache_clear()


def test_without_cupy_there_is_a_sentence(monkeypatch, make_weight):
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    reason = r"CuPy is not installed \(pip install 'codegemm\[cuda12\]', or cuda13\)"
    with pytest.raises(RuntimeError, match=f"cuda:0: {reason}"):
        make_weight(16, 64, "m1v4").to("cuda")
    [dense] = [i for i in codegemm.kernels() if i.engine == "cuda" and i.name == "dense"]
    assert not dense.usable
    assert dense.reason.startswith("CuPy is not installed")


def test_a_weight_moves_there_and_back(emulated_gpu, make_weight):
    weight = make_weight(16, 64, "m1v4g16")
    moved = weight.to("cuda")
    assert moved.device == "cuda:0"
    assert isinstance(moved.codes, Array)
    assert moved.to("cuda:0") is moved
    assert moved == weight
    assert moved.to("cpu").device == "cpu"
    assert np.array_equal(moved.dequantize(), weight.dequantize())
    with pytest.raises(RuntimeError, match="cuda:1: GPUs are numbered from 0, and this machine has 1"):
        weight.to("cuda:1")
    with pytest.raises(ValueError, match="must be 'cpu', 'cuda' or 'cuda:<number>'"):
        weight.to("gpu")


def transposed(array):
    return Array(np.asfortranarray(array))


def shifted(array):
    memory = emulate.aligned(np.zeros(array.nbytes + 4, np.uint8))
    view = memory[4:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return Array(view)


@pytest.mark.parametrize("lay", cases.some([transposed, shifted]))
def test_arrays_on_a_gpu_may_lie_anyhow(lay, emulated_gpu, make_weight, rng):
    weight = make_weight(64, 256, "m1v8g-1")
    there = codegemm.CodebookWeight(*map(lay, (weight.codes, weight.codebooks, weight.scales)))
    assert there == weight
    x = emulated_gpu.asarray(rng.standard_normal((3, 256)).astype(np.float16))
    for kernel in ("psumbook", "dequant", "dequant_dense", "aqlm"):
        expected = codegemm.matmul(x, weight.to("cuda").T, kernel=kernel)
        assert np.array_equal(codegemm.matmul(x, there.T, kernel=kernel).host, expected.host), kernel
    lattice = make_weight(64, 256, "e8p")
    there = codegemm.E8PWeight(*map(lay, (lattice.qidxs, lattice.SU, lattice.SV)))
    assert there == lattice
    assert all(array.flags.c_contiguous and array.data.ptr % 16 == 0 for array in there.arrays.values())


def test_arrays_of_a_weight_are_on_one_device(emulated_gpu, make_weight):
    here = make_weight(64, 256, "m1v8g-1")
    there = here.to("cuda")
    with pytest.raises(ValueError, match="codes on cuda:0, codebooks on cpu, scales on cuda:0: must be on one device"):
        codegemm.CodebookWeight(there.codes, here.codebooks, there.scales)
    here = make_weight(64, 256, "e8p")
    with pytest.raises(ValueError, match="qidxs on cpu, SU on cuda:0, SV on cpu: must be on one device"):
        codegemm.E8PWeight(here.qidxs, here.to("cuda").SU, here.SV)


def test_weights_are_made_and_checked_on_their_own_gpu(emulated_gpu, make_weight, monkeypatch):
    """Another one may be the current one, on which CuPy would compute."""
    entered = []

    class Device(emulated_gpu.cuda.Device):
        def __enter__(self):
            entered.append(self.id)

        def __exit__(self, *exception):
            entered.append("left")

    monkeypatch.setattr(Array, "device", Device(0))

    def inside(real):
        def call(*arguments):
            assert entered[-1] == 0
            return real(*arguments)

        return call

    monkeypatch.setattr(emulated_gpu, "concatenate", inside(emulated_gpu.concatenate))
    monkeypatch.setattr(Array, "__abs__", inside(Array.__abs__))
    joined = codegemm.concat([make_weight(16, 64, "m1v4b6g16").to("cuda") for _ in range(2)])
    entered.clear()
    arrays = [shifted(array.host) for array in joined.arrays.values()]
    codegemm.CodebookWeight(*arrays, [16, 16])
    assert entered.count(0) == 3 + 3  # copies, checks
    entered.clear()
    make_weight(64, 256, "e8p").to("cuda")
    assert entered.count(0) == 2


def test_the_engine_follows_the_weight(emulated_gpu, make_weight, rng):
    weight = make_weight(16, 64, "m1v4g16")
    moved = weight.to("cuda")
    x = rng.standard_normal((3, 64)).astype(np.float16)
    expected = x.astype(np.float64) @ weight.dequantize(np.float64).T
    there = codegemm.matmul(emulated_gpu.asarray(x), moved.T, kernel="dense")
    assert isinstance(there, Array)
    back = codegemm.matmul(x, moved.T, kernel="dense")
    assert type(back) is np.ndarray
    out = np.full((3, 16), np.nan, np.float16)
    assert codegemm.matmul(x, moved.T, kernel="dense", out=out) is out
    for y in (there, back, out):
        assert np.allclose(np.asarray(host(y), np.float64), expected, atol=0.05)
    with pytest.raises(
        TypeError, match=r"x is on cuda:0 and the weight is on cpu: move one of them, like w.to\('cuda:0'\)"
    ):
        codegemm.matmul(emulated_gpu.asarray(x), weight.T)
    with pytest.raises(TypeError, match="out is on cuda:0 and the weight is on cpu"):
        codegemm.matmul(x, weight.T, out=there)
    with pytest.raises(ValueError, match="concat: device must be the same"):
        codegemm.concat([weight, moved])


def tensor_of(array):
    return Tensor(emulate.aligned(array))


def truth(x, weight):
    return np.asarray(host(x), np.float64) @ weight.to("cpu").dequantize(np.float64).T


def close(y, expected, limit=2e-3):
    return np.linalg.norm(np.asarray(host(y), np.float64) - expected) <= limit * np.linalg.norm(expected)


@pytest.fixture
def moved(emulated_gpu, make_weight):
    """A weight on the emulated GPU."""
    return make_weight(100, 512, "m1v4g128", parts=2).to("cuda")


@pytest.fixture
def x(emulated_gpu, rng):
    """A row of x for it."""
    return emulated_gpu.asarray(rng.standard_normal((1, 512)).astype(np.float16))


@pytest.mark.parametrize("name", KNOWN)
def test_a_gpus_numbers(name):
    """Clocks and memory's speed as CUDA tells them; where it doesn't, those of a modest GPU."""
    with emulated(KNOWN[name]) as cupy:
        small = cupy.cuda.runtime.getDeviceProperties(0)["l2CacheSize"]
        found = gpu_of(GPU)
        assert found == replace(KNOWN[name], l2_bytes=small, clock=found.clock, bandwidth=found.bandwidth, clusters=())
        assert found.clock == pytest.approx(KNOWN[name].clock)
        assert found.bandwidth == pytest.approx(KNOWN[name].bandwidth)
        gpu_of.cache_clear()
        devices.bandwidth.cache_clear()
        cupy.cuda.runtime.deviceGetAttribute = lambda attribute, number: 0
        assert (gpu_of(GPU).clock, gpu_of(GPU).bandwidth) == (Gpu.clock, Gpu.bandwidth)


def test_bandwidth_is_measured_once_the_clocks_are_up(monkeypatch):
    """Until two medians agree: an idle GPU copies slowly first."""
    times = iter([*[9e-3] * 7, *[3e-3] * 7, *[1e-3] * 6, 8e-3, *[1.001e-3] * 7])
    monkeypatch.setattr(timing, "time_call", lambda call, where: next(times))
    monkeypatch.setattr(devices, "using", lambda where: contextlib.nullcontext())
    cupy = types.ModuleType("cupy")
    cupy.ones = lambda count, dtype: types.SimpleNamespace(nbytes=4 * count)
    cupy.empty_like = lambda array: array
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert timing.measure_bandwidth() == pytest.approx(2 * (1 << 30) / 1.001e-3)
    assert next(times, None) is None


def test_emulated_auto(emulated_gpu, moved, rng, monkeypatch):
    """Where nothing was measured the least estimate decides, of the kernels that need no dense weight."""
    monkeypatch.setattr(choice, "_crossovers", lambda device: ())
    x = emulated_gpu.asarray(rng.standard_normal((2, 512)).astype(np.float16))
    y = x @ moved.T
    assert isinstance(y, Array)
    assert y.dtype == np.float16
    assert close(y, truth(x, moved))
    product = Product.of(moved.spec, 2, np.float16)
    kernels = [k for k in registry.registered("cuda") if k.automatic and not registry.refusal(k, product, GPU)]
    chosen = codegemm.plan(moved, 2, np.float16).kernel
    assert chosen is min(kernels, key=lambda kernel: kernel.estimate(product, GPU))
    assert chosen.name != "dense"


def test_emulated_products_of_every_kind_of_array(emulated_gpu, emulated_torch, moved, rng):
    array = rng.standard_normal((1, 512)).astype(np.float16)
    expected = truth(array, moved)
    there = codegemm.matmul(emulated_gpu.asarray(array), moved.T)
    back = codegemm.matmul(array, moved.T)
    tensor = codegemm.matmul(tensor_of(array), moved.T)
    assert (type(there), type(back), type(tensor)) == (Array, np.ndarray, Tensor)
    for y in (there.host, back, tensor.array):
        assert close(y, expected)
    column = codegemm.matmul(moved, emulated_gpu.asarray(array[0]))
    assert column.shape == (100,)
    assert close(column, expected[0])
    assert close(codegemm.linear(array, moved, np.ones(100, np.float16)), expected + 1)


def test_emulated_weights_of_tensors_keep_their_memory(emulated_gpu, emulated_torch, make_weight, rng):
    weight = make_weight(16, 64, "m1v4g16")
    tensors = {name: tensor_of(array) for name, array in weight.arrays.items()}
    gone = [weakref.ref(tensor) for tensor in tensors.values()]
    made = codegemm.CodebookWeight(**tensors)
    del tensors
    gc.collect()
    assert all(reference() is not None for reference in gone)
    assert (made, made.device) == (weight, "cuda:0")
    del made
    gc.collect()
    assert all(reference() is None for reference in gone)


def test_emulated_negated_tensors_are_refused(emulated_gpu, emulated_torch, moved, monkeypatch):
    """Their memory holds the numbers with the other sign."""
    x, out = (tensor_of(np.ones((1, length), np.float16)) for length in (512, 100))
    for multiply in (lambda x, out: codegemm.matmul(x, moved.T, out=out), codegemm.plan(moved, 1, np.float16)):
        for negated in (x, out):
            with monkeypatch.context() as within:
                within.setattr(negated, "is_neg", lambda: True)
                with pytest.raises(TypeError, match="numbers with the other sign"):
                    multiply(x, out=out)


def test_emulated_plan_writes_to_out_and_allocates_nothing(emulated_gpu, emulated_torch, moved, rng, monkeypatch):
    plan = codegemm.plan(moved, 4, np.float16, "psumbook")
    cases = []
    for rows in (1, 3, 4):
        x = rng.standard_normal((rows, 512)).astype(np.float16)
        cases.append((emulated_gpu.asarray(x), emulated_gpu.zeros((rows, 100), np.float32)))
        cases.append((tensor_of(x), tensor_of(np.zeros((rows, 100), np.float16))))
    cases.append((cases[0][0].reshape(512), emulated_gpu.zeros((100,), np.float16)))

    refuse = Mock(side_effect=AssertionError("a plan's call allocates, loads or waits"))
    for name in ("empty", "zeros", "asarray", "ascontiguousarray", "RawModule"):
        monkeypatch.setattr(emulated_gpu, name, refuse)
    monkeypatch.setattr(type(emulated_gpu.cuda.get_current_stream()), "synchronize", refuse)
    for x, out in cases:
        assert plan(x, out=out) is out
        array = getattr(x, "array", None)
        assert close(getattr(out, "array", out), truth(x if array is None else array, moved))


def test_emulated_plans_and_weights_are_freed_at_once(emulated_gpu, make_weight, x):
    """What nobody holds leaves the GPU without the garbage collector, which knows nothing of its memory."""
    weight = make_weight(64, 512, "m1v4g128").to("cuda")
    out = emulated_gpu.zeros((1, 64), np.float16)
    plan = codegemm.plan(weight, 2, np.float16, "psumbook")
    plan(x, out=out)
    for _ in range(2):
        codegemm.matmul(x, weight.T, out=out)
    gone = weakref.ref(plan), weakref.ref(weight)
    gc.disable()
    try:
        del plan
        assert gone[0]() is None
        del weight
        assert gone[1]() is None
    finally:
        gc.enable()


def test_emulated_plan_takes_what_needs_a_copy(emulated_gpu, emulated_torch, moved, rng):
    plan = codegemm.plan(moved, 2, np.float16, "psumbook")
    wide = emulated_gpu.asarray(rng.standard_normal((2, 1024)).astype(np.float16))
    expected = truth(wide.host[:, ::2], moved)
    assert close(plan(wide[:, ::2]), expected)  # strides
    odd = wide.reshape(-1)[1:513]
    assert odd.data.ptr % 16
    assert close(plan(odd), truth(odd.host, moved))  # alignment
    square = emulated_gpu.zeros((2, 512), np.float16)
    square[:] = wide[:, ::2]
    flat = square.reshape(-1)
    assert close(plan(flat[:512], out=flat[400:500]), expected[0])  # overlap
    strided = tensor_of(wide.host)
    strided = Tensor(strided.array[:, ::2])
    assert close(plan(strided).array, expected)
    out = np.zeros((2, 100), np.float16)
    assert plan(wide.host[:, ::2], out=out) is out
    assert close(out, expected)
    with pytest.raises(TypeError, match="x: dtype float32, this plan is for float16"):
        plan(emulated_gpu.zeros((1, 512), np.float32))
    with pytest.raises(ValueError, match="x: 3 rows, this plan is for at most 2"):
        plan(emulated_gpu.zeros((3, 512), np.float16))
    with pytest.raises(ValueError, match=r"out: shape \(1, 99\), must be \(1, 100\)"):
        plan(emulated_gpu.zeros((1, 512), np.float16), out=emulated_gpu.zeros((1, 99), np.float16))


def test_emulated_products_run_on_the_callers_stream(emulated_gpu, emulated_torch, moved, x):
    tensor, tensor_out = tensor_of(x.host), tensor_of(np.zeros((1, 100), np.float16))
    plan = codegemm.plan(moved, 1, np.float16, "psumbook")
    kernel = plan.kernel.bind(plan.prepared, Product.of(moved.spec, 1, np.float16)).function
    kernel.launches.clear()
    out = emulated_gpu.zeros((1, 100), np.float16)
    with emulated_gpu.cuda.ExternalStream(5):
        plan(x)
        plan(x, out=out)
        codegemm.matmul(x, moved.T, kernel="psumbook")
        codegemm.matmul(x, moved.T, out=out, kernel="psumbook")
        codegemm.matmul(x, moved.T, out=out, kernel="psumbook")
        codegemm.matmul(tensor, moved.T, kernel="psumbook")
        plan(tensor)
        plan(tensor, out=tensor_out)
        codegemm.matmul(tensor, moved.T, out=tensor_out, kernel="psumbook")
        codegemm.linear(tensor, moved, np.ones(100, np.float16), kernel="psumbook")
        codegemm.plan(moved, 1, np.float16, "dense")(tensor, out=tensor_out)  # which launches another kernel
        plan(x, out=out, stream=emulated_gpu.cuda.ExternalStream(9))
        plan(x, stream=emulated_gpu.cuda.ExternalStream(9))
    assert [stream for *_, stream in kernel.launches] == [5] * 5 + [77] * 5 + [9] * 2


def test_missing_nvrtc_is_a_sentence(emulated_gpu, monkeypatch):
    missing = CompilerError("NVRTC, CUDA's run-time compiler, is missing: pip install 'codegemm[cuda12]'")
    monkeypatch.setattr(compiler, "version", Mock(side_effect=missing))
    [info] = [i for i in codegemm.kernels() if (i.engine, i.name) == ("cuda", "psumbook")]
    assert info.reason.startswith("NVRTC, CUDA's run-time compiler, is missing: pip install")


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (0, "CuPy finds no usable GPU: no NVIDIA driver is installed"),
        (11040, r"CuPy finds no usable GPU: the NVIDIA driver is for CUDA 11.4, CuPy for CUDA 1[23]: renew the driver"),
        (99000, "CuPy finds no usable GPU: cudaErrorInsufficientDriver: .*"),
    ],
)
def test_what_is_wrong_with_the_driver_is_a_sentence(driver, reason, monkeypatch):
    """CuPy itself, installed for the tests, on a machine with a GPU or without one."""
    runtime = pytest.importorskip("cupy").cuda.runtime
    monkeypatch.setattr(runtime, "getDeviceCount", Mock(side_effect=runtime.CUDARuntimeError(35)))
    monkeypatch.setattr(runtime, "driverGetVersion", lambda: driver)
    [info] = [i for i in codegemm.kernels() if (i.engine, i.name) == ("cuda", "psumbook")]
    assert re.fullmatch(reason, info.reason)


def test_emulated_copies_of_a_prepared_weight_are_independent(moved, x):
    plan = codegemm.plan(moved, 1, np.float16, "psumbook")
    first = plan(x).host
    twin = copy.deepcopy(plan.prepared)
    plan.prepared.arrays["codes"][:] = 0
    assert not np.array_equal(plan(x).host, first)
    plan.prepared = twin
    assert twin.runs  # a call compiles and loads nothing
    assert np.array_equal(plan(x).host, first)


def test_emulated_results_for_arrays_elsewhere(emulated_gpu, moved, rng):
    """NumPy and torch on the CPU as out; what is refused says so."""
    torch = pytest.importorskip("torch")

    x = rng.standard_normal((1, 512)).astype(np.float16)
    out = torch.zeros(1, 100, dtype=torch.float32)
    assert codegemm.matmul(x, moved.T, out=out) is out
    assert close(out.numpy(), truth(x, moved))
    message = "x is a torch tensor on cpu and the weight is on cuda:0: move one of them, like w.to('cpu')"
    with pytest.raises(TypeError, match=re.escape(message)):
        codegemm.matmul(torch.zeros(1, 512), moved.T)


def test_emulated_products_on_the_weights_own_gpu(emulated_gpu, moved, x, monkeypatch):
    """Another GPU is the current one: nothing goes the short way, and everything happens on the weight's."""
    out = emulated_gpu.zeros((1, 100), np.float16)
    current, entered = [0], []
    monkeypatch.setattr(emulated_gpu.cuda.runtime, "getDevice", lambda: current[0])
    plan = codegemm.plan(moved, 1, np.float16, "psumbook")
    current[0] = 1

    class Device(emulated_gpu.cuda.Device):
        def __enter__(self):
            entered.append(self.id)

    monkeypatch.setattr(emulated_gpu.cuda, "Device", Device)
    for call in (plan, lambda x, out: codegemm.matmul(x, moved.T, out=out)):
        entered.clear()
        out[:] = np.float16(np.nan)
        call(x, out=out)
        assert set(entered) == {0}
        assert close(out, truth(x, moved))


def test_emulated_workspaces_belong_to_a_thread_and_a_stream(emulated_gpu):
    first = library.workspace(GPU, 1000)
    assert library.workspace(GPU, 500) is first
    assert library.find_workspace(GPU, 1 << 20) is None
    larger = library.workspace(GPU, 1 << 20)
    assert larger is not first
    with emulated_gpu.cuda.ExternalStream(3):
        assert library.find_workspace(GPU, 1) is None
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(library.find_workspace, GPU, 1).result() is None
        assert pool.submit(library.workspace, GPU, 1).result() is not larger
    assert library.find_workspace(GPU, 1) is larger


def test_an_emulated_capture_takes_another_streams_workspace(emulated_gpu, make_weight, rng):
    """For nothing can be allocated meanwhile; and what was captured stays, though a larger one comes."""
    library.forget()
    weight = make_weight(64, 128, "m1v4g32").to("cuda")
    x = emulated_gpu.asarray(rng.standard_normal((1, 128)).astype(np.float16))
    out = emulated_gpu.empty((1, 64), np.float16)
    product = Product.of(weight.spec, 1, np.float16)
    plans = [Plan(weight, product, choice.select(product, weight.device), exact=True) for _ in range(2)]
    stream = emulated_gpu.cuda.ExternalStream(5)
    with stream:
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="a product is captured that this thread did not make before"):
            plans[0](x, out=out)
        stream.end_capture()
    plans[0](x, out=out)
    kept = library.find_workspace(GPU, 1)
    with stream:
        stream.begin_capture()
        assert library.workspace(GPU, 1) is kept
        plans[1](x, out=out)
        stream.end_capture()
        assert library.find_workspace(GPU, 1) is None
    larger = library.workspace(GPU, kept.nbytes + 1)
    assert larger.nbytes >= 2 * kept.nbytes
    assert library._workspaces.outgrown == [kept]


def test_emulated_threads_may_share_a_stream(emulated_gpu, make_weight, rng):
    """Another thread's product on the same stream comes between the launches of one that has several."""
    weight = make_weight(64, 128, "e8p").to("cuda")
    xs = [emulated_gpu.asarray(rng.standard_normal((1, 128)).astype(np.float16)) for _ in range(2)]
    expected = [codegemm.matmul(x, weight.T, kernel="quip").host for x in xs]
    key = 1, np.dtype(np.float16), np.dtype(np.float16), False
    prepared = choice.select(Product.of(weight.spec, 1, np.float16), GPU, "quip").prepared(weight)
    rotation, *rest = prepared.runs[key].each
    found = []

    def interrupted(*arguments):
        rotation(*arguments)
        if threading.current_thread() is threading.main_thread():
            with ThreadPoolExecutor(1) as pool:
                found.append(pool.submit(codegemm.matmul, xs[1], weight.T, kernel="quip").result().host)

    prepared.runs[key] = Sequence((interrupted, *rest))
    found.append(codegemm.matmul(xs[0], weight.T, kernel="quip").host)
    assert np.array_equal(found[0], expected[1])
    assert np.array_equal(found[1], expected[0])


def test_emulated_comparison(emulated_gpu, monkeypatch):
    """`codegemm compare --engine cuda` from its arguments to its table."""
    from click.testing import CliRunner

    from codegemm.cli.compare import compare
    from codegemm.measuring import stopwatch

    monkeypatch.setattr(timing, "measure_bandwidth", lambda: 1e9)
    monkeypatch.setattr(timing, "measure_multiply_adds", lambda: 1e14)
    monkeypatch.setattr(stopwatch, "_GRAPH_CALLS", 1)
    monkeypatch.setattr(stopwatch, "_MIN_CALLS", 1)
    arguments = ["--engine=cuda", "--shape=256x512", "--config=m1v4g128,m2v8g-1", "--batch=1,3,8", "--seconds=0"]
    arguments += ["--kernels=dense,psumbook", "--rounds=2"]
    done = CliRunner().invoke(compare, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "emulated GPU" in done.output
    rows = [line for line in done.output.splitlines() if "psumbook" in line]
    assert len(rows) >= 4  # two configurations, batches 1 and 3; 8 is not for it
