"""Compiles kernels with the emulator and runs products' steps on NumPy arrays."""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import itertools
import os
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from codegemm import kernels_cu
from codegemm.engines.cuda.gpu import Gpu
from codegemm.engines.cuda.launch import filled
from codegemm.engines.cuda.steps import COUNTER_BYTES, Array, Gemm, Scratch, Steps
from codegemm.kernel import Product

HERE = Path(__file__).parent
SANITIZE = os.environ.get("EMULATOR_SANITIZE") == "1"
ORDERS = ("forward", "reversed", "shuffled")
# Few multiprocessors, so that small shapes are cut as large ones are on a GPU.
SMALL_GPU = Gpu(90, 4, shared_per_block=232448, shared_per_multiprocessor=233472, threads_per_multiprocessor=2048)
DESKTOP_GPU = Gpu(89, 2, shared_per_block=101376, shared_per_multiprocessor=102400, threads_per_multiprocessor=1536)

# Not optimised: an instance is compiled for longer than it runs.
_FLAGS = ["-std=c++17", "-O0", "-fPIC", "-Wno-unknown-pragmas", f"-I{HERE}", f"-idirafter{kernels_cu.FOLDER}"]
if SANITIZE:
    _FLAGS += ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
# An entry's arguments come as CUDA's driver takes them: an array of pointers.
_CALLER = """
struct Call {
    template <class... A>
    Call(void (*kernel)(A...), A... arguments) {
        kernel(arguments...);
    }
};
template <class... A>
void call(void (*kernel)(A...), void** arguments) {
    Call{kernel, *static_cast<A*>(*arguments++)...};  // in braces from the first to the last
}
template <class... A>
int arguments_of(void (*)(A...)) {
    return sizeof...(A);
}
"""
_LAUNCHER = """
ENTRY(entry_{index}, {instance})
extern "C" const char* launch_{index}(const emulator::Launch* launch, void** arguments) {{
    return emulator::run(*launch, [](void** arguments) {{ call(entry_{index}, arguments); }}, arguments);
}}
extern "C" int arguments_{index}() {{ return arguments_of(entry_{index}); }}
"""
_TOGETHER = 8  # instances in a library: most of the compiler's time goes into what they share


class EmulatorError(AssertionError):
    """What a kernel did that a GPU would not forgive."""


@dataclass(frozen=True)
class Counts:
    """What one place of the source moved, summed over all warps; an instruction is one of a whole warp."""

    instructions: int
    wavefronts: int
    least_wavefronts: int
    sectors: int
    least_sectors: int
    bytes: int


@dataclass(frozen=True)
class Report:
    """Counts by (file, function, space, kind), and how often what happened."""

    counts: dict[tuple[str, str, str, str], Counts]
    events: dict[str, int]

    def of(self, function: str, kind: str = "load", space: str = "shared") -> Counts:
        """The counts of one function."""
        [counts] = [c for (_, f, s, k), c in self.counts.items() if (f, s, k) == (function, space, kind)]
        return counts


class _Launch(ctypes.Structure):
    _numbers = ("grid_x", "grid_y", "grid_z", "threads", "shared_bytes", "cluster", "order")
    _fields_ = [(name, ctypes.c_int) for name in _numbers]
    _fields_ += [("seed", ctypes.c_uint32), ("awaited", ctypes.c_uint64 * 6)]


def multiply(kernel, weight, x, out_dtype=np.float32, gpu=SMALL_GPU, steps=None, bias=None, **options):
    """x @ W^T by a kernel's emulated steps for `gpu`, and the reports of its launches. steps: in place of its own."""
    product = Product.of(weight.spec, len(x), x.dtype, out_dtype, bias is not None)
    if reason := kernel.unfit_for(product, gpu):
        raise ValueError(reason)
    out = aligned(np.full((len(x), weight.shape[0]), np.nan, product.out_dtype))
    return out, run(steps or kernel.decide(product, gpu), arranged(kernel, weight), x, out, bias=bias, **options)


def cut_steps(module, product, cut, gpu=SMALL_GPU):
    """A product's steps where a kernel's module, of one launch or of several, cuts it so."""
    scratch = Scratch()
    launches = getattr(module, "launches", lambda *how: [module.launch(*how)])(product, cut, gpu, scratch)
    return Steps(tuple(launches), scratch.end)


def arranged(kernel, weight):
    """A weight on the CPU in a CUDA kernel's order, every array as on a GPU."""
    prepared = kernel.arrange(weight)
    prepared.arrays = {name: aligned(array) for name, array in prepared.arrays.items()}
    return prepared


def new_workspace(size):
    """Poisoned but for its counters."""
    workspace = aligned(np.full(size, 0xFF, np.uint8))
    workspace[:COUNTER_BYTES] = 0
    return workspace


