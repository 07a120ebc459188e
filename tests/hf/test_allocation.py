"""`quantize_model(..., bits=)`: which layer gets how many bits, by what errors in it do to the model's predictions."""

import itertools
import json

import click
import pytest
from emulator.cases import ALL

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from support.models import tiny_llama  # noqa: E402

import codegemm  # noqa: E402
import codegemm.hf  # noqa: E402
from codegemm.formats.format import spec_of  # noqa: E402
from codegemm.hf import experts  # noqa: E402
from codegemm.hf.allocation import candidates, knapsack, noise, runner, sensitivity  # noqa: E402
from codegemm.hf.allocation.knapsack import Item, Option  # noqa: E402
from codegemm.hf.blockwise.skeleton import Skeleton  # noqa: E402
from codegemm.hf.config import CodegemmConfig  # noqa: E402
from codegemm.quantize.parts import Parts  # noqa: E402
from codegemm.quantize.progress import Progress  # noqa: E402

CONFIGS = ["m1v4b4g-1", "m1v2b4g-1", "m2v2b4g-1"]  # of 1, 2 and 4 bits, in tiny matrices
QUIET, CPU = Progress("", False), torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def ids(rng):
    """Rows of token ids for a tiny model."""
    return torch.from_numpy(rng.integers(0, 61, (8, 32)))


def budget_of(folder, bits, layers=None, configs=CONFIGS):
    model = Skeleton.open(folder).model
    return runner.Budget.of(bits, configs, model, CodegemmConfig(configs[0], layers), experts.names_of(model))


def measured(folder, ids, budget, seed=0):
    skeleton = Skeleton.open(folder)
    return sensitivity.divergences(skeleton, budget.free, sensitivity.Probe.of(ids, 48), CPU, seed, QUIET)


def random_items(rng, count):
    """Of several sizes and numbers of options, some of them worse than others in bits and loss."""
    sizes = rng.integers(1, 60, count)
    return {
        f"layer {number}": Item(
            int(size),
            {
                f"c{option}": Option(int(size * rng.integers(1, 9)), float(rng.random()))
                for option in range(rng.integers(1, 5))
            },
        )
        for number, size in enumerate(sizes)
    }


def span(items):
    """The least and the most bits a weight."""
    size = sum(item.size for item in items.values())
    return [sum(end(one.bits for one in item.options.values()) for item in items.values()) / size for end in (min, max)]


def spent(items, chosen):
    """Bits, and what is lost."""
    options = [items[name].options[config] for name, config in chosen.items()]
    return sum(option.bits for option in options), sum(option.loss for option in options)


def test_the_least_is_lost_that_can_be(rng):
    for count in (1, 2, 5, 6) * 20:
        items = random_items(rng, count)
        least, most = span(items)
        for share in (0.0, 0.3, 0.7, 1.0):
            bits = min(least + share * (most - least), most)
            room = bits * sum(item.size for item in items.values()) + 1e-6
            every = itertools.product(*(item.options for item in items.values()))
            results = [spent(items, dict(zip(items, each))) for each in every]
            chosen = knapsack.choose(items, bits)
            used, loss = spent(items, chosen)
            assert list(chosen) == list(items)
            assert used <= room
            assert loss == pytest.approx(min(loss for used, loss in results if used <= room))


def test_all_bits_that_are_asked_for_can_be_spent():
    """Also where a number of bits, divided by the weights and multiplied again, comes out less than it was."""
    for size in range(1, 60):
        for most in range(2, 3 * size):
            item = Item(size, {"few": Option(1, 1.0), "many": Option(most, 0.5)})
            assert knapsack.choose({"layer": item}, most / size) == {"layer": "many"}, f"{most} bits of {size} weights"


