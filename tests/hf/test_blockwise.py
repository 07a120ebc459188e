"""What `codegemm.quantize_model` computes, by other ways: sums over rows, corrections, streams, the order of stages."""

import numpy as np
import pytest
import torch
import transformers
from support.models import loaded, logits, tiny_llama
from support.whole import CONFIG, rows, saved

import codegemm
from codegemm.hf import CodegemmConfig, experts
from codegemm.hf.blockwise import matrix, residual, stages, targets
from codegemm.hf.blockwise import rows as texts
from codegemm.hf.blockwise.group import SHARDS, Alone, Group
from codegemm.hf.blockwise.moments import CAP, Moments, weights
from codegemm.hf.blockwise.skeleton import Skeleton
from codegemm.hf.blockwise.streams import Streams, chunks, shards
from codegemm.hf.matrices import plan
from codegemm.quantize.hessian import DAMPING

TEXT = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {**TEXT, "num_key_value_heads": 2}


@pytest.fixture
def x(rng):
    """Rows that the quantised model has [R, K], of one direction more than of others."""
    return torch.from_numpy(rng.standard_normal((70, 12)) + 2 * rng.standard_normal((70, 1))).float()


def least(x, y, damping):
    """A that makes |x A^T - y|^2 + damping |A|^2 least, by NumPy's least squares."""
    K = x.shape[1]
    stacked = np.vstack([x, np.sqrt(damping) * np.eye(K)]), np.vstack([y, np.zeros((K, y.shape[1]))])
    return np.linalg.lstsq(*stacked, rcond=None)[0].T


@pytest.mark.parametrize("count", [70, 5])  # more rows than inputs, and fewer
def test_corrections_are_least_squares(x, count, rng):
    x, W = x[:count].numpy().astype(np.float64), rng.standard_normal((7, 12))
    o, d = x + 0.1 * rng.standard_normal(x.shape), rng.standard_normal((count, 7))
    own = x.T @ x
    damping = DAMPING * np.trace(own) / 12
    change, added = targets.correction(own, o.T @ x), targets.addition(own, d.T @ x)
    assert np.allclose(W @ change, least(x, (o - x) @ W.T, damping), atol=1e-8)
    assert np.allclose(added, least(x, d, damping), atol=1e-8)
    whole = targets.corrected(W.astype(np.float32), change, added)
    assert np.allclose(whole, W + W @ change + added, atol=1e-5)
    wrong = [np.linalg.norm(x @ each.T - o @ W.T - d) for each in (whole, W)]
    assert wrong[0] < wrong[1]
    assert np.isclose(
        targets.relative_error(W.astype(np.float32), whole, own),
        np.square(x @ (W.astype(np.float32) - whole).T).sum() / np.square(x @ W.T).sum(),
        rtol=1e-4,
    )


def test_nothing_changes_where_the_inputs_are_the_same(x):
    own = (x.T @ x).double().numpy()
    assert np.allclose(targets.correction(own, own), 0)
    assert np.allclose(targets.addition(own, np.zeros((7, 12))), 0)
    assert targets.relative_error(np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)) == 0


def test_sums_over_rows(x, rng):
    """Long rows weigh as those of ten times the median; part by part is the same as at once."""
    o, d = x + 0.1, torch.from_numpy(rng.standard_normal((70, 5))).float()
    x[3] *= 1000
    whole = Moments.empty(12, 5)
    whole.add(x, o, d)
    norms = x.norm(dim=1)
    factors = torch.where(norms > CAP * norms.median(), CAP * norms.median() / norms, 1.0).double()[:, None]
    assert (whole.rows, whole.capped, int((factors < 1).sum())) == (70, 1, 1)
    for sums, left in ((whole.own, x), (whole.cross, o), (whole.lost, d)):
        assert torch.allclose(sums, (left.double() * factors).T @ (x.double() * factors), rtol=1e-4, atol=1e-2)
    again = Moments.empty(12, 5)
    again.add(x, o, d)
    both = whole.plus(again)
    assert (both.rows, both.capped) == (140, 2)
    assert torch.equal(both.lost, 2 * whole.lost)
    assert both.is_finite
    again.add(torch.full((1, 12), torch.nan), torch.zeros(1, 12), torch.zeros(1, 5))
    assert not again.is_finite
    alone = Moments.empty(12)
    alone.add(x, x)
    assert alone.addition is None
    assert np.allclose(alone.correction, 0)


