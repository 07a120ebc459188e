"""`make models`: what is measured and what becomes of it, with made-up numbers and tiny models."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from emulator.cases import ALL

from benchmarks.models import __main__ as made
from benchmarks.models import cases, effort, results, steps, targets, texts
from benchmarks.models.cases import CASES, WAYS, Case
from benchmarks.models.integers import Integers
from benchmarks.tables import files, models
from codegemm.calibration import Calibration
from codegemm.formats.format import parse
from codegemm.reporting import DPI

BITS = {"m1v4g-1": 2.06, "m1v4g32": 2.53, "qtip3": 3.10, "int3g64": 3.5, "int4g64": 4.5}


def numbers(way, bits, text, **changes):
    """Of a text."""
    place = list(WAYS).index(way)
    kl = 4 * 0.25 ** (bits - 1) / (1 + place) + 0.1 * len(text) / 9
    ratio = float(np.exp(kl))
    return {
        "perplexity": 12 * ratio, "base_perplexity": 12.0,
        "ratio": ratio, "ratio_interval": [ratio - 0.02, ratio + 0.02],
        "kl": kl, "kl_interval": [kl, kl], "top1": 1 / (1 + kl), "top1_interval": [0, 1], "predictions": 16384,
        "sha256": text, **changes,
    }  # fmt: skip


def told(case, bits, **changes):
    """What a case's file has."""
    found = {text: numbers(case.way, bits, text, **changes) for text in steps.HELD_OUT_TEXTS}
    return {
        "case": {"name": case.name, "config": case.config, "way": case.way}, "bits": bits, "texts": found,
        "seconds": {"matrices": 3600.0, "distilling": 1800.0, "evaluating": 2.0},
        "device": "a GPU", "cores": 1, "version": "1.2",
        "tokens": {"calibrated": 1 << 15, "distilled": 1 << 17, "evaluated": 1 << 14},
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where results are: none yet."""
    monkeypatch.setattr(files, "RESULTS", tmp_path)
    (tmp_path / models.FOLDER).mkdir()
    return tmp_path / models.FOLDER


def write(folder, *cases, **changes):
    for case in cases:
        (folder / f"{case.name}.json").write_text(json.dumps(told(case, BITS[case.config], **changes)))


MADE_UP = [
    *(Case(config, way) for config in ("m1v4g-1", "m1v4g32", "qtip3") for way in ("plain", "calibrated", "distilled")),
    *(Case(config, way) for config in ("int3g64", "int4g64") for way in ("nearest", "GPTQ")),
]


def test_cases_are_of_what_there_is():
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        configs, bits = case.asked
        assert [str((Integers.parse if case.way in cases.INTEGERS else parse)(each)) for each in configs] == configs
        assert (bits is None) == (len(configs) == 1)
    assert Case("qtip,qtip3@2.55", "calibrated").asked == (["qtip", "qtip3"], 2.55)


def test_parts():
    assert [case.way for case in cases.chosen("m1v4g192")] == ["plain", "calibrated", "distilled"]
    assert {case.way for case in cases.chosen("gptq")} == {"GPTQ"}
    assert cases.chosen("int4g64-gptq") == [Case("int4g64", "GPTQ")]
    assert cases.chosen(None) == list(CASES)
    with pytest.raises(ValueError, match=r"part 'x': must be one of plain, .*, int4g64, or both"):
        cases.chosen("x")


def test_targets_are_by_bits():
    assert [targets.target_of(bits).bits for bits in (1, 2.15, 2.154, 2.156, 2.55, 3.1, 4.15)] == [
        2.15, 2.15, 2.15, 2.55, 2.55, 3.15, 4.15,
    ]  # fmt: skip
    assert targets.target_of(4.16) is None
    assert targets.met(2.0, {"technical": 1.55, "jargon": 2.01, "other": 9}) == {"technical": True, "jargon": False}
    assert targets.met(5.0, {"technical": 1.0}) == {}


def test_results_are_by_bits_and_ways(folder):
    write(folder, *reversed(MADE_UP))
    assert [each.case for each in results.read(folder)] == MADE_UP


def test_results_of_other_texts_are_not_compared(folder):
    write(folder, MADE_UP[0])
    write(folder, MADE_UP[1], sha256="another")
    with pytest.raises(ValueError, match=r"m1v4g-1-plain\.json: has other texts than m1v4g-1-calibrated\.json"):
        results.read(folder)
    write(folder, MADE_UP[1], predictions=7)
    with pytest.raises(ValueError, match="or another number of predictions"):
        results.read(folder)


def test_files_of_no_case_are_refused(folder):
    write(folder, MADE_UP[0])
    (folder / "m1v4g-1-plain.json").rename(folder / "other.json")
    with pytest.raises(ValueError, match=r"is of 'm1v4g-1-plain', must be of 'other'"):
        results.read(folder)


def test_tables(folder):
    assert models.tables() == models.NOTHING
    write(folder, *MADE_UP)
    text = models.tables()
    found = results.read(folder)
    assert text.startswith(
        "\na GPU, codegemm 1.2, 3 texts (technical, 16,384 predictions, dense perplexity 12.00; jargon, "
    )
    assert "| weights | way | bits | x technical | x jargon | x other | within |" in text
    assert "| m1v4g-1 | plain | 2.06 | 2.77 ±0.02 | 2.68 ±0.02 | 2.65 ±0.02 | none |" in text
    assert "| m1v4g-1 | distilled | 2.06 | 1.50 ±0.02 | 1.45 ±0.02 | 1.44 ±0.02 | all |" in text
    assert re.search(r"\| int4g64 \| GPTQ \| 4\.50 \|.* \|  \|\n", text)  # for so many bits there is no target
    assert "| m1v4g-1 | calibrated | 2.06 | 1.75 ±0.02 | 1.69 ±0.02 | 1.67 ±0.02 | jargon |" in text
    assert "| 2.15 | technical | 1.55 | 1.50 | m1v4g-1 | distilled | met |" in text
    assert (
        "| 4.15 | jargon | 1.08 | 1.15 | qtip3 | distilled | missed |" in text
    )  # integers are better, and don't count
    assert "| 3.15 | technical | 1.13 | 1.19 | qtip3 | distilled | missed |" in text
    kl = ["{:.3f}".format(found[0].of("kl")[name]) for name in steps.HELD_OUT_TEXTS]
    assert f"| m1v4g-1 | plain | 2.06 | {' | '.join(kl)} | " in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert max(map(len, rows)) <= 96
    for path in folder.glob("m1v4*"):
        path.unlink()
    assert "| 2.55 | jargon | 1.60 |  |  |  | not measured |" in models.tables()


def test_the_summary_has_the_best_of_each_kind(folder):
    """Sums of codebooks, others' codes, integers; one that is the best for more bits, too, once."""
    assert models.summary() == models.NOTHING
    write(folder, *MADE_UP)
    rows = [line.split(" | ")[:3] for line in models.summary().splitlines() if "±" in line]
    assert rows == [
        ["| 2.15", "m1v4g-1", "distilled"], ["| 2.55", "m1v4g32", "distilled"], ["| 3.15", "qtip3", "distilled"],
        ["| 4.15", "int3g64", "GPTQ"],
    ]  # fmt: skip


def test_effort_is_counted():
    small = effort.Decoder("small", hidden=2, inner=3, keys=1, blocks=1, words=5)
    assert [m * k for k, m, _ in small.stages] == [8, 4, 12, 6]
    assert small.weights == 30
    # Up to each stage, 0 + 8 + 12 + 24, and through all, in both models; sums of products of inputs, and with streams.
    assert small.reading == 2 * (44 + 30) + 2 * (4 + 4 + 4 + 9) + 4 + 6
    assert small.learning == 4 * 30 + 3 * 10
    assert effort.SMOLLM2.weights == 30 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 1536 * 576)


