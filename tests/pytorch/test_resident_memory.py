"""What layers take of the process's memory: about their packed weights."""

import sys

import pytest
from emulator import cases
from support.processes import python

pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc says how much memory is in use")

SCRIPT = """
import ctypes, gc, os, sys
import torch
import codegemm
from codegemm.formats.format import random_weight
from codegemm.torch import CodebookLinear

def used():
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed, and the allocator keeps
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

config, path, count = sys.argv[1], sys.argv[2], 9
codegemm.save_all(path, {f"layer{i}": random_weight((4096, 4096), config, i) for i in range(count)})
one, many = torch.randn(1, 4096), torch.randn(40, 4096)
with torch.no_grad():
    first = CodebookLinear(random_weight((4096, 4096), config, count))
    first(one), first(many)
    del first
    before = used()
    layers = [CodebookLinear(weight) for weight in codegemm.load_all(path).values()]
    packed = sum(layer.to_weight().nbytes for layer in layers)
    made = used()
    for layer in layers:
        layer(one)
    decoded = used()
    for layer in layers:
        layer(many)
print(packed, made - before, decoded - before, used() - before)
"""


@pytest.mark.parametrize("config", cases.some(["m1v4g128", "e8p", "m2v8g-1", "m2v8g128+rotated"], 4))
def test_codes_are_held_once(config, tmp_path):
    """As they are read, after products of one row, and after those of many."""
    done = python("-c", SCRIPT, config, str(tmp_path / "layers.safetensors"))
    assert done.returncode == 0, done.stderr
    packed, *taken = map(int, done.stdout.split())
    assert packed > 36e6
    assert all(0.95 * packed <= each <= 1.12 * packed for each in taken), [round(each / packed, 3) for each in taken]
