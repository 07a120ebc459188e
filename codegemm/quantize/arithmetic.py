"""What the search computes with: NumPy, or torch on the CPU or a GPU, behind one set of names.

`x @ y`, `+=`, slices and shapes are the same in both; here is what is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from codegemm.arrays import to_torch
from codegemm.engines.cpu.library import get_num_threads

Backend = Literal["numpy", "torch", "cuda"]
BACKENDS: tuple[Backend, ...] = ("numpy", "torch", "cuda")

# Below so many weights importing torch takes longer than it saves. The size decides, not whether torch is imported
# already: the same matrix has the same result in every process.
TORCH_FROM = 1 << 22


class Arithmetic:
    """NumPy on as many threads as the CPU's kernels: blocks don't depend on each other, and need no interpreter.

    Its arrays, and those of the other libraries, are float32 or indices (intp, int64); every function is a pure one.

    block, vectors: how many scores, and of how many vectors at most, a block of work holds at a time: what caches take
    well, or what keeps a GPU at work for longer than it takes to start it. parts, rows: into how many parts the rows of
    a matrix are cut where all go through its columns one after the other, and how many a part has at most.
    add, where, stack, concatenate, zeros_like: the library's own.
    """

    name = "numpy"
    block, vectors = 1 << 17, 1 << 12
    parts, rows = 8, 1 << 10
    add: Callable[..., Any] = staticmethod(np.add)
    where: Callable[..., Any] = staticmethod(np.where)
    stack: Callable[..., Any] = staticmethod(np.stack)
    concatenate: Callable[..., Any] = staticmethod(np.concatenate)
    zeros_like: Callable[..., Any] = staticmethod(np.zeros_like)

    def put(self, array: npt.NDArray) -> Any:
        """A NumPy array as this library's."""
        return array

    def get(self, array: Any) -> npt.NDArray:
        """This library's array as NumPy's."""
        return array

    def empty(self, shape: tuple[int, ...], like: Any) -> Any:
        """An array of this shape, with the dtype and place of another."""
        return np.empty(shape, like.dtype)

    def take(self, table: Any, index: Any) -> Any:
        """Rows [n, C] of table [R, C] that index [n] names."""
        return table.take(index, axis=0)

    def pick(self, values: Any, index: Any) -> Any:
        """values[i, index[i, k]] of values [n, C] for index [n, k]."""
        return np.take_along_axis(values, index, 1)

    def least(self, scores: Any) -> Any:
        """The smallest value [n] of each row of scores [n, C]."""
        return scores.min(1)

    def argmin(self, scores: Any) -> Any:
        """Where it is, [n]."""
        return scores.argmin(1)

    def squares(self, vectors: Any) -> Any:
        """The sum [n] of the squares of each of vectors [n, v]."""
        return np.einsum("nv,nv->n", vectors, vectors)

    def smallest(self, scores: Any, count: int) -> Any:
        """Indices [n, count] of the smallest values of each row; in any order."""
        return smallest(scores, count)

    def map(self, work: Callable[[int], None], begins: Iterable[int]) -> None:
        """Call work for each block, on all cores where the library does not use them itself."""
        blocks = list(begins)
        threads = min(get_num_threads(), len(blocks))
        with _blas(self.name).limit(limits=1, user_api="blas"):
            if threads <= 1:  # to start a thread takes longer than a small matrix's block
                for begin in blocks:
                    work(begin)
                return
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(work, blocks))


@cache
def _blas(backend: str) -> Any:
    """What limits the threads of the libraries that multiply matrices; to look for these takes milliseconds. backend:
    it is first asked for when that one's are loaded."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


class Torch(Arithmetic):
    """torch on the CPU, a thread for each of its cores; minima are looked for by NumPy, ten times as fast there."""

    name = "torch"

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self.add, self.where, self.zeros_like = torch.add, torch.where, torch.zeros_like
        self.stack, self.concatenate = torch.stack, torch.cat

    def put(self, array: npt.NDArray) -> Any:
        return to_torch(np.ascontiguousarray(array))

    def get(self, array: Any) -> npt.NDArray:
        return array.numpy()

    def empty(self, shape: tuple[int, ...], like: Any) -> Any:
        return self._torch.empty(shape, dtype=like.dtype, device=like.device)

    def take(self, table: Any, index: Any) -> Any:
        return table.index_select(0, index)

    def pick(self, values: Any, index: Any) -> Any:
        return values.gather(1, index)

    def least(self, scores: Any) -> Any:
        return scores.amin(1)

    def argmin(self, scores: Any) -> Any:
        return self._torch.from_numpy(scores.numpy().argmin(1))

    def squares(self, vectors: Any) -> Any:
        return (vectors * vectors).sum(1)

    def smallest(self, scores: Any, count: int) -> Any:
        return self._torch.from_numpy(smallest(scores.numpy(), count))

    def map(self, work: Callable[[int], None], begins: Iterable[int]) -> None:
        threads = self._torch.get_num_threads()
        try:
            # Operations on blocks that fit the caches are too small to be cut among threads, NumPy's too.
            with (
                _blas(self.name).limit(limits=1, user_api="blas"),
                ThreadPoolExecutor(threads, initializer=lambda: self._torch.set_num_threads(1)) as pool,
            ):
                list(pool.map(work, begins))
        finally:
            self._torch.set_num_threads(threads)


class Cuda(Torch):
    """torch on the current GPU, large blocks one after the other."""

    name = "cuda"
    block, vectors = 1 << 24, 1 << 16
    parts, rows = 1, 1 << 14

    def __init__(self) -> None:
        super().__init__()
        if not self._torch.cuda.is_available():
            raise ValueError("backend 'cuda': torch finds no GPU")

    def put(self, array: npt.NDArray) -> Any:
        return super().put(array).cuda()

    def get(self, array: Any) -> npt.NDArray:
        return array.cpu().numpy()

    def argmin(self, scores: Any) -> Any:
        return scores.argmin(1)

    def smallest(self, scores: Any, count: int) -> Any:
        return scores.topk(count, 1, largest=False, sorted=False).indices

    def map(self, work: Callable[[int], None], begins: Iterable[int]) -> None:
        for begin in begins:
            work(begin)


def find(backend: Backend | None, weights: int) -> Arithmetic:
    """The named one; for None torch where it is installed and the matrix has many weights, else NumPy.

    ValueError for an unknown name or one that this machine does not have.
    """
    if backend is None:
        backend = usual(weights)
    if backend == "numpy":
        return Arithmetic()
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r}: must be None or one of {', '.join(BACKENDS)}")
    if find_spec("torch") is None:
        raise ValueError(f"backend {backend!r}: torch is not installed (pip install 'codegemm[torch]')")
    return Cuda() if backend == "cuda" else Torch()


def usual(weights: int) -> Backend:
    """The backend of a matrix of so many weights where none is named."""
    return "torch" if weights >= TORCH_FROM and find_spec("torch") is not None else "numpy"


def smallest(scores: npt.NDArray, count: int) -> npt.NDArray[np.intp]:
    """Indices [n, count] of the smallest values of each row of scores [n, C], in order.

    One minimum after the other: for few of some hundred that is several times as fast as a partial sort.
    """
    if count == 1:
        return scores.argmin(1)[:, None]
    left = scores.copy()
    rows = np.arange(len(left))
    indices = np.empty((len(left), count), np.intp)
    for i in range(count):
        indices[:, i] = left.argmin(1)
        left[rows, indices[:, i]] = np.inf
    return indices
