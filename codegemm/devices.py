"""Where arrays are: the processor or one of the GPUs that CuPy sees, copies between them, streams, views across
libraries. Nothing here knows of weights or kernels, and CuPy and torch are imported only where they are there already
or asked for."""

from __future__ import annotations

import importlib.util
import re
import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import numpy as np

from codegemm.arrays import as_array, is_torch

HERE: AbstractContextManager[Any] = nullcontext()
_PROCESSOR_BANDWIDTH, _GPU_BANDWIDTH = 2e10, 1e12


class Device(str):
    """`cpu` or `cuda:<number>`: text that knows its parts."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: object) -> Self:
        """Of `cpu`, `cuda` (which is cuda:0), `cuda:<number>` or a device of torch or CuPy; ValueError for all else."""
        match = re.fullmatch(r"cpu|cuda(?::([0-9]+))?", _name_of(text))
        if match is None:
            raise ValueError(f"device {text!r}: must be 'cpu', 'cuda' or 'cuda:<number>'")
        return cls("cpu" if match[0] == "cpu" else f"cuda:{int(match[1] or 0)}")

    @property
    def engine(self) -> str:
        """`cpu` or `cuda`."""
        return self.partition(":")[0]

    @property
    def number(self) -> int:
        """1 of `cuda:1`."""
        return int(self.partition(":")[2])


def _name_of(device: object) -> str:
    """Of a device of any library as torch writes it; found without importing one."""
    if isinstance(device, str):
        return device
    torch, cupy = map(sys.modules.get, ("torch", "cupy"))
    if torch is not None and isinstance(device, torch.device):
        return "cpu" if device.type == "cpu" else str(device)  # not cpu:0
    if cupy is not None and isinstance(device, cupy.cuda.Device):
        return f"cuda:{device.id}"
    return ""


CPU, FIRST_GPU = Device("cpu"), Device("cuda:0")


def device_of(array: Any) -> Device:
    """Where a NumPy array, a CuPy array or a torch tensor is."""
    if is_torch(array):
        return CPU if array.device.type == "cpu" else Device(f"{array.device.type}:{array.device.index or 0}")
    return CPU if isinstance(array, np.ndarray) else Device(f"cuda:{array.device.id}")


@cache
def unavailable() -> str | None:
    """Why no GPU can be used, in one sentence, or None."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed (pip install 'codegemm[cuda12]', or cuda13)"
    try:
        import cupy

        if cupy.cuda.runtime.getDeviceCount():
            return None
        return "CuPy finds no GPU"
    except Exception as error:  # a missing driver or library: every version raises another type
        try:
            return f"CuPy finds no usable GPU: {driver_problem() or error}"
        except Exception:
            return f"CuPy finds no usable GPU: {error}"


def driver_problem() -> str | None:
    """What is wrong with NVIDIA's driver, or None."""
    import cupy

    driver, needed = cupy.cuda.runtime.driverGetVersion(), cupy.cuda.runtime.runtimeGetVersion()
    if not driver:
        return "no NVIDIA driver is installed"
    if driver // 1000 < needed // 1000:
        return f"the NVIDIA driver is for CUDA {version_name(driver)}, CuPy for CUDA {needed // 1000}: renew the driver"
    return None


def version_name(number: int) -> str:
    """12.4 of 12040."""
    return f"{number // 1000}.{number % 1000 // 10}"


def check(device: Device) -> None:
    """RuntimeError unless it is there."""
    if device == CPU:
        return
    reason = unavailable()
    if reason:
        raise RuntimeError(f"{device}: {reason}")
    if device.number >= count():
        raise RuntimeError(f"{device}: GPUs are numbered from 0, and this machine has {count()}")


def count() -> int:
    """How many GPUs there are."""
    import cupy

    return int(cupy.cuda.runtime.getDeviceCount())


def name(device: Device = FIRST_GPU) -> str:
    """A GPU's product name."""
    import cupy

    return str(cupy.cuda.runtime.getDeviceProperties(device.number)["name"].decode())


@cache
def bandwidth(device: Device) -> float:
    """Bytes a second of its memory: a GPU's by its data sheet, as far as CUDA tells; a processor's as most have."""
    if device == CPU:
        return _PROCESSOR_BANDWIDTH
    import cupy

    runtime = cupy.cuda.runtime
    # Memory moves data at both edges of its clock.
    clock, bus_bits = (
        runtime.deviceGetAttribute(attribute, device.number)
        for attribute in (runtime.cudaDevAttrMemoryClockRate, runtime.cudaDevAttrGlobalMemoryBusWidth)
    )
    return 2e3 * clock * bus_bits / 8 or _GPU_BANDWIDTH


def module(device: Device) -> Any:
    """numpy or cupy, whichever makes arrays there."""
    if device == CPU:
        return np
    import cupy

    return cupy


def move(array: Any, device: Device) -> Any:
    """The values of a NumPy or CuPy array on `device`, on a GPU always a copy; RuntimeError where there is no such GPU.

    They are there when this returns: what reads them may run on any stream.
    """
    if device == CPU:
        return to_host(array)
    check(device)
    import cupy

    with using(device):
        copy = cupy.asarray(array)
        synchronize()
    return copy


def to_host(array: Any, name: str = "") -> np.ndarray:
    """The values of any library's array, a tensor on a GPU too, as a NumPy array; on the same memory where that is
    possible. name: what errors call it."""
    if is_torch(array) and array.device.type not in ("cpu", "meta"):
        array = array.detach().cpu()
    array = as_array(array, name)
    return array if isinstance(array, np.ndarray) else array.get()


def using(device: Device) -> Any:
    """A context in which that GPU is the current one."""
    import cupy

    return cupy.cuda.Device(device.number)


def beside(array: Any) -> AbstractContextManager[Any]:
    """A context in which CuPy computes and makes arrays where `array` is, and not on whichever GPU is current."""
    return HERE if isinstance(array, np.ndarray) else array.device


@dataclass(frozen=True)
class Stream:
    """A stream of another library. CuPy's launches read its pointer, `Stream.from_external` its protocol."""

    ptr: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.ptr


def synchronize() -> None:
    """Wait for everything on the current stream."""
    import cupy

    cupy.cuda.get_current_stream().synchronize()


def scope(device: Device, x: Any = None, stream: Any = None) -> AbstractContextManager[Any]:
    """Within it CuPy works on `device` and on `stream` (with a `ptr`), for a tensor x torch's current one."""
    if device == CPU:
        return HERE
    import cupy

    if stream is None and is_torch(x) and x.device.type == "cuda":
        stream = Stream(sys.modules["torch"].cuda.current_stream(x.device).cuda_stream)
    if stream is None:
        return HERE if cupy.cuda.runtime.getDevice() == device.number else using(device)
    stack = ExitStack()
    stack.enter_context(using(device))
    stack.enter_context(cupy.cuda.Stream.from_external(Stream(stream.ptr)))
    return stack
