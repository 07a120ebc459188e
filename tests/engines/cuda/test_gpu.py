"""On a real GPU: `make gpu`. Elsewhere everything here is skipped, and the emulated tests stand in."""

import copy
import os
import shutil
import time

import numpy as np
import pytest
from emulator import emulate
from support import errors, gpu_products
from support.gpu_products import CASES, LARGE

import codegemm
from benchmarks.cuts import Recut
from codegemm import arrays, choice, devices, kernels_cu, tuning
from codegemm.comparison.selection import compared_kernels
from codegemm.devices import FIRST_GPU
from codegemm.engines.cuda import compiler, dequant_wide_cut, library, psumbook
from codegemm.engines.cuda.gpu import gpu_of
from codegemm.kernel import Product
from codegemm.measuring import sources
from codegemm.measuring.stopwatch import Candidate
from codegemm.products import Plan
from codegemm.quantize.progress import Progress
from codegemm.registry import kernel_for, refusal, registered
from codegemm.testing import check_kernel
from codegemm.warmup import build_all

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(devices.unavailable() is not None, reason=str(devices.unavailable())),
]

TOLERANCE = errors.TOLERANCE["psumbook"]


@pytest.fixture(scope="session", autouse=True)
def compiled():
    """All that the products launch, on all processors before the first of them."""
    build_all(gpu_products.builds())


@pytest.fixture
def cupy():
    import cupy

    if os.environ.get("CODEGEMM_NO_POOL"):  # so that a sanitizer sees where each array ends
        cupy.cuda.set_allocator(None)
    return cupy


LIMITS = errors.TOLERANCE["gpu"]


def limit(kernel, spec, n, dtype):
    """Of the error of a product in a float32 output."""
    if kernel == "psumbook":
        return TOLERANCE[n]
    if kernel == "dequant":
        return errors.of_dequant(getattr(spec, "core", spec).config.m, dtype)
    return LIMITS.get(kernel, 1e-3 if dtype == "float32" else 2e-5)


def truth_of(x, weight):
    x, dense = np.asarray(x, np.float64), weight.to("cpu").dequantize(np.float64)
    return x @ dense.T, np.sqrt(np.sum(x**2 @ (dense**2).T))


def error(y, truth):
    y = y.get() if hasattr(y, "get") else np.asarray(y)
    return np.linalg.norm(y.astype(np.float64) - truth[0]) / max(truth[1], np.linalg.norm(truth[0]))


def check(weight, n, dtype, cupy, rng):
    x = rng.standard_normal((n, weight.shape[1])).astype(arrays.float_dtype(dtype))
    out = cupy.full((n, weight.shape[0]), np.nan, np.float32)
    there = cupy.asarray(x)
    codegemm.plan(weight, n, x.dtype, "psumbook")(there, out=out)
    assert error(out, truth_of(x, weight)) <= TOLERANCE[n]
    again = cupy.full_like(out, np.nan)
    for _ in range(3):
        codegemm.matmul(there, weight.T, out=again, kernel="psumbook")
        assert cupy.array_equal(again, out)


@pytest.mark.sanitized
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_products(case, n, dtype, make_weight, rng, cupy):
    check(make_weight(*case).to("cuda"), n, dtype, cupy, rng)


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_large_products(case, n, make_weight, rng, cupy):
    check(make_weight(*case).to("cuda"), n, "float16", cupy, rng)


