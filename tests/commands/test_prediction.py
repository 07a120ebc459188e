"""What `codegemm predict` says: its arithmetic; and which of the targets predictions meet."""

import re
import tracemalloc
from unittest.mock import Mock

import pytest
from click.testing import CliRunner
from support.processes import python_without

import codegemm
from benchmarks import targets
from codegemm import prediction, registry
from codegemm.cli import cli
from codegemm.engines.cuda import model
from codegemm.engines.cuda.gpu import KNOWN, Gpu
from codegemm.engines.cuda.kernel import CudaKernel
from codegemm.engines.cuda.model import Work
from codegemm.engines.cuda.steps import Launch

# 8 multiprocessors at 1 GHz, 1 TB/s: a copy moves 900 GB/s by the model.
GPU = Gpu(90, 8, 232448, 233472, 2048, clock=1e9, bandwidth=1e12)


class Worked(CudaKernel):
    """Its launches do what they are told to."""

    automatic = True

    def __init__(self, name, *works):
        self.name, self._works = name, works

    def unfit_for(self, product, gpu):
        return None if product.n <= 64 else "too many rows"

    def arrange(self, weight):
        raise AssertionError

    prepare = bind = run = refuses = arrange

    def steps(self, product, gpu, scratch):
        return [Launch("none.cu", "none", (1,), 32, 0, (), work) for work in self._works]


@pytest.fixture
def kernels(monkeypatch):
    """Dense in 2 + 90 us; `one` waits for memory, `two` launches twice; the model with constants of its own."""
    for name, value in (("LAUNCH", 2e-6), ("MEMORY_SHARE", 0.9), ("ISSUED", 4.0), ("_ISSUE_SHARE", 0.85)):
        monkeypatch.setattr(model, name, value)
    dense = Worked("dense", Work(90e-6 * 0.9e12))
    dense.automatic = False
    one = Worked("one", Work(9e6, 7.2e6, wavefronts=8 * 17_000, latency=3000))
    two = Worked("two", Work(1.8e6, wavefronts=8 * 10_000), Work(0.9e6, latency=5000))
    aqlm = Worked("aqlm", Work(0, instructions=8 * 3.4 * 50_000))
    aqlm.automatic = False
    made = [one, two, dense, aqlm]
    monkeypatch.setattr(prediction, "registered", lambda engine, spec: made)
    return made


def test_arithmetic(kernels):
    rows = {row.kernel: row for row in prediction.predict(GPU, [(256, 512)], ["m1v4g128", "m2v8g-1"], [1])}
    assert rows["dense"].seconds == pytest.approx(92e-6)
    assert rows["dense"].config == ""
    assert rows["one"].seconds == pytest.approx(23e-6)  # 2 to launch, 3 that nothing hides, 18 of memory
    assert rows["two"].seconds == pytest.approx(2e-6 + 10e-6 + 2e-6 + 5e-6 + 1e-6)
    assert rows["aqlm"].seconds == pytest.approx(52e-6)
    assert {name: row.bound for name, row in rows.items()} == {
        "dense": "memory", "one": "memory", "two": "wavefronts", "aqlm": "instructions",
    }  # fmt: skip
    assert rows["one"].bandwidth_share == pytest.approx(9e6 / 23e-6 / 0.9e12)
    assert [name for name, row in rows.items() if row.chosen] == ["two"]
    assert prediction.copy_bandwidth(GPU) == pytest.approx(0.9e12)


def test_latency_can_be_what_bounds(kernels):
    assert model.bound([Work(0.9e6), Work(0.9e6, latency=1)], GPU) == "latency"
    assert model.bound([Work(0.9e6, latency=1000), Work(0, mma=8 * 10_000)], GPU) == "mma"


def test_dense_stands_once_for_all_weights(kernels):
    rows = prediction.predict(GPU, [(256, 512), (512, 256)], ["m1v4g128", "m2v8g-1"], [1, 2, 100])
    assert [(r.shape, r.batch) for r in rows if r.kernel == "dense"] == [
        ((m, k), n) for m, k in ((256, 512), (512, 256)) for n in (1, 2)
    ]
    assert sum(r.kernel == "one" for r in rows) == 2 * 2 * 2
    assert not any(r.batch == 100 for r in rows)


