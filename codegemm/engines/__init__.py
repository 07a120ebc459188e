"""Where products run. Each engine is a folder with the same file names and a list KERNELS."""

from pathlib import Path


def package_files(*patterns: str) -> list[Path]:
    """Files below the package's folder, pattern by pattern, each in order."""
    return [path for pattern in patterns for path in sorted(Path(__file__).parents[1].glob(pattern))]
