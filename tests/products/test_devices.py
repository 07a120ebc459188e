"""Where things are: a device's name as text that knows its parts."""

import copy
import json
import pickle

import numpy as np
import pytest

from codegemm import devices
from codegemm.devices import CPU, Device, device_of


@pytest.mark.parametrize(
    ("text", "parsed", "engine"),
    [("cpu", "cpu", "cpu"), ("cuda", "cuda:0", "cuda"), ("cuda:3", "cuda:3", "cuda"), ("cuda:13", "cuda:13", "cuda"),
     ("cuda:007", "cuda:7", "cuda")],
)  # fmt: skip
def test_names_are_parsed(text, parsed, engine):
    device = Device.parse(text)
    assert type(device) is Device
    assert (device, device.engine) == (parsed, engine)
    assert Device.parse(device) == device
    if engine == "cuda":
        assert device.number == int(parsed.removeprefix("cuda:"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gpu",
        "CPU",
        "cpu:0",
        "cpu ",
        "cuda:",
        "cuda:x",
        "cuda:-1",
        "cuda:1.5",
        "cuda:1\n",
        "cuda:٣",
        0,
        None,
        b"cpu",
    ],
)
def test_other_names_are_refused(text):
    with pytest.raises(ValueError, match="must be 'cpu', 'cuda' or 'cuda:<number>'"):
        Device.parse(text)


def test_a_device_is_text():
    device = Device("cuda:1")
    assert isinstance(device, str)
    assert (f"{device}", str(device), repr(device), json.dumps(device)) == ("cuda:1", "cuda:1", "'cuda:1'", '"cuda:1"')
    assert device == "cuda:1" != Device("cuda:0")
    assert {device: 1}["cuda:1"] == 1
    assert {"cuda:1": 1}[device] == 1
    assert Device("cpu") == CPU == "cpu"


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda device: pickle.loads(pickle.dumps(device))])
def test_a_device_stays_one(again):
    for device in (CPU, Device("cuda:2")):
        twin = again(device)
        assert type(twin) is Device
        assert (twin, twin.engine) == (device, device.engine)


def test_arrays_and_weights_know_where_they_are(emulated_gpu, make_weight):
    weight = make_weight(16, 64, "m1v4")
    assert type(weight.device) is type(weight.to("cuda").device) is Device
    assert (weight.device, weight.to("cuda").device) == (CPU, Device("cuda:0"))
    there = devices.move(np.arange(3), Device("cuda:0"))
    assert (device_of(there), device_of(devices.move(there, CPU))) == ("cuda:0", "cpu")
    assert type(device_of(there)) is Device


def test_weights_go_where_an_array_of_cupys_is(emulated_gpu, make_weight):
    there = devices.move(np.arange(3), Device("cuda:0"))
    assert make_weight(16, 64, "m1v4").to(there.device).device == "cuda:0"


def test_what_has_values_comes_to_the_host(emulated_gpu):
    """Not only arrays of CuPy's have a method `get`."""

    class Table:
        def get(self, key):
            raise AssertionError

        def __array__(self, dtype=None, copy=None):
            return np.arange(3)

    for values in (Table(), [0, 1, 2], devices.move(np.arange(3), Device("cuda:0"))):
        assert np.array_equal(devices.to_host(values), np.arange(3))


def test_the_processors_memory_has_a_speed():
    assert 1e9 < devices.bandwidth(CPU) < 1e12
