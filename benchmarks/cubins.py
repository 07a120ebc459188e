"""`make cubins`: everything that `make gpu` loads, compiled on a machine that needs no GPU.

python -m benchmarks.cubins FOLDER [--arch 90,80], from the repository's root. `make gpu CUBINS=FOLDER` takes it from
there, whatever version the GPU's machine has of NVRTC; which one made the cubins stands in FOLDER/nvrtc.txt.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain
from os import cpu_count
from pathlib import Path
from unittest import mock

from benchmarks import cuts
from benchmarks.gpu import PARTS
from codegemm import choice, devices, tables
from codegemm.engines.builds import CompilerError
from codegemm.engines.cuda import compiler, gemm, kernel
from codegemm.engines.cuda.compiler import Build
from codegemm.engines.cuda.gpu import KNOWN, Gpu
from codegemm.reproduction import lab

# The GPU whose limits stand for all of its architecture.
GPUS = {gpu.arch: gpu for gpu in KNOWN.values()}


def main(arguments: list[str] | None = None) -> int:
    """0 unless something could not be compiled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arch", default="90", help=f"of {', '.join(map(str, GPUS))}, separated by commas")
    chosen = parser.parse_args(arguments)
    wanted = chosen.arch.split(",")
    for arch in wanted:
        if arch not in map(str, GPUS):
            parser.error(f"architecture {arch!r}: must be of {', '.join(map(str, GPUS))}")
    begin = time.monotonic()
    builds = list(chain.from_iterable(builds_for(GPUS[int(arch)]) for arch in wanted))
    chosen.folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(cpu_count()) as pool:
        failed = [error for error in pool.map(partial(_compile, chosen.folder), builds) if error]
    version = ".".join(map(str, compiler.version()))
    (chosen.folder / "nvrtc.txt").write_text(f"{version}\n")
    print(f"{len(builds) - len(failed)} cubins by NVRTC {version} in {time.monotonic() - begin:.0f} s")
    for error in failed:
        print(f"failed: {error}")
    return len(failed)


def builds_for(gpu: Gpu) -> list[Build]:
    """What the parts of `make gpu` compile on such a GPU, each once."""
    with _as_if(gpu):
        builds = dict.fromkeys(build for part in PARTS.values() for build in part.builds())
    builds[Build("spin.cu", "spin", gpu.arch)] = None
    return [build for build in builds if isinstance(build, Build)]


@contextmanager
def _as_if(gpu: Gpu) -> Iterator[None]:
    """`cuda:0` is such a GPU, as far as decisions go."""
    with (
        mock.patch.object(kernel, "gpu_of", return_value=gpu),
        mock.patch.object(cuts, "gpu_of", return_value=gpu),
        mock.patch.object(choice, "gpu_of", return_value=gpu),
        mock.patch.object(lab, "gpu_of", return_value=gpu),
        mock.patch.object(tables, "tuned", return_value=()),
        mock.patch.object(devices, "unavailable", return_value=None),
        mock.patch.object(gemm, "unavailable", return_value=None),
    ):
        yield


def _compile(folder: Path, build: Build) -> str | None:
    """The cubin into the folder, unless it is there; what went wrong."""
    place = folder / f"{compiler.key_elsewhere(build.source, build.instance, build.arch)}.cubin"
    if place.exists():
        return None
    try:
        place.write_bytes(build().read_bytes())
    except CompilerError as error:
        return str(error)
    return None


if __name__ == "__main__":
    sys.exit(main())
