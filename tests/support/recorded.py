"""A CUDA graph's ways on the processor: operations are recorded with the memory that they had, and done again on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorded(TorchDispatchMode):
    """What `run` does, with all numbers and shapes that Python saw as they were.

    synchronised: operations that a GPU would have to be waited for.
    """

    def __init__(self, run: Callable[[], object]) -> None:
        super().__init__()
        self._operations: list[tuple[Any, Any, Any, Any]] = []
        with self:
            run()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self._operations.append((function, args, kwargs or {}, result))
        return result

    @property
    def synchronised(self) -> list[str]:
        waiting = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique")
        names = [function.overloadpacket.__name__ for function, *_ in self._operations]
        return [name for name in names if name in waiting]

    def replay(self) -> None:
        """Do it all again, every result where it was."""
        for function, args, kwargs, result in self._operations:
            for old, new in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)