@pytest.mark.sanitized
@pytest.mark.parametrize(("kernel", "case", "n", "dtype"), gpu_products.every_kernel(), ids=str)
def test_every_kernel(kernel, case, n, dtype, make_weight, rng, cupy):
    weight = make_weight(*case).to("cuda")
    kernel = gpu_products.kernel_named(kernel, weight.spec)
    product = gpu_products.fewest(kernel, weight.spec, n, dtype)
    if product is None:
        pytest.skip(refusal(kernel, Product.of(weight.spec, 1, arrays.float_dtype(dtype)), weight.device))
    n = product.n
    x = rng.standard_normal((n, weight.shape[1])).astype(product.dtype)
    outs = [cupy.full((n, weight.shape[0]), np.nan, np.float32) for _ in range(3)]
    for out in outs:
        codegemm.matmul(cupy.asarray(x), weight.T, out=out, kernel=kernel.name)
    allowed = limit(kernel.name, weight.spec, n, dtype)
    if isinstance(weight, codegemm.TransformedWeight):
        allowed = max(allowed, 1e-3)  # the kernel's x may be of another dtype
    assert error(outs[0], truth_of(x, weight)) <= allowed
    assert all(cupy.array_equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize("kernel", registered("cuda"), ids=repr)
def test_every_kernel_keeps_to_the_interface(kernel):
    if kernel.unavailable():
        pytest.skip(kernel.unavailable())
    check_kernel(kernel)


@pytest.mark.parametrize(("config", "n"), [("m1v4g128", 64), ("m2v8g-1", 100)])
def test_clusters_of_wide_products(config, n, make_weight, rng, cupy):
    """wgmma finds x in the shared memory of every thread block of a cluster, whatever its rank."""
    weight = make_weight(300, 2048, config).to("cuda")
    product, gpu = Product.of(weight.spec, n, np.float16, np.float32), gpu_of(weight.device)
    if not dequant_wide_cut.fits(product, gpu):
        pytest.skip("no such kernel")
    x = rng.standard_normal((n, 2048)).astype(np.float16)
    cuts = {(cut.cluster, cut.chains): cut for cut in dequant_wide_cut.candidates(weight.spec, n, gpu)}
    assert any(cluster > 1 for cluster, _ in cuts)
    for cut in cuts.values():
        out = cupy.full((n, 300), np.nan, np.float32)
        Plan(weight, product, Recut("dequant_wide", cut))(cupy.asarray(x), out=out)
        assert error(out, truth_of(x, weight)) <= errors.of_dequant(weight.config.m, "float16"), cut


@pytest.mark.parametrize("size", [1e-30, 1e30])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_range_of_x(n, size, make_weight, rng, cupy):
    weight = make_weight(100, 512, "m2v4g64").to("cuda")
    x = (rng.standard_normal((n, 512)) * size).astype(np.float32)
    y = codegemm.matmul(cupy.asarray(x), weight.T, kernel="psumbook")
    assert error(y, truth_of(x, weight)) <= TOLERANCE[n]


def test_arranged_on_the_gpu_as_on_the_host(make_weight, cupy):
    for case in CASES:
        weight = make_weight(*case)
        there, here = psumbook.Psumbook().arrange(weight.to("cuda")), psumbook.Psumbook().arrange(weight)
        for name in ("codes", "codebooks", "scales"):
            assert np.array_equal(there.arrays[name].get(), here.arrays[name])


def test_kernels_use_no_local_memory(make_weight, cupy):
    weight = make_weight(256, 512, "m1v4g128").to("cuda")
    plan = codegemm.plan(weight, 4, np.float16, "psumbook")
    assert all(launch.function.local_size_bytes == 0 for launch in plan.prepared.runs.values())


def test_graph_captured_by_cupy(make_weight, rng, cupy):
    weight = make_weight(4096, 4096, "m1v4g128").to("cuda")
    plan = codegemm.plan(weight, 2, np.float16, "psumbook")
    x, out = cupy.zeros((2, 4096), np.float16), cupy.zeros((2, 4096), np.float32)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        plan(x, out=out)
        graph = stream.end_capture()
        for _ in range(3):
            host = rng.standard_normal((2, 4096)).astype(np.float16)
            x.set(host)
            graph.launch()
            stream.synchronize()
            assert error(out, truth_of(host, weight)) <= TOLERANCE[2]


def test_torch_tensors_streams_and_graphs(make_weight, rng, cupy):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA here")
    weight = make_weight(4096, 4096, "m2v8g128").to("cuda")
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x = torch.randn(2, 4096, device="cuda").to(dtype)
        truth = truth_of(x.double().cpu().numpy(), weight)
        y = codegemm.matmul(x, weight.T)
        assert (type(y), y.dtype, y.device) == (torch.Tensor, dtype, x.device)
        out = torch.full((2, 4096), torch.nan, device="cuda")
        plan = codegemm.plan(weight, 2, str(dtype).removeprefix("torch."), "psumbook")
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            plan(x, out=out)
        side.synchronize()
        assert error(out.cpu().numpy(), truth) <= TOLERANCE[2]
        out.fill_(torch.nan)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            plan(x, out=out)
        graph.replay()
        torch.cuda.synchronize()
        assert error(out.cpu().numpy(), truth) <= TOLERANCE[2]


def test_streams_at_once(make_weight, rng, cupy):
    """Products of one weight on several streams have workspaces of their own."""
    weight = make_weight(4096, 4096, "m1v4g128").to("cuda")
    xs = [cupy.asarray(rng.standard_normal((1, 4096)).astype(np.float16)) for _ in range(4)]
    expected = [codegemm.matmul(x, weight.T) for x in xs]
    outs = [cupy.empty_like(y) for y in expected]
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in xs]
    cupy.cuda.Device().synchronize()
    for _ in range(50):
        for x, out, stream in zip(xs, outs, streams):
            with stream:
                codegemm.matmul(x, weight.T, out=out)
    cupy.cuda.Device().synchronize()
    assert all(cupy.array_equal(out, y) for out, y in zip(outs, expected))