def timed(kernel, config, shape, batch, seconds, share=0.5, chosen=False):
    return prediction.Prediction(kernel, config, shape, batch, seconds, share, chosen, "memory", seconds)


def test_targets_are_met_and_missed():
    shape = (28672, 8192)
    rows = [
        timed("psumbook", "m1v4g128", shape, 1, 1e-6, 0.8, True),
        timed("dequant", "m1v4g128", shape, 1, 0.5e-6, 0.9),
        timed("aqlm", "m2v8g-1", shape, 1, 2.9e-6),
        timed("quip", "e8p", shape, 1, 1.6e-6),
        timed("dense", "", shape, 1, 5.1e-6),
    ]
    found = {outcome.statement: outcome for outcome in targets.outcomes(rows, 1e12)}
    head = "28672 x 8192, m1v4g128, N = 1: at least "
    for text, value, is_met in (
        ("80 % of the copy bandwidth", 0.8, True),
        ("3 times aqlm m2v8g-1", 2.9, False),
        ("1.5 times quip e8p", 1.6, True),
        ("5 times dense", 5.1, True),
    ):
        assert (found[head + text].found, found[head + text].is_met) == (pytest.approx(value), is_met)
    other = found["14336 x 4096, m2v8g128, N = 16: at least 2.5 times dense"]
    assert (other.found, other.is_met) == (None, None)
    assert len(found) == len(targets.TARGETS) + 2


def test_what_auto_owes():
    shape = (1000, 1024)
    packed = codegemm.CodebookConfig.parse("m1v4g128").packed_bits(*shape) / 8
    copied = model.LAUNCH + (packed + 2 * 1000 * 1024) / 1e12
    rows = [
        timed("dense", "", shape, 64, 10e-6),
        timed("dense", "", shape, 65, 10e-6),
        timed("dequant", "m1v4g128", shape, 64, 9e-6, chosen=True),
        timed("dequant", "m2v8g128", shape, 64, 11e-6, chosen=True),
        timed("quip", "m2v8g128", shape, 64, 99e-6),
        timed("dequant", "m1v4g128", shape, 65, 11e-6, chosen=True),
    ]
    few, many = targets.outcomes(rows, 1e12)[-2:]
    assert few.found == pytest.approx(10 / 11)
    assert few.is_met is False
    assert few.statement == "auto up to N = 64: never slower than dense (1000 x 1024, m2v8g128, N = 64)"
    assert many.found == pytest.approx((10e-6 + copied) / 11e-6)
    assert many.is_met is True
    assert targets.outcomes([], 1e12)[-1].found is None


def test_predictions_are_held_to_the_targets(kernels):
    found = targets.predicted("h200")
    assert [outcome.statement for outcome in found[:-2]] == list(map(str, targets.TARGETS))
    assert found[4].line() == "    2.90  missed          28672 x 8192, m1v4g128, N = 1: at least 5 times dense"
    assert found[2].line().split()[:2] == ["unknown", "no"]  # there is no `quip`, and no `qtip`


def predicted(*arguments, **variables):
    return CliRunner(env=variables).invoke(cli, ["predict", *arguments])


def rows_of(done):
    """The words of each line below a heading."""
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()]
    return [words for words in lines if words and words[0] not in ("predicted", "weights", "%")]


def test_the_command(kernels):
    done = predicted("--shape", "256x520", "--batch", "1,100", "--all")
    assert done.stdout.startswith("predicted for h200: 256 x 520 ")
    rows = rows_of(done)
    assert [row[1] if row[0] == "1" else row[2] for row in rows] == ["dense", *2 * ["one", "two", "aqlm"]]
    [one] = [row for row in rows if row[:3] == ["m2v8g-1", "1", "one"]]
    # 2 us to launch, 1.52 us of latency and 3.75 us of memory; dense 20.75 us, aqlm 3.55 us.
    assert one[3:] == ["7.3", "29", "2.86", "0.49", "memory"]
    names = "m2v8g-1, m1v8b16g-1"
    assert done.stderr == f"left out: 256 x 520, {names}, N = 100: no kernel multiplies so: too many rows\n"


