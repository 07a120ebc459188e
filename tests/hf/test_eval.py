"""`codegemm eval` and `codegemm.hf.evaluate`: what whole models get for texts, beside another model."""

import hashlib
import json
import math

import click
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from support.folders import save_quantised  # noqa: E402
from support.models import tiny_llama  # noqa: E402

import codegemm.hf  # noqa: E402
from codegemm.errors import CheckpointError  # noqa: E402
from codegemm.hf import evaluate, generation  # noqa: E402
from codegemm.hf.evaluation import runner  # noqa: E402

QUIET = {"progress": False}


@pytest.fixture
def words(rng):
    """A text of so many tokens of the tiny tokenizer."""

    def make(count):
        return " ".join(f"a{number}" for number in rng.integers(0, 55, count))

    return make


@pytest.fixture
def folders(tokenizer, tmp_path):
    """A dense model's, and another's."""
    for name in ("model", "base"):
        tiny_llama().save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return tmp_path / "model", tmp_path / "base"


@pytest.fixture
def text(words, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(words(150))
    return path


def probabilities(model, ids):
    """Of every next token, in NumPy."""
    with torch.no_grad():
        logits = model.double()(torch.tensor([ids])).logits[0].numpy()
    found = np.exp(logits - logits.max(1, keepdims=True))
    return found / found.sum(1, keepdims=True)


def expected(model, base, ids, window, stride):
    """Loss, loss of the base, KL and agreement, token by token: each behind all that its window has before it, in the
    first window that has it."""
    told, seen = [], 1
    for begin in range(0, len(ids), stride):
        part = ids[begin : begin + window]
        p, q = probabilities(base, part), probabilities(model, part)
        for place in range(1, len(part)):
            if begin + place >= seen:
                at = place - 1, part[place]
                divergence = sum(a * math.log(a / b) for a, b in zip(p[at[0]], q[at[0]]))
                same = p[at[0]].argmax() == q[at[0]].argmax()
                told.append((-math.log(q[at]), -math.log(p[at]), divergence, same))
        seen = max(seen, begin + len(part))
    return np.array(told, float)


@pytest.mark.parametrize(("window", "stride"), [(None, None), (32, 32), (32, 8), (50, 49), (2, 1)])
def test_against_plain_arithmetic(window, stride, llama, tokenizer, words):
    base = tiny_llama().double()
    content = words(149)
    found = evaluate(
        llama, {"a": content}, base=base, tokenizer=tokenizer, window=window, stride=stride, **QUIET
    )  # fmt: skip
    ids = tokenizer(content)["input_ids"]
    truth = expected(llama, base, ids, window or 64, stride or 64)
    [each] = found.texts
    nll, base_nll, kl, agreed = truth.mean(axis=0)
    assert each.predictions == len(truth)
    assert each.perplexity.value == pytest.approx(math.exp(nll), rel=1e-9)
    assert each.base_perplexity.value == pytest.approx(math.exp(base_nll), rel=1e-9)
    assert each.ratio.value == pytest.approx(math.exp(nll - base_nll), rel=1e-9)
    assert each.kl.value == pytest.approx(kl, rel=1e-9)
    assert each.agreement.value == pytest.approx(agreed)
    assert sum(window.nll for window in each.windows) == pytest.approx(truth[:, 0].sum())
    assert each.perplexity.low < each.perplexity.value < each.perplexity.high
    assert found.cut.window == (window or 64)  # the model's positions


def test_beside_itself(llama, tokenizer, words):
    found = evaluate(llama, {"a": words(200)}, base=llama, tokenizer=tokenizer, window=20, **QUIET)
    [each] = found.texts
    assert (each.kl.value, each.kl.high, each.agreement.value, each.ratio.value) == (0, 0, 1, 1)


def test_batches_do_not_tell(llama, tokenizer, words, monkeypatch):
    content = {"a": words(190)}
    one, other = [], []
    for most, found in ((16, one), (1, other)):
        monkeypatch.setattr(runner, "_MOST_WINDOWS", most)
        found += evaluate(llama, content, tokenizer=tokenizer, window=12, stride=5, **QUIET).texts[0].windows
    assert len(one) == len(other) == 37
    assert [each.nll for each in one] == pytest.approx([each.nll for each in other], rel=1e-9)


def test_a_token_before_every_window(llama, tokenizer, words):
    """What the tokenizer puts before a text stands before each window: then its first token is predicted, too."""
    import copy

    from tokenizers.processors import TemplateProcessing

    begun = copy.deepcopy(tokenizer)
    begun.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    content = words(30)
    found = evaluate(llama, {"a": content}, tokenizer=begun, window=10, **QUIET)
    ids, losses = tokenizer(content)["input_ids"], []
    for begin in (0, 10, 20):
        part = [1, *ids[begin : begin + 10]]
        q = probabilities(llama, part)
        losses += [-math.log(q[place, part[place + 1]]) for place in range(10)]
    assert found.texts[0].predictions == 30
    assert found.texts[0].perplexity.value == pytest.approx(math.exp(np.mean(losses)), rel=1e-9)
    assert (found.specials.before, found.specials.behind) == ((1,), ())
    assert evaluate(llama, {"a": words(100)}, tokenizer=begun, **QUIET).cut.window == 63


def test_the_command(folders, text, words, invoke, tmp_path):
    """The table fits a terminal, and the file has everything."""
    model, base = folders
    second, path = tmp_path / "b.txt", tmp_path / "told.json"
    second.write_text(words(70))
    done = invoke(
        "eval", model, "--text", text, second, "--base", base, "--window", 16, "--stride", 8, "--tokens", 100,
        "--config", "m1v4b4g16", "--json", path, "--device", "cpu", "--threads", 1,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert max(len(line) for line in done.stdout.splitlines() if line.lstrip().startswith(("text", "a.txt"))) <= 80
    for said in ("windows of 16 tokens, stride 8", "at most the first 100 tokens", "KL(base || model)", "seed 0"):
        assert said in done.stdout
    told = json.loads(path.read_text())
    assert told["codegemm"]
    assert told["transformers"] == transformers.__version__
    assert (told["kind"], told["window"], told["stride"], told["token_limit"]) == ("causal", 16, 8, 100)
    assert (told["model"]["name"], told["model"]["config"]) == (str(model), "m1v4b4g16")
    assert told["model"]["weight_bytes"] < told["base"]["weight_bytes"]
    assert told["base"]["config"] is None
    first, other = told["texts"]
    assert first["sha256"] == hashlib.sha256(text.read_bytes()).hexdigest()
    assert (first["name"], first["tokens"], first["total_tokens"]) == (str(text), 100, 150)
    assert (other["tokens"], other["total_tokens"]) == (70, 70)
    assert first["predictions"] == 99
    assert len(first["windows"]) == first["window_count"] == 12
    assert sum(each["predictions"] for each in first["windows"]) == 99
    assert first["kl"]["low"] < first["kl"]["value"] < first["kl"]["high"]
    assert first["ratio"]["value"] == pytest.approx(
        first["perplexity"]["value"] / first["base_perplexity"]["value"], rel=1e-9
    )
    again = invoke("eval", model, "--text", text, "--window", 16, "--device", "cpu")
    assert "base" not in again.stdout


def test_quantised_folders(tokenizer, text, tmp_path):
    """As they are, beside the model before: the same numbers as of the models themselves."""
    folder = tmp_path / "quantised"
    model = save_quantised(folder)
    tokenizer.save_pretrained(folder)
    tokenizer.save_pretrained(folder / "dense")
    found = evaluate(folder, [text], base=folder / "dense", device="cpu", **QUIET)
    [each] = found.texts
    assert each.kl.value > 0
    assert found.model.config == "m1v4b4g16"
    [same] = evaluate(model, [text], tokenizer=tokenizer, **QUIET).texts
    assert same.perplexity.value == pytest.approx(each.perplexity.value, rel=1e-4)
    with pytest.raises(ValueError, match=r"config m1v4: .*quantised is quantised already"):
        evaluate(folder, [text], config="m1v4", **QUIET)


def test_a_bfloat16_model(folders, text):
    found = evaluate(folders[0], [text], base=folders[0], device="cpu", dtype="bfloat16", **QUIET)
    assert found.model.dtype == "bfloat16"
    assert found.texts[0].kl.value == 0


def tiny_bert(**changes):
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32, initializer_range=0.2, **changes,
    )  # fmt: skip
    return BertModel(config).eval()


def test_encoders(tokenizer, text, invoke, tmp_path):
    """Cosines of the means of what the last layer has, for each window."""
    base = tiny_bert()
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    path = tmp_path / "told.json"
    done = invoke(
        "eval", tmp_path / "base", "--base", tmp_path / "base", "--config", "m1v4b4g16", "--text", text,
        "--json", path, "--device", "cpu",
    )  # fmt: skip
    assert "mean of a window's last hidden states" in done.stdout
    told = json.loads(path.read_text())
    assert (told["kind"], told["pooling"], told["window"]) == ("encoder", "mean", 32)
    model = generation.open_model(tmp_path / "base", torch.device("cpu"), "auto", "m1v4b4g16", codegemm.hf.AutoModel)
    ids, cosines = tokenizer(text.read_text())["input_ids"], []
    for begin in range(0, 150, 32):
        with torch.no_grad():
            u, v = (
                each(torch.tensor([ids[begin : begin + 32]])).last_hidden_state[0].mean(0).numpy()
                for each in (model, base)
            )
        cosines.append(u @ v / np.linalg.norm(u) / np.linalg.norm(v))
    [each] = told["texts"]
    assert [window["cosine"] for window in each["windows"]] == pytest.approx(cosines, abs=1e-4)
    assert each["cosine"]["value"] == pytest.approx(np.mean(cosines), abs=1e-4)
    assert each["least"] == pytest.approx(min(cosines), abs=1e-4)
    assert each["cosine"]["low"] < each["cosine"]["value"] < each["cosine"]["high"]


def test_kinds_of_models(folders, tokenizer, text, tmp_path):
    def saved(name, model):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    encoder = saved("encoder", tiny_bert())
    with pytest.raises(ValueError, match="encoder: is an encoder, which predicts no text: it needs a base"):
        evaluate(encoder, [text], **QUIET)
    with pytest.raises(ValueError, match=r"encoder is encoder and .*base is causal: models of two kinds"):
        evaluate(encoder, [text], base=folders[1], **QUIET)
    config = transformers.T5Config(vocab_size=61, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
    other = saved("t5", transformers.T5Model(config))
    with pytest.raises(ValueError, match="t5: a model of type 't5' can't be evaluated: must be a causal"):
        evaluate(other, [text], **QUIET)
    decoder = saved("decoder", transformers.BertLMHeadModel(tiny_bert(is_decoder=True).config))
    assert evaluate(decoder, [text], device="cpu", **QUIET).texts[0].perplexity.value > 1


def test_models_that_do_not_fit_together(folders, llama, tokenizer, text, tmp_path):
    import copy

    model, base = folders
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["a3 a4", "a1"])
    other.backend_tokenizer.pre_tokenizer = None
    other.save_pretrained(base)
    with pytest.raises(ValueError, match=r"base: its tokenizer makes \d+ tokens of .*a\.txt, not 150: models must"):
        evaluate(model, [text], base=base, device="cpu", **QUIET)
    tiny_llama(pad_token_id=0).save_pretrained(base)
    wide = transformers.LlamaConfig(**{**llama.config.to_dict(), "vocab_size": 64})
    transformers.LlamaForCausalLM(wide).save_pretrained(base)
    tokenizer.save_pretrained(base)
    with pytest.raises(
        ValueError, match=r"model tells 61 tokens apart, and .*base 64: models must have the same vocab"
    ):
        evaluate(model, [text], base=base, device="cpu", **QUIET)
    narrow = transformers.LlamaConfig(**{**llama.config.to_dict(), "vocab_size": 40})
    transformers.LlamaForCausalLM(narrow).save_pretrained(model)
    with pytest.raises(ValueError, match=r"a\.txt: has the token id \d+, and the embedding of .*model has 40 rows"):
        evaluate(model, [text], device="cpu", **QUIET)


@pytest.mark.parametrize("whose", ["model", "base"])
def test_logits_that_are_no_numbers(whose, llama, tokenizer, words):
    """The text, the tokens and the model are named."""
    other, sick = tiny_llama().double(), {"model": llama, "base": tiny_llama().double()}[whose]
    with torch.no_grad():
        sick.get_input_embeddings().weight[59] = math.nan  # a54
    content = f"{words(30).replace('a54', 'a1')} a54 a1 a1"
    pair = (llama, other) if whose == "model" else (other, sick)
    pair[0].name_or_path, pair[1].name_or_path = "model", "base"
    with pytest.raises(ValueError, match=f"poem: window of tokens 30 to 32: logits of {whose} are NaN or infinite"):
        evaluate(pair[0], {"poem": content}, base=pair[1], tokenizer=tokenizer, window=10, **QUIET)


def test_embeddings_that_point_nowhere(tokenizer, words):
    model, base = tiny_bert(), tiny_bert()
    with torch.no_grad():
        base.encoder.layer[-1].output.LayerNorm.weight.zero_()
        base.encoder.layer[-1].output.LayerNorm.bias.zero_()
    with pytest.raises(ValueError, match="poem: window of tokens 0 to 31: the embedding of BertModel is zero"):
        evaluate(model, {"poem": words(50)}, base=base, tokenizer=tokenizer, **QUIET)


def test_models_themselves(llama, tokenizer, words):
    content = {"a": words(9)}
    with pytest.raises(ValueError, match="LlamaForCausalLM: is not of a folder here that has a tokenizer"):
        evaluate(llama, content, **QUIET)
    with pytest.raises(ValueError, match="config m1v4: LlamaForCausalLM is read already"):
        evaluate(llama, content, tokenizer=tokenizer, config="m1v4", **QUIET)
    with pytest.raises(ValueError, match=r"is in training mode.*call model\.eval\(\)"):
        evaluate(llama.train(), content, tokenizer=tokenizer, **QUIET)


def test_files_that_lack_tensors(folders, text):
    """transformers would make them up."""
    from safetensors.torch import load_file, save_file

    path = folders[0] / "model.safetensors"
    held = load_file(path)
    del held["model.layers.1.mlp.down_proj.weight"]
    save_file(held, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model: its files lack 1 tensors: model\.layers\.1\.mlp\.down_proj"):
        evaluate(folders[0], [text], device="cpu", **QUIET)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--window", "1"], click.UsageError, "1 is not in the range"),
        (["--window", "65"], ValueError, "window 65: the model has 64 positions: 64 is the most"),
        (["--window", "8", "--stride", "9"], ValueError, "stride 9: must be 1 to 8"),
        (["--window", "60", "--tokens", "50"], ValueError, r"has 50 tokens \(of 150, by the limit\), fewer than a"),
        (["--tokens", "1"], click.UsageError, "1 is not in the range"),
        (["--config", "m1v4g"], ValueError, "m1v4g"),
        (["--text", "nowhere.txt"], CheckpointError, r"nowhere\.txt: no such file"),
        (["--base", "nowhere"], CheckpointError, "nowhere: no such folder"),
        (["--json", "/nowhere/told.json"], click.UsageError, "/nowhere"),
    ],
)
def test_what_can_not_be(arguments, error, message, folders, text, invoke):
    """One line that names the value, before the model is read."""
    (folders[0] / "model.safetensors").unlink()
    with pytest.raises(error, match=message):
        invoke("eval", folders[0], "--text", text, *arguments)


