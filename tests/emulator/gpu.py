"""A stand-in for CuPy whose one GPU is this machine's memory and whose kernels run in the emulator."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import tempfile
import time
import types
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from codegemm import arrays, choice, devices, kernels_cu
from codegemm.engines.cuda import compiler, dependent, library, timing
from codegemm.engines.cuda import gemm as cuda_gemm
from codegemm.engines.cuda.gpu import gpu_of
from emulator import emulate


class Device(contextlib.nullcontext):
    """A GPU's context."""

    def __init__(self, number=0):
        super().__init__()
        self.id = number


class Array:
    """An array that NumPy does not know, on host memory."""

    device = Device()

    def __init__(self, host, dtype=None, memptr=None, strides=None):
        if memptr is not None:  # as CuPy makes a view: shape, dtype, pointer, strides
            size = memptr.mem.size
            buffer = (ctypes.c_char * size).from_address(memptr.mem.ptr)
            host = np.ndarray(host, dtype, buffer, strides=strides)
            self.owner = memptr.mem.owner
        self.host = host

    @property
    def __cuda_array_interface__(self):
        return self.host.__array_interface__

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self.host.ctypes.data, device_id=0)

    @property
    def _c_contiguous(self):
        return self.host.flags.c_contiguous

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self.host, name)
        if callable(value):
            return lambda *arguments, **named: wrap(value(*map(host, arguments), **named))
        return wrap(value)

    def __getitem__(self, key):
        return wrap(self.host[host(key)])

    def __setitem__(self, key, value):
        self.host[host(key)] = host(value)

    def __iadd__(self, other):
        self.host += host(other)
        return self

    def __len__(self):
        return len(self.host)

    def __float__(self):
        return float(self.host)

    def __deepcopy__(self, memo):
        return Array(self.host.copy())

    def get(self):
        return self.host.copy()


def _operator(name):
    return lambda self, *others: wrap(getattr(self.host, name)(*map(host, others)))


for _name in ("__matmul__", "__mul__", "__or__", "__and__", "__lshift__", "__rshift__", "__abs__"):
    setattr(Array, _name, _operator(_name))


class Kernel:
    """What RawModule.get_function returns: a launch runs the instance in the emulator."""

    def __init__(self, source, instance):
        self.source, self.instance = source, instance
        self.max_dynamic_shared_size_bytes = 48 << 10
        self.launches = []  # (grid, block, shared bytes, stream's pointer)

    def __call__(self, grid, block, args, *, shared_mem=0, stream=None):
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        # By value CuPy takes numbers and arrays of one element.
        assert all(isinstance(a, (Array, np.generic)) or (isinstance(a, np.ndarray) and a.size == 1) for a in args)
        pointer = (stream or Stream.current).ptr
        self.launches.append((grid, block, shared_mem, pointer))
        held = [host(argument) for argument in args]

        def run():
            settings = emulation.order, emulation.seed, emulation.folder
            report = emulate.launch(self.source, self.instance, grid, block, shared_mem, held, *settings)
            emulation.reports.append(report)

        submit(run, pointer)


class RawModule:
    """A loaded cubin; the emulator knows its kernel by the name that the compiler gave it."""

    def __init__(self, *, path):
        assert Path(path).read_bytes()[:4] == b"\x7fELF"

    def get_function(self, entry):
        return Kernel(*compiled[entry])


@dataclass
class Emulation:
    """How kernels run from now on, and what was counted of each since it was last cleared."""

    order: str = "forward"
    seed: int = 0
    folder: Path = kernels_cu.FOLDER
    reports: list[emulate.Report] = field(default_factory=list)


emulation = Emulation()
compiled: dict[str, tuple[str, str]] = {}  # sources and instances by their entries' names


def submit(work, pointer):
    """Do what comes on a stream, or note it where the stream is captured."""
    if pointer in captures:
        captures[pointer].append(work)
    else:
        work()


captures = {}  # what came so far on each stream that is captured


class Graph:
    """What was captured, done at every launch."""

    def __init__(self, works):
        self.works = works

    def launch(self, stream=None):
        for work in self.works:
            submit(work, (stream or Stream.current).ptr)


