"""What doesn't fit the memory is refused before any work, in one line with the bytes asked for and those there are."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file
from support.processes import python

from codegemm import tuning
from codegemm.cli import cli
from codegemm.comparison import bench, runner
from codegemm.comparison.selection import compared_kernels
from codegemm.devices import CPU
from codegemm.engines.cpu import device, library
from codegemm.exploration.matrices import load_matrices
from codegemm.measuring import memory, sources
from codegemm.quantize.progress import Progress

FREE = 10_000_000_000
COMMAND = "from codegemm.cli import main; main()"


@pytest.fixture
def no_work(monkeypatch):
    """10 GB are free, and whatever is made of a shape fails."""
    monkeypatch.setattr(memory, "available_memory", lambda: FREE)
    for module, name in ((sources, "random_weight"), (bench, "inputs"), (tuning, "inputs"), (sources, "quantized")):
        monkeypatch.setattr(module, name, None)
    monkeypatch.setattr(device, "measure_bandwidth", None)


def refused(*arguments):
    done = CliRunner().invoke(cli, [*arguments, "--engine", "cpu"])
    assert done.exit_code == 1
    assert isinstance(done.exception, MemoryError)
    return str(done.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # 4 bytes of a weight where a dense product is compared, 2 bits elsewhere; what follows x and y is rows' part.
        (("compare", "--shape", "900000x900000", "--config", "m1v4"), "900000 x 900000 (random codes), m1v4g-1: needs"),
        (("compare", "--shape", "9999999999x4096", "--config", "m1v4", "--kernels", "dense"), "at least 176,860.0 GB"),
        (
            ("compare", "--shape", "64x128", "--config", "m1v4", "--batch", "1,100000000", "--kernels", "dense"),
            "needs at least 204.8 GB",
        ),
        # Every kernel has its own form of the weight at the same time.
        (
            ("compare", "--shape", "300000x300000", "--config", "m1v4", "--kernels", "dense,dequant_dense"),
            "at least 742.6 GB",
        ),
        (
            ("compare", "--shape", "300000x300000", "--config", "m1v4", "--kernels", "psumbook"),
            "needs at least 45.0 GB",
        ),
        (("tune", "--shape", "900000x900000", "--config", "m2v8g-1"), "900000 x 900000 (random codes), m2v8g-1: needs"),
        (("tune", "--shape", "9999999999x4096", "--config", "m1v4"), "needs at least 20,520.0 GB"),
        (("tune", "--shape", "64x128", "--config", "m1v4", "--batch", "100000000"), "needs at least 76.8 GB"),
    ],
)
def test_a_command_that_has_no_room(arguments, message, no_work):
    said = refused(*arguments)
    assert message in said
    assert said.endswith(" GB, and 10.0 GB of memory are free")


def test_exploring_has_no_room_for_so_many_rows(tmp_path, no_work, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    half = rng.standard_normal((64, 128)).astype(np.float16)
    save_file({"a.weight": half, "b.weight": half}, "dense.safetensors")
    arguments = ("explore", "dense.safetensors", "--bits", "2", "--output", "a.png", "--rows")
    # x, made once and in a buffer; y, the same; both in the workspace, in float32.
    assert refused(*arguments, "100000000").startswith("a.weight: needs at least 153.6 GB")
    monkeypatch.setattr(memory, "available_memory", lambda: 2 * 4 * 64 * 128 - 1)
    with pytest.raises(MemoryError, match=r"dense\.safetensors: a\.weight, b\.weight: needs at least 0\.0 GB"):
        load_matrices(tmp_path / "dense.safetensors", ["a.weight", "b.weight"], None)
    monkeypatch.setattr(memory, "available_memory", lambda: 2 * 4 * 64 * 128)
    assert len(load_matrices(tmp_path / "dense.safetensors", ["a.weight", "b.weight"], None)) == 2


def test_trained_weights_are_compared_in_float64(tmp_path, no_work, rng):
    save_file({"a.weight": rng.standard_normal((64, 128)).astype(np.float16)}, tmp_path / "dense.safetensors")
    said = refused("compare", "--weights", str(tmp_path / "dense.safetensors"), "--batch", "20000000")
    assert said == "64 x 128 (a): its outputs in float64: needs at least 20.5 GB, and 10.0 GB of memory are free"


def test_one_line_and_a_status():
    """With the memory that there is, as a user runs it."""
    done = python("-c", COMMAND, "compare", "--engine", "cpu", "--shape", "900000x900000", timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("codegemm: 900000 x 900000 (random codes), m2v8g-1, m1v8b16g-1: needs at least ")


def compare(shape, config, name, batches):
    case = sources.shape_case(shape, [config])
    settings = runner.Settings("cpu", compared_kernels("cpu", [name]), [""], batches, 0, 1)
    with Progress("comparing", False) as progress:
        runner.run([case], settings, progress)


def tune(shape, config, name, batches):
    case = sources.shape_case(shape, [config])
    with Progress("tuning", False) as progress:
        tuning.tune([case], batches, CPU, np.dtype(np.float32), 0, progress)


def test_what_a_dense_product_takes_is_exact(monkeypatch):
    """The matrix, y, and of the larger product the workspace; the packed weight, x; the truth in
    float64."""
    m, k, n = 64, 128, 3
    packed = m * k // 4 + 2 * m + 2 * 4 * 256
    needed = 4 * m * k + 4 * m * (1 + n) + 4 * (k + m) * n + packed + 4 * n * k + 8 * n * m
    monkeypatch.setattr(device, "measure_bandwidth", lambda: 1e10)
    monkeypatch.setattr(device, "measure_multiply_adds", lambda: 1e11)
    monkeypatch.setattr(memory, "available_memory", lambda: needed)
    compare((m, k), "m1v4", "dense", [1, n])
    monkeypatch.setattr(memory, "available_memory", lambda: needed - 1)
    with pytest.raises(MemoryError):
        compare((m, k), "m1v4", "dense", [1, n])


@pytest.mark.parametrize(
    ("measure", "config", "name"),
    [*((compare, "m2v8g-1", name) for name in ("dense", "psumbook", "dequant", "dequant_dense", "aqlm")),
     (compare, "e8p", "quip"), (compare, "m1v4g128+rotated", "dequant"), (tune, "m1v4g128", ""), (tune, "e8p", "")],
)  # fmt: skip
def test_no_less_is_taken_than_is_asked_for(measure, config, name, monkeypatch, tuned_cache):
    asked = []
    monkeypatch.setattr(memory, "ensure", lambda what, needed, device=CPU: asked.append(needed))
    monkeypatch.setattr(device, "measure_bandwidth", lambda: 1e10)
    monkeypatch.setattr(device, "measure_multiply_adds", lambda: 1e11)
    monkeypatch.setattr(device, "last_level_cache", lambda: 1 << 12)
    monkeypatch.setattr(library, "_kept", [])
    tracemalloc.start()
    try:
        measure((1024, 512), config, name, [1, 200])
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(asked) == 1
    assert asked[0] <= taken < 6 * asked[0]


def test_a_gpus_memory_is_asked_for(emulated_gpu, monkeypatch):
    case, kernels = sources.shape_case((1 << 14, 1 << 14), ["m1v4"]), compared_kernels("cuda", ["dense"])
    monkeypatch.setattr(runner, "Machine", SimpleNamespace(here=None))
    monkeypatch.setattr(memory, "available_memory", lambda: FREE)
    with Progress("comparing", False) as progress:
        for free, message in (
            (1000, r"needs at least 12\.1 GB, and 0\.0 GB of cuda:0's memory are free"),
            (1 << 50, r"needs at least 11\.5 GB, and 10\.0 GB of memory are free"),  # what is compared there
        ):
            monkeypatch.setattr(memory, "cache_and_memory", lambda device, free=free: (0, free))
            with pytest.raises(MemoryError, match=message):
                runner.run([case], runner.Settings("cuda", kernels, [""], [70_000], 0, 1), progress)
