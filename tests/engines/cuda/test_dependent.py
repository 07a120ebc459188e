"""Dependent launches, by a stub of the driver that records what it is given."""

import contextlib
import ctypes
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import numpy as np
import pytest
from support.host_cupy import cupy, on_gpu

from codegemm.devices import Stream
from codegemm.engines.cuda import dependent, library

ARCH = 90


class Driver:
    """`cuLaunchKernelEx`: what it was called with, read as the driver would read it."""

    status = 0

    def __init__(self):
        self.launches, self.allowed = [], []

    def cuLaunchKernelEx(self, config, function, arguments, extra):
        data = ctypes.string_at(ctypes.addressof(config._obj), 56)
        numbers = np.frombuffer(data[:28], np.uint32)
        stream, attributes = np.frombuffer(data[32:48], np.uint64)
        count = np.frombuffer(data[48:52], np.uint32)[0]
        listed = np.frombuffer(ctypes.string_at(int(attributes), 72 * count), np.int32).reshape(count, 18)
        self.launches.append(
            {
                "grid": tuple(numbers[:3]),
                "block": tuple(numbers[3:6]),
                "shared": numbers[6],
                "stream": stream,
                "attributes": {attribute[0]: tuple(attribute[2:5]) for attribute in listed},
                "function": function.value,
                "arrays": [ctypes.c_uint64.from_address(pointer).value for pointer in arguments[:3]],
                "constants": [ctypes.c_int32.from_address(pointer).value for pointer in arguments[3:]],
                "extra": extra,
            }
        )
        return self.status

    def cuFuncSetAttribute(self, function, attribute, value):
        self.allowed.append((function.value, attribute, value))
        return 0


@pytest.fixture
def driver(monkeypatch):
    made = Driver()
    monkeypatch.setattr(dependent, "_driver", lambda: made)
    made.contexts = []
    monkeypatch.setattr(cupy.cuda.runtime, "getDevice", lambda: 3)
    monkeypatch.setattr(cupy.cuda.runtime, "memGetInfo", lambda: made.contexts.append(threading.get_ident()))
    monkeypatch.setattr(dependent, "_threads", dependent._Thread())
    monkeypatch.setattr(cupy.cuda.runtime, "driverGetVersion", lambda: 12030)
    dependent.unavailable.cache_clear()
    yield made
    dependent.unavailable.cache_clear()


def kernel():
    return types.SimpleNamespace(kernel=types.SimpleNamespace(ptr=0x1234), name="codegemm_one", num_regs=77)


def launch_one(stream=None, grid=(1,), block=(32,), shared_bytes=0, cluster=1, constants=()):
    arrays = [on_gpu(np.zeros(4, np.float16)) for _ in range(3)]
    launch = dependent.dependent(kernel(), ARCH).bound(grid, block, shared_bytes, cluster, constants)
    launch(*arrays, stream)
    return launch, arrays


def test_what_the_driver_is_given(driver):
    constants = (library.constant(np.int32(5)), library.constant(np.int32(-7)))
    _, arrays = launch_one(Stream(99), (8, 16), (512,), 72704, constants=constants)
    [launch] = driver.launches
    assert (launch["grid"], launch["block"]) == ((8, 16, 1), (512, 1, 1))
    assert (launch["shared"], launch["stream"], launch["function"], launch["extra"]) == (72704, 99, 0x1234, None)
    assert launch["attributes"] == {6: (1, 0, 0)}  # programmatic stream serialization, allowed
    assert launch["arrays"] == [array.data.ptr for array in arrays]
    assert launch["constants"] == [5, -7]
    assert dependent.dependent(kernel(), ARCH).num_regs == 77  # as CuPy's kernel has it


@pytest.mark.parametrize(("grid", "shape"), [((7, 32), (1, 16, 1)), ((7, 1, 32), (1, 1, 16)), ((32,), (16, 1, 1))])
def test_clusters_lie_along_the_last_axis(driver, grid, shape):
    launch_one(Stream(1), grid, (512,), cluster=16)
    [launch] = driver.launches
    assert launch["attributes"] == {6: (1, 0, 0), 4: shape}  # cluster dimension
    assert driver.allowed == [(0x1234, 14, 1)]  # of any size


def test_clusters_are_counted_by_size(driver, monkeypatch):
    """Of sizes that a GPU has no clusters of there are none; other refusals are told."""
    sizes = {1: (132, 0), 2: (66, 0), 16: (0, 912), 3: (0, 700)}  # so many, and the driver's status

    def count(found, function, config):
        data = ctypes.string_at(ctypes.addressof(config._obj), 8)
        found._obj.value, status = sizes[int(np.frombuffer(data, np.uint32)[1])]
        return status

    monkeypatch.setattr(cupy.cuda, "Device", lambda number: contextlib.nullcontext())
    for name in ("cuModuleLoadData", "cuModuleGetFunction", "cuModuleUnload"):
        monkeypatch.setattr(driver, name, lambda *arguments: 0, raising=False)
    monkeypatch.setattr(driver, "cuOccupancyMaxActiveClusters", count, raising=False)
    assert dependent.most_clusters(0, (1, 2, 16), 1 << 16) == (132, 66, 0)
    with pytest.raises(RuntimeError, match="count clusters: error 700"):
        dependent.most_clusters(0, (3,), 1 << 16)


def test_layouts_are_the_drivers():
    assert ctypes.sizeof(dependent._Config) == 56
    assert (dependent._Config.stream.offset, dependent._Config.attributes.offset) == (32, 40)
    assert dependent._Config.count.offset == 48
    assert (ctypes.sizeof(dependent._Attribute), dependent._Attribute.value.offset) == (72, 8)


def test_the_current_stream_without_another(driver, monkeypatch):
    monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda: Stream(5))
    launch_one()
    assert driver.launches[0]["stream"] == 5


def test_each_thread_has_a_context_and_arguments_of_its_own(driver):
    launch, arrays = launch_one(Stream(1))
    launch_one(Stream(1))
    assert driver.contexts == [threading.get_ident()]
    others = [on_gpu(np.zeros(4, np.float16)) for _ in range(3)]

    def run():
        launch(*others, Stream(2))
        return launch._slots.arrays, threading.get_ident()

    with ThreadPoolExecutor(1) as pool:
        theirs, identifier = pool.submit(run).result()
    assert driver.contexts == [threading.get_ident(), identifier]
    assert driver.launches[-1]["arrays"] == [array.data.ptr for array in others] == list(theirs)
    assert list(launch._slots.arrays) == [array.data.ptr for array in arrays]


def test_a_refusal_names_the_kernel(driver):
    driver.status = 701
    with pytest.raises(RuntimeError, match="refused to launch codegemm_one: error 701"):
        launch_one(Stream(1))


def test_older_gpus_and_drivers_launch_as_cupy_does(driver, monkeypatch):
    plain = kernel()
    assert dependent.dependent(plain, 89) is plain
    missing = "libcuda.so.1: cannot open shared object file"
    for place, name, instead, reason in (
        (dependent, "_driver", Mock(side_effect=OSError(missing)), missing),
        (dependent, "_driver", lambda: types.SimpleNamespace(), "too old"),
        (cupy.cuda.runtime, "driverGetVersion", lambda: 12020, "too old"),
    ):
        dependent.unavailable.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(place, name, instead)
            assert dependent.dependent(plain, ARCH) is plain
            assert reason in dependent.unavailable()
