"""Whole models that are quantised block by block."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

REPORT = "quantization_report.json"
CONFIG = "m1v4b3g16"
# Processes of their own, that import this: what they quantise, and with which rows.
BEGIN = """
import os, signal, sys, torch
import codegemm
from support.whole import CONFIG, rows
"""


def rows(count: int = 16, length: int = 16, words: int = 61) -> torch.Tensor:
    """Of token ids, the same each time."""
    return torch.randint(1, words, (count, length), generator=torch.Generator().manual_seed(5))


def saved(model: Any, folder: Path, **options: Any) -> Path:
    """The folder of a model, whose norms and biases are not those that every new model has."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder, **options)
    return folder


def contents(folder: Path) -> dict[str, Any]:
    """What is in all files of a folder, but for the seconds in a report."""
    found: dict[str, Any] = {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    said = json.loads(found[REPORT])
    for each in (*said["layers"], said.get("distillation", {})):
        each.pop("seconds", None)
    return {**found, REPORT: said}


def left_behind(target: Path) -> list[str]:
    """What lies beside a target that nobody asked for."""
    return sorted(path.name for path in target.parent.iterdir() if path.name.startswith("."))
