"""What torch.compile takes for a constant; imported where it traces, for to mark it imports all of the compiler."""

from __future__ import annotations

import torch

from codegemm.torch.traces import Traces

torch.compiler.assume_constant_result(Traces.is_new)
