"""`codegemm bench-model`: which models take turns, what they are, and what is told of them."""

import json
import re

import click
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from emulator import cases  # noqa: E402
from support.folders import save_quantised  # noqa: E402
from support.models import close, tiny_llama  # noqa: E402

from codegemm.engines.cpu import device  # noqa: E402
from codegemm.errors import CheckpointError  # noqa: E402
from codegemm.hf.bench import candidates, llama, report, runner  # noqa: E402
from codegemm.hf.bench.candidates import Candidate  # noqa: E402
from codegemm.hf.bench.runner import Row  # noqa: E402
from codegemm.hf.decoding import Decoder  # noqa: E402
from codegemm.hf.planned import PlannedLinear  # noqa: E402
from codegemm.hf.sizes import cache_bytes, sizes  # noqa: E402
from codegemm.measuring import conditions  # noqa: E402
from codegemm.torch import CodebookLinear  # noqa: E402

CPU = torch.device("cpu")
SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 8}
FAST = ("--rounds", 2, "--tokens", 2, "--prompt-length", 3, "--engine", "cpu")


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    """Small models, and nothing is waited for: the tests look at what is measured, not at how long it takes."""
    monkeypatch.setitem(llama._SIZES, "8b", SMALL)
    monkeypatch.setattr(device, "measure_bandwidth", lambda: 1e10)
    monkeypatch.setattr(device, "measure_multiply_adds", lambda: 1e11)
    monkeypatch.setattr(conditions, "settle", lambda: None)


def logits(model):
    with torch.no_grad():
        return model(torch.arange(5)[None]).logits


def test_a_block_by_every_kernel(invoke, tmp_path):
    """Dense, fused and by other projects' kernels; the table fits a terminal."""
    path = tmp_path / "told.json"
    done = invoke("bench-model", "--llama", "8b", "--random", "--batch", "1,3", *FAST, "--json", path)
    assert done.exit_code == 0, done.output
    names = {
        "dense fp32", "dense bf16", "m1v4g128", "m1v4g128, fused", "m2v8g128", "m2v8g128, fused",
        *(name for name, *_ in candidates.BASELINES),
    }  # fmt: skip
    told = json.loads(path.read_text())
    assert {(row["name"], row["batch"]) for row in told["rows"]} == {(name, n) for name in names for n in (1, 3)}
    assert told["left_out"] == {}
    assert told["model"].endswith("one block of 3, without embedding and head")
    for row in told["rows"]:
        assert len(row["seconds"]) == 2
        assert row["tokens_per_second"] == pytest.approx(row["batch"] / row["median"])
        fastest = min(each["median"] for each in told["rows"] if each["dense"] and each["batch"] == row["batch"])
        assert row["times_dense"] == pytest.approx(fastest / row["median"])
    weights = {row["name"]: row["weight_bytes"] for row in told["rows"]}
    assert weights["dense fp32"] > weights["dense bf16"] > 2 * weights["m1v4g128"]
    assert weights["m1v4g128"] == weights["m1v4g128, fused"]
    table = [line for line in done.stdout.splitlines() if re.match(r" +(dense|m1v4|AQLM)", line)]
    assert len(table) == 12
    assert max(map(len, table)) <= 80


@pytest.mark.parametrize(("name", "numbers"), [("8b", 8_030_261_248), ("70b", 70_553_706_496)])
def test_architectures(name, numbers, monkeypatch):
    """As many numbers as the models of Meta's have, counted and built."""
    monkeypatch.undo()
    config = llama.whole(name)
    block = sum(rows * columns for rows, columns in llama.linear_shapes(config).values())
    assert config.num_hidden_layers * block + llama.others(config) == numbers
    config.num_hidden_layers, rest = 1, numbers - (config.num_hidden_layers - 1) * (block + 2 * config.hidden_size)
    with torch.device("meta"):
        built = transformers.LlamaForCausalLM(config)
    assert sum(each.numel() for each in built.parameters()) == rest
    # 4 bytes for each of 8 heads' 128 keys and values, in 32 or 80 layers
    assert cache_bytes(llama.whole(name), 10, 3, 2) == 30 * 4 * 8 * 128 * llama.whole(name).num_hidden_layers


