"""`codegemm.warmup`: all that products compile, before there are weights."""

import numpy as np
import pytest

import codegemm
from codegemm import Product, devices, registry
from codegemm.devices import Device
from codegemm.engines.cpu import compiler as cpu_compiler
from codegemm.engines.cuda import compiler, library
from codegemm.engines.cuda.kernel import CudaKernel
from codegemm.formats.format import spec_of

HALF = np.dtype(np.float16)
CONFIGS = ("m1v4g128", "m2v8g-1", "m1v8b16g-1", "m3v5b3g15", "q2g128", "e8p", "qtip")


def test_without_a_gpu_the_reason_is_told():
    if devices.unavailable() is None:
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeError, match="cuda:0: CuPy"):
        codegemm.warmup([(512, 512)], [1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [(([(512, 500)], [1], "m1v4g128"), ValueError, "in_features=500: must be a multiple of the group size g=128"),
     (([(512, 512)], [0]), ValueError, "batch=0: must be an integer of at least 1"),
     (([(512, 512)], [1], "m1v4", "int8"), TypeError, "dtype int8"),
     (([(512, 512)], [1], "m1v4", HALF, "cpu", "nothing"), codegemm.KernelError, "kernel 'nothing' is unknown")],
)  # fmt: skip
def test_arguments_are_checked(arguments, error, message):
    arguments = (*arguments, *("m1v4g128", HALF, "cpu")[len(arguments) - 2 :])
    with pytest.raises(error, match=message):
        codegemm.warmup(*arguments)


@pytest.fixture
def compiled_sources(fresh_engine, monkeypatch):
    """The names of those that the CPU engine compiles, as they come."""
    names, build = [], cpu_compiler.build
    monkeypatch.setattr(cpu_compiler, "build", lambda source: names.append(source.name) or build(source))
    return names


def test_on_the_processor_its_sources_are_compiled(compiled_sources):
    codegemm.warmup([(384, 384), (768, 384)], [1, 17], "m1v4g128", np.float32, "cpu")
    assert sorted(compiled_sources) == ["dequant.cpp", "psumbook.cpp", "threads.cpp"]
    weight = codegemm.quantize(np.eye(384, dtype=np.float32), "m1v4b2g128")
    np.ones((1, 384), np.float32) @ weight.T
    assert len(compiled_sources) == 3


@pytest.mark.parametrize(
    ("kernel", "config", "n", "sources"),
    [("aqlm", "m2v8g-1", 1, ["aqlm.cpp"]), ("aqlm", "m1v8b12g-1", 1, ["aqlm.cpp"]),
     ("aqlm", "m2v8g-1", 40, ["aqlm.cpp", "dequant.cpp"]), ("aqlm", "m1v8b12g-1", 300, ["aqlm.cpp", "dequant.cpp"]),
     ("dequant_dense", "m1v4g128", 1, ["dequant.cpp"]), ("dequant_dense", "m2v8g-1", 300, ["dequant.cpp"]),
     ("dequant_dense", "m1v4g32+rotated+offsets", 2, ["dequant.cpp", "transformed.cpp"])],
)  # fmt: skip
def test_what_a_kernel_takes_of_another_is_compiled_too(kernel, config, n, sources, compiled_sources, make_weight):
    """Also what the fewer rows that a plan may get need."""
    codegemm.warmup([(64, 256)], [n], config, np.float16, "cpu", kernel)
    assert sorted(compiled_sources) == sorted([*sources, "threads.cpp"])
    weight = make_weight(64, 256, config)
    bound = codegemm.plan(weight, n, np.float16, kernel)
    for rows in {1, min(n, 7), n}:
        x = np.ones((rows, 256), np.float16)
        codegemm.matmul(x, weight.T, kernel=kernel)
        bound(x)
    assert len(compiled_sources) == len(sources) + 1


@pytest.fixture
def built(emulated_gpu, monkeypatch):
    """Sources, instances and architectures that the emulated GPU's engine compiles, as they come."""
    found, build = [], compiler.build
    monkeypatch.setattr(compiler, "build", lambda *what: found.append(what) or build(*what))
    return found


def test_products_then_compile_nothing_new(built, make_weight):
    codegemm.warmup([(96, 512), spec_of((64, 512), "m2v8g128")], [1, 4], "m1v4g128")
    beforehand = set(built)
    built.clear()
    for rows, config in ((96, "m1v4g128"), (64, "m2v8g128")):
        weight = make_weight(rows, 512, config).to("cuda")
        for n in (1, 4):
            codegemm.plan(weight, n, np.float16)
    assert built
    assert set(built) <= beforehand


@pytest.mark.parametrize("config", CONFIGS)
def test_kernels_say_all_that_they_compile(config, built, make_weight):
    """For every CUDA kernel, some rows of x and both dtypes of y."""
    weight = make_weight(64, 960 if config == "m3v5b3g15" else 1024, config).to("cuda")
    for kernel in registry.registered("cuda"):
        if not isinstance(kernel, CudaKernel):
            continue
        for n in (1, 3, 8, 100):
            product = Product.of(weight.spec, n, HALF)
            if registry.refusal(kernel, product, weight.device):
                continue
            built.clear()
            weight.memo.clear()
            library.forget()
            codegemm.plan(weight, n, HALF, kernel.full_name)
            said = {(b.source, b.instance, b.arch) for b in kernel.builds(product, Device("cuda:0"))}
            assert set(built) == said, (kernel, n)


def test_nothing_is_compiled_twice(built):
    codegemm.warmup([(4096, 4096), (4096, 4096), (8192, 4096)], [1, 2, 1], "m1v4g128", kernel="psumbook")
    assert len(built) == len(set(built)) >= 2