def test_prepared_copies(make_weight, rng, cupy):
    weight = make_weight(256, 512, "m1v4g128").to("cuda")
    x = cupy.asarray(rng.standard_normal((1, 512)).astype(np.float16))
    plan = codegemm.plan(weight, 1, np.float16, "psumbook")
    first = plan(x)
    plan.prepared = copy.deepcopy(plan.prepared)
    assert cupy.array_equal(plan(x), first)


@pytest.mark.parametrize("instance", ["mma", "integer_mma", "exchange", "permute", "convert", "multiply_add", "round"])
def test_instructions_are_as_emulated(instance, rng, cupy, tmp_path):
    shutil.copy(emulate.HERE / "semantics.cu", tmp_path)
    shutil.copy(kernels_cu.FOLDER / "ptx.cuh", tmp_path)
    cubin, _ = compiler.compile_instance("semantics.cu", instance, gpu_of(FIRST_GPU).arch, folder=tmp_path)
    (tmp_path / "cubin").write_bytes(cubin)
    kernel = cupy.RawModule(path=str(tmp_path / "cubin")).get_function(compiler.entry_name(instance))
    halves = rng.standard_normal((10, 32, 2)).astype(np.float16)
    data = halves.view(np.uint32).reshape(10, 32).copy()
    if instance in ("mma", "convert"):  # fp32 operands
        first = 6 if instance == "mma" else 2
        data[first:] = rng.standard_normal((10 - first, 32)).astype(np.float32).view(np.uint32)
    if instance == "exchange":
        data[1] = rng.integers(0, 32, 32)
    out = cupy.zeros(160, np.uint32)
    kernel((1,), (32,), (cupy.asarray(data), out), shared_mem=8192)
    emulated = np.zeros(160, np.uint32)
    emulate.launch("semantics.cu", instance, (1, 1), (32,), 8192, [data, emulated], folder=emulate.HERE)
    if instance == "mma":
        assert np.allclose(out.get().view(np.float32), emulated.view(np.float32), rtol=1e-5, atol=1e-5)
    else:
        assert np.array_equal(out.get(), emulated)


@pytest.mark.parametrize("n", [1, 4, 16])
@pytest.mark.parametrize("config", gpu_products.REPLAYED)
def test_every_kernel_replays_in_a_graph(config, n, make_weight, rng):
    """As the benchmarks time it; a kernel that can't be captured would be timed call by call."""
    weight = make_weight(1024, 1024, config).to("cuda")
    x = rng.standard_normal((n, 1024)).astype(np.float16)
    truth = truth_of(x, weight)
    for kernel in compared_kernels("cuda", None):
        kernel = kernel_for(kernel, weight.spec)
        if refusal(kernel, Product.of(weight.spec, n, x.dtype), weight.device):
            continue
        candidate = Candidate(kernel, weight, [n], x.dtype)
        y, timing = candidate.measure(x, 0)
        assert timing.how == "graph", kernel
        assert error(y, truth) <= 1e-2
        assert 0 < timing.median < 1e-3


@pytest.mark.parametrize(
    ("kernel", "config"),
    [("psumbook", "m1v4g128"), ("dequant", "m2v8g128"), ("lutgemm", "q2g128"), ("quip", "e8p"), ("qtip", "qtip")],
)
def test_a_bias_is_added_before_y_is_rounded(kernel, config, make_weight, rng, cupy):
    weight = make_weight(1024, 1024, config)
    x = rng.standard_normal((2, 1024)).astype(np.float16)
    product, _ = truth_of(x, weight)
    bias = (-0.9 * product[0]).astype(np.float32)
    plan = codegemm.plan(weight.to("cuda"), 2, np.float16, kernel, bias=bias)
    out = cupy.full((2, 1024), np.nan, np.float16)
    plan(cupy.asarray(x), out=out)
    far = np.linalg.norm(out.get().astype(np.float64) - (product + bias))
    assert far <= 1e-3 * np.linalg.norm(product) + np.linalg.norm(np.spacing(out.get()).astype(np.float64))
    linear = codegemm.linear(cupy.asarray(x), weight.to("cuda"), bias, kernel=kernel)
    assert np.array_equal(linear.get(), out.get())