def test_random_models_are_what_they_are_called():
    """The same codes by either of two kernels, other ones in every layer, and no number that a half can't hold."""
    config = llama.one_block("8b")
    config.num_hidden_layers = 3
    choice = candidates.random_models(config, ["m2v8g-1"], [1, 5], CPU)
    made = {each.name: each.make() for each in choice.candidates}
    assert len(made) == 9
    ours = made["m2v8g-1"]
    assert close(logits(made["AQLM 2x8"]), logits(ours), 2e-3)
    assert close(logits(made["m2v8g-1, fused"]), logits(ours), 2e-3)
    assert len({layer._fused for layer in made["m2v8g-1, fused"].modules() if isinstance(layer, CodebookLinear)}) == 7
    codes = [layer.to_weight() for layer in ours.modules() if isinstance(layer, CodebookLinear)]
    assert len(codes) == 21
    assert not any(a == b for i, a in enumerate(codes) for b in codes[:i])
    for candidate in choice.candidates:
        model, states = made[candidate.name], []
        held = sizes(model).held
        if candidate.kernel in ("", "auto"):
            assert held == pytest.approx(candidate.needed, rel=0.01)
        else:  # whose form may be larger
            assert held <= candidate.needed <= 1.5 * held
        assert model.dtype == (torch.bfloat16 if candidate.name == "dense bf16" else torch.float32)
        for block in model.model.layers:
            block.register_forward_hook(lambda module, x, y, states=states: states.append(y))
        assert logits(model).isfinite().all()
        assert states[-1].std() > 0.1
        assert states[-1].abs().max() < 1e4


def test_a_model_beside_its_dequantised_self(invoke, tmp_path):
    folder, path = tmp_path / "model", tmp_path / "told.json"
    save_quantised(folder)
    done = invoke("bench-model", folder, *FAST, "--json", path)
    assert done.exit_code == 0, done.output
    told = json.loads(path.read_text())
    assert {row["name"] for row in told["rows"]} == {"dequantised fp32", "dequantised bf16", "as it is", "fused"}
    assert {row["config"] for row in told["rows"] if not row["dense"]} == {"m1v4b4g16"}
    made = {each.name: each.make() for each in candidates.folder_models(folder, CPU).candidates}
    assert close(logits(made["dequantised fp32"]), logits(made["as it is"]), 1e-3)
    assert close(logits(made["fused"]), logits(made["as it is"]), 1e-3)
    assert made["dequantised bf16"].dtype == torch.bfloat16
    assert not any(isinstance(layer, CodebookLinear) for layer in made["dequantised bf16"].modules())


def test_dense_models_have_no_other_self(invoke, tmp_path):
    tiny_llama().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="model: has no quantised layer"):
        invoke("bench-model", tmp_path / "model", *FAST)
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        invoke("bench-model", "nowhere", *FAST)


def made_up(*needed):
    return [Candidate(str(number), each, lambda: None) for number, each in enumerate(needed)]


@pytest.mark.parametrize(
    ("needed", "room", "beside", "expected"),
    [
        ([5, 1, 1], 7, 0, [[0, 1, 2]]),
        ([5, 1, 1], 6, 0, [[0, 1], [2]]),
        ([5, 1, 1], 7, 1, [[0], [1, 2]]),
        ([3, 3, 3], 3, 0, [[0], [1], [2]]),
        ([9, 1, 1], 3, 0, [[1, 2]]),
        ([9], 3, 0, []),
    ],
)
def test_those_that_fit_are_there_together(needed, room, beside, expected):
    found, too_large = runner.groups(made_up(*needed), room, beside)
    assert [[int(each.name) for each in group] for group in found] == expected
    assert set(too_large) == {str(i) for i, each in enumerate(needed) if each + beside > room}


@pytest.mark.skipif(not cases.ALL, reason="for make test-all")
def test_what_is_too_large_is_never_made(invoke, monkeypatch):
    monkeypatch.setattr(runner, "free_bytes", lambda device: (1 << 28) + 1_200_000)
    done = invoke("bench-model", "--llama", "8b", "--random", "--config", "m1v4g128", *FAST)
    assert done.exit_code == 0
    assert re.search(r"left out: dense fp32: needs 0\.3 GB, and 0\.3 GB of memory are free", done.stdout)
    assert "dense fp32:" not in done.stderr
    assert re.search(r"^ +m1v4g128, fused( !)? +1 ", done.stdout, re.MULTILINE)
    monkeypatch.setattr(runner, "free_bytes", lambda device: 1000)
    with pytest.raises(click.UsageError, match=r"dense fp32: needs .*QTIP: needs"):
        invoke("bench-model", "--llama", "8b", "--random", *FAST)


