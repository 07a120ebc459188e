"""`codegemm generate`: a folder's text as it comes, and what is told of it."""

import importlib.util
import json
import re

import click
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from emulator.cases import some  # noqa: E402
from support.folders import save_quantised  # noqa: E402
from support.models import tiny_llama  # noqa: E402

from codegemm.errors import CheckpointError  # noqa: E402
from codegemm.hf import decoding, generation  # noqa: E402
from codegemm.hf.sizes import sizes  # noqa: E402
from codegemm.measuring import memory  # noqa: E402
from codegemm.torch import fuse_, quantize_  # noqa: E402

PROMPT = "a3 a1 a4 a1 a5"


@pytest.fixture
def folder(tokenizer, tmp_path):
    """A dense model's."""
    path = tmp_path / "model"
    tiny_llama().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def continued(folder, tokenizer, prompt, count):
    """By transformers: the tokens behind a prompt, up to an end."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    text = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return text[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("raw", [True, False])
def test_the_text_of_generate(raw, folder, tokenizer, invoke, tmp_path):
    """As a user's message, unless raw; the numbers on standard error and as JSON."""
    prompt = PROMPT if raw else f"<user> {PROMPT} <bot>"
    expected = continued(folder, tokenizer, prompt, 9)
    path = tmp_path / "told.json"
    done = invoke(
        "generate", folder, "--prompt", PROMPT, "--max-new-tokens", 9, "--json", path, "--device", "cpu",
        *["--raw"] * raw,
    )  # fmt: skip
    assert done.exit_code == 0
    assert done.stdout.split() == tokenizer.decode(expected, skip_special_tokens=True).split()
    count = len(prompt.split())
    assert re.search(rf"^prefill +[\d.]+ tokens/s \({count} tokens in ", done.stderr, re.MULTILINE)
    assert re.search(rf"^decode +[\d.]+ tokens/s \({len(expected) - 1} tokens? in ", done.stderr, re.MULTILINE)
    told = json.loads(path.read_text())
    assert (told["prompt_tokens"], told["new_tokens"]) == (count, len(expected))
    assert told["weight_bytes"] == 2 * told["float16_bytes"]
    assert told["dtype"] == "float32"
    assert (told["decode_tokens_per_second"] > 0) == (len(expected) > 1)  # the first may end the text


def test_drawn_text(folder, invoke):
    """The same for a seed."""
    told = [
        invoke(
            "generate",
            folder,
            "--prompt",
            PROMPT,
            "--raw",
            "--max-new-tokens",
            9,
            "--temperature",
            "1.5",
            "--seed",
            seed,
        ).stdout
        for seed in (1, 1, 2)
    ]
    assert told[0] == told[1] != told[2]


def test_dtypes(folder, invoke, tmp_path):
    path = tmp_path / "told.json"
    invoke("generate", folder, "--prompt", PROMPT, "--max-new-tokens", 1, "--dtype", "bfloat16", "--json", path)
    told = json.loads(path.read_text())
    assert told["dtype"] == "bfloat16"
    assert told["new_tokens"] == 1
    assert told["decode_tokens_per_second"] == 0


def test_ctrl_c_keeps_what_was_said(folder, tokenizer, invoke, monkeypatch):
    """And tells the numbers so far."""
    folder_text = continued(folder, tokenizer, PROMPT, 3)
    monkeypatch.setattr(generation, "ends", lambda model: set())
    step, steps = decoding.Decoder.step, []

    def interrupted(decoder):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return step(decoder)

    monkeypatch.setattr(decoding.Decoder, "step", interrupted)
    done = invoke("generate", folder, "--prompt", PROMPT, "--raw", "--max-new-tokens", 9)
    assert done.exit_code == 130
    kept = tokenizer.decode(folder_text, skip_special_tokens=True).split()
    assert done.stdout.split()[: len(kept)] == kept
    assert "(2 tokens in" in done.stderr


