"""Compiled kernels as text: what registers and stack they use, which instructions their loops have."""

import re
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import nvidia

from codegemm.engines.cuda import compiler

REGISTERS = 65536  # of a multiprocessor
_BINARIES = [path for folder in nvidia.__path__ for path in Path(folder).glob("*/bin")]


def compile_all(kernels):
    """Compile each (source, instance, architecture), all at once, to be found by `cubin_of`."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda kernel: cubin_of(*kernel), kernels))


@cache
def cubin_of(source, instance, arch):
    """The path of its cubin in the user's cache: what did not change is compiled once for all runs of the tests."""
    return compiler.build(source, instance, arch)


def _run(tool, *arguments):
    [command] = [folder / tool for folder in _BINARIES if (folder / tool).exists()]
    return subprocess.run([command, *arguments], capture_output=True, text=True, check=True).stdout


def resources(cubin):
    """Registers, bytes of stack (spills are there) and of static shared memory, by name as cuobjdump prints them."""
    text = _run("cuobjdump", "-res-usage", cubin)
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", text)}


@cache
def listing_of(cubin):
    """A kernel's instructions in their order, and where its labels stand among them."""
    listing, places = [], {}
    for line in _run("nvdisasm", "-c", "-ndf", cubin).splitlines():  # without an analysis that only annotates them
        label = re.match(r"\s*(\.L_\w+):", line)
        instruction = re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?)\s*;", line)
        if label:
            places[label[1]] = len(listing)
        elif instruction:
            listing.append(instruction[1])
    return listing, places


def smallest_loop(cubin, opcode, at_least):
    """The instructions of the smallest loop that has so many of an opcode: a count by opcode."""
    listing, places = listing_of(cubin)
    loops = []
    for end, text in enumerate(listing):
        target = re.search(r"\bBRA\b.*?(\.L_\w+)", text)
        if target and places[target[1]] <= end:
            body = Counter(_opcode(line).split(".")[0] for line in listing[places[target[1]] : end + 1])
            if body[opcode] >= at_least:
                loops.append(body)
    return min(loops, key=Counter.total)


def _opcode(text):
    words = text.split()
    return words[1] if words[0].startswith("@") else words[0]
