"""CUDA sources, read by the CUDA engine; imported as codegemm.kernels_cu."""

if __name__ == "kernels_cu":
    raise ImportError("import this package as codegemm.kernels_cu")

from pathlib import Path

FOLDER = Path(__file__).parent