@pytest.mark.parametrize("fused", some([False, True]))
def test_sizes(fused):
    """Quantised matrices by their packed weights, before and after a product, tied matrices once."""
    model = tiny_llama(tie_word_embeddings=True)
    half = 2 * sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    assert sizes(model) == (2 * half, half)
    quantize_(model, "m1v4b4g16")
    if fused:
        fuse_(model)
    found = sizes(model)
    with torch.no_grad():
        model(torch.ones(1, 3, dtype=torch.long))
    assert sizes(model) == found
    assert found.half == half
    # A layer takes 1 bit and 16 / 16 of a scale a weight, and 16 centroids of 4 halves.
    matrices = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32)
    others = 2 * half - 4 * matrices
    assert found.held == others + 2 * matrices // 8 + 14 * 16 * 4 * 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--max-new-tokens", "0"], click.UsageError, r"0 is not in the range x>=1"),
        (["--max-new-tokens", "61", "--raw"], ValueError, "5 tokens and 61 new .* 64 positions: .*-tokens 60 is the"),
        (["--prompt", " ".join(["a1"] * 70), "--raw"], ValueError, "70 tokens .* 64 positions: shorten the prompt to"),
        (["--prompt", "", "--raw"], ValueError, "prompt '': has no token"),
        (["--config", "m1v4g"], ValueError, "m1v4g"),
        (["--temperature", "-1"], click.UsageError, r"-1.0 is not in the range x>=0"),
        (["--json", "/nowhere/told.json"], click.UsageError, "/nowhere"),
    ],
)
def test_what_can_not_be(arguments, error, message, folder, invoke):
    """One line that names the value, before the model is read."""
    (folder / "model.safetensors").unlink()
    with pytest.raises(error, match=message):
        invoke("generate", folder, "--prompt", PROMPT, *arguments)


def test_folders_that_hold_no_model(folder, invoke, tmp_path):
    def refused(path, message):
        with pytest.raises(CheckpointError, match=message):
            invoke("generate", path, "--prompt", PROMPT)

    refused(tmp_path / "nowhere", "nowhere: no such folder")
    refused(tmp_path, "has no config.json")
    (folder / "tokenizer.json").write_text("{")
    refused(folder, "model: its tokenizer can't be read: .*copy tokenizer.json")
    (folder / "tokenizer.json").unlink()
    refused(folder, "model: no tokenizer: copy tokenizer.json")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize(
    "command",
    [
        ("generate", "--prompt", PROMPT, "--max-new-tokens", 1),
        ("bench-model", "--tokens", 1, "--rounds", 1, "--prompt-length", 1, "--batch", 1),
        ("eval", "--text", "TEXT"),
    ],
    ids=lambda command: command[0],
)
def test_the_model_is_never_replaced(command, name, folder, invoke, tmp_path):
    (tmp_path / "text.txt").write_text(f"{PROMPT} " * 9)
    before = (folder / name).read_bytes()
    options = [str(tmp_path / "text.txt") if each == "TEXT" else each for each in command[1:]]
    with pytest.raises(click.UsageError, match=rf"{name}: would replace .*{name}, which is read"):
        invoke(command[0], folder, "--json", folder / name, *options)
    assert (folder / name).read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"1234567890", r"model\.safetensors: not a whole safetensors file"),
        ("tokenizer.json", b"{}", "model: its tokenizer can't be read"),
        ("config.json", b'{"model_type": "llama", "hidden_size": "32"}', "model: transformers can't read it: "),
    ],
)
def test_damaged_folders(name, content, message, folder, invoke):
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        invoke("generate", folder, "--prompt", PROMPT, "--max-new-tokens", 2, "--device", "cpu")


def test_models_that_have_no_room(folder, invoke, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    with pytest.raises(MemoryError, match=r"model: needs at least 0\.0 GB"):
        invoke("generate", folder, "--prompt", PROMPT, "--max-new-tokens", 3)


def test_missing_libraries(folder, invoke, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else find(name))
    with pytest.raises(click.UsageError, match=r"transformers not installed: pip install 'codegemm\[hf\]'"):
        invoke("generate", folder, "--prompt", PROMPT)


def test_no_gpu(folder, invoke, monkeypatch):
    monkeypatch.setattr(generation.devices, "unavailable", lambda: "no driver")
    with pytest.raises(ValueError, match="cuda: no driver"):
        invoke("generate", folder, "--prompt", PROMPT, "--device", "cuda")


def test_quantised_while_it_is_read(folder, invoke, tmp_path):
    path = tmp_path / "told.json"
    options = ("--prompt", PROMPT, "--max-new-tokens", 3, "--config", "m1v4b4g16", "--json", path)
    assert invoke("generate", folder, *options).exit_code == 0
    told = json.loads(path.read_text())
    assert told["weight_bytes"] < told["float16_bytes"]


def test_quantised_before(tokenizer, invoke, tmp_path):
    """The text of its own model; and it is not quantised twice."""
    folder = tmp_path / "model"
    model = save_quantised(folder)
    tokenizer.save_pretrained(folder)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    text = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False)
    done = invoke("generate", folder, "--prompt", PROMPT, "--raw", "--max-new-tokens", 9)
    assert done.stdout.split() == tokenizer.decode(text[0, ids.shape[1] :], skip_special_tokens=True).split()
    with pytest.raises(click.UsageError, match=r"--config m1v4: .*model is quantised already"):
        invoke("generate", folder, "--prompt", PROMPT, "--max-new-tokens", 9, "--config", "m1v4")