def test_rows_of_zeros_say_nothing_of_lengths():
    """More than half of them, as behind some activations, are no reason to leave the others out."""
    x = torch.zeros(8, 4)
    x[0], x[1], x[2], x[3] = torch.full((4, 4), 2.0) * torch.tensor([[1], [-1], [1], [500]])
    factors, capped = weights(x)
    assert capped == 1
    assert torch.allclose(factors.flatten(), torch.tensor([1, 1, 1, 0.02, 1, 1, 1, 1]))
    factors, capped = weights(torch.zeros(3, 4))
    assert (capped, factors.tolist()) == (0, [[1], [1], [1]])


# Which matrices add to what, in the second block; nothing where something is between.
LLAMA = {"self_attn.o_proj": "", "mlp.down_proj": "post_attention_layernorm"}
BLOCKS = {
    "Llama": (GROUPED, LLAMA),
    "Qwen2": (GROUPED, LLAMA),  # biases
    "Gemma2": ({**GROUPED, "head_dim": 8}, {}),  # norms behind
    "Olmo2": (GROUPED, {}),
    "Granite": ({**GROUPED, "residual_multiplier": 0.5}, {}),
    "GPTNeoX": (TEXT, {}),  # both beside each other
    "Phi": (GROUPED, {}),
    "Cohere": (GROUPED, {}),
    "Bloom": (
        {"vocab_size": 61, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},
        {"self_attention.dense": "", "mlp.dense_4h_to_h": "post_attention_layernorm"},
    ),
    "Mixtral": ({**GROUPED, "num_local_experts": 4, "head_dim": 8}, {"self_attn.o_proj": ""}),
}


def opened(name, sizes, folder):
    cls, config = (getattr(transformers, f"{name}{end}") for end in ("ForCausalLM", "Config"))
    return Skeleton.open(saved(cls(config(**sizes)), folder))


@pytest.mark.parametrize("name", BLOCKS)
def test_streams_and_stages(name, tmp_path):
    """And the text's way through the blocks is the model's own."""
    sizes, expected = BLOCKS[name]
    skeleton = opened(name, sizes, tmp_path)
    names = experts.names_of(skeleton.model)
    streams, way = Streams.begin(skeleton, rows(8), Alone(), None)
    matrices = plan(skeleton.model, CodegemmConfig(CONFIG), names).matrices
    for number in range(2):
        begin = f"{skeleton.name(number)}."
        here = {each.removeprefix(begin): own for each, own in matrices.items() if each.startswith(begin)}
        with skeleton.block(number) as block:
            dense = stages.with_layers(block, names, skeleton.model.config)
            given = way.given(number, streams.original)
            order = stages.stages(dense, here, *given)
            alone = [each for each, own in here.items() if own.expert is None]
            assert residual.streams(dense, alone, *given) == expected
            found = {}
            stages.run_until(dense, [order[-1].names[0]], found.__setitem__, *given)
            assert found[order[-1].names[0]].shape[1] == here[order[-1].names[0]].shape[1]
            streams.advance(way, number, dense, dense, "cpu")
        assert sorted(each for stage in order for each in stage.names) == sorted(here)
    if name == "Llama":
        q, o, up, down = order
        assert q.groups == (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),)
        assert (o.groups, down.groups) == ((("self_attn.o_proj",),), (("mlp.down_proj",),))
        assert up.groups == (("mlp.gate_proj", "mlp.up_proj"),)
    if name == "Mixtral":
        assert order[2].groups == tuple((f"mlp.experts.{each}.w1", f"mlp.experts.{each}.w3") for each in range(4))
        assert order[3].groups == tuple((f"mlp.experts.{each}.w2",) for each in range(4))
    heard = []
    with skeleton.whole() as model:
        last = model.get_submodule(skeleton.name(1))
        last.register_forward_hook(lambda _, x, y: heard.append(y[0] if isinstance(y, tuple) else y))
        found = logits(model, rows(8))
    assert torch.equal(streams.original, heard[0])
    assert torch.equal(found, logits(loaded(tmp_path), rows(8)))
    assert torch.equal(streams.original, streams.quantised)
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())


