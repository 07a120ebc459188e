"""What torch.compile takes for a constant. Imported where it traces: to mark it imports all of the compiler, a second."""

from __future__ import annotations

import torch

from codegemm.torch.traces import Traces

torch.compiler.assume_constant_result(Traces.is_new)
