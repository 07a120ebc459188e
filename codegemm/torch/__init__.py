"""Quantised weights in torch's models: layers, a custom operation, and what puts them in place of `torch.nn.Linear`."""

from codegemm.torch.layer import CodebookLinear
from codegemm.torch.op import linear
from codegemm.torch.replace import FUSED, fuse_, quantize_, replace_linear

__all__ = ["FUSED", "CodebookLinear", "fuse_", "linear", "quantize_", "replace_linear"]
