"""Tests for kernels, those of third parties too: `check_kernel` holds one to all that `codegemm.Kernel` says."""

from codegemm.testing.conformance import Checked, check_kernel

__all__ = ["Checked", "check_kernel"]
