"""Fresh random tensors in every test, a tiny model and a tiny tokenizer."""

import pytest

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)


@pytest.fixture(autouse=True)
def torch_seed(rng):
    """Torch's numbers are fresh as `rng`'s are: its own are the same in every run."""
    pytest.importorskip("torch").manual_seed(int(rng.integers(1 << 31)))
    pytest.importorskip("transformers")


@pytest.fixture
def llama():
    """In float64, so that no two tokens are as likely as each other by rounding."""
    from support.models import tiny_llama

    return tiny_llama().double()
