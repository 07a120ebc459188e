"""Weights of other projects' checkpoints, from their arrays or whole folders."""

from codegemm.checkpoints.additive import from_aqlm, from_codegemm
from codegemm.checkpoints.binary import from_binary, from_lutgemm
from codegemm.checkpoints.folder import ConvertedFolder, convert_folder
from codegemm.checkpoints.packed import from_awq, from_gptq
from codegemm.checkpoints.qtip import from_qtip
from codegemm.checkpoints.quip import from_quip
from codegemm.checkpoints.uniform import from_uniform

__all__ = [
    "ConvertedFolder",
    "convert_folder",
    "from_aqlm",
    "from_awq",
    "from_binary",
    "from_codegemm",
    "from_gptq",
    "from_lutgemm",
    "from_qtip",
    "from_quip",
    "from_uniform",
]