class Half(torch.nn.Module):
    """A block that adds half of a matrix's products, or products that are as good as nothing beside the stream."""

    def __init__(self, share, size):
        super().__init__()
        self.share, self.first, self.norm = share, torch.nn.Linear(8, 8, bias=False), torch.nn.Identity()
        torch.nn.init.normal_(self.first.weight, std=size)

    def forward(self, x):
        return self.norm(x) + self.share * self.first(x) + 0 * x


@pytest.mark.parametrize(
    ("share", "size", "found"),
    [(1, 1, {"first": ""}), (1, 1e-2, {"first": ""}), (0.5, 1, {}), (0, 1e-6, {}), (0.5, 1e-6, {}), (1, 0, {})],
)
def test_small_products_are_not_mistaken(share, size, found):
    """The norm's input is the stream itself, so that it is as good as their sum."""
    assert residual.streams(Half(share, size), ["first"], (torch.randn(2, 5, 8),), {}) == found


def test_the_correction_helps(tmp_path, monkeypatch):
    """The streams of the quantised model are nearer to the original's behind the last block."""
    dense = saved(tiny_llama(), tmp_path / "dense")
    base = states(dense)
    codegemm.quantize_model(dense, tmp_path / "with", "m1v4b2g16", calibration=rows(), workers=1)
    monkeypatch.setattr(matrix, "corrected", lambda W, *_: W)
    codegemm.quantize_model(dense, tmp_path / "without", "m1v4b2g16", calibration=rows(), workers=1)
    gaps = [float((states(tmp_path / name) - base).norm()) for name in ("with", "without")]
    assert gaps[0] < gaps[1]


def states(folder):
    """Behind the last block, of the text that is quantised for."""
    with torch.no_grad():
        return loaded(folder).model(rows()).last_hidden_state


class Second(Group):
    rank, size = 1, 2

    def share(self, value, source):
        return value


def test_parts_of_a_text(tmp_path):
    """All of one size, in heaps that are as equal as they can be; a process holds its own heaps' states."""
    for count, length in ((1, 16), (13, 16), (512, 64), (300, 500), (7, 8192)):
        parts = chunks(count, length)
        assert [part.start for part in parts] == list(range(0, count, parts[0].stop))
        assert parts[-1].stop == count
        assert len(parts) == count or (parts[0].stop - parts[0].start) * length <= 4096
        heaps = shards(parts)
        assert len(heaps) == SHARDS
        assert [part for heap in heaps for part in heap] == parts
        assert max(map(len, heaps)) - min(map(len, heaps)) <= 1
    skeleton = opened("Llama", GROUPED, tmp_path)
    whole, _ = Streams.begin(skeleton, rows(512, 64), Alone(), None)
    before = sorted(tmp_path.iterdir())
    own, _ = Streams.begin(skeleton, rows(512, 64), Second(), tmp_path)
    assert own.own == [1, 3, 5, 7]
    assert before == sorted(tmp_path.iterdir())
    for number in range(SHARDS):
        for part in own.parts[number]:
            assert torch.equal(own.quantised[part], own.original[part])
            assert torch.equal(own.original[part], whole.original[part]) == (number % 2 == 1)


def test_rows_of_several_texts():
    """As many of each while it lasts, from all over it; shuffled ones begin again where a text is short."""
    ids = {"long": torch.arange(1000), "short": torch.arange(1000, 1020)}
    found = texts.spread(ids, 10, 100)
    assert found.shape == (10, 10)
    assert (found[:, 0] >= 1000).sum() == 2
    assert found[0, 0] == 0
    assert found[7, 0] > 800
    assert (found.diff(dim=1) == 1).all()
    assert texts.spread(ids, 10, 5).shape == (1, 10)
    assert texts.spread(ids, 10, 10**6).shape == (102, 10)
    mixed = texts.shuffled({"short": ids["short"]}, 10, 55, seed=3)
    assert mixed.shape == (6, 10)
    assert {tuple(row.tolist()) for row in mixed} == {tuple(range(1000, 1010)), tuple(range(1010, 1020))}
    assert torch.equal(mixed, texts.shuffled({"short": ids["short"]}, 10, 55, seed=3))
    with pytest.raises(ValueError, match=r"short: has 20 tokens, a row of the calibration has 30 \(--length\)"):
        texts.spread(ids, 30, 100)