class Cublas:
    """cuBLAS's functions as `codegemm.engines.cuda.gemm` calls them; `status` is what they return."""

    status = 0

    def cublasSetStream_v2(self, handle, pointer):
        self.pointer, self.workspace = pointer, None  # cuBLAS's own again
        return self.status

    def cublasSetWorkspace_v2(self, handle, pointer, size):
        self.workspace = pointer, size
        return self.status

    def cublasGemmEx(self, handle, *arguments):
        (transpose, other, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, compute, _) = arguments
        assert (transpose, other, a_type, compute) == (1, 0, b_type, 68)
        assert (alpha._obj.value, beta._obj.value) == (1, 0)
        assert self.workspace is not None, "in a capture cuBLAS would allocate"
        submit(lambda: multiply_dense((m, n, k), (a, lda), (b, ldb), (c, ldc), a_type, c_type), self.pointer)
        return self.status


def multiply_dense(shape, a, b, c, dtype, out_dtype):
    """C = A^T B, columns first, on host memory; a, b, c: address and leading dimension."""
    types = {2: np.dtype(np.float16), 14: arrays.bfloat16(), 0: np.dtype(np.float32)}

    def at(place, rows, columns, dtype):
        address, leading = place
        size = ((rows - 1) * leading + columns) * dtype.itemsize
        memory = (ctypes.c_char * size).from_address(address)
        return np.ndarray((rows, columns), dtype, memory, strides=(leading * dtype.itemsize, dtype.itemsize))

    rows, n, k = shape
    x, dense = (at(place, count, k, types[dtype]).astype(np.float32) for place, count in ((b, n), (a, rows)))
    at(c, n, rows, types[out_dtype])[...] = x @ dense.T


def wrap(value):
    return Array(value) if isinstance(value, np.ndarray) else value


def host(value):
    if isinstance(value, tuple):
        return tuple(map(host, value))
    return value.host if isinstance(value, Array) else value


def aligned(array):
    return Array(emulate.aligned(array))


def module(gpu):
    """cupy as far as the package uses it."""
    cupy = types.ModuleType("cupy")
    cupy.ndarray = Array
    cupy.asarray = lambda array: aligned(np.array(host(array)))
    cupy.empty = lambda shape, dtype: aligned(np.empty(shape, dtype))
    cupy.zeros = lambda shape, dtype: aligned(np.zeros(shape, dtype))
    cupy.ascontiguousarray = lambda array: aligned(array.host)
    cupy.concatenate = lambda arrays, axis=0: Array(np.concatenate([array.host for array in arrays], axis))
    properties = {
        "major": gpu.arch // 10,
        "minor": gpu.arch % 10,
        "multiProcessorCount": gpu.multiprocessors,
        "sharedMemPerBlockOptin": gpu.shared_per_block,
        "sharedMemPerMultiprocessor": gpu.shared_per_multiprocessor,
        "maxThreadsPerMultiProcessor": gpu.threads_per_multiprocessor,
        "l2CacheSize": 1 << 10,
        "name": b"emulated GPU",
    }
    attributes = {13: gpu.clock / 1e3, 36: gpu.bandwidth / 2e6, 37: 8000}  # kHz, kHz, bits
    cupy.cuda = types.SimpleNamespace(
        runtime=types.SimpleNamespace(
            driverGetVersion=lambda: 13000,
            getDeviceCount=lambda: 1,
            getDevice=lambda: 0,
            getDeviceProperties=lambda number: properties,
            cudaDevAttrClockRate=13,
            cudaDevAttrMemoryClockRate=36,
            cudaDevAttrGlobalMemoryBusWidth=37,
            deviceGetAttribute=lambda attribute, number: attributes[attribute],
            memGetInfo=lambda: (1 << 30, 1 << 30),
            streamIsCapturing=lambda pointer: pointer in captures,
        ),
        Device=Device,
        Event=Event,
        get_elapsed_time=lambda begin, end: 1e3 * (end.time - begin.time),
        ExternalStream=Stream,
        Stream=Stream,
        get_current_stream=lambda: Stream.current,
        UnownedMemory=lambda ptr, size, owner, device_id: types.SimpleNamespace(ptr=ptr, size=size, owner=owner),
        MemoryPointer=lambda mem, offset: types.SimpleNamespace(mem=mem),
    )
    return cupy