def test_many_items_lose_little_more_than_with_bits_that_can_be_divided(rng):
    """As losses fall by a quarter with each bit: no choice loses less than that of fractions of bits."""
    weights = rng.lognormal(0, 2, 300)
    sizes = [int(size) for size in rng.integers(100_000, 4_000_000, 300)]
    items = {
        f"layer {number}": Item(
            size, {f"{bits}": Option(bits * size + 4096 * bits, weight * 4.0**-bits) for bits in (2, 3, 4)}
        )
        for number, (size, weight) in enumerate(zip(sizes, weights))
    }
    used, loss = spent(items, knapsack.choose(items, 2.7))
    assert used <= 2.7 * sum(sizes)
    steps = sorted(  # each bit of each item by what it gains: they gain less and less, so that this order can be had
        (
            (items[f"layer {number}"].options[f"{bits}"].loss - items[f"layer {number}"].options[f"{bits + 1}"].loss)
            / (size + 4096),
            size + 4096,
        )
        for number, size in enumerate(sizes)
        for bits in (2, 3)
    )[::-1]
    room = 2.7 * sum(sizes) - sum(2 * size + 2 * 4096 for size in sizes)
    bound = sum(item.options["2"].loss for item in items.values())
    for gain, bits in steps:
        bound -= gain * min(bits, room)
        room -= min(bits, room)
    assert bound * (1 - 1e-9) <= loss <= bound * 1.01


def test_more_bits_never_lose_more(rng):
    items = random_items(rng, 6)
    least, most = span(items)
    losses = [
        spent(items, knapsack.choose(items, min(least + (most - least) * step / 20, most)))[1] for step in range(1, 21)
    ]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("bits", [1.49, 5.01])
def test_a_budget_that_cannot_be_met_is_named_with_what_can(bits):
    items = {"a": Item(10, {"x": Option(10, 1.0), "y": Option(40, 0.1)}), "b": Item(10, {"x": Option(20, 0.0)})}
    items["b"] = Item(10, {"x": Option(20, 0.0), "y": Option(60, 0.0)})
    with pytest.raises(ValueError, match=rf"bits={bits}: .* from 1\.5000 to 5\.0000 bits a weight"):
        knapsack.choose(items, bits)


def test_errors_are_as_large_as_they_are_said_to_be(rng):
    matrix = torch.from_numpy(rng.standard_normal((256, 64)) * rng.lognormal(0, 0.5, (256, 1))).float()
    flat = noise.triangle(torch.eye(64, dtype=torch.float64))
    for upper in (None, flat):
        gap = noise.errors(matrix, upper, 0, "name")
        assert float(gap.square().sum() / matrix.square().sum()) == pytest.approx(noise.ERROR, rel=0.1)


def test_errors_keep_away_from_what_inputs_are_large_in(rng):
    """Of outputs they take less than errors without a shape do, and the same is drawn for the same name alone."""
    x = torch.from_numpy(rng.standard_normal((512, 4)) @ rng.standard_normal((4, 32))).float()
    x += 0.1 * torch.from_numpy(rng.standard_normal(x.shape)).float()
    matrix = torch.from_numpy(rng.standard_normal((64, 32))).float()
    upper = noise.triangle(noise.gram(x))
    shaped, plain = noise.errors(matrix, upper, 0, "name"), noise.errors(matrix, None, 0, "name")
    assert (x @ shaped.T).norm() < 0.5 * (x @ plain.T).norm()
    assert torch.equal(shaped, noise.errors(matrix, upper, 0, "name"))
    assert not torch.equal(shaped, noise.errors(matrix, upper, 0, "other"))
    assert not torch.equal(shaped, noise.errors(matrix, upper, 1, "name"))


