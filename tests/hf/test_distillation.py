"""Distillation: the divergence and its gradient, what is learnt, going on, and what is stored."""

import math

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from support.models import loaded, logits, quantised, tiny_llama
from support.whole import CONFIG, REPORT, contents, left_behind, rows, saved

import codegemm
from codegemm.hf.blockwise import runner as blockwise
from codegemm.hf.distillation import divergence, train
from codegemm.hf.distillation.divergence import mean_divergence
from codegemm.hf.distillation.student import Student
from codegemm.hf.distillation.train import Lessons


@pytest.mark.parametrize("words", [7, 61])
def test_the_divergence_and_its_gradient(words, monkeypatch):
    """Against torch's own, in float64; in parts, and times what comes back."""
    monkeypatch.setattr(divergence, "_ROWS", 4)
    base, own = torch.randn(3, 5, words), torch.randn(3, 5, words, requires_grad=True)
    found = mean_divergence(own, base)
    (3 * found).backward()
    double = own.detach().double().requires_grad_()
    right = torch.nn.functional.kl_div(
        double.log_softmax(-1).flatten(0, 1), base.double().log_softmax(-1).flatten(0, 1), log_target=True,
        reduction="batchmean",
    )  # fmt: skip
    (3 * right).backward()
    assert math.isclose(float(found.detach()), float(right.detach()), rel_tol=1e-5)
    assert torch.allclose(own.grad.double(), double.grad, rtol=1e-4, atol=1e-7)
    assert float(mean_divergence(base, base)) == 0


def test_rates():
    """A rise in the first twentieth, then a fall to a twentieth."""
    lessons = Lessons(100 * 2 * 512)
    assert lessons.steps == 100
    rates = [lessons.rate_at(step) for step in range(100)]
    assert max(rates) <= 1
    assert np.diff(rates[:5]).min() > 0
    assert np.diff(rates[5:]).max() < 0
    assert 0.05 < rates[-1] < 0.06
    assert Lessons(5).steps == 1
    assert Lessons(5).rate_at(0) == 1


@pytest.fixture
def dense(tmp_path):
    return saved(tiny_llama(1).to(torch.bfloat16), tmp_path / "dense")


def made(folder, target, **arguments):
    usual = {"config": CONFIG, "calibration": rows(), "workers": 1, "time_limit": 0}
    return codegemm.quantize_model(folder, target, **usual | arguments)


def divergence_of(folder, base):
    return float(mean_divergence(logits(loaded(folder, dtype=torch.float32), rows()), base))


def test_predictions_come_nearer(dense, tmp_path):
    """Codes stay; norms are rounded to the dtype that they had, biases and what is dense stay as they are."""
    base = logits(loaded(dense, dtype=torch.float32), rows())
    made(dense, tmp_path / "before")
    done = made(dense, tmp_path / "after", distill=Lessons(30 * 64, 16, rows=4, rate=1e-2))
    assert divergence_of(tmp_path / "after", base) < 0.8 * divergence_of(tmp_path / "before", base)
    first, then = (codegemm.load_all(tmp_path / name) for name in ("before", "after"))
    for name, weight in first.items():
        assert (then[name].codes == weight.codes).all()
        assert then[name] != weight
    first, then = (load_file(tmp_path / name / "model.safetensors") for name in ("before", "after"))
    assert {name: each.dtype for name, each in first.items()} == {name: each.dtype for name, each in then.items()}
    changed = {name for name in first if name.endswith(".weight") and not torch.equal(first[name], then[name])}
    assert changed == {name for name in first if "norm" in name}
    card = (tmp_path / "after" / "README.md").read_text()
    said = contents(tmp_path / "after")[REPORT]["distillation"]
    assert (said["tokens"], said["length"], said["rows"], len(said["divergences"])) == (1920, 16, 4, 30)
    assert "trained on 1920 tokens to give the original's predictions" in card
    assert done.bits_per_weight == blockwise.report.bits_per_weight(done.layers)
    assert quantised(loaded(tmp_path / "after")).keys() == codegemm.load_all(tmp_path / "after").keys()


class Stopped(Exception):
    """As if this process had been killed."""


