"""Multiplying by a weight: `matmul`, `linear` and `plan`.

A product goes the long way of `_multiply`, or the short way where x and out are what kernels take
(engines/*/shortcut.py). Where torch keeps a graph, it is a node of that (gradients.py).
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any, NamedTuple
from weakref import ref

import numpy as np

from codegemm import arrays, choice, devices, operands
from codegemm.buffers import Buffers, Parts
from codegemm.counts import count
from codegemm.devices import CPU, scope
from codegemm.engines.cpu import backward as cpu_backward
from codegemm.engines.cpu import library as cpu_library
from codegemm.engines.cpu.kernel import CpuKernel
from codegemm.engines.cpu.shortcut import Bound, Summand
from codegemm.engines.cpu.shortcut import Shortcut as CpuShortcut
from codegemm.engines.cpu.transformed import CpuTransformed
from codegemm.engines.cuda import backward as cuda_backward
from codegemm.engines.cuda import library
from codegemm.engines.cuda.shortcut import Shortcut as CudaShortcut
from codegemm.formats.weight import Matrix, TransposedWeight, Weight
from codegemm.kernel import Kernel, Product
from codegemm.locks import ForkSafeLock


def matmul(a: Any, b: Any, *, out: Any = None, kernel: str = "auto", precision: str = "full") -> Any:
    """`a @ b` with NumPy's meaning, one of the two a quantised weight.

    matmul(x, w.T): x [..., K] -> [..., M].   matmul(w, X): X [K] or [..., K, N] -> [M] or [..., M, N].

    So do `x @ w.T`, numpy.matmul and torch.matmul; cupy.matmul asks nobody what it is given, and refuses a weight.

    x: float16, bfloat16, float32 or float64 (computed in float32, whose range it then has), NumPy or torch on the CPU;
        with a weight on a GPU all but float64, CuPy or torch there, on whose current stream the product runs, or NumPy,
        which is copied there and back. A tensor that requires grad gets its gradient, g @ W, in float32 (float64 for
        float64) on the CPU and in its own dtype on a GPU; derivatives in forward mode and `torch.func` work, too.
    out: where to write, of the result's shape; x's dtype, or float32 for half x. Not where torch keeps a graph.
    kernel: a name of `codegemm.kernels()`, or `auto`.
    precision: `full`: an error of at most 2e-4 of the norm of each of the result's rows (of sums in float32 where these
        cancel further than they can tell), before it is rounded to its dtype. On a GPU 1e-3 for more than one row of x,
        several codebooks or x in float32 (2e-3 in bfloat16 where `dequant_dense` is taken), and of the norm that the
        result has where what is added does not cancel: the root of the sum of the squares of all products of a number
        in x and one in a centroid with its scale (of a rotated weight, of x and centroids in the rotated basis). `fast`
        lets `auto` take kernels with an error of at most 3e-2, about 1.2e-2 as a rule, where there are such
        (`psumbook_fast`, `dequant_fast`).

    Raises ValueError (shapes), TypeError (dtypes, devices), KernelError (a kernel that can't run) or RuntimeError
    (`out` where torch keeps a graph).
    """
    if isinstance(b, TransposedWeight) and not isinstance(a, Matrix):
        return _times_rows(a, b.T, out, kernel, precision)
    if isinstance(a, Weight) and not isinstance(b, Matrix):
        return _times_columns(a, b, out, kernel, precision)
    raise TypeError(
        f"matmul of {_named(a)} and {_named(b)}: a weight multiplies as x @ w.T or w @ X, with x and X dense"
    )


Matrix.matmul = staticmethod(matmul)


def linear(x: Any, w: Weight, bias: Any = None, *, kernel: str = "auto", precision: str = "full") -> Any:
    """x @ w.T + bias, a linear layer: x [..., K], bias [M] or None -> [..., M] in x's dtype.

    bias: of any real dtype, added in float32 (float64 for float64 x) before y is rounded to its dtype. A tensor that
        requires grad gets its gradient, for x a tensor.
    precision: as of `matmul`, in terms of the norm of y or of x @ w.T, whichever is larger.
    """
    if not isinstance(w, Weight):
        raise TypeError(f"linear: w is {_named(w)}, must be a quantised weight")
    return _times_rows(x, w, None, kernel, precision, bias)


Matrix.linear = staticmethod(linear)


class Call(NamedTuple):
    """What a product needs beside its operands. give_back: whom the buffer that `parts` are of is given to again."""

    kernel: Kernel
    prepared: Any
    parts: Parts
    give_back: Callable[[], None] = lambda: None


_first_calls = ForkSafeLock()  # of plans


class Plan:
    """A product decided beforehand: `plan(x, out=y)` only checks, converts in place and runs.

    With `out=` nothing of the size of x or y is allocated (`reference` and `dense_bf16`, and kernels without a
    compiler, do allocate). On the CPU it takes one of the workspaces that are kept (up to 64 MiB; more is allocated at
    every call), so that threads may share it; on a GPU it holds one, and serves the thread that called it first, one
    stream at a time. It has no graph of torch's. With x and out on its GPU a call never synchronises, and compiles
    nothing unless one of them has to be copied, so that a CUDA graph can capture it. It can be copied, but not pickled.
    """

    def __init__(
        self, weight: Weight, product: Product, kernel: Kernel, bias: Any = None, *, exact: bool = False
    ) -> None:
        """A product with `weight`, and those of fewer rows, by a kernel that doesn't refuse them.

        bias: [M] on the weight's device, of any library, not written to any more, or None. exact: without those of
        fewer rows; what has to be compiled is at the first call, copies are allocated, and workspaces are shared.
        """
        self.weight, self.kernel, self.n, self.dtype = weight, kernel, product.n, product.dtype
        self._product = product = replace(product, biased=bias is not None and _adds_bias(kernel, self.dtype))
        self._bias: Any = None
        self._summand: Summand | None = None  # what the CPU's kernel adds
        self._added: tuple[Any, ...] = ()  # the GPU's
        if bias is not None:
            self._add(bias)
        self._exact = exact
        self._thread: int | None = None
        with scope(weight.device):
            prepared = kernel.prepared(weight)
            batches = (self.n,) if exact else kernel.batches(self.n)
            size = max(kernel.workspace(replace(product, n=rows), weight.device) for rows in batches)
            # One buffer serves float32 and x's own dtype: it is as wide as the wider of them.
            sizes = size, product.x_bytes, self.n * weight.shape[0] * max(4, self.dtype.itemsize)
            self._buffers = Buffers(weight.device, *sizes, shared=exact)
        self.prepared = prepared

    @property
    def prepared(self) -> Any:
        """The weight in the kernel's form; another weight of the same spec in this form may take its place."""
        return self._prepared

    @prepared.setter
    def prepared(self, prepared: Any) -> None:
        self._prepared = prepared
        self._cpu: CpuShortcut | None = None
        self._cuda: CudaShortcut | None = None
        device = self.weight.device
        with scope(device):
            if not self._exact:
                self.kernel.load(prepared, self._product)
            if device != CPU:
                devices.synchronize()  # the calls may come on any stream
        if self._bias is not None and not self._product.biased:
            return
        # Not of the plan itself: a cycle would outlive it until the garbage collector runs.
        bind = partial(_bind, self.kernel, prepared, self._product)
        if device == CPU:
            self._cpu = CpuShortcut(self.weight.shape, bind, self.n, self.dtype)
        else:
            self._cuda = CudaShortcut(device, self.weight.shape, bind, self.n, self.dtype)

    @property
    def bias(self) -> Any:
        """What is added, [M] on the weight's device, or None; of a plan that has one another may take its place, which
        must not be written to any more."""
        return self._bias

    @bias.setter
    def bias(self, bias: Any) -> None:
        if bias is None or self._bias is None:
            raise ValueError("bias: a plan is made with one or without")
        self._add(bias)

    def _add(self, bias: Any) -> None:
        device = self.weight.device
        with scope(device, bias):
            self._bias = operands.summand(operands.bias_of(bias, self.weight.shape[0], device), self.dtype)
        if self._product.biased and device == CPU:
            self._summand = Summand.of(self._bias)
        elif self._product.biased:
            self._added = (self._bias,)

    def decide(self, x: Any, out: Any = None) -> None:
        """What the first call with operands of such shapes and dtypes decides for all, without multiplying."""
        if self._cpu is not None:
            self._cpu.decide(x, out)

    def __call__(self, x: Any, out: Any = None, stream: Any = None) -> Any:
        """x [..., K] of at most n rows in the plan's dtype -> [..., M], in `out` where given.

        stream: on a GPU what to run on, an object with `ptr`; else x's own library's current stream.

        Raises what `matmul` does, and RuntimeError for an x that requires grad while torch tracks gradients and, on a
        GPU, in another thread than the first.
        """
        if self._cpu is not None:
            y = self._cpu.multiply(x, out, self._summand)
            if y is not None:
                return y
        elif self._cuda is not None:
            ready = self._cuda.find(x, out, stream)
            if ready is not None:
                run, rows, out_rows, stream = ready
                own = self._buffers.own
                workspace = self._buffers.find(stream) if own is None else own
                if workspace is not None:
                    self._check_thread()
                    run(rows, out_rows, workspace, stream, *self._added)
                    return out
        if operands.tracks(x, out):
            raise RuntimeError(
                "x or out requires grad or is transformed by torch, and a plan has no graph: call codegemm.linear or "
                "matmul, or the plan under torch.no_grad()"
            )
        return _multiply(self.weight, x, out, self._call_for, stream, self._bias)

    def _check_thread(self) -> None:
        """On a GPU a RuntimeError in another thread than the first whose product runs: products on its stream would
        write to the same workspace."""
        if self._thread == threading.get_ident() or self.weight.device == CPU:
            return
        with _first_calls:
            if self._thread is not None:
                raise RuntimeError("this plan was called in another thread before: on a GPU make one for each thread")
            self._thread = threading.get_ident()

    def _call_for(self, rows: int, dtype: np.dtype) -> Call:
        if dtype != self.dtype:
            raise TypeError(f"x: dtype {dtype}, this plan is for {self.dtype}")
        if rows > self.n:
            raise ValueError(f"x: {rows} rows, this plan is for at most {self.n}")
        self._check_thread()
        buffer = self._buffers.take()
        return Call(self.kernel, self._prepared, self._buffers.parts(buffer), partial(self._buffers.give_back, buffer))

    def __reduce__(self) -> Any:
        raise TypeError("a plan can't be pickled: make one from the weight, which can, where it is needed")

    def __copy__(self) -> Plan:
        return self._twin(self.__dict__)

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        twin = self._twin(copy.deepcopy(self.__dict__, memo))
        twin.prepared = twin._prepared  # whose addresses are others
        if twin._bias is not None:
            twin._add(twin._bias)
        return twin

    def _twin(self, state: dict[str, Any]) -> Plan:
        twin = object.__new__(type(self))
        twin.__dict__.update(state)
        return twin

    def __repr__(self) -> str:
        return f"<plan {self.kernel.full_name} for {self.n} x {self.dtype} times {self.weight!r}>"


def plan(
    w: Weight, n: int = 1, dtype: Any = np.float32, kernel: str = "auto", precision: str = "full", bias: Any = None
) -> Plan:
    """Decide and prepare the product of up to n rows of `dtype` with `w`, so that calls cost no more than the work.

    bias: [M], of any real dtype, added to every row as in `linear`; a copy is kept. RuntimeError for one that requires
        grad while torch tracks gradients, since a plan has no graph.
    """
    choice.check(kernel, precision)
    _checked(w, "plan", n)
    if operands.tracks(bias):
        raise RuntimeError("bias requires grad, and a plan has no graph: give it bias.detach()")
    product = Product.of(w.spec, n, dtype)
    if bias is not None:
        with scope(w.device, bias):
            bias = operands.bias_of(bias, w.shape[0], w.device).copy()
            if w.device != CPU:
                devices.synchronize()  # the calls may come on any stream
    return Plan(w, product, choice.select(product, w.device, kernel, precision), bias)


def compact(w: Weight, n: int = 1, dtype: Any = np.float32, kernel: str = "auto", precision: str = "full") -> Kernel:
    """Let a weight hold its codes in one order alone, that of the kernel which products of n rows of `dtype` get.

    Kernels store codes in an order of their own, beside those of the weight. From now on the weight makes its own
    anew where somebody asks for them: `dequantize`, `save`, `to`, slices and other kernels work, and take longer to
    begin. Nothing changes where the kernel reads codes as they are. Plans made before keep what they have. Returns the
    kernel.
    """
    product = Product.of(_checked(w, "compact", n).spec, n, dtype)
    chosen = choice.select(product, w.device, kernel, precision)
    with scope(w.device):
        prepared = chosen.prepared(w)
        if chosen.rearranged:
            chosen.let_go(w, prepared)
            w.memo[chosen, w.device] = prepared
    return chosen


def _checked(w: Any, caller: str, n: Any) -> Weight:
    """The weight of a call for n rows; TypeError or ValueError for what can't be one."""
    if not isinstance(w, Weight):
        raise TypeError(f"{caller}: w is {_named(w)}, must be a quantised weight")
    count("n", n)
    return w


def _times_rows(x: Any, weight: Weight, out: Any, kernel: str, precision: str, bias: Any = None) -> Any:
    """x @ W^T + bias."""
    if kernel != "auto" or precision != "full":
        choice.check(kernel, precision)
    shortcut = _shortcut(weight, kernel, precision, bias is not None)
    y = shortcut.multiply(x, out, bias) if weight.device == CPU else _by_shortcut(shortcut, weight, x, out, bias)
    if y is not None:
        return y
    if operands.tracks(x, out, bias):
        return _tracked(x, weight, out, kernel, precision, bias)
    if bias is not None:
        bias = operands.bias_of(bias, weight.shape[0], weight.device)

    def call_for(rows: int, dtype: np.dtype) -> Call:
        chosen = _chosen(weight, max(rows, 1), dtype, kernel, precision, bias is not None)
        if weight.device != CPU:
            return Call(chosen.kernel, chosen.prepared, Parts(library.workspace(weight.device, chosen.workspace_bytes)))
        workspace = cpu_library.take_workspace(chosen.workspace_bytes)
        return Call(chosen.kernel, chosen.prepared, Parts(workspace.array), partial(cpu_library.give_back, workspace))

    return _multiply(weight, x, out, call_for, bias=bias)


def _tracked(x: Any, weight: Weight, out: Any, kernel: str, precision: str, bias: Any) -> Any:
    """x @ W^T + bias as a node of torch's graph; RuntimeError where it can't be one."""
    from codegemm import gradients

    if out is not None:
        raise RuntimeError("out: torch keeps a graph for x or out, which a result written there would not be in")
    if not arrays.is_torch(x):
        raise RuntimeError(f"bias requires grad and x is {type(x).__name__}: only products of tensors have a graph")

    def forward(x: Any, bias: Any) -> Any:
        return _times_rows(x, weight, None, kernel, precision, bias)

    return gradients.linear(x, bias, forward, partial(back, weight))


def back(weight: Weight, g: Any) -> Any:
    """g @ W for a tensor g [..., M], in its dtype and without a graph: the gradient of x @ W^T."""
    with scope(weight.device, g):
        array = operands.incoming(g, weight.device)
        rows = operands.as_rows(array, prod(array.shape[:-1]))
        if weight.device == CPU:
            return arrays.to_torch(
                cpu_backward.multiply(weight, rows).astype(rows.dtype).reshape(*g.shape[:-1], weight.shape[1])
            )
        result = g.new_empty((*g.shape[:-1], weight.shape[1]))
        out = arrays.from_torch(result).reshape(len(rows), weight.shape[1])
        cuda_backward.multiply(rows, lambda x: _times_rows(x, weight, None, "auto", "full"), out)
        return result


def _times_columns(weight: Weight, x: Any, out: Any, kernel: str, precision: str) -> Any:
    """W @ X, through the transposes: the columns of X are the rows of a batch."""
    if not arrays.is_torch(x):
        x = arrays.as_array(x, "X")
    if x.ndim < 2:
        return _times_rows(x, weight, out, kernel, precision)
    if x.shape[-2] != weight.shape[1]:
        raise ValueError(
            f"X: shape {tuple(x.shape)}, its last axis but one must be in_features={weight.shape[1]} of the weight"
        )
    shape = (*x.shape[:-2], weight.shape[0], x.shape[-1])
    if out is not None and tuple(getattr(out, "shape", ())) != shape:
        raise ValueError(f"out: shape {tuple(getattr(out, 'shape', ()))}, must be {shape}")
    rows = x.swapaxes(-1, -2)
    y = _times_rows(rows, weight, None if out is None else out.swapaxes(-1, -2), kernel, precision)
    return y.swapaxes(-1, -2) if out is None else out


def _multiply(
    weight: Weight,
    x: Any,
    out: Any,
    call_for: Callable[[int, np.dtype], Call],
    stream: Any = None,
    bias: Any = None,
) -> Any:
    """x @ W^T + bias the long way, for whatever x and out are.

    call_for: what to call for a number of rows and x's dtype; it raises for those that can't be. bias: [M] on the
    weight's device, or None.
    """
    with scope(weight.device, x, stream):
        array = operands.incoming(x, weight.device)
        shape = operands.result_shape(array, weight.shape)
        rows = prod(shape[:-1])
        out = operands.output_like(x, shape) if out is None else out
        target = operands.target(out, shape, array.dtype, weight.device)
        call = call_for(rows, array.dtype)
        if rows:
            bias = None if bias is None else operands.summand(bias, array.dtype)
            added = (bias,) if bias is not None and _adds_bias(call.kernel, array.dtype) else ()
            later = None if added else bias
            if later is not None:
                y = operands.staged(target, call.parts.y, later.dtype)
            else:
                y = target if operands.takes_kernels(target, array) else operands.staged(target, call.parts.y)
            x_rows = operands.as_rows(array, rows, call.parts.x)
            call.kernel.run(call.prepared, x_rows, y.reshape(rows, -1), call.parts.workspace, None, *added)
            if later is not None:
                operands.add_bias(y, later, target)
            elif y is not target:
                target[...] = y
        call.give_back()
        return operands.outgoing(target, out, x)


def _by_shortcut(shortcut: CudaShortcut, weight: Weight, x: Any, out: Any, bias: Any) -> Any:
    """x @ W^T in `out` on a GPU where nothing has to be copied or made for it; None where the long way must be gone."""
    ready = None if out is None or bias is not None else shortcut.find(x, out, None)
    if ready is None:
        return None
    (run, workspace_bytes), rows, out_rows, stream = ready
    workspace = library.find_workspace(weight.device, workspace_bytes, stream)
    if workspace is None:
        return None
    run(rows, out_rows, workspace, stream)
    return out


def _shortcut(weight: Weight, kernel: str, precision: str, biased: bool) -> Any:
    """The engine's, kept with the weight."""
    key = (kernel, precision, biased, *choice.state(weight.device))
    shortcut = weight.memo.get(key)
    if shortcut is None:
        itself = ref(weight)  # which keeps this

        def bind(rows: int, dtype: np.dtype, out_dtype: np.dtype) -> Any:
            weight = itself()
            assert weight is not None
            chosen = _chosen(weight, rows, dtype, kernel, precision, biased)
            product = Product.of(weight.spec, rows, dtype, biased=biased)
            run = _bind(chosen.kernel, chosen.prepared, product, rows, dtype, out_dtype)
            return run if weight.device == CPU else (run, chosen.workspace_bytes)

        if weight.device == CPU:
            shortcut = CpuShortcut(weight.shape, bind)
        else:
            shortcut = CudaShortcut(weight.device, weight.shape, bind)
        weight.memo[key] = shortcut
    return shortcut


def _bind(kernel: Kernel, prepared: Any, product: Product, rows: int, dtype: np.dtype, out_dtype: np.dtype) -> Any:
    """What a shortcut runs: on the CPU a `Bound`, or None where the product is more than calls of compiled code."""
    product = replace(product, n=rows, dtype=dtype, out_dtype=out_dtype)
    if kernel.engine == "cuda":
        return kernel.bind(prepared, product)
    if not isinstance(kernel, CpuKernel | CpuTransformed) or (product.biased and not _adds_bias(kernel, dtype)):
        return None
    run = kernel.bound(prepared, product)
    return None if run is None else Bound(run, kernel.workspace(product, CPU))


def _adds_bias(kernel: Kernel, dtype: np.dtype) -> bool:
    """Whether the kernel itself adds a bias to products of x in `dtype`; to those of float64 it is added in float64."""
    return kernel.adds_bias and dtype.itemsize < 8


class _Chosen(NamedTuple):
    """The kernel of a product and what it needs of the weight."""

    kernel: Kernel
    prepared: Any
    workspace_bytes: int


def _chosen(weight: Weight, rows: int, dtype: np.dtype, name: str, precision: str, biased: bool = False) -> _Chosen:
    """Kept with the weight: deciding anew costs more than a small product."""
    key = (rows, dtype, name, precision, biased, choice.state(weight.device))
    chosen = weight.memo.get(key)
    if chosen is None:
        product = Product.of(weight.spec, rows, dtype)
        kernel = choice.select(product, weight.device, name, precision)
        size = kernel.workspace(replace(product, biased=biased and kernel.adds_bias), weight.device)
        chosen = weight.memo[key] = _Chosen(kernel, kernel.prepared(weight), size)
    return chosen


def _named(value: Any) -> str:
    return "w.T" if isinstance(value, TransposedWeight) else type(value).__name__
