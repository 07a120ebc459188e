"""What a quantised model's folder says to who reads it: that transformers alone does not know its layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

CARD = "README.md"
_HEADING = "## Loading the quantised layers"
_MEASURED = "## How it was quantised"


def with_note(folder: Path, config: str) -> dict[str, bytes]:
    """A folder's model card by its name, with how its layers are loaded; once, however often it is asked. Nothing where
    there is none."""
    if not (folder / CARD).is_file():
        return {}
    text = _read(folder)
    if _HEADING not in text:
        text = f"{text.rstrip()}\n\n{_note(config)}"
    return _bytes(text)


def written(folder: Path, config: str, measured: Sequence[str]) -> dict[str, bytes]:
    """The card of a model that was made of a folder's, with what was measured; where that has none, of this alone."""
    text = _read(folder) if (folder / CARD).is_file() else f"# {folder.resolve().name}"
    text = text.partition(_MEASURED)[0].rstrip()
    lines = "\n".join(f"- {line}" for line in measured)
    whole = f"{text}\n\n{_MEASURED}\n\n{lines}\n\n{_note(config)}"
    return _bytes(whole)


def hint(folder: Path) -> str:
    """A line for who made the folder."""
    ours = f"codegemm.AutoModelForCausalLM.from_pretrained({str(folder)!r})"
    return f"to load it: {ours}, or transformers' class after `import codegemm.hf`"


def _read(folder: Path) -> str:
    """A folder's card, with whatever bytes it has."""
    return (folder / CARD).read_text(encoding="utf-8", errors="surrogateescape")


def _bytes(text: str) -> dict[str, bytes]:
    return {CARD: text.encode("utf-8", "surrogateescape")}


def _note(config: str) -> str:
    return f"""{_HEADING}

The linear layers are quantised ({config}) and multiplied in that form by codegemm, on CPUs and NVIDIA GPUs.
transformers loads them only after the import; without it, it warns and takes random numbers.

```python
import codegemm.hf  # pip install 'codegemm[hf]'
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("this folder")
```
"""
