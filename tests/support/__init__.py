"""What several test modules have in common."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