@pytest.mark.skipif(not cases.ALL, reason="for make test-all")
@pytest.mark.parametrize("late", [False, True])
def test_one_that_fails_does_not_take_the_others_times(late, invoke, monkeypatch):
    begin, calls = Decoder.begin, []

    def broken(decoder, positions):
        if isinstance(decoder._model.model.layers[0].mlp.up_proj, PlannedLinear):
            calls.append(1)
            if len(calls) > 6 * late:
                raise RuntimeError("out of order\nand more")
        return begin(decoder, positions)

    monkeypatch.setattr(Decoder, "begin", broken)
    done = invoke("bench-model", "--llama", "8b", "--random", "--config", "m1v4g128", *FAST)
    assert done.exit_code == 1
    assert "left out: QTIP: RuntimeError: out of order\n" in done.stdout
    assert re.search(r"^ +m1v4g128 .*\d +$", done.stdout, re.MULTILINE)


def test_turns():
    """Every second round backwards, each behind a step that is not timed."""
    taken = []

    def candidate(name):
        def make():
            model = tiny_llama(1)
            model.register_forward_pre_hook(lambda *_: taken.append(name))
            return model

        return Candidate(name, 1, make, name == "a")

    settings = runner.Settings([1], 4, 3, 3)
    found = runner.run([candidate("a"), candidate("b")], settings, CPU, 0, lambda text: None)
    assert [row.name for row in found.rows] == ["a", "b"]
    assert "".join(taken) == "ab" + "aaaabbbb" + "bbbbaaaa" + "aaaabbbb"
    assert all(len(row.seconds) == 3 and not row.graph for row in found.rows)


def row(name, seconds, batch=1, dense=False):
    return Row(name, "", "", dense, batch, seconds, 10**9, False)


def test_numbers(capsys):
    rows = [
        row("slow", (0.4, 0.4, 0.4), dense=True), row("fast", (0.2, 0.2, 0.2), dense=True),
        row("ours", (0.05, 0.04, 0.03)), row("ours", (0.1, 0.1, 0.1), 4),
    ]  # fmt: skip
    assert [runner.times_dense(each, rows) for each in rows] == [0.5, 1.0, 5.0, None]
    assert [each.tokens_per_second for each in rows] == pytest.approx([2.5, 5, 25, 40])
    assert [each.noisy for each in rows] == [False, False, True, False]
    machine = conditions_machine()
    report.print_rows("title", rows, {"other": "no room"}, runner.Settings([1], 4, 3, 3), machine)
    said = capsys.readouterr().out
    assert re.search(r"^ +ours ! +1 +40\.00 +35\.00-45\.00 +25\.0 +5\.00 +1\.00", said, re.MULTILINE)
    assert "left out: other: no room" in said
    assert "c  steps" not in said


def conditions_machine():
    from codegemm.measuring.machine import Machine

    return Machine("cpu", "a processor", 2, 1e10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give MODEL, or --llama"),
        (["model", "--llama", "8b", "--random"], "give MODEL, or --llama"),
        (["--llama", "8b"], "--llama and --random go together"),
        (["model", "--random"], "--llama and --random go together"),
        (["model", "--config", "m1v4"], "--config m1v4: model is measured as it is"),
        (["--llama", "9b", "--random"], "'9b' is not one of"),
        (["--llama", "8b", "--random", "--batch", "0"], "0 is not in the range"),
        (["--llama", "8b", "--random", "--tokens", "131072"], "131201 positions, and the model has 131072"),
    ],
)
def test_what_can_not_be(arguments, message, invoke):
    with pytest.raises(click.UsageError, match=message):
        invoke("bench-model", "--engine", "cpu", *arguments)


def test_configurations_that_do_not_fit(invoke):
    with pytest.raises(ValueError, match="g=192"):
        invoke("bench-model", "--llama", "8b", "--random", "--config", "m1v4g192", *FAST)


def test_what_make_gpu_asks_for(monkeypatch, tmp_path):
    """Both models, each with what is left of the time, by arguments that the command line knows."""
    from benchmarks import gpu
    from codegemm.cli.bench_model import bench_model

    asked = []
    monkeypatch.setattr(conditions, "engine_of", lambda engine: engine)
    monkeypatch.setattr(gpu, "_run", lambda command, file, seconds: asked.append((command, seconds)) or True)
    assert gpu.PARTS["bench-model"].run(tmp_path / "bench-model", 50)
    for (command, seconds), name in zip(asked, llama.NAMES, strict=True):
        assert command[:2] == ["-c", "from codegemm.cli import main; main()"]
        params = bench_model.make_context("bench-model", command[3:]).params
        assert (params["llama_name"], params["batches"]) == (name, [1, 4, 8, 16])
        assert params["json_path"] == tmp_path / f"model-{name}.json"
        assert 0 < seconds <= 50
