"""How good quantisers are."""

from __future__ import annotations

import math

from benchmarks.tables import files, markdown
from codegemm.reporting import by


def gaussian() -> str:
    """Accuracy, time and memory on Gaussian matrices."""
    lines = [["configuration", "matrix", "bits", "relative MSE", "seconds", "GiB", "on"]]
    for row in files.rows(files.GAUSSIAN):
        accuracy = (f"{row['bits_per_weight']:.3f}", f"{row['relative_mse']:.4f}")
        cost = (f"{row['seconds']:.0f}", f"{row['gib']:.1f}", f"{row['device']} ({row['path']})")
        lines.append([row["config"], by(row["shape"]), *accuracy, *cost])
    return "\n" + markdown.table(lines, "---")


def layers() -> str:
    """Errors of the outputs of a trained transformer's layers in percent, by the weights alone and by inputs."""
    rows = {(row["config"], row["way"]): row for row in files.rows(files.MINILM)}
    ways = ("plain", "calibrated")
    lines = [["configuration", "bits", *ways]]
    for config in dict.fromkeys(config for config, _ in rows):
        if all((config, way) in rows for way in ways):
            errors = (f"{100 * math.sqrt(rows[config, way]['output_error']):.0f} %" for way in ways)
            lines.append([config, f"{rows[config, 'plain']['bits_per_weight']:.2f}", *errors])
    return "\n" + markdown.table(lines, "---")


def minilm() -> str:
    """Errors on a trained transformer, for each way of quantising it."""
    lines = [["configuration", "way", "bits", "relative MSE of weights", "relative MSE of outputs"]]
    for row in files.rows(files.MINILM):
        errors = (f"{row['weight_error']:.4f}", f"{row['output_error']:.4f}")
        lines.append([row["config"], row["way"], f"{row['bits_per_weight']:.2f}", *errors])
    return "\n" + markdown.table(lines, "---")