class Stream:
    """A stream; within its context it is CuPy's current one."""

    def __init__(self, ptr=None, device_id=0, *, non_blocking=False):
        self.ptr = id(self) if ptr is None else ptr
        self.outer = []

    def begin_capture(self):
        assert self.ptr not in captures
        captures[self.ptr] = []

    def end_capture(self):
        return Graph(captures.pop(self.ptr))

    @staticmethod
    def from_external(other):
        return Stream(other.__cuda_stream__()[1])

    def __enter__(self):
        self.outer.append(Stream.current)
        Stream.current = self

    def __exit__(self, *exception):
        Stream.current = self.outer.pop()

    def synchronize(self):
        pass


Stream.current = Stream(0)


class Event:
    """A moment on a stream; the emulator runs everything at once."""

    def record(self):
        self.time = time.perf_counter()

    def synchronize(self):
        pass


class Tensor:
    """A torch tensor on `cuda:0`, on host memory."""

    is_cuda, requires_grad = True, False
    device = types.SimpleNamespace(type="cuda", index=0)

    def __init__(self, array):
        self.array = array
        self.shape, self.dtype = array.shape, f"torch.{array.dtype.name}"

    def detach(self):
        return self

    def is_neg(self):
        return False

    def data_ptr(self):
        return self.array.ctypes.data

    def stride(self):
        return tuple(step // self.array.itemsize for step in self.array.strides)

    def element_size(self):
        return self.array.itemsize

    def numel(self):
        return self.array.size

    def new_empty(self, shape):
        return Tensor(emulate.aligned(np.full(shape, 99, self.array.dtype)))


@pytest.fixture
def emulated_torch(monkeypatch):
    """A torch module whose tensors are on the emulated GPU, its current stream 77."""
    torch = types.ModuleType("torch")
    torch.Tensor = Tensor
    torch.autograd = types.SimpleNamespace(
        graph=types.SimpleNamespace(increment_version=lambda tensor: None),
        forward_ad=types.SimpleNamespace(_current_level=-1),
    )
    functorch = types.SimpleNamespace(peek_interpreter_stack=lambda: None)
    torch._C = types.SimpleNamespace(_functorch=functorch)
    torch.cuda = types.SimpleNamespace(current_stream=lambda device: types.SimpleNamespace(cuda_stream=77))
    monkeypatch.setitem(sys.modules, "torch", torch)
    return torch


@pytest.fixture
def emulated_gpu(monkeypatch, tmp_path_factory):
    """`cuda:0` is the emulator; its cupy module is returned.

    By the test's own monkeypatch: what the test changes on top is taken back before, and nothing of the emulator stays.
    """
    yield from _emulated(emulate.SMALL_GPU, monkeypatch, tmp_path_factory.mktemp("emulated"))


@contextlib.contextmanager
def emulated(gpu=emulate.SMALL_GPU):
    """Within it `cuda:0` is the emulator, with the limits of `gpu`."""
    with pytest.MonkeyPatch.context() as monkeypatch, tempfile.TemporaryDirectory() as folder:
        yield from _emulated(gpu, monkeypatch, Path(folder))


def _emulated(gpu, monkeypatch, folder):
    caches = (devices.unavailable, devices.bandwidth, gpu_of, choice._select)

    def forget():
        library.forget()
        for cached in caches:
            cached.cache_clear()
        emulation.order, emulation.seed, emulation.folder = "forward", 0, kernels_cu.FOLDER
        emulation.reports.clear()

    forget()
    compiler.version()  # CuPy's own, before the stand-in takes its name
    cupy = module(gpu)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    cubin = folder / "cubin"
    cubin.write_bytes(b"\x7fELF")

    def build(source, instance, arch):
        compiled[compiler.entry_name(instance)] = source, instance
        return cubin

    monkeypatch.setattr(compiler, "build", build)
    monkeypatch.setattr(dependent, "dependent", lambda kernel, gpu: kernel)
    monkeypatch.setattr(timing, "warm_up", lambda device: None)  # which has no clocks to raise
    cublas = Cublas()
    monkeypatch.setattr(cuda_gemm, "_cublas", lambda: cublas)
    monkeypatch.setattr(cuda_gemm, "_handle", lambda: 1)
    find = devices.importlib.util.find_spec
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: name == "cupy" or find(name))
    cupy.RawModule = RawModule
    try:
        yield cupy
    finally:
        forget()
