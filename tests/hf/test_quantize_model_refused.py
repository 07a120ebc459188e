"""What `codegemm.quantize_model` can't do is said early, by name, and nothing is written."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.models import tiny_llama
from support.whole import CONFIG, left_behind, rows, saved
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaModel

import codegemm
from codegemm.hf.blockwise import checks, matrix
from codegemm.hf.distillation.train import Lessons
from codegemm.measuring import memory


@pytest.fixture
def dense(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "dense")
    return saved(tiny_llama(1), tmp_path / "dense")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"a{number % 50}" for number in range(100)))
    return path


@pytest.fixture
def refused(dense, tmp_path, monkeypatch):
    """What is raised, before anything is quantised."""

    def never(work):
        raise AssertionError

    monkeypatch.setattr(matrix.Work, "done", never)

    def error(match, kind=ValueError, **arguments):
        usual = {"config": CONFIG, "calibration": rows(), "workers": 1}
        with pytest.raises(kind, match=match):
            codegemm.quantize_model(dense, tmp_path / "out", **usual | arguments)
        assert left_behind(tmp_path / "out") == []

    return error


def say(folder, **said):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **said}))


def test_arguments(refused, text, tmp_path):
    refused("workers=0: must be an integer of at least 1", workers=0)
    refused("workers=True", workers=True)
    refused("workers=1.5", workers=1.5)
    refused("tune=-1: must be an integer of at least 0", tune=-1)
    refused("seed=-1", seed=-1)
    refused("time_limit", time_limit=-1)
    refused("expected", config="m9")
    refused("there is no quantizer for its residual", config="e8p4")
    refused("layers: 'nobody' is the name of no linear layer", layers={"nobody": CONFIG})
    refused("nobody", modules_to_not_convert=["nobody"])
    refused("layers: lm_head.*: expected|expected", layers={"lm_head": "what"})
    refused("tune: there is no calibration to learn from", calibration=None, tune=1)
    refused("distill: there is no calibration to learn from", calibration=None, distill=100)
    refused("lessons: tokens=-1: must be an integer of at least 1", distill=-1)
    refused("must be a list of files", TypeError, calibration=str(text))
    refused("must be a list of files", TypeError, calibration=text)
    refused("length=0: must be an integer of at least 1", calibration=[text], length=0)
    refused("tokens=0: must be an integer of at least 1", calibration=[text], tokens=0)


def test_lessons():
    for wrong in ({"tokens": 0}, {"length": 1}, {"rows": 0}, {"together": True}, {"rate": 0}, {"rate": float("nan")}):
        with pytest.raises(ValueError, match=f"lessons: {next(iter(wrong))}="):
            Lessons(**{"tokens": 10} | wrong)
    with pytest.raises(ValueError, match="lessons: seed=-1"):
        Lessons(10, seed=-1)


def test_calibrations(refused, text, tmp_path):
    refused(r"float32 \(16, 16\), must be token ids, int64 \[rows, length\]", calibration=rows().float())
    refused(r"\(16,\), must be token ids", calibration=rows()[0])
    refused(r"\(0, 16\)", calibration=rows()[:0])
    refused("token ids from 1 to 61, must be below 61", calibration=rows().fill_diagonal_(61))
    refused("token ids from -1 ", calibration=rows().fill_diagonal_(-1))
    refused("length=65: the model has 64 positions", calibration=rows(2, 65))
    refused("length=512: the model has 64 positions", calibration=[text])
    refused("none.txt: no such file", calibration=[tmp_path / "none.txt"], length=16)
    refused("texts: there are none", calibration=[], length=16)
    (tmp_path / "empty.txt").write_text("")
    refused("empty.txt: is empty", calibration=[tmp_path / "empty.txt"], length=16)
    (tmp_path / "bytes.txt").write_bytes(b"abc\xff")
    refused("bytes.txt: must be text in UTF-8", calibration=[tmp_path / "bytes.txt"], length=16)
    (tmp_path / "short.txt").write_text("a1 a2 a3")
    refused(r"short.txt: has 3 tokens, a row of the calibration has 16 \(--length\)",
            calibration=[text, tmp_path / "short.txt"], length=16)  # fmt: skip


def test_lessons_that_do_not_fit(refused, text):
    refused("length=80: the model has 64 positions", calibration=[text], length=16, distill=Lessons(10, 80))
    refused("has 100 tokens, a row of the calibration has 101", calibration=[text], length=16, distill=Lessons(10, 101))


def test_no_tokenizer(refused, dense, text):
    for path in dense.glob("*token*"):
        path.unlink()
    refused("dense: no tokenizer", calibration=[text], length=16)


def test_a_tokenizer_of_another_model(refused, dense, text):
    model = tiny_llama(1)
    model.resize_token_embeddings(30)
    saved(model, dense)
    refused("has the token id 54, and the embedding of .* has 30 rows", calibration=[text], length=16)


def test_what_can_not_be_trained(refused, dense, monkeypatch):
    """Is not found out when all is quantised."""

    def untrained(config):
        if config == "m2v4b3g16":
            raise ValueError("not trained")

    monkeypatch.setattr(checks, "check_tunable", untrained)
    for way in ({"tune": 1}, {"distill": 100}):
        refused(r"layers\.0\.self_attn\.v_proj: not trained", **way, layers={"*.v_proj": "m2v4b3g16"})
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    bert = transformers.BertConfig(vocab_size=61, **sizes)
    saved(transformers.BertModel(bert), dense)
    refused("distill: BertModel gives no logits", distill=100)


def test_targets(refused, dense, tmp_path):
    saved(tiny_llama(1), tmp_path / "out")
    refused("out: exists, and is replaced only by force", codegemm.CheckpointError)
    (tmp_path / "out" / "mine").write_text("mine")
    refused("holds mine, which would be lost", codegemm.CheckpointError, force=True)
    with pytest.raises(codegemm.CheckpointError, match="there is no folder"):
        codegemm.quantize_model(dense, tmp_path / "none" / "out", CONFIG)
    with pytest.raises(codegemm.CheckpointError, match="would replace"):
        codegemm.quantize_model(dense, dense, CONFIG, force=True)


def test_architectures(refused, dense, tmp_path):
    say(dense, architectures=["MyLlama"])
    refused(r"config.json names architectures \['MyLlama'\]: none that transformers knows")
    say(dense, architectures=None)
    refused("config.json names no architectures")
    say(dense, architectures=["LlamaForCausalLM"], quantization_config={"quant_method": "codegemm"})
    refused(r"is quantised already \('codegemm'\); take the model that it was made of")
    (dense / "config.json").unlink()
    refused("has no config.json", codegemm.CheckpointError)
    with pytest.raises(codegemm.CheckpointError, match="none: no such folder"):
        codegemm.quantize_model(tmp_path / "none", tmp_path / "out", CONFIG)


def test_encoders_with_decoders(refused, dense):
    t5 = transformers.T5Config(vocab_size=61, d_model=32, d_ff=64, d_kv=8, num_layers=1, num_heads=4)
    saved(transformers.T5ForConditionalGeneration(t5), dense)
    refused("T5ForConditionalGeneration is an encoder with a decoder; models of one list of blocks are understood")


def test_matrices_on_their_side(refused, dense):
    """GPT-2 has no linear layers but its head."""
    config = transformers.GPT2Config(vocab_size=61, n_embd=32, n_layer=1, n_head=4)
    saved(transformers.GPT2LMHeadModel(config), dense)
    refused("GPT2LMHeadModel has no list of blocks with linear layers in them")


def test_files_of_another_model(refused, dense):
    saved(tiny_llama(1), dense)
    say(dense, num_hidden_layers=2)
    refused(r"its files lack 9 tensors: model.layers.1", codegemm.CheckpointError)


def changed(folder, name, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors[name])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("calibration", [rows(), None])
def test_a_matrix_with_a_nan(calibration, dense, tmp_path):
    """Is named, as if it had been quantised alone."""
    changed(dense, "model.layers.0.mlp.up_proj.weight", lambda W: W[2, 3].fill_(torch.nan))
    with pytest.raises(ValueError, match=r"^model.layers.0.mlp.up_proj: .*(NaN|finite)"):
        codegemm.quantize_model(dense, tmp_path / "out", CONFIG, calibration=calibration, workers=1, time_limit=0)


def test_activations_that_are_no_numbers(dense, tmp_path):
    changed(dense, "model.layers.0.post_attention_layernorm.weight", lambda norm: norm[2].fill_(torch.inf))
    with pytest.raises(ValueError, match=r"^model.layers.0.mlp.gate_proj: its inputs have a NaN or an infinity"):
        codegemm.quantize_model(dense, tmp_path / "out", CONFIG, calibration=rows(), workers=1, time_limit=0)
    assert not (tmp_path / "out").exists()


def walk(turns, more):
    """A forward of models whose blocks have several turns, or get more than hidden states."""

    def forward(self, input_ids, **_):
        hidden, places = self.embed_tokens(input_ids), torch.arange(input_ids.shape[1])[None]
        around = self.rotary_emb(hidden, places)
        for _ in range(turns):
            for layer in self.layers:
                hidden = layer(hidden, position_embeddings=around, attention_mask=None, **more(input_ids))
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden))

    return forward


def test_blocks_that_get_more_of_the_text(refused, monkeypatch):
    """Their other inputs would be those of the first part of the text for all."""
    monkeypatch.setattr(LlamaModel, "forward", walk(1, lambda ids: {"own": {"ids": (ids, "of this part")}}))
    refused("LlamaForCausalLM: its blocks get more of the text than hidden states", calibration=rows(512, 64))


def test_blocks_that_have_several_turns(refused, monkeypatch):
    monkeypatch.setattr(LlamaModel, "forward", walk(2, lambda ids: {}))
    refused("LlamaForCausalLM: its blocks are not called one after the other with hidden states")


def test_states_without_room(refused, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    refused("the calibration's hidden states .--spill keeps them on disk.: needs at least", MemoryError)
