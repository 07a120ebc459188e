"""Decoding with a cache of fixed length: the tokens of `generate`, step by step and replayed."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from emulator.cases import some  # noqa: E402
from support.models import tiny_llama  # noqa: E402
from support.recorded import Recorded  # noqa: E402

from codegemm.hf.decoding import Decoder, _reads_back, static_cache  # noqa: E402
from codegemm.torch import fuse_, quantize_  # noqa: E402

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip


def prompts(batch, length):
    return torch.randint(1, 61, (batch, length))


def generated(model, prompt, count, eos=None, **options):
    """What transformers makes of it, without the prompt."""
    made = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False, pad_token_id=0,
        eos_token_id=eos or 61, **options,
    )  # fmt: skip
    return made[:, prompt.shape[1] :].T.tolist()


def recorded(decoder):
    """The decoder, its step replayed from now on as on a GPU."""
    decoder.begin(1)
    with torch.inference_mode():
        decoder._cache.reset()
        graph = Recorded(lambda: decoder._advance(decoder._tokens))
    assert graph.synchronised == []
    decoder._graph = graph
    return decoder


@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize(("batch", "length", "count"), [(1, 1, 9), (3, 17, 6), (2, 2, 1)])
def test_tokens_are_those_of_generate(batch, length, count, replayed, llama):
    """The cache exactly full in the end; and once more, from what the first text left."""
    prompt = prompts(batch, length)
    expected = generated(llama, prompt, count)
    decoder = Decoder(llama, length + count - 1, batch)
    if replayed:
        recorded(decoder)
    for _ in range(2):
        assert list(decoder.tokens(prompt, count)) == expected
    with pytest.raises(ValueError, match=f"has {decoder.length} positions, {decoder.length} of them"):
        decoder.step()


@pytest.mark.parametrize("fused", some([False, True]))
def test_quantised(fused, llama):
    quantize_(llama, "m1v4b4g16")
    if fused:
        fuse_(llama)
    prompt = prompts(2, 5)
    expected = generated(llama, prompt, 7)
    decoder = Decoder(llama, 20, 2)
    assert list(decoder.tokens(prompt, 7)) == expected
    assert list(recorded(decoder).tokens(prompt, 7)) == expected
    assert decoder.reason == "steps are captured on a GPU alone"


@pytest.mark.parametrize("kind", some(["Gemma3", "Mistral", "GPT2"], 3))
def test_other_models(kind):
    """Some attend to a window, and further back than that the text is longer; another has its own positions."""
    sizes = {**SIZES, "sliding_window": 6}
    if kind == "Mistral":
        model = transformers.MistralForCausalLM(transformers.MistralConfig(**sizes))
    elif kind == "Gemma3":
        layers = ["sliding_attention", "full_attention"]
        model = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**sizes, layer_types=layers))
    else:
        named = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=61, initializer_range=0.2, **named))
    model = model.double().eval()
    for length, count in ((3, 12), (11, 4)):
        prompt = prompts(2, length)
        decoder = recorded(Decoder(model, 20, 2))
        assert list(decoder.tokens(prompt, count)) == generated(model, prompt, count)


def test_eos_ends_a_text(llama):
    """Each by itself: what ended is padded until the last one ends."""
    prompt = prompts(3, 4)
    free = torch.tensor(generated(llama, prompt, 12)).T
    eos = [int(free[0, 2]), int(free[1, 5])]
    expected = generated(llama, prompt, 12, eos)
    assert list(Decoder(llama, 20, 3).tokens(prompt, 12, eos=eos, pad=0)) == expected
    one = list(Decoder(llama, 20).tokens(prompt[:1], 12, eos=eos))
    assert one == generated(llama, prompt[:1], 12, eos)
    assert one[-1][0] in eos
    assert len(one) <= 3


def test_drawn_tokens(llama):
    """The same for the same seed, replayed or not; as often as the softmax says."""
    prompt = prompts(2, 3)
    texts = [list(Decoder(llama, 20, 2, temperature=1.5, seed=seed).tokens(prompt, 15)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert list(recorded(Decoder(llama, 20, 2, temperature=1.5, seed=1)).tokens(prompt, 15)) == texts[0]
    for temperature in (1e-6, 1e-40, 1e-300):
        cold = list(Decoder(llama, 20, 2, temperature=temperature).tokens(prompt, 15))
        assert cold == generated(llama, prompt, 15)
    many = 4000
    decoder = Decoder(llama, 3, many, temperature=0.7, seed=3)
    counts = decoder.prefill(prompt[:1].expand(many, -1)).bincount(minlength=61)
    with torch.no_grad():
        chances = (llama(prompt[:1]).logits[0, -1] / 0.7).softmax(-1)
    assert ((counts / many - chances).abs() < 6 * (chances * (1 - chances) / many).sqrt() + 1 / many).all()


def test_beginning_somewhere(llama):
    """As after a prompt whose keys and values were zeros."""
    decoder = Decoder(llama, 9)
    decoder.begin(5)
    steps = [int(decoder.step()) for _ in range(4)]
    decoder.prefill(prompts(1, 5))
    decoder.begin(5)
    assert all(not layer.keys.any() for layer in decoder._cache.layers)
    assert [int(decoder.step()) for _ in range(4)] == steps
    with pytest.raises(ValueError, match="has 9 positions, 9 of them filled"):
        decoder.step()


def test_only_the_last_logits_are_made(llama):
    decoder, rows = Decoder(llama, 20), []
    llama.lm_head.register_forward_hook(lambda module, x, y: rows.append(y.shape[1]))
    list(decoder.tokens(prompts(1, 9), 3))
    assert rows == [1, 1, 1]


def test_models_that_no_graph_holds():
    """They say so, for want of a GPU by what is asked before anything is captured."""
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    usual, waiting = tiny_llama(1), tiny_llama(1, rope_parameters=dynamic)
    layers = static_cache(usual.config, 8).layers
    assert _reads_back(usual, layers) is None
    assert _reads_back(waiting, layers).startswith("its dynamic rotary embedding")
    assert "LinearAttentionLayer" in _reads_back(usual, [transformers.cache_utils.LinearAttentionLayer()])
    usual.model.layers[0].mlp.is_capturable = False
    assert _reads_back(usual, layers).startswith("LlamaMLP decides on the host")


def test_experts_with_quantised_matrices(tmp_path):
    """Are decoded all the same, and no graph can hold them."""
    from codegemm.hf import AutoModelForCausalLM, CodegemmConfig

    config = transformers.MixtralConfig(**{**SIZES, "num_local_experts": 4, "pad_token_id": 0})
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, quantization_config=CodegemmConfig("m1v4b4g16")
    )
    prompt = prompts(2, 5)
    decoder = Decoder(model, 12, 2)
    assert list(decoder.tokens(prompt, 8)) == generated(model, prompt, 8)
    assert _reads_back(model, decoder._cache.layers).startswith("CodebookExperts decides")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: Decoder(model, 0), "length=0"),
        (lambda model: Decoder(model, 8, 0), "batch=0"),
        (lambda model: Decoder(model, 8, temperature=-1.0), r"temperature=-1\.0"),
        (lambda model: Decoder(model, 8, temperature=float("nan")), "temperature=nan"),
        (lambda model: Decoder(model, 8).tokens(prompts(1, 5), 5), "5 tokens and 5 new.* 8 positions, 9 are needed"),
        (lambda model: Decoder(model, 8).tokens(prompts(1, 5), 0), "count=0"),
        (lambda model: Decoder(model, 8).prefill(prompts(1, 9)), "9 tokens more: the cache has 8 positions, 0"),
        (lambda model: Decoder(model, 8, 2).prefill(prompts(1, 3)), r"prompt: \(1, 3\), must be \(2, "),
        (lambda model: Decoder(model, 8).prefill(prompts(1, 0)), r"prompt: \(1, 0\)"),
        (lambda model: Decoder(model, 8).begin(0), "0 tokens more"),
    ],
)
def test_what_can_not_be(call, message, llama):
    with pytest.raises(ValueError, match=message):
        call(llama)
