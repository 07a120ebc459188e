"""Whole models of quantised layers: compiled, converted, saved and differentiated."""

import copy
import io

import pytest
from emulator import cases

import codegemm

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from support.models import close, compiled, quantised, tiny_llama  # noqa: E402

from codegemm.torch import FUSED, CodebookLinear, fuse_, quantize_, replace_linear  # noqa: E402

CONFIG = "m1v4b4g16"
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def quantised_llama():
    """A quantised model and its dense twin of the same matrices; not to be changed."""
    model = tiny_llama()
    quantize_(model, CONFIG)
    dense = tiny_llama()
    dense.load_state_dict(model.state_dict(), strict=False)
    for name, layer in quantised(model).items():
        dense.get_submodule(name).weight.data = layer.dequantize()
    return model, dense


@pytest.fixture
def llama(quantised_llama):
    """A model of its own, and its dense twin."""
    return copy.deepcopy(quantised_llama)


@pytest.fixture
def tokens():
    return torch.randint(0, 61, (2, 9))


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits


def random_weights(model, make_weight, config=CONFIG):
    """Of another model of the same shapes, by names."""
    layers = {name: module for name, module in model.named_modules() if name.rpartition(".")[2] in PROJECTIONS}
    return {name: make_weight(*layer.weight.shape, config) for name, layer in layers.items()}


def test_all_projections_are_quantised(llama, tokens):
    """And none of the embedding and the head, tied or not; the logits are those of the dequantised matrices."""
    model, dense = llama
    assert {name.rpartition(".")[2] for name in quantised(model)} == set(PROJECTIONS)
    assert len(quantised(model)) == 2 * len(PROJECTIONS)
    assert close(logits(model, tokens), logits(dense, tokens), 1e-3)
    tied = tiny_llama(1, tie_word_embeddings=True)
    quantize_(tied, CONFIG, seed=3)
    assert len(quantised(tied)) == len(PROJECTIONS)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert type(tied.lm_head) is torch.nn.Linear


@pytest.mark.parametrize(("fused", "gradient"), [(True, True), *([(False, False), (True, False)] if cases.ALL else [])])
def test_one_graph_of_the_whole_model(fused, gradient, llama, tokens):
    model, _ = llama
    expected = logits(model, tokens)
    if fused:
        fuse_(model)
        assert len({layer._fused for layer in quantised(model).values()} - {None}) == 4
    traced, graphs = compiled(model, "aot_eager")
    with torch.set_grad_enabled(gradient):
        for _ in range(2):
            y = traced(tokens).logits
            assert close(y.detach(), expected)
    assert graphs == [8 if fused else 14]
    if gradient:
        embedding = model.model.embed_tokens.weight
        ours, theirs = (
            torch.autograd.grad(each.logits.sin().sum(), embedding)[0] for each in (traced(tokens), model(tokens))
        )
        assert close(ours, theirs, 1e-3)


@pytest.mark.skipif(not cases.ALL, reason="for make test-all")
@pytest.mark.slow
def test_compiled_by_inductor(tokens, make_weight):
    model = tiny_llama(1)
    replace_linear(model, random_weights(model, make_weight), fuse=FUSED)
    expected = logits(model, tokens)
    traced, graphs = compiled(model, "inductor")
    with torch.no_grad():
        assert close(traced(tokens).logits, expected)
    assert graphs == [4]


NO_END = 61  # a token that the model does not have: chance would end a text early


@pytest.mark.skipif(not cases.ALL, reason="for make test-all")
def test_text_with_a_cache_of_fixed_size(llama, tokens):
    """Token by token in two graphs, of the first tokens and of one more."""
    model, _ = llama
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": NO_END}
    expected = model.generate(tokens, **settings)
    assert expected.shape == (2, 15)
    assert torch.equal(model.generate(tokens, cache_implementation="static", **settings), expected)
    fuse_(model)
    assert torch.equal(model.generate(tokens, **settings), expected)
    model.forward, graphs = compiled(model.forward)
    text = model.generate(tokens, cache_implementation="static", disable_compile=True, **settings)
    assert torch.equal(text, expected)
    assert graphs == [8, 8]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 5e-2), (torch.float16, 1e-2)])
