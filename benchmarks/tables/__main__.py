"""`make tables`: writes the documents, and the crossovers."""

from __future__ import annotations

import json

from benchmarks.tables import cpu, files, gpu, layers, markdown, models, quantisers
from benchmarks.tables.crossovers import crossovers
from benchmarks.tables.page import page
from codegemm import tables

PAGE = files.ROOT / "docs" / "results.md"
DOCUMENTS = tuple(
    files.ROOT / name
    for name in ("README.md", "docs/quantising.md", "docs/torch.md", "docs/models.md", "docs/evaluating.md")
)


def main() -> None:
    """All of them."""
    PAGE.write_text(page())
    texts = written()
    for document in DOCUMENTS:
        document.write_text(markdown.renewed(document.read_text(), texts))
    choices = crossovers(files.of_gpus())
    if choices:
        tables.CROSSOVERS.write_text(json.dumps(choices, indent=1) + "\n")


def written() -> dict[str, str]:
    """The tables in hand-written documents, by name."""
    return {
        "cpu-summary": cpu.summary(),
        "gpu-summary": gpu.tables(whole=False),
        "torch": layers.tables(),
        "gaussian": quantisers.gaussian(),
        "minilm": quantisers.minilm(),
        "models": models.tables(),
        "models-summary": models.summary(),
        "layers-summary": quantisers.layers(),
        "effort": models.effort(),
        "lm-eval": models.lm_eval(),
        "texts": models.texts(),
    }


if __name__ == "__main__":
    main()
