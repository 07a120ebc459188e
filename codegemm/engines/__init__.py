"""Where products run: cpu/ and cuda/, whose files have the same names for the same things, and reference.py, the truth
in float64. Each has a list KERNELS."""

from pathlib import Path


def package_files(*patterns: str) -> list[Path]:
    """Files below the package's folder, pattern by pattern, each in order."""
    return [path for pattern in patterns for path in sorted(Path(__file__).parents[1].glob(pattern))]