def test_hours_of_other_models(folder):
    seconds, tokens = {"matrices": 3600, "distilling": 1800}, {"calibrated": 1 << 15, "distilled": 1 << 17}
    own, larger = (effort.hours(model, seconds, tokens) for model in (effort.SMOLLM2, effort.LLAMAS[0]))
    assert (own.matrices, own.learning) == (1, pytest.approx(0.5))
    assert larger.matrices == effort.LLAMAS[0].weights / effort.SMOLLM2.weights
    assert effort.hours(effort.SMOLLM2, seconds, {**tokens, "calibrated": 1 << 16}).reading == 2 * own.reading
    assert models.effort() == models.NOTHING
    case = Case("m1v4g-1", "distilled")
    (folder / f"{case.name}.json").write_text(json.dumps({**told(case, 2.06), "cores": 2}))
    assert models.effort() == models.NOTHING
    write(folder, case)
    assert re.search(r"SmolLM2-135M +\| 0.11 +\| 1 +\| .* 0.50 +\|", models.effort())


def test_shares_of_lm_eval(folder):
    assert models.lm_eval() == models.NOTHING
    row = {"model": "models/a", "questions": 50, "acc": 0.5, "acc_stderr": 0.05, "acc_norm": 0.25, "acc_norm_stderr": 0}
    told = {"task": "which_next", "lm_eval": "0.4", "models": [row]}
    (files.RESULTS / models.LM_EVAL).write_text(json.dumps(told))
    assert "which_next, 50 questions, lm-eval 0.4:" in models.lm_eval()
    assert re.search(r"\| a +\| 50.0 ±5.0 % +\| 25.0 ±0.0 % +\|", models.lm_eval())