def test_bits_go_where_errors_cost_most():
    """As much is left in each column of a vector, at most all of it; in the whole as many bits as without a choice."""
    costs = torch.tensor([1e4, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0], dtype=torch.float64)
    left = noise.rounding(torch.diag(costs.sqrt())).square()
    assert torch.allclose(left[4:], torch.full_like(left[4:], 2 * noise.ERROR))
    assert torch.allclose(left[1:4], left[1:4].mean().expand(3))
    assert torch.allclose((costs / left)[:4].log().sum(), (costs / left)[4:].log().sum())
    lone = noise.rounding(torch.diag(torch.tensor([1e12, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64).sqrt())).square()
    assert lone[1:4].tolist() == [1.0] * 3  # nothing is left for them
    assert lone[4] < 1


def test_what_errors_do_is_what_a_whole_model_says(folder, ids):
    """Against the model itself with the same errors in one matrix."""
    budget = budget_of(folder, 3.0)
    found = measured(folder, ids, budget)
    assert list(found) == list(budget.free)
    probe = sensitivity.Probe.of(ids, 48)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    name = "model.layers.0.mlp.down_proj"
    layer, seen = model.get_submodule(name), []
    with torch.no_grad():
        with layer.register_forward_pre_hook(lambda _, x: seen.append(x[0].reshape(-1, 48))):
            for part in probe.inputs:
                model(probe.ids[part])
        base = model(probe.compared).logits.double().log_softmax(-1)
        upper = noise.triangle(sum(map(noise.gram, seen)))
        layer.weight += noise.errors(layer.weight, upper, 0, name)
        said = model(probe.compared).logits.double().log_softmax(-1)
    assert found[name] == pytest.approx(float((base.exp() * (base - said)).sum(-1).mean()), rel=1e-3)


def test_probes_hold_rows_from_all_over_the_calibration():
    ids = torch.arange(40)[:, None] * 1000 + torch.arange(300)
    probe = sensitivity.Probe.of(ids, 100)
    assert probe.compared.shape == (2, 256)
    assert probe.ids.numel() >= 4096
    assert len(set(probe.ids[:, 0].tolist())) == len(probe.ids)
    assert probe.inputs == probe.parts[1:]
    assert int(probe.compared[1, 0]) - int(probe.compared[0, 0]) >= 15_000
    assert len(sensitivity.Probe.of(ids, 4500).ids) == 38  # a wide matrix needs more
    alone = sensitivity.Probe.of(ids[:1], 100)
    assert alone.inputs == alone.parts == [slice(0, 1)]


def test_a_matrix_that_matters_gets_more_bits(tmp_path, ids):
    """One whose outputs nobody hears gets the fewest; of two of the same shape that which matters more has no fewer."""
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()  # so that q, k and v of this block are nothing
    model.save_pretrained(tmp_path / "model")
    done = codegemm.quantize_model(
        tmp_path / "model", tmp_path / "out", CONFIGS, bits=3.5, calibration=ids, workers=1, progress=False
    )
    assert 3 < done.bits_per_weight <= 3.5
    found = json.loads((tmp_path / "out" / "quantization_report.json").read_text())["allocation"]["divergences"]
    bits = {layer.name: layer.bits_per_weight for layer in done.layers}
    for name in ("q_proj", "k_proj", "v_proj"):
        assert found[f"model.layers.0.self_attn.{name}"] < 1e-6
    by_shape = {}
    for layer in done.layers:
        by_shape.setdefault(layer.shape, []).append((found[layer.name], bits[layer.name]))
    for pairs in by_shape.values():
        assert [bits for _, bits in sorted(pairs)] == sorted(bits for _, bits in pairs)
    assert bits["model.layers.0.self_attn.q_proj"] == min(bits for _, bits in by_shape[32, 32])
    assert len({layer.config for layer in done.layers}) > 1


def test_a_model_says_what_it_is_made_of(folder, tmp_path, ids):
    """The mean is that of the budget, layers that were named keep what they were told, and the report says why; so it
    is for several processes."""
    layers = {"*.k_proj": "m1v4b6g-1"}
    done = codegemm.quantize_model(
        folder, tmp_path / "out", CONFIGS, bits=3.5, layers=layers, calibration=ids, workers=2, progress=False
    )
    assert 3 < done.bits_per_weight <= 3.5
    for layer in done.layers:
        assert layer.config in (["m1v4b6g-1"] if layer.name.endswith("k_proj") else CONFIGS)
        assert layer.bits_per_weight == spec_of(layer.shape, layer.config).bits_per_weight
    report = json.loads((tmp_path / "out" / "quantization_report.json").read_text())
    told = report["allocation"]
    assert told["bits"] == 3.5
    assert told["tokens"] == 2 * 32
    assert told["errors"].keys() == set(CONFIGS)
    assert told["divergences"].keys() == {layer.name for layer in done.layers if not layer.name.endswith("k_proj")}
    assert "Bits by layer, 3.5 in the mean at most" in (tmp_path / "out" / "README.md").read_text()
    loaded = codegemm.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    entry = loaded.config.quantization_config
    own = {layer.name: layer.config for layer in done.layers}
    assert {name: entry.layers.get(name, entry.config) for name in own} == own
    assert not (tmp_path / ".out.parts").exists()


def test_what_was_measured_is_not_measured_again(folder, tmp_path, ids, monkeypatch):
    """For another budget either; but for other errors or another text."""
    parts, skeleton = Parts(tmp_path / "out"), Skeleton.open(folder)
    first = runner.measure(skeleton, budget_of(folder, 2.5), ids, parts, "cpu", QUIET)
    assert [path.suffix for path in parts.folder.iterdir()] == [".state"]

    def again(*arguments):
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(sensitivity, "divergences", again)
        assert runner.measure(skeleton, budget_of(folder, 3.5), ids, parts, "cpu", QUIET) == first
        with pytest.raises(AssertionError):
            runner.measure(skeleton, budget_of(folder, 2.5), ids.flip(0), parts, "cpu", QUIET)
    next(parts.folder.iterdir()).write_bytes(b"{")
    assert runner.measure(skeleton, budget_of(folder, 2.5), ids, parts, "cpu", QUIET).divergences == first.divergences
    parts.remove()
    assert not parts.folder.exists()


def test_a_dry_run_leaves_nothing(folder, tmp_path, ids):
    options = {"bits": 2.5, "calibration": ids, "workers": 1, "progress": False}
    planned = codegemm.quantize_model(folder, tmp_path / "out", CONFIGS, dry_run=True, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    done = codegemm.quantize_model(folder, tmp_path / "out", CONFIGS, **options)
    assert {each.name: each.config for each in planned.layers} == {each.name: each.config for each in done.layers}
    assert planned.bits_per_weight == done.bits_per_weight


@pytest.mark.skipif(not ALL, reason="for make test-all")
def test_experts_of_a_layer_get_the_same(tmp_path, ids):
    config = transformers.Qwen3MoeConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, moe_intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2,
        max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    transformers.Qwen3MoeForCausalLM(config).eval().save_pretrained(tmp_path / "model")
    done = codegemm.quantize_model(
        tmp_path / "model", tmp_path / "out", CONFIGS, bits=3.5, calibration=ids, workers=1, progress=False
    )
    found = {}
    for layer in done.layers:
        head, _, own = layer.name.rpartition(".")
        if ".experts." in head:
            found.setdefault((head.rpartition(".")[0], own), []).append(layer.config)
    assert len(found) == 6
    assert all(len(configs) == 4 and len(set(configs)) == 1 for configs in found.values())
    told = json.loads((tmp_path / "out" / "quantization_report.json").read_text())["allocation"]
    assert "model.layers.0.mlp.experts.*.down_proj" in told["divergences"]
    assert done.bits_per_weight <= 3.5


def test_layers_outside_the_blocks_are_measured_too(tmp_path, ids):
    """OPT's that come before the blocks and behind them."""
    config = transformers.OPTConfig(
        vocab_size=61, hidden_size=32, word_embed_proj_dim=16, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, init_std=0.2,
    )  # fmt: skip
    transformers.OPTForCausalLM(config).eval().save_pretrained(tmp_path / "model")
    budget = budget_of(tmp_path / "model", 2.5)
    found = measured(tmp_path / "model", ids, budget)
    names = [name for name in found if "project" in name]
    assert len(names) == 2
    assert all(value > 0 for value in found.values())
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    probe = sensitivity.Probe.of(ids, 48)
    with torch.no_grad():
        base = model(probe.compared).logits.double().log_softmax(-1)
        for name in names:
            layer = model.get_submodule(name)
            before = layer.weight.clone()
            layer.weight += noise.errors(layer.weight, None, 0, name)
            said = model(probe.compared).logits.double().log_softmax(-1)
            layer.weight.copy_(before)
            assert found[name] == pytest.approx(float((base.exp() * (base - said)).sum(-1).mean()), rel=1e-3)


def test_configurations_are_compared_by_their_errors():
    errors = [candidates.error(config) for config in CONFIGS]
    assert errors == sorted(errors, reverse=True)
    assert candidates.error("m1v3b4g3") > 0  # whose vectors 512 weights don't make up
    assert candidates.configurations(None) == candidates.USUAL
    assert candidates.configurations(["m1v4g-1", "m1v4", "m2v8g64"]) == ("m1v4g-1", "m2v8g64")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 2.5}, "bits=2.5: there is no calibration"),
        ({"bits": 1.0}, r"bits=1: .* take from 2\.4000 to 5\.4000 bits"),
        ({"bits": 9}, r"bits=9: .* take from 2\.4000 to 5\.4000 bits"),
        ({"bits": -1.0}, "bits=-1.0: must be above 0"),
        ({"bits": float("nan")}, "bits=nan: must be above 0"),
        ({"config": None}, "config: None, must name a configuration"),
        ({"config": [], "bits": 2.5}, r"config=\[\]: must name a configuration"),
        ({"config": ["m1v7b4g-1"], "bits": 2.5}, "multiple of the vector length v=7"),
        ({"config": ["m1v4b4g-1", "e8p4"], "bits": 2.5}, "no quantizer"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_measured(options, message, folder, tmp_path, ids, monkeypatch):
    monkeypatch.setattr(sensitivity, "divergences", None)
    calibration = {} if message.endswith("calibration") else {"calibration": ids}
    options = {"config": CONFIGS, **calibration, **options}
    with pytest.raises(ValueError, match=message):
        codegemm.quantize_model(folder, tmp_path / "out", workers=1, progress=False, **options)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.parts").exists()


def test_bits_are_a_number(folder, tmp_path, ids):
    for bits in ("2.5", True):
        with pytest.raises(TypeError, match=f"bits={bits!r}: must be None or a number"):
            codegemm.quantize_model(folder, tmp_path / "out", CONFIGS, bits=bits, calibration=ids)


def test_a_model_without_logits_is_refused(tmp_path, ids):
    tiny_llama().model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="bits: LlamaModel gives no logits"):
        codegemm.quantize_model(tmp_path / "model", tmp_path / "out", CONFIGS, bits=2.5, calibration=ids)