def test_converted(dtype, tolerance, fused, llama, tokens):
    """All but the weights, whose scales and codebooks stay what they are."""
    model, dense = llama
    expected = logits(dense, tokens)
    if fused:
        fuse_(model)
    before = {name: layer.to_weight() for name, layer in quantised(model).items()}
    logits(model, tokens)
    model = model.half() if dtype == torch.float16 else model.to(dtype)
    y = logits(model, tokens)
    assert y.dtype == dtype
    assert close(y.float(), expected, tolerance)
    assert all(layer.to_weight() == before[name] for name, layer in quantised(model).items())
    back = logits(model.float(), tokens)
    assert close(back, expected, tolerance)
    settings = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": NO_END}
    assert model.to(dtype).generate(tokens, **settings).shape == (2, 12)


@pytest.mark.parametrize("fused", [(), FUSED])
def test_a_state_in_another_model(fused, llama, tokens, make_weight):
    """Whose weights were others, and were multiplied by before; through a file, too."""
    model, _ = llama
    expected = logits(model, tokens)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = tiny_llama()
    replace_linear(other, random_weights(other, make_weight), fuse=fused)
    assert not close(logits(other, tokens), expected, 0.1)
    missing, unexpected = other.load_state_dict(torch.load(file, weights_only=True))
    assert not missing
    assert not unexpected
    assert close(logits(other, tokens), expected)
    assert {name: layer.to_weight() for name, layer in quantised(other).items()} == {
        name: layer.to_weight() for name, layer in quantised(model).items()
    }
    wrong = tiny_llama()
    replace_linear(wrong, random_weights(wrong, make_weight, "m1v4b3g16"))
    with pytest.raises(RuntimeError, match="size mismatch"):
        wrong.load_state_dict(other.state_dict())


def test_a_file_of_codegemm_and_a_model(llama, tokens, tmp_path):
    """A model that has no memory until its weights are there."""
    from transformers import LlamaForCausalLM

    model, _ = llama
    weights = {name: layer.to_weight() for name, layer in quantised(model).items()}
    others = {name: tensor for name, tensor in model.state_dict().items() if name.rpartition(".")[0] not in weights}
    codegemm.save_all(tmp_path / "model.safetensors", weights, others)
    with torch.device("meta"):
        empty = LlamaForCausalLM(model.config).eval()
    empty.model.rotary_emb = copy.deepcopy(model.model.rotary_emb)
    replace_linear(empty, codegemm.load_all(tmp_path / "model.safetensors"))
    empty.load_state_dict(others, strict=False, assign=True)
    assert not any(tensor.is_meta for tensor in empty.state_dict().values())
    assert torch.equal(logits(empty, tokens), logits(model, tokens))


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_reach_the_embedding(fused, llama, tokens):
    """Through every quantised layer, as through dense ones of the same matrices."""
    model, dense = llama
    if fused:
        fuse_(model)
    for each in (model, dense):
        each.train()
        each(tokens, labels=tokens).loss.backward()
    ours, theirs = dict(model.named_parameters()), dict(dense.named_parameters())
    shared = [name for name in ours if name in theirs]
    assert len(shared) == 7
    for name in shared:
        assert close(ours[name].grad, theirs[name].grad, 2e-3), name
    assert not any(tensor.grad is not None for layer in quantised(model).values() for tensor in layer.tensors())


def test_rotated_projections_share_a_product(tokens):
    model = tiny_llama(1)
    quantize_(model, CONFIG, rotate=True)
    expected = logits(model, tokens)
    fuse_(model)
    assert len({layer._fused for layer in quantised(model).values()} - {None}) == 2
    assert all(isinstance(layer, CodebookLinear) and "rotated" in layer.config for layer in quantised(model).values())
    assert close(logits(model, tokens), expected)