def test_it_goes_on(dense, tmp_path, monkeypatch):
    """Bit for bit as if it had not been stopped; a state that is damaged is not taken, nor that of other lessons."""
    monkeypatch.setattr(train, "_SECONDS", -1)
    lessons, keep = Lessons(8 * 32, 16, rows=2, together=1), train._keep

    def stop(path, step, *rest):
        keep(path, step, *rest)
        raise Stopped

    steps = []
    with monkeypatch.context() as patched:
        patched.setattr(train, "_keep", stop)
        for _ in range(3):
            with pytest.raises(Stopped):
                made(dense, tmp_path / "out", distill=lessons)
    (state,) = (tmp_path / ".out.parts").glob("*.state")
    with monkeypatch.context() as patched:
        patched.setattr(train, "_keep", lambda path, step, *rest: steps.append(step) or keep(path, step, *rest))
        made(dense, tmp_path / "once", distill=lessons)
        assert steps == [*range(1, 9), 8]
        steps.clear()
        made(dense, tmp_path / "out", distill=lessons)
        assert steps == [*range(4, 9), 8]
    assert contents(tmp_path / "once") == contents(tmp_path / "out")
    assert left_behind(tmp_path / "out") == []
    assert not state.exists()


@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: b"", lambda data: b"nothing of the kind"])
def test_a_damaged_state(damage, dense, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_SECONDS", -1)
    lessons, keep = Lessons(4 * 32, 16, rows=2), train._keep

    def stop(path, step, *rest):
        keep(path, step, *rest)
        if step == 2:
            path.write_bytes(damage(path.read_bytes()))
            raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(train, "_keep", stop)
        with pytest.raises(Stopped):
            made(dense, tmp_path / "out", distill=lessons)
    made(dense, tmp_path / "out", distill=lessons)
    assert len(contents(tmp_path / "out")[REPORT]["distillation"]["divergences"]) == 4


def test_a_rate_that_is_too_high(dense, tmp_path):
    with pytest.raises(
        ValueError, match=r"distillation: step \d: the divergence is nan; a lower rate than 1e\+30 helps"
    ):
        made(dense, tmp_path / "out", distill=Lessons(8 * 32, 16, rows=2, rate=1e30))
    assert not (tmp_path / "out").exists()


def test_parts_of_a_step_are_one_step(tmp_path, dense):
    """However many rows go through the models together."""
    for together in (1, 4):
        made(dense, tmp_path / f"out{together}", distill=Lessons(64, 16, rows=4, together=together))
    one, other = (codegemm.load_all(tmp_path / f"out{together}") for together in (1, 4))
    for name, weight in one.items():
        assert np.allclose(weight.codebooks, other[name].codebooks, rtol=2e-2, atol=2e-3)


def test_nothing_is_kept_till_the_way_back(dense, tmp_path, monkeypatch):
    """Where there is little memory; the numbers are the same."""
    from codegemm.hf.distillation import runner

    lessons = Lessons(4 * 32, 16, rows=2)
    made(dense, tmp_path / "as usual", distill=lessons)
    monkeypatch.setattr(runner, "available_memory", lambda: 0)
    made(dense, tmp_path / "again", distill=lessons)
    assert contents(tmp_path / "as usual") == contents(tmp_path / "again")


KINDS = {
    "norms without numbers": (transformers.OlmoForCausalLM, transformers.OlmoConfig, {"num_key_value_heads": 2}),
    "an encoder's words": (transformers.BertForMaskedLM, transformers.BertConfig, {}),
    "experts": (
        transformers.MixtralForCausalLM, transformers.MixtralConfig,
        {"num_key_value_heads": 2, "num_local_experts": 3, "head_dim": 8},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_other_kinds(kind, tmp_path):
    cls, config, sizes = KINDS[kind]
    usual = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    model = cls(config(**usual, num_attention_heads=4, pad_token_id=0, initializer_range=0.2, **sizes))
    dense = saved(model, tmp_path / "dense")
    done = made(dense, tmp_path / "out", distill=Lessons(20 * 64, 16, rate=1e-2))
    said = contents(tmp_path / "out")[REPORT]["distillation"]["divergences"]
    assert sum(said[-3:]) < sum(said[:3])
    assert quantised(loaded(tmp_path / "out", cls)).keys() == {layer.name for layer in done.layers}


def test_a_student_leaves_the_model_alone(make_weight):
    """Its norms are its own, what is not trained is shared."""
    from codegemm.hf.blockwise.stages import with_layers

    model = tiny_llama(1).requires_grad_(False)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    name = "model.layers.0.mlp.up_proj"
    student = Student.of(with_layers(model, {}, model.config), iter({name: make_weight(48, 32, CONFIG)}.items()))
    assert student.norms.keys() == {each for each in before if "norm" in each}
    with torch.no_grad():
        for parameter in (*student.trained, *student.norms.values()):
            parameter += 1
    assert all(torch.equal(each, model.state_dict()[own]) for own, each in before.items())
    assert student.model.lm_head.weight is model.lm_head.weight
    assert [group["lr"] for group in student.groups(0.0)] == [0] * (2 + len(student.norms))