def test_large_ratios_and_single_windows():
    assert models._spread({"ratio": 12345.6, "ratio_interval": [1.0, 9.0]}, "ratio", 2) == "1.2e+04"
    assert models._spread({"ratio": 1.5, "ratio_interval": [None, None]}, "ratio", 2) == "1.50"


def test_what_was_measured_is_shown(folder, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    document = tmp_path / "models.md"
    begin, end = made.markdown.marks("models")
    document.write_text(f"Before\n{begin}old\n{end}after\n")
    made.show(document, tmp_path / models.PICTURE)
    assert document.read_text() == f"Before\n{begin}{models.NOTHING}{end}after\n"
    assert not (tmp_path / models.PICTURE).exists()
    write(folder, *MADE_UP)
    made.show(document, tmp_path / models.PICTURE)
    assert document.read_text() == f"Before\n{begin}{models.tables()}{end}after\n"
    height, width, _ = imread(tmp_path / models.PICTURE).shape
    assert 1100 < width <= 1200
    assert height > 3 * DPI


@pytest.fixture
def settings(tmp_path):
    """With texts that say nothing."""
    for name in (*(f"held-out/{text}" for text in steps.HELD_OUT_TEXTS), "calibration/b", "calibration/a"):
        path = tmp_path / "texts" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a1 a2 a3 " * 400)
    return steps.Settings(tmp_path / "dense", tmp_path / "texts", tmp_path / "work", 64, 64, None, "cpu")


def test_texts_that_are_not_there_are_named(settings):
    assert [path.stem for path in settings.mix()] == ["a", "b"]
    assert [path.stem for path in settings.held_out()] == list(steps.HELD_OUT_TEXTS)
    (settings.texts / "held-out/jargon.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"held-out/jargon\.txt: no such file: python -m benchmarks"):
        settings.held_out()


def test_cases_that_have_a_file_are_not_measured_again(folder, settings, monkeypatch, capsys):
    asked = []

    def quantised(case, settings):
        asked.append(case)
        return steps.Made("model", BITS[case.config], {"matrices": 1.5})

    monkeypatch.setattr(steps, "made", quantised)
    monkeypatch.setattr(steps, "evaluated", lambda model, settings: told(MADE_UP[0], 2.06)["texts"])
    monkeypatch.setattr(steps, "device_name", lambda device: "a processor")
    write(folder, MADE_UP[0])
    made.measure(MADE_UP[:2], settings, folder)
    assert asked == [MADE_UP[1]]
    said = capsys.readouterr()
    assert said.out.startswith("m1v4g-1-calibrated")
    kept = json.loads((folder / "m1v4g-1-calibrated.json").read_text())
    assert kept["case"] == {"name": "m1v4g-1-calibrated", "config": "m1v4g-1", "way": "calibrated"}
    assert kept["calibration"].keys() == {"a", "b"}
    assert kept["calibration"]["a"] == texts.digest((settings.texts / "calibration/a.txt").read_bytes())
    assert kept["seconds"]["matrices"] == 1.5
    assert kept["device"] == "a processor"
    made.measure(MADE_UP[:2], settings, folder)
    assert len(asked) == 1


def test_estimates_become_plain_numbers():
    def estimate(value):
        return SimpleNamespace(value=value, low=value - 1, high=value + 1)

    found = SimpleNamespace(
        perplexity=estimate(24.0), base_perplexity=estimate(12.0), ratio=estimate(2.0), kl=estimate(0.5),
        agreement=estimate(0.75), predictions=9, source=SimpleNamespace(sha256="x"),
    )  # fmt: skip
    plain = steps._plain(found)
    assert plain.keys() == numbers("plain", 2.0, "x").keys()
    assert (plain["ratio"], plain["ratio_interval"], plain["top1"]) == (2.0, [1.0, 3.0], 0.75)


def test_what_is_wrong_is_said(folder, tmp_path, capsys):
    for arguments, said in (
        (["--part", "nothing"], "part 'nothing'"),
        (["--part", "qtip3", "--model", str(tmp_path), "--texts", str(tmp_path)], r"calibration/\*\.txt: no such file"),
    ):
        with pytest.raises(SystemExit) as raised:
            made.main(arguments)
        assert raised.value.code == 1
        assert re.search(said, capsys.readouterr().err)


@pytest.fixture
def llama():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from support.models import tiny_llama

    torch.manual_seed(0)
    return tiny_llama()


@pytest.fixture
def skeleton(llama, tmp_path):
    from codegemm.hf.blockwise.skeleton import Skeleton

    llama.save_pretrained(tmp_path)
    return Skeleton.open(tmp_path)


def matrices(model):
    import torch

    return {
        name: module.weight.detach().numpy().copy()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "layers" in name
    }


def test_models_of_integers_have_rounded_layers(llama, skeleton):
    from benchmarks.models import rounding

    before, integers = matrices(llama), Integers(3, 16)
    head = llama.lm_head.weight.clone()
    assert rounding.round_nearest(llama, skeleton, integers) == 3 + 32 / 16
    after = matrices(llama)
    assert len(after) == 14
    for name, matrix in before.items():
        assert np.array_equal(after[name], integers.nearest(matrix).matrix)
    assert (llama.lm_head.weight == head).all()


def test_rows_that_would_be_all_that_counts_weigh_less(rng):
    """As in codegemm's own quantiser."""
    torch = pytest.importorskip("torch")
    from benchmarks.models import rounding
    from codegemm.hf.blockwise.moments import Moments

    x = torch.from_numpy(rng.standard_normal((2, 1500, 8)).astype(np.float32))
    x[0, 0] *= 1e4
    seen, moments = Calibration(8), Moments.empty(8)
    rounding._add({"q": seen}, "q", x.reshape(-1, 8))
    moments.add(x.reshape(-1, 8), x.reshape(-1, 8))
    assert moments.capped == 1
    assert np.allclose(seen.H, moments.own, rtol=1e-5, atol=1e-2)


def test_fed_back_models_are_nearer(llama, skeleton):
    """Each matrix by the inputs that the rounded ones before it give it, in its own block, too."""
    import copy

    import torch

    from benchmarks.models import rounding

    ids, other = torch.randint(0, 61, (40, 32)), torch.randint(0, 61, (20, 32))
    integers, told = Integers(3, -1), []
    nearest, fed_back = copy.deepcopy(llama), copy.deepcopy(llama)
    bits = rounding.round_nearest(nearest, skeleton, integers)
    found = rounding.round_fed_back(fed_back, skeleton, integers, ids, lambda *done: told.append(done))
    assert found == pytest.approx(bits)
    assert told == [(1, 2), (2, 2)]
    assert not any(module._forward_pre_hooks for module in fed_back.modules())

    for name in ("self_attn.q_proj", "mlp.down_proj"):
        seen, layer = {}, fed_back.model.layers[1].get_submodule(name)
        kept = layer.weight.detach().clone()
        layer.weight.data.copy_(llama.model.layers[1].get_submodule(name).weight)
        with layer.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.update(x=inputs[0])), torch.no_grad():
            fed_back(ids)
        x = seen["x"].flatten(0, 1).double().numpy()
        again = integers.fed_back(layer.weight.detach().numpy(), x.T @ x)
        assert np.mean(again.matrix == kept.numpy()) > 0.99, name
        layer.weight.data.copy_(kept)

    with torch.no_grad():
        dense, *others = (model(other).logits for model in (llama, nearest, fed_back))
    errors = [float((each - dense).norm() / dense.norm()) for each in others]
    assert errors[1] < errors[0]


@pytest.fixture
def dense(llama, settings, monkeypatch):
    """Its folder, with a tokenizer of words `a0` to `a59`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, **{f"a{number}": number + 1 for number in range(60)}}
    tokenizer = Tokenizer(WordLevel(words, "<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    llama.save_pretrained(settings.model)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(settings.model)
    monkeypatch.setattr(steps, "SEQUENCE", 32)
    return settings.model


@pytest.mark.parametrize(
    ("case", "bits"),
    [
        (Case("int4g16", "GPTQ"), 6.0),
        (Case("int4g16", "nearest"), 6.0),
        *([(Case("m1v2b3g16", "distilled"), None)] if ALL else []),
    ],
    ids=lambda each: getattr(each, "name", ""),
)
def test_a_case_from_texts_to_its_file(case, bits, dense, settings, folder):
    made.measure([case], settings, folder)
    [found] = results.read(folder)
    assert found.case == case
    assert found.bits == bits or (bits is None and found.bits > 2)
    assert list(found.texts) == list(steps.HELD_OUT_TEXTS)
    for text in found.texts.values():
        assert text["ratio"] == pytest.approx(text["perplexity"] / text["base_perplexity"])
        assert text["kl"] > 0
        assert text["predictions"] > 1000
    assert models.tables() != models.NOTHING