@pytest.mark.parametrize("config", ["m1v4g128", "e8p"])
def test_gradients(config, make_weight):
    torch = pytest.importorskip("torch")
    weight = make_weight(512, 1024, config)
    moved, dense = weight.to("cuda"), torch.from_numpy(weight.dequantize(np.float64))
    for dtype, limit in ((torch.float16, 2e-3), (torch.bfloat16, 1e-2), (torch.float32, 1e-3)):
        x = torch.randn(3, 1024, dtype=dtype, device="cuda", requires_grad=True)
        bias = torch.randn(512, dtype=dtype, device="cuda", requires_grad=True)
        upstream = torch.randn(3, 512, dtype=dtype, device="cuda")
        of_x, of_bias = torch.autograd.grad(codegemm.linear(x, moved, bias), (x, bias), upstream)
        exact = upstream.double().cpu() @ dense
        assert torch.linalg.norm(of_x.double().cpu() - exact) <= limit * torch.linalg.norm(exact)
        assert torch.allclose(of_bias, upstream.sum(0), rtol=limit, atol=limit)


def test_weights_of_tensors_there(make_weight, cupy):
    torch = pytest.importorskip("torch")
    weight = make_weight(64, 512, "m1v4g128")
    tensors = {name: torch.from_numpy(array.copy()).cuda() for name, array in weight.arrays.items()}
    made = codegemm.CodebookWeight(**tensors)
    del tensors  # the weight keeps their memory
    torch.cuda.empty_cache()
    assert made == weight
    x = torch.randn(2, 512, dtype=torch.float16, device="cuda")
    moved = weight.to(x.device)
    for y in (x @ made.T, torch.matmul(x, moved.T), torch.nn.functional.linear(x, moved)):
        assert torch.equal(y, codegemm.matmul(x, moved.T))
    there = cupy.asarray(x.cpu().numpy())
    assert weight.to(there.device).device == moved.device
    assert np.array_equal((there @ moved.T).get(), np.matmul(there, moved.T).get())


def test_tuning(make_weight, tuned_cache):
    case = sources.shape_case((1024, 1024), ["m1v4g128"])
    with Progress("tuning", False) as progress:
        found, _ = tuning.tune([case], [1, 64], FIRST_GPU, np.dtype(np.float16), 0.01, progress)
    spec = make_weight(1024, 1024, "m1v4g128").spec
    for measured in found:
        n = measured.choice.batches[0]
        assert choice.select(Product.of(spec, n, np.float16), FIRST_GPU).name == measured.choice.kernel
        assert measured.choice.kernel != "dense"


def test_warmup(make_weight, rng, cupy, monkeypatch):
    codegemm.warmup([(768, 1024)], [1, 8, 64])
    weight = make_weight(768, 1024, "m1v4g128").to("cuda")
    monkeypatch.setattr(compiler, "compile_instance", None)  # everything was compiled
    for n in (1, 8, 64):
        x = rng.standard_normal((n, 1024)).astype(np.float16)
        assert error(codegemm.matmul(cupy.asarray(x), weight.T), truth_of(x, weight)) <= 1e-3


def test_host_time(make_weight, cupy, capsys):
    """Told, and no failure: a machine's processor is not the project's."""
    weight = make_weight(256, 512, "m1v4g128").to("cuda")
    x, out = cupy.ones((1, 512), np.float16), cupy.ones((1, 256), np.float16)
    plan = codegemm.plan(weight, 1, np.float16, "psumbook")
    launch = plan.kernel.bind(plan.prepared, Product.of(weight.spec, 1, x.dtype, out.dtype))
    codegemm.matmul(x, weight.T, out=out, kernel="psumbook")
    bare_launch = getattr(launch.function, "cupys", launch.function)  # as CuPy launches it
    arguments = (x, out, library.new_workspace(plan._buffers.take().nbytes), *launch.constants)

    def seconds(call):
        cupy.cuda.Device().synchronize()
        begin = time.perf_counter()
        for _ in range(200):
            call()
        return time.perf_counter() - begin

    def bare():
        bare_launch(launch.grid, launch.block, arguments, shared_mem=launch.shared_bytes)

    def ratio(call):
        times = [(seconds(call), seconds(bare)) for _ in range(30)]
        called, launched = map(min, zip(*times))
        return called / launched

    planned, multiplied = ratio(lambda: plan(x, out=out)), ratio(lambda: codegemm.matmul(x, weight.T, out=out))
    with capsys.disabled():
        print(f"\nhost time: plan {planned:.2f}, matmul {multiplied:.2f} times a bare launch")
