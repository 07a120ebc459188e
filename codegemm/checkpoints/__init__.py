"""Weights of other projects' checkpoints, from their arrays."""

from codegemm.checkpoints.aqlm import from_aqlm
from codegemm.checkpoints.published import from_codegemm
from codegemm.checkpoints.quip import from_quip

__all__ = ["from_aqlm", "from_codegemm", "from_quip"]