def test_it_prints_what_is_asked_for(kernels):
    """Products of one kernel each, and no comparison that nothing was computed for."""
    done = predicted("--config", "m1v4g128", "--shape", "256x512", "--batch", "1,2")
    assert [row[:3] for row in rows_of(done)] == [["m1v4g128", "1", "two"], ["m1v4g128", "2", "two"]]
    assert "dense" in done.stdout
    for other in ("aqlm", "quip", "m2v8"):
        assert other not in done.stdout
    assert done.stderr == ""
    done = predicted("--config", "m1v4g128,m2v8g-1", "--shape", "256x512", "--gpu", "h100", "--all")
    assert "x aqlm" in done.stdout
    assert "predicted for h100" in done.stdout


def test_what_is_asked_for_twice_is_told_once(kernels):
    shapes = ["--shape", "256x512", "--shape", "512x256", "--shape", "256x512"]
    done = predicted("--config", "m1v4g128,m1v4b8g128", *shapes, "--batch", "2,1,2,70,70")
    assert [row[:2] for row in rows_of(done)] == 2 * [["m1v4g128", "2"], ["m1v4g128", "1"]]
    assert done.stderr.count("m1v4g128, N = 70: ") == len(done.stderr.splitlines()) == 2
    rows = prediction.predict(GPU, [(256, 512)] * 2, ["m1v4"], [1, 1])
    assert len(rows) == len(set(rows)) == len(kernels)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shape", "256x512", "--shape", "256x100", "--config", "m1v4g128,m1v4,m1v8"],
         "Error: 256 x 100, m1v4g128: in_features=100: must be a multiple of the group size g=128\n"
         "256 x 100, m1v8g-1: in_features=100: must be a multiple of the vector length v=8\n"),
        (["--shape", "256x500"], "Error: 256 x 500, m1v4g128: in_features=500: must be"),
        (["--shape", "256x512", "--batch", "1,0"], "Error: Invalid value for '--batch': 0 is not in the range x>=1"),
    ],
)  # fmt: skip
def test_all_arguments_are_checked_before_anything_is_computed(arguments, said, monkeypatch):
    monkeypatch.setattr(prediction, "predict", Mock(side_effect=AssertionError))
    done = predicted(*arguments)
    assert done.exit_code in (1, 2)
    assert done.stdout == ""
    assert said in done.stderr


def test_predictions_are_checked_before_any_is_computed(monkeypatch):
    monkeypatch.setattr(prediction, "_product", Mock(side_effect=AssertionError))
    with pytest.raises(ValueError, match="in_features=100: must be a multiple"):
        prediction.predict(GPU, [(256, 512), (256, 100)], ["m1v4", "m1v4g128"], [1])


def test_configurations_that_are_none():
    done = CliRunner().invoke(cli, ["predict", "--config", "x"], standalone_mode=False)
    assert str(done.exception).startswith("configuration 'x': expected")


def test_eighty_columns():
    """By the engine's own kernels: no number and no name is cut."""
    done = predicted("--shape", "28672x8192", "--all", COLUMNS="80", FORCE_COLOR="1", NO_COLOR="1")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    assert max(len(line.rstrip()) for line in plain.splitlines()) <= 80
    assert "…" not in plain
    [row] = [
        words for words in map(str.split, plain.splitlines()) if words[:3] == ["m1v8b16g-1", "128", "dequant_dense"]
    ]
    assert all(map(float, row[3:8]))


def test_what_no_kernel_multiplies_is_told(kernels):
    done = predicted("--config", "m1v4,m1v4g128", "--batch", "70,80", "--shape", "256x512")
    assert done.exit_code == 1
    told = "256 x 512, m1v4g-1, m1v4g128, N = 70, 80: no kernel multiplies so: too many rows"
    assert done.output == f"Error: {told}\n"