def test_a_result_that_would_replace_a_text(folders, text, invoke):
    with pytest.raises(click.UsageError, match=r"would replace .*a\.txt"):
        invoke("eval", folders[0], "--text", text, "--json", text)


def test_ctrl_c_leaves_nothing(folders, text, invoke, monkeypatch, tmp_path):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "per_token", interrupted)
    path = tmp_path / "told.json"
    before = set(tmp_path.iterdir())
    with pytest.raises(click.Abort):
        invoke("eval", folders[0], "--text", text, "--json", path, "--device", "cpu")
    assert set(tmp_path.iterdir()) == before


def test_a_trained_model(smollm2):
    """By its own loss, as transformers has it; and words in their order are likelier than backwards."""
    lines = (
        "Water boils at a lower temperature on a mountain, because the pressure of the air is lower there. "
        "This is why cooking takes longer at high altitudes."
    )
    content = {"forwards": lines, "backwards": " ".join(reversed(lines.split()))}
    forwards, backwards = evaluate(smollm2, content, device="cpu", **QUIET).texts
    model = generation.open_model(smollm2, torch.device("cpu"))
    ids = generation.open_tokenizer(smollm2)(lines, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        loss = float(model(ids, labels=ids).loss)
    assert forwards.perplexity.value == pytest.approx(math.exp(loss), rel=1e-4)
    assert backwards.perplexity.value > 10 * forwards.perplexity.value