def run(steps, prepared, x, out, workspace=None, order="forward", seed=0, folder=kernels_cu.FOLDER, bias=None):
    """Steps with a workspace, a new one by default; the reports of the launches among them."""
    x, workspace = aligned(x), new_workspace(steps.workspace) if workspace is None else workspace
    reports = []
    for step in steps.each:
        here = x if step.x is None else step.x.of(workspace)
        there = out if step.y is None else step.y.of(workspace)
        if isinstance(step, Gemm):
            dense = prepared.arrays[step.dense.name] if isinstance(step.dense, Array) else step.dense.of(workspace)
            there[:, step.first : step.first + len(dense)] = here.astype(np.float32) @ dense.astype(np.float32).T
            continue
        here = aligned(bias) if step.takes_bias else here
        arguments = [here, there, workspace, *(filled(argument, prepared) for argument in step.arguments)]
        shape = step.grid, (step.threads,), step.shared_bytes
        reports.append(launch(step.source, step.instance, *shape, arguments, order, seed, folder, step.cluster))
    if workspace[:COUNTER_BYTES].any():
        raise EmulatorError("the kernel left counters that are not zero")
    return reports


def launch(
    source, instance, grid, block, shared_bytes, arguments, order="forward", seed=0, folder=kernels_cu.FOLDER, cluster=1
):
    """Run one instance; arguments as CuPy takes them: arrays, NumPy scalars, structures (arrays without axes)."""
    shape = _Launch(*(*grid, 1, 1)[:3], *block, shared_bytes, cluster, ORDERS.index(order), seed, _awaited(arguments))
    held = [_argument(argument) for argument in arguments]
    pointers = (ctypes.c_void_p * len(held))(*(value.ctypes.data for value in held))
    if (source, instance, folder) not in _compiled:
        _build(source, [instance], folder)
    run, count = _compiled[source, instance, folder]
    if len(held) != count:
        raise EmulatorError(f"{instance} takes {count} arguments, {len(held)} came")
    with _running:
        complaint = run(ctypes.byref(shape), pointers)
        report = _read(_emulator()[1]().decode())
        if complaint:
            raise EmulatorError(complaint.decode())
    return report


def _awaited(arguments) -> Any:
    """Where x, y and the workspace begin and end: a product's kernels have them first."""
    first = arguments[:3]
    if len(first) < 3 or not all(isinstance(array, np.ndarray) and array.ndim for array in first):
        return (ctypes.c_uint64 * 6)()
    ends = ((array.ctypes.data, array.ctypes.data + array.nbytes) for array in first)
    return (ctypes.c_uint64 * 6)(*(place for pair in ends for place in pair))


def compile_steps(steps, folder=kernels_cu.FOLDER) -> None:
    """Compile the launches among all these steps on all cores, to be found by `launch`."""
    wanted = {(launch.source, launch.instance, folder) for each in steps for launch in each.launches}
    missing = sorted(key[:2] for key in wanted - set(_compiled))
    groups = []
    for source, of_source in itertools.groupby(missing, key=lambda key: key[0]):
        instances = [instance for _, instance in of_source]
        groups += [(source, instances[i : i + _TOGETHER]) for i in range(0, len(instances), _TOGETHER)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda group: _build(*group, folder), groups))


def aligned(array):
    """A copy on a boundary of 256 bytes, as on a GPU, with nothing readable behind it."""
    raw = np.empty(array.nbytes + 255, np.uint8)
    start = -raw.ctypes.data % 256
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _argument(value) -> np.ndarray:
    """What an argument's pointer points to: the value itself, or an array's address."""
    if isinstance(value, np.ndarray) and value.dtype.fields is None:
        return np.array(value.ctypes.data, np.uint64)
    return np.asarray(value)


def _read(text: str) -> Report:
    counts, events = {}, {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 10:
            counts[tuple(words[:4])] = Counts(*map(int, words[4:]))
        else:
            events[" ".join(words[:-1])] = int(words[-1])
    return Report(counts, events)


_compiling, _running = threading.Lock(), threading.Lock()  # the emulator, which there is once; one launch at a time
# Launch and number of arguments of every instance that was compiled, by source, instance and the folder.
_compiled: dict[tuple[str, str, Path], tuple[Any, int]] = {}


@cache
def _folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="codegemm-emulator-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


@cache
def _emulator() -> tuple[Path, Any]:
    """The library that those of kernels are linked to, and what reports of launches."""
    path = _folder() / "emulator.so"
    _compile([*_FLAGS, "-O2", "-Wno-clobbered", "-shared", str(HERE / "emulator.cpp"), "-o", str(path)])
    report = ctypes.CDLL(str(path)).emulator_report
    report.restype = ctypes.c_char_p
    return path, report


def _build(source: str, instances: list[str], folder: Path) -> None:
    """One library of these instances."""
    with _compiling:
        emulator, _ = _emulator()
    name = hashlib.sha256(f"{source} {instances} {folder}".encode()).hexdigest()[:16]
    code, compiled = _folder() / f"{name}.cpp", _folder() / f"{name}.so"
    launchers = "".join(_LAUNCHER.format(index=index, instance=instance) for index, instance in enumerate(instances))
    code.write_text(f'#include "{folder}/{source}"\n{_CALLER}{launchers}')
    _compile([*_FLAGS, "-fno-exceptions", "-shared", str(code), str(emulator), "-o", str(compiled)])
    library = ctypes.CDLL(str(compiled))
    for index, instance in enumerate(instances):
        launcher = library[f"launch_{index}"]
        launcher.restype = ctypes.c_char_p
        _compiled[source, instance, folder] = launcher, library[f"arguments_{index}"]()


def _compile(arguments: list[str]) -> None:
    done = subprocess.run([os.environ.get("CXX", "g++"), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[:4000])