def test_huge_shapes_are_arithmetic():
    """By the engine's own kernels: matrices of more bytes than there are anywhere, and in numbers that are left."""
    tracemalloc.start()
    rows = prediction.predict(KNOWN["h200"], [(10**7, 4096), (10**8, 4096)], ["m1v4g128"], [1, 10**8])
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 50e6
    seconds = {(row.kernel, row.batch, row.shape[0]): row.seconds for row in rows}
    for name, n in (("dense", 1), ("dequant", 1), ("dequant_dense", 1), ("dense", 10**8)):
        assert seconds[name, n, 10**8] == pytest.approx(10 * seconds[name, n, 10**7], rel=0.02)


def test_shapes_beyond_the_kernels_integers():
    done = CliRunner().invoke(cli, ["predict", "--shape", "9999999999x4096", "--batch", "1,16"])
    assert done.exit_code == 1
    assert done.output == (
        "Error: 9999999999 x 4096, m1v4g128, m2v8g128, m2v8g-1, m1v8b16g-1, q2g128, N = 1, 16: no kernel multiplies "
        "so: out_features=9999999999: up to 2147418112, for its integers have 32 bits\n"
    )


def test_names_are_those_of_the_formats(kernels):
    done = predicted("--shape", "256x512", "--batch", "1", "--config", "m1v4g32+rotated,m1v4")
    assert {row[0] for row in rows_of(done)} == {"m1v4g32+rotated", "m1v4g-1"}
    rows = prediction.predict(GPU, [(256, 512)], ["m1v4", "m1v4g-1"], [1])
    assert [row.config for row in rows if row.kernel == "one"] == ["m1v4g-1"]


def test_every_gpu_without_cupy(tmp_path):
    """The engine's own kernels, on GPUs that aren't there."""
    done = python_without(
        ["cupy"],
        tmp_path,
        """
        from codegemm.prediction import predict
        from codegemm.engines.cuda.gpu import KNOWN
        for gpu in KNOWN.values():
            rows = predict(gpu, [(4096, 4096)], ['m1v4g128', 'e8p'], [1, 128])
            assert {row.kernel for row in rows} >= {'psumbook', 'dense'}
            assert all(0 < row.seconds < 1e-2 and 0 < row.bandwidth_share < 1 for row in rows)
        assert 'cupy' not in sys.modules
    """,
    )
    assert done.returncode == 0, done.stderr


def test_memory_bounds_every_prediction():
    """Whether a kernel's times were fitted on another GPU or not; of two that wait for it the order stays. `quip` and
    `aqlm` read codes again, from L2 where they fit."""
    shapes, configs = [(28672, 8192), (4096, 14336)], ["m1v4g128", "m2v8g128", "m1v4g16", "e8p", "m1v4g128+rotated"]
    waiting = 0
    for gpu in KNOWN.values():
        for row in prediction.predict(gpu, shapes, configs, [1, 4, 16]):
            assert 0 < row.bandwidth_share <= 1 or row.kernel in ("quip", "aqlm")
            waiting += row.kernel in ("psumbook", "dequant") and row.bound == "memory"
    assert waiting
    slow, quick = (Work(0.9e6, terms={"lookups": clocks}) for clocks in (900.0, 800.0))
    assert 1e-6 < model.seconds([quick], GPU) < model.seconds([slow], GPU) < 1.01e-6
    assert model.parts(Work(0.9e6, terms={"lookups": 2000.0}), GPU)["lookups"] == pytest.approx(2e-6)
    assert model.seconds([Work(0.9e6, terms={"lookups": 2000.0, "memory": 500.0})], GPU) == pytest.approx(2.5e-6)


def test_auto_is_never_dense():
    for gpu in KNOWN.values():
        for row in prediction.predict(gpu, [(4096, 4096)], ["m1v4g128"], [1, 64, 1000]):
            assert not (row.chosen and row.kernel == "dense")
    assert not [k for k in registry.registered("cuda") if k.name == "dense" and k.automatic]