@pytest.fixture
def text(rng, folder, tokenizer, tmp_path):
    """For the tokenizer that it leaves beside the model."""
    tokenizer.save_pretrained(folder)
    (tmp_path / "a.txt").write_text(" ".join(f"a{number}" for number in rng.integers(0, 55, 300)))
    return tmp_path / "a.txt"


def test_the_command(folder, text, tmp_path, invoke):
    made = invoke(
        "quantize", folder, tmp_path / "out", "--bits", 2.5, "--config", ",".join(CONFIGS), "--length", 32,
        "--workers", 1, "--calibration", text,
    )  # fmt: skip
    assert "by layer: m" in made.output
    assert json.loads((tmp_path / "out" / "quantization_report.json").read_text())["bits_per_weight"] <= 2.5


def test_the_command_says_what_is_missing(folder, text, tmp_path, invoke):
    out = tmp_path / "out"
    for arguments, message in (
        (["--bits", 2.5], "--bits: is for texts as --calibration"),
        (["--calibration", text], "--config: is missing; without it, --bits"),
        ([], "--config: is missing"),
    ):
        with pytest.raises(click.UsageError, match=message):
            invoke("quantize", folder, out, *arguments)
    with pytest.raises(ValueError, match=r"bits=0\.5: .* take from"):
        invoke(
            "quantize", folder, out, "--bits", 0.5, "--config", CONFIGS[0], "--length", 32, "--calibration", text
        )  # fmt: skip
